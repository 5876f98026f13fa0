"""The process between clients and workers: it queues, finds, answers, and starts and ends the others.

    server, sessions       who is connected, and what they say; listener: where clients of a shared service come in
    requests               from what a client asks to what it is told; lookup before a compile, results after it
    engine                 events in, actions out; history: the latest of both; errands: what may take long
    scheduler              decides which worker does what; backlog: jobs and who waits for them; workforce: workers and
                           what each is doing; dispatch: who gets whom; limits: of time and memory; blame: whose fault a
                           death was; with queue, claims, capacity; no I/O
    executor               what runs compiles, as a protocol; process_pool: zygotes and workers, on this host
    sources                torch.compile's: recipe, one compile per configuration, rescaling; recipes: in the stores;
                           describers: the processes that have torch
    loop, runtime          the selector; the folder that lives as long as a service
    intake                 what of a confined worker's answer is believed
    toolchains, reporting  what is known of clients' toolchains; the state of a service, for people

It imports neither Triton nor torch.
"""
