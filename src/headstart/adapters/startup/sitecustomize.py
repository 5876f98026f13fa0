"""Runs before the first line of a program that `headstart run` started, and of the Pythons that this one starts.

Its folder is on PYTHONPATH, so any interpreter may come by, of any version and without headstart: nothing is imported
here but what every Python has, and without headstart nothing happens. A `sitecustomize` of the user's own, which this
one hides, runs first, as it would have.
"""

import os
import sys


def _without_this_folder() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]


def _run_the_users_own() -> None:
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


def _start() -> None:
    orders = os.environ.get("HEADSTART_RUN")
    if not orders:
        return
    try:
        from headstart.adapters.run import start
    except ImportError:
        return
    start(orders)


_without_this_folder()
try:
    _run_the_users_own()
finally:
    _start()
