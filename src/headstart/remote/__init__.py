"""The process that has the stores of other hosts: all that a service does over a network is done here.

    process       what the service says, and who does it; how it ends
    finding       look-ups: in batches, verified, published into local stores; who waits for another host's compile
    publishing    what goes out: in the background, bounded in bytes
    watching      whether it is any use to ask
    local         local stores, and what a person is told of them

A service starts one for each setting of a remote (`headstart.service.remote_process`).
"""
