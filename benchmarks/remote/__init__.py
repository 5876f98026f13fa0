"""Stores that hosts share: what another host gains by one, and what one costs that is of no use: `make bench-remote`.

    network     the stores, those of the tests; a way to one that takes time; servers that are none
    hosts       processes on hosts, and how long they take
    parts       what is compared, and the goals

How it is measured:

* Each measurement is a fresh process with a service of its own; kinds take turns, round by round, and a ratio is taken
  within a round. The first round is thrown away. CPU seconds are of all processes, that of the remote included, and of
  no server. A host is a cache folder.
* Redis, SeaweedFS (S3) and Docker's registry are those that `make test-remote` fetches, or that are installed; where
  one is missing its rows are left out. They run on the same cores.
* A store is filled by one host, which signs with an Ed25519 key; a second host trusts that key, as the default has it,
  and verifies each entry. Its time is from before it has a service until it has the bytes of every kernel's binary.
* 5 ms are those of a round trip, through a proxy that delays each piece by half of it, and limits nothing; connecting
  takes one too. With "its service up" the time begins once a kernel more has come the same way, so that it is without
  the start of the service and of the process that has the store.
* Triton's own: `RemoteCacheManager` with `RedisRemoteCacheBackend`, mended so far that it starts, on the same Redis, in
  a fresh process with an empty
  cache folder; `triton.compile` of the same kernels, one after another. Its time begins once Triton is imported and
  every source executed, so that it is that of hits alone; ours has the start of the service and its processes in it.
* Cold: nothing is stored, and kernels of `examples/` are compiled; the remote has nothing and is given everything
  ("misses"), accepts connections and never answers ("silent"), has a full queue of connections, so that the kernel
  drops every packet ("drops"), or is a port on which nobody listens ("nobody").
* Together: 4 hosts with a shared service and 4 clients each ask for the same kernels at once; what all services have
  compiled is counted.
"""
