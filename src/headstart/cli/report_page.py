"""The page of `headstart report`: one HTML file that asks nothing of any network.

Guarantees:

Nothing that a program or a log says becomes markup or script: it is JSON in an element that is not run, in which no
`<` stands, and `report.js` makes text nodes of it. The page's policy lets run the two scripts whose digests it names,
and load nothing: no request goes out, whatever is in the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from headstart.system.files import Format

ECHARTS = "5.6.0"
ECHARTS_SHA256 = "bf4a223524e40b77c304bec67e1222cf551f14880cf42c69dc046558e11c07b1"
REPORT = Format("a report", begins=(b"<!DOCTYPE html>\n<!-- headstart report -->",))

_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(data: dict[str, Any]) -> bytes:
    """The page that shows `report_data`."""
    css, library, script = (asset(name) for name in ("report.css", "echarts.min.js", "report.js"))
    policy = (
        f"default-src 'none'; script-src {_digest(library)} {_digest(script)}; style-src {_digest(css)}; "
        "base-uri 'none'; form-action 'none'; frame-src 'none'; img-src data:"
    )
    parts = {"POLICY": policy, "CSS": css, "ECHARTS": ECHARTS, "DATA": embedded(data), "LIBRARY": library}
    made, _, rest = asset("report.html").partition("@POLICY@")
    # One after another, and never a second time over what was put in: it may hold any of these words.
    pieces = [made, parts["POLICY"]]
    for name, text in (*list(parts.items())[1:], ("SCRIPT", script)):
        before, _, rest = rest.partition(f"@{name}@")
        pieces += [before, text]
    return "".join([*pieces, rest]).encode("utf-8", "surrogatepass")


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPED.items():
        text = text.replace(character, escape)
    return text


def asset(name: str) -> str:
    """A file that is part of the page."""
    return resources.files("headstart.cli").joinpath("assets").joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
