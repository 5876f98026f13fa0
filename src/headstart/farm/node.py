"""What runs on a node of a farm: one Ray actor, which has a service of its own compile for everybody who asks.

    bridges ── exchange(bytes) ─▶ Node (an asyncio actor) ── Submit ─▶ private service ─▶ zygote, workers
            ◀─ bytes ────────────      ▲                  ◀─ Result ──┘  (a child by exec; ends at EOF)
                                       └─ call_soon_threadsafe ── the client's thread

Guarantees:

* A job whose toolchain this node has not got is refused, and so is one that may be more than a kernel. What is compiled
  is compiled confined (docs/security.md), unless the node was started to trust those who ask.
* One compile per key at a time, whoever asks; what has not begun can be taken back.
* What is sent is what lies in this node's store under the key that was asked for, and nothing else. It is signed only
  if this node's own workers made it since it was started: others may write to a store.
* A job's key is that of its request and toolchain, or it is refused: nobody gets one kernel for another.
* Results are kept until their bridge says that they have arrived, or has not been heard for `FORGOTTEN` seconds.

No Ray here: `ray_cluster.py` makes an actor of this class. Everything but `_made` runs in the actor's event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import platform
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from headstart.artifacts.vetting import check_request
from headstart.client.client import Client
from headstart.client.policy import Policy
from headstart.describe.facts import find_torch
from headstart.errors import HeadstartError, ServiceError, UsageError
from headstart.model.keys import entry_key
from headstart.model.request import KERNEL, CompileRequest
from headstart.model.toolchain import Toolchain, find_toolchain
from headstart.stores.remote.sealing import Signer, keyring_in, seal
from headstart.system.confinement import unavailable
from headstart.system.places import config_dir
from headstart.wire.farm import (
    MAX_TEXT,
    MAX_WORKERS,
    Exchange,
    Exchanged,
    NodeJob,
    NodeOptions,
    NodeResult,
    NodeState,
    pack,
    unpack,
)
from headstart.wire.outcomes import Result

FORGOTTEN = 120.0  # seconds after which a bridge that says nothing is gone
_MOST_SESSIONS = 1024
_MOST_WAITING = 100_000  # jobs
_MOST_OWN = 100_000  # entries that are known to be made here
_SHOWN = 64  # names of kernels that are being compiled

_log = logging.getLogger("headstart.farm")


class _Session:
    """One bridge."""

    def __init__(self) -> None:
        self.results: deque[tuple[int, NodeResult]] = deque()
        self.serial = 0
        self.news = asyncio.Event()
        self.heard = time.monotonic()
        self.known: dict[int, _Compile] = {}  # by ticket

    def answer(self, result: NodeResult) -> None:
        self.known.pop(result.ticket, None)
        self.serial += 1
        self.results.append((self.serial, result))
        self.news.set()


class _Compile:
    """One job, for all who ask for it."""

    def __init__(self, job: NodeJob, request: CompileRequest, policy: Policy, vouched: bool) -> None:
        self.job = job
        self.request = request
        self.policy = policy
        self.vouched = vouched
        self.begun = False
        self.signed = False
        self.askers: list[tuple[_Session, int]] = []


class Node:
    """The actor.

    Args:
        options: `NodeOptions`, packed.
        name: of this node, for people and for its cache folder.
        cpus: how many the node has.
    """

    def __init__(self, options: bytes, name: str, cpus: int) -> None:
        self._options = unpack(options, NodeOptions)
        # A farm or remote of its own, or a service that outlives it, this one must not have, whatever the node is
        # configured to.
        os.environ.update(HEADSTART_FARM="", HEADSTART_REMOTE="", HEADSTART_SERVICE="private")
        if self._options.niceness:
            os.nice(self._options.niceness)
        self._name = name
        self._workers = min(self._options.workers or max(1, cpus), MAX_WORKERS)
        self._incarnation = os.urandom(8).hex()
        self._sessions: dict[str, _Session] = {}
        self._compiles: dict[tuple[str, bool], _Compile] = {}
        self._waiting: deque[_Compile] = deque()
        self._running: set[_Compile] = set()
        self._compiled = 0
        self._own: dict[str, bytes] = {}  # SHA-256 of the entries that workers here made, by key; the latest
        self._unable = "" if self._options.trusts else unavailable()
        if self._unable:
            self._unable = f"its workers cannot be confined: {self._unable}; headstart farm up --trust does without"
        self._policies: dict[str, Policy] = {}  # by the digest of their toolchain
        self._triton = ""
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._files = ThreadPoolExecutor(1, "headstart-files")
        self._signer: Signer | None = None
        self._ready = threading.Event()
        self._files.submit(self._prepare)

    def _prepare(self) -> None:
        """Find out what this node compiles with, which may take seconds, and have workers ready. In a thread."""
        try:
            if not self._unable:
                folder = self._options.cache_dir.replace("{node}", self._name)
                client = Client(workers=self._workers, cache_dir=folder or None)
                found = find_toolchain()
                self._triton = found.triton_version
                toolchains = [found]
                torch = find_torch()
                if torch is not None:
                    toolchains.append(msgspec.structs.replace(found, torch_dir=torch.folder))
                policies = {}
                for toolchain in toolchains:
                    policy = Policy(find=functools.partial(_itself, toolchain), environment=dict)
                    policies[policy.toolchain_digest(client.settings.cache_dir)] = policy
                client.start(next(iter(policies.values())), vouched=self._options.trusts)
                self._signer = Signer(keyring_in(_config_dir()), client.settings.remote_key)
                self._client, self._policies = client, policies
        except HeadstartError as error:
            self._unable = str(error)
        except Exception as error:  # noqa: BLE001 - whoever asks for its state must hear of it
            _log.exception("this node of a farm compiles nothing; this is a bug")
            self._unable = f"{type(error).__name__}: {error}"
        finally:
            self._ready.set()

    async def exchange(self, data: bytes) -> bytes:
        """Take new jobs, and say what has come of those before; see `wire.farm.Exchange`.

        Raises:
            ValueError: `data` is no such message.
        """
        message = unpack(data, Exchange)
        self._loop = asyncio.get_running_loop()
        if not self._ready.is_set():
            await self._loop.run_in_executor(None, self._ready.wait)
        self._forget_gone()
        session = self._sessions.get(message.session)
        if session is None:
            session = self._sessions[message.session] = _Session()
        session.heard = time.monotonic()
        while session.results and session.results[0][0] <= message.acked:
            session.results.popleft()
        for job in message.jobs:
            self._take(session, job, message.signed)
        for ticket in message.dropped:
            self._drop(session, ticket)
        self._pump()
        if message.wait > 0 and not session.results:
            session.news.clear()
            try:
                await asyncio.wait_for(session.news.wait(), message.wait)
            except asyncio.TimeoutError:
                pass
            session.heard = time.monotonic()
        return pack(self._said(session, message.most))

    async def leave(self) -> None:
        """End the service, and everything below it: this actor is about to be ended."""
        client, self._client = self._client, None
        self._unable = "it is being ended"
        if client is not None:
            await asyncio.get_running_loop().run_in_executor(None, client.close)

    def state(self) -> NodeState:
        """How it is."""
        running = [each.request.name[:MAX_TEXT] for each in self._running]
        return NodeState(
            workers=self._workers,
            running=running if len(running) <= _SHOWN else [*running[:_SHOWN], *[""] * (len(running) - _SHOWN)],
            queued=len(self._waiting),
            compiled=self._compiled,
            toolchains=[] if self._unable else list(self._policies),
            triton_version=self._triton,
            unable=self._unable[:MAX_TEXT],
        )

    def _said(self, session: _Session, most: int) -> Exchanged:
        results: list[NodeResult] = []
        size = serial = 0
        for number, result in session.results:
            size += len(result.blob) + len(result.why)
            if results and size > most:
                break
            results.append(result)
            serial = number
        begun = [ticket for ticket, each in session.known.items() if each.begun]
        has_more = len(results) < len(session.results)
        return Exchanged(self._incarnation, serial, results, begun, has_more, self.state())

    # Jobs

    def _take(self, session: _Session, job: NodeJob, signed: bool) -> None:
        if job.ticket in session.known or any(each.ticket == job.ticket for _, each in session.results):
            return  # Ray has called again
        policy = self._policies.get(job.toolchain)
        if self._unable or policy is None:
            mine = ", ".join(each[:12] for each in self._policies) or "none"
            why = self._unable or (
                f"it has Triton {self._triton} and Python {platform.python_version()} (toolchain {mine}), "
                f"and {job.toolchain[:12]} is asked for"
            )
            session.answer(NodeResult(job.ticket, why=why[:MAX_TEXT], refused=True))
            return
        if len(self._waiting) >= _MOST_WAITING:
            session.answer(NodeResult(job.ticket, why="too many jobs wait there"))
            return
        vouched = job.vouched and self._options.trusts
        try:
            request = msgspec.msgpack.decode(job.request, type=CompileRequest)
            why = f"it is no kernel, but a {request.kind}" if request.kind != KERNEL else ""
            if not why and job.key != entry_key(job.toolchain, request.digest()):
                why = "its key is another request's"
            why = why or ("" if vouched else check_request(request) or "")
        except (msgspec.DecodeError, ValueError, RecursionError, UsageError) as error:
            why = f"it is no request: {error}"
        if why:
            session.answer(NodeResult(job.ticket, why=why[:MAX_TEXT]))
            return
        found = self._compiles.get((job.key, vouched))
        if found is None:
            found = self._compiles[job.key, vouched] = _Compile(job, request, policy, vouched)
            self._waiting.append(found)
        found.signed |= signed
        found.askers.append((session, job.ticket))
        session.known[job.ticket] = found

    def _drop(self, session: _Session, ticket: int) -> None:
        found = session.known.get(ticket)
        if found is None or found.begun:
            return
        found.askers.remove((session, ticket))
        session.answer(NodeResult(ticket, why="it was taken back"))
        if not found.askers:
            self._waiting.remove(found)
            del self._compiles[found.job.key, found.vouched]

    def _pump(self) -> None:
        """Hand on what workers are free for."""
        while self._waiting and len(self._running) < self._workers and self._client is not None:
            found = self._waiting.popleft()
            found.begun = True
            self._running.add(found)
            try:
                kickoff = self._client.submit(
                    found.request, found.policy, background=found.job.background, vouched=found.vouched
                )
            except ServiceError as error:
                self._settle(found, b"", str(error))
                continue
            kickoff.answer.add_done_callback(functools.partial(self._answered, found))

    def _answered(self, found: _Compile, answer: Any) -> None:
        """In the client's thread, which is not to wait for a disk."""
        try:
            self._files.submit(self._made, found, answer)
        except RuntimeError:
            pass  # it is being ended

    def _made(self, found: _Compile, answer: Any) -> None:
        """In a thread: read and seal what is in the store."""
        blob, why = b"", ""
        try:
            result = answer.result(0)
            if result.key != found.job.key:
                why = "its toolchain has changed since it was started"
            elif result.entry or self._client is None:
                why = (
                    "what it made is not kept: it depends on more than was sent, or the node's store cannot be written"
                )
            else:
                digest = found.request.digest()
                entry = self._client.store.find(result.key, kind=KERNEL, request_digest=digest)
                if entry is None:
                    why = "its store has lost it"
                else:
                    blob, why = self._seal(result, entry.raw(), signed=found.signed)
        except (HeadstartError, OSError) as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - whoever waits for it must hear of it
            _log.exception("a compile's result is lost; this is a bug")
            why = f"{type(error).__name__}: {error}"
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._settle, found, blob, why)
        except RuntimeError:
            pass  # it is being ended

    def _seal(self, result: Result, entry: bytes, *, signed: bool) -> tuple[bytes, str]:
        """An entry to be sent, or why it is not."""
        digest = sha256(entry).digest()
        if not (result.cached or result.remote):
            self._own[result.key] = digest
            if len(self._own) > _MOST_OWN:
                del self._own[next(iter(self._own))]
        if not signed:
            return seal(entry, None), ""
        if self._own.get(result.key) != digest:
            return (
                b"",
                "it was in this node's store before, and a node signs only what it has made since it was started",
            )
        return seal(entry, self._signer), ""

    def _settle(self, found: _Compile, blob: bytes, why: str) -> None:
        self._running.discard(found)
        self._compiles.pop((found.job.key, found.vouched), None)
        self._compiled += bool(blob)
        for session, ticket in found.askers:
            session.answer(NodeResult(ticket, blob, why[:MAX_TEXT]))
        self._pump()

    def _forget_gone(self) -> None:
        """Drop what bridges wanted that are gone."""
        now = time.monotonic()
        gone = [name for name, each in self._sessions.items() if now - each.heard > FORGOTTEN]
        if len(self._sessions) - len(gone) > _MOST_SESSIONS:
            gone.append(min(self._sessions, key=lambda name: self._sessions[name].heard))
        for name in gone:
            session = self._sessions.pop(name)
            for ticket in list(session.known):
                self._drop(session, ticket)


def _itself(toolchain: Toolchain) -> Toolchain:
    return toolchain


def _config_dir() -> bytes:
    try:
        return os.fsencode(Path(config_dir()))
    except (UsageError, ServiceError):  # who has no home has no keys
        return b""
