"""Measures headstart in whole processes, against its goals and against what it replaces: `python -m benchmarks`.

    machine     what it ran on
    measure     one run of a subject in a fresh process; rounds of subjects in turn; figures made of them
    workloads   the kernels that are compiled
    subjects/   the programs that are run and timed, each a script of its own
    rows/       which subjects answer which row of the table, and how
    report      the table, and what is kept of it
    remote/     stores that hosts share, with a table of its own: `python -m benchmarks.remote`

How it is measured:

* Every run is a new Python process with new, empty folders for headstart's and Triton's caches; `HEADSTART_*` and
  `TRITON_*` variables of the caller are not passed on. Only byte code and the operating system's file cache are warm.
* Alternatives run in turn (A B C A B C …), with the same number of workers. A ratio is taken within each round, between
  neighbours in time; its median is the figure, and least and greatest are shown beside it.
* Wall time is from before the process is started until it is reaped. CPU time is that of the process and of everything
  below it.
"""
