"""The client: one connection, one store, one bundle, for everybody in this process who compiles.

    AsyncCompile (a code generator's) ──┐
    AsyncCompile of jit.Adapter ────────┼─▶ Client ─▶ ServiceConnection ─▶ one service
    AsyncCompile of inductor.Adapter ───┘      └─▶ TritonBundler, DiskStore

The maker of a Client closes it. What differs between those who share one is their `Policy`.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.artifacts.bundle import Bundle
from headstart.artifacts.entry import Entry
from headstart.client import run_log, use
from headstart.client.bundler import TritonBundler
from headstart.client.policy import Policy
from headstart.errors import DamagedError, ServiceError, UsageError
from headstart.model.request import CompileRequest
from headstart.stores import open_store
from headstart.system.files import BUNDLE, check_replaceable
from headstart.system.folders import distrust, told
from headstart.system.settings import Settings

if TYPE_CHECKING:
    from headstart import wire
    from headstart.client.asked import Answered, Asked, Kickoff, SourceKickoff, SourceTaker
    from headstart.client.connection import ServiceConnection
    from headstart.client.service_state import RemoteCounted

_log = logging.getLogger("headstart")


class Client:
    """One per process, or per code generator that wants one of its own.

    Args:
        workers, cache_dir, bundle, trust_bundle, use_store: as for `AsyncCompile`.
        farm: as for `headstart.enable`.

    Attributes:
        settings: what holds for it.
        bundle: the bundle file that it reads and extends; None: none.
        unread: why nothing was read from it, for people; empty if it was.
        uses_store: whether results may come from a bundle or the store.
        keeps: whether they are also looked up and kept in the store: not in one that others can write.
        store: where they are.
        log: writes down what becomes of each kernel.
        bundler: notes what comes back.

    Raises:
        UsageError: as `AsyncCompile`.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        bundle: str | os.PathLike[str] | None = None,
        trust_bundle: bool = False,
        use_store: bool = True,
        farm: str | None = None,
    ) -> None:
        self.settings = settings = Settings.load(workers=workers, cache_dir=cache_dir, farm=farm)
        if settings.remote:
            _check_remotes(settings.remote)
        self.bundle: Path | None = None
        self.unread = "there is no bundle"
        self.store = open_store(settings.cache_dir, trusted=settings.trusts_cache_dir)
        self.uses_store = self.keeps = use_store
        if why := distrust(settings.cache_dir, trusted=settings.trusts_cache_dir):
            self.keeps = False
            if settings.cache_dir not in told:  # others in this program may have a Client
                told.add(settings.cache_dir)
                _log.warning("%s. Until then kernels are kept in memory only.", why)
        self.log = run_log.acquire(settings, keeps=self.keeps)
        self.bundler = TritonBundler()
        self.reproduce = functools.partial(_reproduce, settings.cache_dir / "failed")
        self._connection: ServiceConnection | None = None
        self._closed = False
        self._shown: set[str] = set()
        self._useful = False  # somebody can use something of the bundle
        self._judged = False  # somebody has been told that nobody can
        _clients.add(self)
        if bundle is not None:
            self.use_bundle(Path(bundle), trust=trust_bundle)

    def use_bundle(self, path: Path, *, trust: bool = False) -> None:
        """Read a bundle, and add to it, at the end, what was missing there.

        Args:
            trust: see `TritonBundler.read_and_emit`.

        Raises:
            UsageError: it is another file.
        """
        check_replaceable(path, BUNDLE)
        self.bundle = path
        self.bundler.begin_compile()
        try:
            self.bundler.read_and_emit(path, trust=trust)
            self.unread = ""
        except FileNotFoundError:
            self.unread = "the bundle was not there yet"
        except (DamagedError, OSError) as error:
            self.unread = f"the bundle could not be read: {error}"
            _log.warning("the bundle is not used, and is written anew: %s", error)

    # The service

    def start(self, policy: Policy, *, vouched: bool = True) -> None:
        """Have a service get workers ready for `policy`, in the background."""
        self._service().prepare(policy, vouched)

    def submit(
        self,
        request: CompileRequest,
        policy: Policy,
        answered: Answered | None = None,
        *,
        use_store: bool = True,
        background: bool = False,
        vouched: bool = True,
        triton_cache: wire.TritonCache | None = None,
    ) -> Kickoff:
        """Ask the service for a kernel; see `ServiceConnection.submit`."""
        return self._service().submit(
            request,
            policy,
            self.keeps and use_store,
            answered,
            bundled=use_store,
            background=background,
            vouched=vouched,
            triton_cache=triton_cache,
        )

    def prepare_describer(self, policy: Policy, stamp: str, settings: tuple[tuple[str, str], ...]) -> None:
        """Have a service get a describer ready, in the background; see `wire.DescriberSpec`."""
        self._service().prepare_describer(policy, stamp, settings)

    def describer_awake(self, settings: tuple[tuple[str, str], ...]) -> threading.Event:
        """Set while the describer with these settings answers within milliseconds."""
        return threading.Event() if self._closed else self._service().awake(settings)

    def submit_source(self, name: str, policy: Policy, taker: SourceTaker) -> SourceKickoff:
        """Ask the service for all that a source of torch.compile's needs; see `SourceKickoff`."""
        return self._service().submit_source(name, policy, taker)

    def in_flight(self) -> list[Asked[Any]]:
        """What workers are compiling now."""
        return [] if self._connection is None else self._connection.in_flight()

    def count_remotes(self) -> RemoteCounted:
        """Ask how it stands with the stores of other hosts. None: there is no service, or it ends before it answers."""
        return self._service().count_remotes()

    @property
    def services_started(self) -> int:
        """How many services it has started or joined: none while a bundle has everything, two after one died."""
        return 0 if self._connection is None else self._connection.launches

    @property
    def services_lost(self) -> int:
        """How many services had welcomed it and are gone all the same, with what they knew of published entries."""
        return 0 if self._connection is None else self._connection.service.lost

    def close(self) -> None:
        """Write the bundle that was given, if something was missing in it, and end the service.

        What is still being compiled is abandoned.
        """
        if self._closed:
            return
        try:
            if self.bundle is not None and self.bundler.noted:
                self.bundler.extend(self.bundle)
        except OSError as error:
            _log.warning("cannot write the bundle %s: %s", self.bundle, error.strerror)
        except UsageError as error:  # it is another file by now
            _log.warning("cannot write the bundle: %s", error)
        finally:
            if self.bundle is not None:
                settings = self.settings
                self.bundler.note_days(self.bundle, settings.cache_dir, trusted=settings.trusts_cache_dir)
            self.bundler.end_compile()
            self._closed = True
            if self._connection is not None:
                self._connection.close()
            run_log.release(self.log)

    def _service(self) -> ServiceConnection:
        if self._closed:
            raise ServiceError("this AsyncCompile is closed")
        if self._connection is None:
            # Importing is most of what a warm start from a bundle costs, and it needs none of this.
            from headstart.client.connection import ServiceConnection
            from headstart.client.introduction import preferences
            from headstart.client.launch import launch

            settings = self.settings
            self._connection = ServiceConnection(
                lambda: launch(settings),
                self.reproduce,
                preferences(settings, keeps=self.keeps),
            )
            weakref.finalize(self, self._connection.abandon).atexit = False
        return self._connection

    # Results

    def entry(self, kickoff: Kickoff, result: wire.Result) -> Entry:
        """The entry that `result` is about; it is compiled again if it was evicted, removed or damaged since.

        Raises:
            HeadstartError: there is none to be had.
        """
        return self._located(kickoff.request, result) or self.compile_again(
            kickoff.request, kickoff.policy, kickoff.answered, kickoff.vouched
        )

    def _located(self, request: CompileRequest, result: wire.Result) -> Entry | None:
        return (
            Entry.from_bytes(result.entry)
            if result.entry
            else self.store.find(result.key, kind=request.kind, request_digest=request.digest())
        )

    def compile_again(self, request: CompileRequest, policy: Policy, answered: Answered | None, vouched: bool) -> Entry:
        """Wait for the service to compile what was there before and is gone. Arguments as for `submit`.

        Raises:
            HeadstartError: it cannot.
        """
        kickoff = self.submit(request, policy, answered, vouched=vouched)
        entry = self._located(request, kickoff.answer.result())
        if entry is None:
            raise ServiceError(
                f"{request.name}: its entry vanishes from {self.settings.cache_dir} as soon as it is written"
            )
        return entry

    def show(self, name: str, log: wire.CompileLog) -> None:
        """Tell a person what the compile of a kernel printed. Many give the same warnings: they are read once."""
        if log.text and log.text not in self._shown:
            self._shown.add(log.text)
            _log.warning("compiling %s printed:\n%s", name, log.text)

    # What the bundle is good for

    def toolchain_digest(self, policy: Policy, bundle: Bundle, variables: Mapping[str, str] | None = None) -> str:
        """Of what compiles; where nothing can, of what made the bundle, if that was one toolchain.

        Args:
            variables: as for `Policy.toolchain_digest`.
        """
        try:
            return policy.toolchain_digest(self.settings.cache_dir, variables)
        except ServiceError:
            # A machine that only runs kernels needs no Triton: what the bundle was made with is what there is.
            toolchains = sorted(bundle.toolchains)
            return toolchains[0] if len(toolchains) == 1 else ""

    def is_useful(self) -> None:
        """Somebody can use something of the bundle."""
        self._useful = True

    def missed(self, policy: Policy) -> None:
        """Somebody asks the service for a kernel. If nobody could use anything of the bundle, say so and why, once."""
        use.miss()
        if self.bundle is not None and not (self._useful or self._judged):
            self._judged = True
            if self.bundler.holds_any():
                made, here = self.bundler.triton_version(), _triton_version(policy)
                why = "made for another Triton, torch or Python"
                if "" not in (made, here):
                    # The toolchain is known by content; a version is only what people call it.
                    why = (
                        f"made for Triton {made} (this is {here})"
                        if made != here
                        else f"made for another build of Triton {here}, another torch or another Python"
                    )
                _log.warning("%s was not used: its kernels were %s", self.bundle, why)

    def after_fork(self) -> None:
        """In a fork of the process."""
        self.bundler.after_fork()


def _triton_version(policy: Policy) -> str:
    try:
        return policy.toolchain().triton_version
    except ServiceError:
        return ""


def acquire(
    *,
    bundle: str | os.PathLike[str] | None = None,
    trust_bundle: bool = False,
    workers: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    farm: str | None = None,
) -> Client:
    """The client that this process's adapters share, made for the first of them; each gives it back by `release`.

    Args:
        bundle, trust_bundle: as for `AsyncCompile`; of the first adapter that names a bundle.
        workers, cache_dir: as for `AsyncCompile`; of the first adapter. `farm`: as for `headstart.enable`; the same.

    Raises:
        UsageError: as `AsyncCompile`.
    """
    global _shared, _holders
    with _lock:
        if _shared is None:
            _shared = Client(bundle=bundle, trust_bundle=trust_bundle, workers=workers, cache_dir=cache_dir, farm=farm)
        elif bundle is not None and _shared.bundle is None:
            _shared.use_bundle(Path(bundle), trust=trust_bundle)
        _holders += 1
        return _shared


def release() -> None:
    """One adapter has ended; with the last one the shared client is closed."""
    global _shared, _holders
    with _lock:
        _holders -= 1
        client = None
        if _holders == 0:
            client, _shared = _shared, None
    if client is not None:
        client.close()


_lock = threading.Lock()
_shared: Client | None = None
_holders = 0


def _check_remotes(urls: str) -> None:
    from headstart.stores.remote.urls import parse_urls  # few have any

    try:
        parse_urls(urls)
    except UsageError as error:
        raise UsageError(f"HEADSTART_REMOTE: {error}") from None


def _reproduce(folder: Path, request: CompileRequest) -> str:
    from headstart.artifacts.reproduce import write_plan  # only failures need it

    return write_plan(folder, request)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


@atexit.register
def _close_connections() -> None:
    # Registered here, not where connections are made: that module is loaded later than the handlers that still need it.
    connection: Any = sys.modules.get("headstart.client.connection")
    if connection is not None:
        connection.close_all()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for client in list(_clients):
        client.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
