"""The adapter for programs that use `@triton.jit`.

compat      everything that reaches into Triton's own objects
capture     a live function as plain data
"""
