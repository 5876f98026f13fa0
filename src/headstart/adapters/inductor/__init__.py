"""torch.compile: Inductor's kernels are compiled by headstart, and never in the training process.

    adapter                what Inductor's replaced names lead to; host: what the others need of it
    pool, source           what stands in for Inductor's pool; one generated source on its way to the service and back
    asking                 who asked for a source, and who waits for it
    jobs, layout           one compile each; its kernel as Triton's cache entry
    describing             the describer, as far as this process knows it
    recorded               torch.compile in the record: what is noted of a source, and how it is kicked off again
    recipes, local, thread what bundles have: recipes, the compiles of one, the thread that looks for them
    compat, integrity      what is relied on and replaced; what others have replaced
    caches                 where Inductor keeps things
    without_gpu            code generation for a GPU that is not there

Nothing here imports torch before the program does.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from headstart.errors import ServiceError
from headstart.system.variables import Mode, mode

if TYPE_CHECKING:
    from headstart.adapters.inductor.adapter import Adapter
    from headstart.adapters.recording import Recorder

__all__ = ["backend", "current", "disable", "enable"]

_log = logging.getLogger("headstart")
_lock = threading.Lock()
_current: Adapter | None = None


def enable(
    *,
    bundle: str | os.PathLike[str] | None = None,
    trust_bundle: bool = False,
    workers: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    recorder: Recorder | None = None,
    farm: str | None = None,
) -> None:
    """Have torch.compile's kernels compiled by headstart from now on.

    Returns at once, and may be called before `import torch`: the earlier, the sooner the workers are ready. Where
    headstart has to step aside (`HEADSTART=off`, a torch that it does not know, …) it says so in the log and changes
    nothing.

    Args:
        bundle: a bundle file. What it has is not compiled; what was missing is added when the process ends.
        trust_bundle: whether what carries code in it may be loaded, whoever signed it.
        workers: compiles that may run at once; default: the CPUs this process may use.
        cache_dir: where compiled kernels are kept; default: `HEADSTART_CACHE_DIR`, or the platform's cache folder.
        recorder: writes down what is compiled; whoever made it closes it.
        farm: `"ray"`, or the address of a Ray cluster whose machines compile as well; default: `HEADSTART_FARM`.

    Raises:
        UsageError: an argument or one of headstart's environment variables is not valid.
        ServiceError: headstart would have to step aside, and `HEADSTART=require`.
    """
    global _current
    with _lock:
        if _current is not None or mode() is Mode.OFF:
            return
        from headstart.describe import facts

        reason = _why_not(facts.find_torch(), facts.KNOWN_VERSIONS)
        if reason is not None:
            if mode() is Mode.REQUIRE:
                raise ServiceError(reason)
            _log.warning("%s", reason)
            return
        from headstart.adapters.inductor.adapter import Adapter
        from headstart.client.client import acquire, release

        client = acquire(bundle=bundle, trust_bundle=trust_bundle, workers=workers, cache_dir=cache_dir, farm=farm)
        try:
            _current = Adapter(client, recorder)
            _current.install()
        except BaseException:
            _current = None
            release()
            raise
        atexit.register(disable)


def disable() -> None:
    """Leave torch.compile as it was; if nothing else is enabled, write the bundle, and end headstart's processes."""
    global _current
    with _lock:
        adapter, _current = _current, None
    atexit.unregister(disable)
    if adapter is not None:
        from headstart.client.client import release

        try:
            adapter.close()
        finally:
            release()


def why_not() -> str | None:
    """Why torch.compile is left alone in this process, whatever is enabled; None: it is not."""
    from headstart.describe import facts

    return _why_not(facts.find_torch(), facts.KNOWN_VERSIONS)


def current() -> Adapter | None:
    """What `enable` made."""
    return _current


def backend(gm: Any, example_inputs: Any, *, mode: str | None = None, options: dict[str, Any] | None = None) -> Any:
    """`torch.compile(…, backend="headstart")`: Inductor, with `enable()` before it."""
    enable()
    from headstart.adapters.inductor import compat

    return compat.inductor(mode, options)(gm, example_inputs)


def _why_not(torch: Any, known: tuple[str, ...]) -> str | None:
    if torch is None:
        return "headstart.enable: there is no torch"
    if not torch.known:
        return f"headstart leaves torch {torch.version} alone: it knows {', '.join(known)}"
    return None
