"""What runs in the user's process. Never Triton's compiler, and nothing that waits unless the user does.

    async_compile          AsyncCompile; kernels: its future cache; future, kernel: what a caller gets
    client, policy         what all of a process share, and what differs between those who do
    connection             the socket and its thread; asked, prepared: what is sent; delivered: compiles that it does as
                           part of something else; service_state, watch, service_death: what is at its other end
    launch, sharing        how a service is started, and where a shared one is found; control: what it can be told
    bundler, bundled       reading and writing bundles; what they hold as answers
    vouching               what of bundles is trusted, and signed
    run_log, run_file      what is written down of a run, as it goes; kernel_log: of one request; run_notes: how; about:
                           what runs
    timeline, use          what became of the requests; what came out of bundles, and what did not

It imports neither `service` nor `worker`.
"""
