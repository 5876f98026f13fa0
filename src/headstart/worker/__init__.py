"""The processes that have Triton: zygotes, and the workers that they fork, which compile.

    zygote                 one toolchain, imported once; forks workers, ends and reaps them
    worker                 one compile at a time: told by a service, into a store
    compiling              one compile, with Triton of any version; arguments, defining: its inputs; refusing: why not
    rebuilding             captured functions, made again; standins: what generated kernels import of torch
    cutoff                 where compiles that have become the same program are one
    output, whole          what a compile printed; whether an assembler's output is all there
    vetting_again          the second look at what nobody vouches for, as Triton parsed it

Nothing of it is ever imported by a client, or by a service.
"""
