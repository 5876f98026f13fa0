"""`headstart run`: what the command tells the program's processes, and how it gets there.

    headstart run app.py      HEADSTART_RUN = RunConfig, PYTHONPATH = startup/ + …, execve(python app.py)
      └▶ python app.py          site ─▶ startup/sitecustomize.py ─▶ the user's own ─▶ start(orders) ─▶ enabling
           ├▶ fork                inherits what is enabled
           └▶ spawn, torchrun, subprocess: another Python, the same way through the environment

The command becomes the program: same process, and a plain `python app.py`. So `__main__`, `sys.argv`, exit codes,
signals and tracebacks are Python's own, nothing of the command line's libraries is loaded, and children find what they
need in the environment. `runpy` gives none of the last three.

Only the process that the command became replays: its children find what it has compiled in the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.adapters.bundle_use import UseTally, report, sentence, use_of, write_statistics
from headstart.errors import UsageError
from headstart.system.variables import required

if TYPE_CHECKING:
    from headstart.adapters.bundle_use import UsesBundle
    from headstart.client.use import BundleUse

VARIABLE = "HEADSTART_RUN"
VERSION = 1  # of the orders: those of another headstart are not understood
KEPT_DAYS = 90  # days for which a kernel that no run asks for stays in a program's record
# What Triton and torch say where there is none.
_NO_GPU = (
    *("0 active drivers", "No CUDA GPUs are available", "Found no NVIDIA driver", "not compiled with CUDA enabled"),
    *("no NVIDIA GPU", "No HIP GPUs are available"),
)
STARTUP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "startup")


class RunConfig(NamedTuple):
    """What holds for the program and its children. Paths are absolute.

    Attributes:
        pid: of the process that replays.
        program: as `headstart.adapters.recording` names it.
        record: manifest to record into; None: nothing is recorded.
        replay: manifest to replay; None: none.
        trusted: whether `replay` was recorded by this user's own programs.
        bundle: bundle to start from and to extend.
        trust_bundle: whether what carries code in it may be loaded, whoever signed it.
        reuse_tuning: whether autotuners take the choices in `replay` without benchmarking.
        workers: compiles at a time; None: the default.
        target: of a dry run; None: this is none.
        verbose: whether to say at the end what became of the replay, and of the bundle.
        quiet: whether not to say it of the bundle either, which is said where stderr is a terminal.
        tally: where processes tell what they took from the bundle; see `headstart.adapters.bundle_use`.
        is_judged: whether the command waits for the program and says what there is to say.
        stats: file for the same as data; None: none.
        run: name of this run, for its log.
    """

    pid: int
    program: str
    record: str | None = None
    replay: str | None = None
    trusted: bool = False
    bundle: str | None = None
    trust_bundle: bool = False
    reuse_tuning: bool = False
    workers: int | None = None
    target: str | None = None
    verbose: bool = False
    quiet: bool = False
    tally: str | None = None
    is_judged: bool = False
    stats: str | None = None
    run: str = ""

    def encode(self) -> str:
        """As the value of an environment variable."""
        return json.dumps({"version": VERSION, **self._asdict()})

    @classmethod
    def decode(cls, text: str) -> RunConfig | None:
        """What `encode` made; None if another version of headstart, or something else, did."""
        try:
            told: dict[str, Any] = json.loads(text)
            return cls(**told) if told.pop("version") == VERSION else None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def start(text: str) -> None:
    """Enable what the orders say, in this process. Called before the program's first line; it goes on in any case."""
    orders = RunConfig.decode(text)
    if orders is None:
        return
    try:
        _carry_out(orders)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not be the program's
        if required():
            # An exception would be no more than a line on stderr to the `site` that called.
            _say(str(error))
            os._exit(1)
        _say(f"the program runs without headstart: {type(error).__name__}: {error}")


def _carry_out(orders: RunConfig) -> None:
    from headstart.adapters.options import EnableOptions
    from headstart.adapters.process import begin

    is_main = os.getpid() == orders.pid
    choices = EnableOptions(
        manifest=orders.replay if is_main or orders.reuse_tuning else None,
        bundle=orders.bundle,
        trust_bundle=orders.trust_bundle,
        record=orders.record,
        reuse_tuning=orders.reuse_tuning,
        workers=orders.workers,
        program=orders.program,
        kept_days=KEPT_DAYS,
        trusted=orders.trusted,
        target=orders.target,
        replays=is_main,
        torch_when_used=True,
        run=orders.run,
    )
    if orders.verbose and is_main:
        choices = choices._replace(report=_say)
    if orders.bundle is not None or orders.record is not None or orders.stats is not None:
        choices = choices._replace(tell_use=_Teller(orders))
    begin(choices)


class _Teller:
    """Says at the end of this process, and of its forks, what came from the bundle.

    The program's own process says it to people, for all processes of the run. The others tell that process; or all of
    them tell the command that waits for the program, which then judges it (`RunConfig.is_judged`).
    """

    def __init__(self, orders: RunConfig) -> None:
        self._orders = orders
        self._is_said = is_to_be_said(orders)
        self._why = orders.is_judged or orders.stats is not None
        self._tally: UseTally | None = None
        self._begun: dict[int, int] = {}  # when this program began, by process: this one, and its forks
        self._heard: set[int] = set()  # processes that have told of their first miss
        if os.getpid() == orders.pid and not orders.is_judged and (self._is_said or orders.stats is not None):
            with contextlib.suppress(OSError, AttributeError):  # no such files here: then it says its own
                self._tally = UseTally()
                self._orders = orders._replace(tally=self._tally.path)
                os.environ[VARIABLE] = self._orders.encode()
        if orders.is_judged:
            from headstart.client.use import hear_of_misses

            hear_of_misses(self._hear)

    def __call__(self, adapters: Sequence[UsesBundle]) -> None:
        """This process ends; `adapters`: those that were of use."""
        orders, is_main = self._orders, os.getpid() == self._orders.pid
        if is_main and self._is_said and orders.target is None and (hint := without_gpu(orders.program)):
            _say(hint)
        is_asked = is_main and (orders.is_judged or orders.bundle is not None or orders.stats is not None)
        if not adapters and not is_asked:
            return  # it is much to load for nothing
        if not is_main or orders.is_judged:
            if orders.tally is not None:
                report(orders.tally, self._who(), use_of(adapters, why=self._why))
        elif self._is_said or orders.stats is not None:
            use = use_of(adapters, why=self._why)
            say_use(orders, use if self._tally is None else self._tally.total(use), is_said=self._is_said)

    def _hear(self) -> None:
        """Something is missed in this process, which may not live to say what."""
        if os.getpid() not in self._heard and self._orders.tally is not None:
            self._heard.add(os.getpid())
            report(self._orders.tally, self._who(), None)

    def _who(self) -> str:
        return f"{os.getpid()} {self._begun.setdefault(os.getpid(), time.monotonic_ns())}"


def without_gpu(program: str) -> str:
    """What may help a program that just ended for want of a GPU; empty if it did not.

    Told by the exception that it ended with, which Python has printed by now. Nothing is asked of the machine: many a
    program does without a GPU.
    """
    error: BaseException | None = getattr(sys, "last_value", None)
    if type(error) not in (RuntimeError, AssertionError) or not any(words in str(error) for words in _NO_GPU):
        return ""
    shown = " ".join(program.split()[:2]) if program.startswith("-m ") else shlex.quote(program)
    return (
        f"there is no GPU here; headstart run --dry-run --target h100 {shown} launches nothing, and compiles for one "
        "what the program warms up"
    )


def is_to_be_said(orders: RunConfig) -> bool:
    """Whether a person is told at the end what came from the bundle."""
    return orders.verbose or (not orders.quiet and sys.stderr is not None and sys.stderr.isatty())


def say_use(orders: RunConfig, use: BundleUse, *, is_said: bool) -> None:
    """To a person if `is_said`, and into the file for statistics if there is to be one."""
    if is_said and (text := sentence(orders.bundle, use)):
        _say(f"{text} (headstart report)" if _is_written_down(orders) else text)
    if orders.stats is not None:
        try:
            write_statistics(orders.stats, orders.bundle, use)
        except (OSError, UsageError) as error:
            _say(f"no statistics are written: {error}")


def _is_written_down(orders: RunConfig) -> bool:
    from headstart.artifacts.run_records import FOLDER
    from headstart.system.folders import cache_dir

    try:
        return bool(orders.run) and os.path.isdir(cache_dir() / FOLDER / orders.run)
    except UsageError:
        return False


def _say(text: str) -> None:
    """A line on stderr, which a program may have been started without."""
    if sys.stderr is not None:
        sys.stderr.write(f"headstart: {text}\n")
        sys.stderr.flush()


def command(program: Sequence[str]) -> list[str]:
    """The command line that runs `program` (`["app.py", …]` or `["-m", "module", …]`) as this Python would.

    Raises:
        UsageError: this Python was started with an option that shuts the environment out.
    """
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise UsageError("headstart run reaches the program through its environment: start it without -E, -I and -S")
    if not sys.executable:
        raise UsageError("headstart run: this Python does not know where its executable is")
    flags: list[str] = vars(subprocess)["_args_from_interpreter_flags"]()  # multiprocessing relies on it as well
    return [sys.executable, *flags, *program]


def environment(orders: RunConfig) -> dict[str, str]:
    """This process's environment with `orders` in it."""
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != STARTUP]
    # An empty entry would be the current folder.
    given = [os.pathsep.join(path)] if "PYTHONPATH" in os.environ and path != [""] else []
    return {**os.environ, VARIABLE: orders.encode(), "PYTHONPATH": os.pathsep.join([STARTUP, *given])}


def become(program: Sequence[str], variables: Mapping[str, str]) -> None:
    """Replace this process by `program`, run by this Python.

    Raises:
        UsageError: as `command`.
        OSError: the interpreter cannot be started.
    """
    arguments = command(program)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as `>&-` has it
            stream.flush()
    os.execve(arguments[0], arguments, dict(variables))


def find_module(name: str) -> str | None:
    """The file that `python -m name` would run, found without importing anything; None if there is none."""
    where = list(sys.path)
    if not getattr(sys.flags, "safe_path", False):
        with contextlib.suppress(FileNotFoundError):  # it was removed: then Python searches without it
            where.insert(0, os.getcwd())
    spec: ModuleSpec | None = None
    for index, part in enumerate(name.split(".")):
        # Below the first, by its last name: given a dotted one, finders of namespaces look for the imported parent.
        spec = _find(part, where) if index == 0 else PathFinder.find_spec(part, where)
        if spec is None:
            return None
        if spec.submodule_search_locations is None:
            where = []
        elif spec.origin is None:  # a namespace package, whose own list would be made for `part` alone
            where = [os.path.join(folder, part) for folder in where]
        else:
            where = list(spec.submodule_search_locations)
    if where:
        spec = PathFinder.find_spec("__main__", where)
    return None if spec is None else spec.origin


def _find(name: str, path: Sequence[str]) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None
