"""A run as Chrome's trace format, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

from typing import Any

_QUEUE = "kernels"


def trace(data: dict[str, Any]) -> dict[str, Any]:
    """What `report_data` says, as trace events: times in microseconds, one track for each thread and worker."""
    kernels = data["kernels"]
    events: list[dict[str, Any]] = []
    for number, process in enumerate(data["processes"]):
        rank = f" rank {process['rank']}" if process["rank"] else ""
        title = {"name": f"{data['run']['program'] or data['run']['kind']}{rank} ({process['pid']})"}
        events.append({"ph": "M", "name": "process_name", "pid": number + 1, "tid": 0, "args": title})
    for track, lane in enumerate(data["lanes"], start=1):
        where = {"pid": lane["process"] + 1, "tid": track}
        events.append({"ph": "M", "name": "thread_name", **where, "args": {"name": lane["label"]}})
        events.append({"ph": "M", "name": "thread_sort_index", **where, "args": {"sort_index": track}})
        for begun, ended, place, what in lane["bars"]:
            kernel = kernels[place]
            told = {
                name: kernel[name]
                for name in ("name", "label", "target", "origin", "where", "error", "key", "compile_s")
                if kernel[name]
            }
            name = f"{kernel['name']} {kernel['label']}".strip()
            begins = {"name": name, "cat": what, "ts": _us(begun), **where, "args": {**told, "what": what}}
            shape = {"ph": "i", "s": "t"} if what == "kick-off" else {"ph": "X", "dur": _us(ended - begun)}
            events.append({**begins, **shape})
    for name, steps in data["queue"].items():
        for at, number in steps:
            events.append({"ph": "C", "name": f"{_QUEUE} {name}", "pid": 1, "ts": _us(at), "args": {name: number}})
    return {"displayTimeUnit": "ms", "otherData": {"headstart": data["run"]["id"]}, "traceEvents": events}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 1)
