"""A live `@triton.jit` function as plain data. Needs Triton's objects, and of headstart's the model."""
