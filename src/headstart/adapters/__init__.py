"""How programs come by all of this without asking.

    process, options       enable() and disable(): both adapters in one process, and what it is to have of them
    run, startup           how a program gets there
    triton, inductor       programs that launch `@triton.jit` kernels; torch.compile
    fallback               what is left to the program's own process, counted and said once
    bundle_use             what the processes of a run took from its bundle, summed up
    recording, journal     what a program compiled, written down meanwhile; replay: kicked off at its next start

In doubt an adapter falls back, and says so.
"""
