"""The process that has torch: runs the decorators of generated sources, and says as plain data what is to be compiled.

    client ── Describe ─▶ service ─▶ import the source, with a `triton.compile` that only notes what it is given
           ◀─ Described ─         ◀─ (its jobs, and the arguments of CachingAutotuner)
           ── Rescale ──▶         ─▶ Inductor's own `_dynamic_scale_rblock`, given registers in place of a GPU
           ◀─ AddedJobs ─────          ◀─

No copy of Inductor's logic is kept here: signatures, constants, options, configurations and scaling come from running
it. The process sees no GPU, compiles nothing, and ends with the service that started it, or when nobody has asked for
anything for a while.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from typing import Any

import msgspec

from headstart.describe import facts, plain, recorder
from headstart.describe.recipe import (
    AddedJobs,
    Describe,
    Described,
    Function,
    Recipe,
    RecipeJob,
    Rescale,
    ToDescriber,
    Undescribed,
    job_of,
)
from headstart.model.environment import FINGERPRINT_VARIABLES
from headstart.system.spawn import die_with_parent
from headstart.system.titles import set_title
from headstart.wire import Answer, Awake, Deframer, frame, receive_blocking
from headstart.wire import ToDescriber as Questions

IDLE_TIMEOUT = 60.0  # seconds; it holds a whole torch in memory
_KEPT = 2000  # described sources that can be rescaled without being described again
_CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[ToDescriber] = msgspec.msgpack.Decoder(ToDescriber)


class Describer:
    """Runs decorators. One per process: it changes torch for good."""

    def __init__(self) -> None:
        self._recorder = recorder.DecoratorRecorder()
        self._autotuners: dict[str, Any] = {}  # by source
        self._given: set[str] = set()  # variables of the last order
        self._tools: dict[str, str | None] = {}

    def describe(self, order: Describe) -> Recipe:
        """Raises whatever the source raises, and `NotPlainDataError`."""
        started = time.perf_counter()
        self._take_over(order)
        with recorder.patched_config(plain.decode(order.config)):
            autotuner, path = self._recorder.load(order.name, order.source)
            arguments = self._recorder.arguments(autotuner)
            if type(autotuner) is not facts.heuristics().CachingAutotuner:  # a name may be anybody's
                raise plain.NotPlainDataError(f"a {type(autotuner).__module__}.{type(autotuner).__qualname__}")
            stem = os.path.splitext(os.path.basename(path))[0]
            recipe = Recipe(
                stem=stem,
                text=facts.read_source(path),
                device=autotuner.triton_meta.get("device") or 0,
                arguments=plain.encode(arguments),
                function=_outside(autotuner.fn),
                jobs=[self._job(autotuner, config) for config in autotuner.configs],
                may_scale=recorder.may_scale(autotuner),
                seconds=time.perf_counter() - started,
            )
        if recipe.may_scale:
            if len(self._autotuners) >= _KEPT:
                self._autotuners.clear()
            self._autotuners[order.source] = autotuner
        return recipe

    def _take_over(self, order: Describe) -> None:
        """Have the client's environment of when it kicked the source off: Triton's hash is made of it."""
        given = {**order.environment, **order.variables}
        for name in FINGERPRINT_VARIABLES | {_CACHE_FOLDER} | self._given:
            if name not in given:
                os.environ.pop(name, None)
        os.environ.update(given)
        self._given = set(given)
        tools = {name: order.variables.get(name) for name in facts.ASSEMBLER_VARIABLES}
        if tools != self._tools:
            self._tools = tools
            facts.forget_assembler()

    def rescale(self, order: Rescale) -> list[RecipeJob]:
        """AddedJobs for the configurations that `_dynamic_scale_rblock` will add."""
        source = order.described.source
        self._take_over(order.described)
        if source not in self._autotuners:
            self.describe(order.described)
        autotuner = self._autotuners[source]
        added = recorder.scaled_configs(autotuner, order.registers)
        return [self._job(autotuner, config) for config in added]

    def _job(self, autotuner: Any, config: Any) -> RecipeJob:
        return job_of(*self._recorder.compile_arguments(autotuner, config), config)


def _outside(fn: Any) -> Function:
    return Function(
        name=fn.__name__,
        module=fn.__module__,
        qualname=fn.__qualname__,
        arg_names=list(fn.arg_names),
        constexprs=[parameter.num for parameter in fn.params if parameter.is_constexpr],
        cache_key=fn.cache_key,
        src=fn.src,
        repr=fn.repr(fn) if callable(getattr(fn, "repr", None)) else fn.__name__,
    )


def _answer(describer: Describer, question: bytes) -> Described | AddedJobs | Undescribed:
    try:
        order = _decoder.decode(question)
        if isinstance(order, Describe):
            return Described(describer.describe(order))
        return AddedJobs(describer.rescale(order))
    except plain.NotPlainDataError as error:
        return Undescribed(f"it is described by {error}, which is no plain data")
    except Exception:  # noqa: BLE001 - whatever a generated source raises, its client is told
        return Undescribed(traceback.format_exc())


def main(argument: str) -> None:
    """Run a describer.

    Args:
        argument: the fd of its socket, and the process that starts it.
    """
    fd, parent = map(int, argument.split())
    die_with_parent(parent)  # of one thread: it would die with the thread that started it
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    describer = Describer()
    set_title("describer")
    try:
        sock.sendall(frame(Awake()))
        sock.settimeout(IDLE_TIMEOUT)
        for asked in receive_blocking(sock, Deframer(Questions)):
            answer = frame(Answer(asked.ticket, _encoder.encode(_answer(describer, asked.question))))
            sock.settimeout(None)
            sock.sendall(answer)
            sock.settimeout(IDLE_TIMEOUT)
    except (TimeoutError, ConnectionError):
        pass  # idle, or the service is gone
    sys.stderr.flush()
    os._exit(0)  # nothing of torch's is worth the time that its exit handlers take
