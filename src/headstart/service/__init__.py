"""The other processes: what a client starts and never runs inside itself.

    plan       decides which worker does what; pure, no I/O
    standins   what generated kernels import of torch, without torch
    compiling  one compile, with Triton; everything that depends on Triton's version
    worker     the process that compiles
    zygote     the process that workers are forked from
    server     the process that owns the queue, the store and the others
    boot       starting a process of headstart's own
    launch     how a client starts a server

    config, runtime, reproduce: a service's settings, its folder, and failed kernels written down as plans
"""
