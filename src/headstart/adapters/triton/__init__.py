"""Programs that launch `@triton.jit` kernels: compiles go to workers, and come back as hits of Triton's own cache.

    adapter                in place of `triton.compile`; asks: one compile that the program asks for
    compat                 what is relied on of Triton's objects; patches: what is replaced; integrity: by others
    entries, relay         Triton's own cache; what a worker printed, warned of and raised, given again here
    autotune               autotuners: configurations kicked off together, winners recorded and reused
    for_bundle, durations  what only the bundle needs; how long compiles took
    dry_run                a driver that answers a target and launches nothing

Nothing here imports Triton before the program does.
"""
