"""The adapter for programs that use `@triton.jit`.

compat      everything that reaches into Triton's own objects
names       which names the text of a kernel uses
capture     a live function as plain data
replay      kicking off what an earlier run recorded
dry_run     a driver that answers a target and launches nothing
autotune    autotuners: configurations kicked off together, winners recorded and reused
adapter     Triton's hook and its cache manager

Nothing here imports Triton before the program does.
"""
