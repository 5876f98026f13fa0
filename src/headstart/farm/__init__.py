"""Other machines that compile: the bridge between a service and a Ray cluster, and what runs on its nodes.

    node          one actor a node: checks what comes, has a private service of its own compile it
    routing       which node gets which job; no I/O
    attending     the bridge's talk with one node: batches, retries, silence
    accepting     what a node made, verified and put into a local store
    own_cluster   which cluster HEADSTART_FARM=ray means
    ray_cluster   all that is Ray's: the only module that imports it
    bridge        the process

Nobody else imports any of it but `headstart farm`: a service starts the bridge by its name.
"""
