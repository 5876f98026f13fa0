"""The other processes: what a client starts and never runs inside itself.

    plan       decides which worker does what; pure, no I/O
    queue      who is next; part of the plan
    flights    who is at what others also came to, and who waits for that; part of the plan
    capacity   how many workers fit into the memory; pure, too
    standins   what generated kernels import of torch, without torch
    cutoff     where compiles that have become the same program are one
    compiling  one compile, with Triton; everything that depends on Triton's version
    worker     the process that compiles
    zygote     the process that workers are forked from
    loop       a service's selector
    herd       zygotes and workers, seen from the service
    server     the process that owns the queue and the others, and answers clients
    door       where clients of a shared server come in
    boot       starting a process of headstart's own
    sharing    where shared servers are found, and who may start one
    launch     how a client comes by a server, private or shared
    commands   what `headstart serve`, `status` and the like do
    toolchains what a server knows of its clients' toolchains

    config, runtime, reporting: a service's settings, its folder, its state for people
    failures, reproduce: failed kernels, remembered so that they are not tried again, and written down as plans
"""
