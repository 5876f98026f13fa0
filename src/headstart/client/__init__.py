"""What runs in the user's process. Never Triton's compiler, and nothing that waits unless the user does.

    async_compile          AsyncCompile; kernels: its future cache; future, kernel: what a caller gets
    client, policy         what all of a process share, and what differs between those who do
    connection             the socket and its thread; asked, prepared: what is sent; watch, service_death: its end
    launch, sharing        how a service is started, and where a shared one is found; control: what it can be told
    bundler, vouching      reading and writing bundles; what of them is trusted, and signed
    bundled, timeline      what they hold as answers; what became of the requests

It imports neither `service` nor `worker`.
"""
