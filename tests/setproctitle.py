"""In the place of setproctitle's own, for the processes of these tests: they are known by their command lines."""

raise ImportError("processes keep their command lines here")
