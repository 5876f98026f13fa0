"""What is compiled, and by what, as plain data: targets, toolchains, environments, requests, keys."""
