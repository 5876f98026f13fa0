"""What a note of a run's log becomes: records. In the thread that writes, long after whoever noted it went on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from headstart.artifacts import run_records as records
from headstart.client.about import plain

if TYPE_CHECKING:
    import concurrent.futures

    from headstart import wire
    from headstart.model.request import CompileRequest

LABELLING = 0.05  # CPU seconds for the labels of one frame: a source may have to be parsed for one
_MAX_TEXT = 300  # characters of an error or a reason


class AskedFor(Protocol):
    """A request as the log is told of it; `headstart.client.timeline.TimelineEntry` says what is in it."""

    @property
    def name(self) -> str: ...

    @property
    def kicked_off(self) -> float: ...

    @property
    def kickoff(self) -> Any: ...

    @property
    def request(self) -> CompileRequest | None: ...


class RecordMaker:
    """Makes the records of one file; see `headstart.client.kernel_log.Writer`.

    Args:
        zero: see `run_records.Head`.
    """

    def __init__(self, zero: float) -> None:
        self._zero = zero
        self._texts: dict[str, int] = {}
        self._new: list[records.Record] = []  # texts that are to be written before what has them
        self._tritons: set[str] = set()
        self._seen_policies: set[int] = set()
        self._labelling = 0.0

    def begin_frame(self) -> None:
        """What follows is written together."""
        self._labelling = 0.0

    def new_texts(self) -> list[records.Record]:
        """Those that came up since the last call."""
        new, self._new = self._new, []
        return new

    def ticks(self, at: float) -> int:
        """A time as it is written; below 0: somebody else had asked before this process began."""
        return round((at - self._zero) / records.TICK)

    def text(self, text: str) -> int:
        """The number of a text that comes often."""
        number = self._texts.get(text)
        if number is None:
            number = self._texts[text] = len(self._texts)
            self._new.append(records.Text(number, plain(text)))
        return number

    def asked_records(self, number: int, entry: AskedFor, where: str, thread: str) -> list[records.Record]:
        """See `run_records.Asked`; from a bundle, it is there as well."""
        kickoff = entry.kickoff
        request = entry.request if kickoff is None else vars(kickoff).get("request")  # one to be made stays so
        digest = "" if request is None else request.digest()
        asked = records.Asked(
            number,
            self.ticks(entry.kicked_off),
            self.text(entry.name),
            self.text(thread),
            self.text(where),
            self.text("" if request is None else request.target),
            bytes.fromhex(digest)[: records.SHORT],
            "" if request is None else self._label(request),
            kickoff is not None and kickoff.background,
        )
        if kickoff is not None:
            return [*self._tool(kickoff.policy), asked]
        return [asked, records.Done(number, asked.at, records.ORIGINS.index("bundle"), b"")]

    def outcome(
        self, number: int, at: float, answer: concurrent.futures.Future[wire.Result], worker: int
    ) -> list[records.Record]:
        """See `run_records.Done` and `Failed`."""
        if answer.cancelled():
            return [records.Done(number, self.ticks(at), records.ORIGINS.index("cancelled"), b"")]
        error = answer.exception()
        if error is not None:
            summary = shown(str(getattr(error, "summary", "") or error).strip().partition("\n")[0])
            stage = str(getattr(error, "stage", ""))
            return [records.Failed(number, self.ticks(at), self.text(type(error).__name__), self.text(stage), summary)]
        result = answer.result()
        key = bytes.fromhex(result.key)[: records.SHORT] if result.key else b""
        elsewhere = "farm" if result.farm else "remote" if result.remote else "store"
        origin = records.ORIGINS.index(elsewhere if result.cached else "worker")
        done = records.Done(number, self.ticks(at), origin, key)
        if not result.cached and result.finished:
            done.started, done.finished = self.ticks(result.started), self.ticks(result.finished)
            done.worker, done.cpu = worker, round(result.cpu_s / records.TICK)
            for name, microseconds in [] if result.log is None else result.log.times:
                done.stages += [self.text(name), round(microseconds * 1e-6 / records.TICK)]
        return [done]

    def wait(self, kind: Any, number: int, at: float, thread: str) -> list[records.Record]:
        """See `run_records.Blocked` and `Unblocked`."""
        return [kind(number, self.ticks(at), self.text(thread))]

    def _label(self, request: CompileRequest) -> str:
        from headstart.model.parameters import configuration_of  # a start that asks for nothing does without

        if self._labelling > LABELLING:
            return ""
        begun = time.thread_time()
        label = plain(configuration_of(request))
        self._labelling += time.thread_time() - begun
        return label

    def _tool(self, policy: Any) -> list[records.Record]:
        if id(policy) in self._seen_policies:
            return []
        self._seen_policies.add(id(policy))
        version = policy.toolchain().triton_version
        if version in self._tritons:
            return []
        self._tritons.add(version)
        return [records.Tool(plain(version))]


def shown(text: str) -> str:
    """A text that is written each time, and so cut short."""
    return plain(text)[:_MAX_TEXT]
