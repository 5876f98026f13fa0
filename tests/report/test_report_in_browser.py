"""The page of `headstart report` in a real Chromium: that it renders, asks nobody for anything, and can be used."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headstart.artifacts import runs
from headstart.cli.report_data import report_data

pytest_plugins = ["pages"]
pytestmark = [pytest.mark.report, pytest.mark.timeout(300)]

Show = Callable[..., Any]

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'\"&lt;\u2028\x00\x1b"


def drawn(shown: Any, chart: str) -> int:
    """How many colours a chart's canvas has."""
    script = """id => {
        const canvas = document.querySelector(`#${id} canvas`), seen = new Set();
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const color = (i) => data[i] << 16 | data[i + 1] << 8 | data[i + 2];
        for (let i = 0; i < data.length; i += 4) if (data[i + 3]) seen.add(color(i));
        return seen.size;
    }"""
    found: int = shown.evaluate(script, chart)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_renders_light_and_dark_and_asks_nobody_for_anything(show: Show, a_run: runs.Run, scheme: str) -> None:
    shown = show(a_run, scheme=scheme)
    assert shown.title() == "headstart: app.py"
    sentence = shown.inner_text("h1")
    assert sentence.startswith("12 kernels, 10 compiled in 15.0 s of compiling (1.")
    assert "1 failed" in sentence
    for chart in ("lanes", "history", "sweep-0"):
        assert drawn(shown, chart) > 5, chart
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)))
    assert (brightness > 600) is (scheme == "light")
    assert shown.locator("#rows tr").count() == 12


def test_a_filter_narrows_the_table_and_says_to_how_many(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run)
    shown.keyboard.press("/")
    shown.keyboard.type("matmul warps=4")
    assert shown.locator("#rows tr").count() == 3
    assert shown.inner_text("#count") == "3 of 12 kernels"
    shown.fill("#filter", "")
    shown.click("[data-origin=worker]")
    assert shown.get_attribute("[data-origin=worker]", "aria-pressed") == "false"
    assert shown.inner_text("#count") == "2 of 12 kernels"


def test_columns_sort_and_say_so(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run)
    shown.click("#sort-waited_s button")
    assert shown.get_attribute("#sort-waited_s", "aria-sort") == "descending"
    assert "waited_for" in shown.locator("#rows tr").first.inner_text()
    shown.click("#sort-waited_s button")
    assert shown.get_attribute("#sort-waited_s", "aria-sort") == "ascending"


def test_a_click_shows_what_a_kernel_was_made_of(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run)
    shown.click("#rows tr:has-text('raises')")
    assert shown.is_visible("#details")
    facts = shown.inner_text("#facts")
    assert "CompileError in ttir: it is wrong" in facts
    assert "first seen" in facts
    shown.keyboard.press("Escape")
    assert not shown.is_visible("#details")


def test_it_can_be_used_by_keyboard_alone(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run)
    shown.focus("#rows tr")
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("End")
    shown.keyboard.press("Enter")
    assert shown.is_visible("#details")
    shown.keyboard.press("Escape")
    before = shown.evaluate("document.querySelector('#lanes canvas').toDataURL()")
    shown.focus("#lanes")
    shown.keyboard.press("+")
    shown.wait_for_function("before => document.querySelector('#lanes canvas').toDataURL() !== before", arg=before)


def test_stalls_reasons_sweeps_and_what_fell_back_are_there(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run)
    assert "waited_for" in shown.inner_text("#stalls")
    assert "the same was there in run 0000000a" in shown.inner_text("#misses")
    assert "its option extern_libs names a file" in shown.inner_text("#fell")
    assert "9 configurations; chosen: matmul" in shown.inner_text("#sweeps").replace("\n", " ")
    shown.click("#stalls button")
    assert shown.inner_text("#detail-name").startswith("waited_for")


def test_a_bar_in_the_timeline_says_what_it_is_and_opens_its_kernel(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run)
    box = shown.locator("#lanes canvas").bounding_box()
    # The worker's lane is the last of the upper chart. All its compiles ended when the run did, 1.5 of 5 s long.
    lanes = shown.evaluate("JSON.parse(document.getElementById('data').textContent).lanes.length")
    x, y = box["x"] + 128 + 0.8 * (box["width"] - 144), box["y"] + 8 + 26 * lanes - 13
    shown.mouse.move(x, y)
    shown.wait_for_selector(".tip")
    assert "compile" in shown.inner_text(".tip")
    shown.mouse.click(x, y)
    assert shown.is_visible("#details")


def test_the_command_is_copied(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run, permissions=["clipboard-read", "clipboard-write"])
    command = shown.inner_text(".command code")
    assert command == (
        "headstart build --trust /srv/app.manifest -o app.bundle && headstart run --bundle app.bundle /srv/app.py"
    )
    shown.click(".command button")
    shown.wait_for_selector(".command button:has-text('Copied')")


def hostile(value: Any) -> Any:
    """The same data with nothing but hostile texts, but for what says of which kind something is."""
    if isinstance(value, dict):
        kept = ("origin", "state", "kind", "bars", "stages", "origins", "began", "id", "run")
        return {
            key: each if key in kept and not isinstance(each, dict) else hostile(each) for key, each in value.items()
        }
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


def test_names_and_sources_are_text_whatever_is_in_them(show: Show, a_run: runs.Run, cache: Path) -> None:
    data = report_data(cache, a_run)
    run = data["run"]
    data = {**hostile(data), "figures": data["figures"], "history": data["history"], "stages": data["stages"]}
    data["run"] = {**run, "program": HOSTILE}
    for lane in data["lanes"]:
        lane["label"] = HOSTILE
    data["sources"] = [HOSTILE]
    data["kernels"][0].update(source=0, constants={HOSTILE: HOSTILE}, why=[HOSTILE])
    shown = show(data=data)
    shown.locator("#rows tr").first.press("Enter")
    assert "<script>" in shown.inner_text("#details")
    assert "<img" in shown.inner_text("h1")
    shown.keyboard.press("Escape")
    shown.mouse.move(300, 420)
    assert shown.evaluate("window.hacked") is None
    assert shown.locator("img").count() == 0
    assert shown.locator("script").count() == 3


def test_the_policy_lets_nothing_else_run_or_load(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run, watched=False)
    tried = shown.evaluate("""async () => {
        const blocked = [];
        document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        await fetch("https://example.com/").catch(() => {});
        await new Promise((done) => setTimeout(done));
        const blockedScript = blocked.some((each) => each.startsWith("script-src"));
        return [window.hacked === undefined, blockedScript, blocked.includes("connect-src")];
    }""")
    assert tried == [True, True, True]


def test_a_thousand_kernels_are_drawn_within_seconds_and_can_be_filtered(
    show: Show, a_run: runs.Run, cache: Path
) -> None:
    data = report_data(cache, a_run)
    one = {**data["kernels"][0], "waits": []}
    data["kernels"] = [
        {**one, "name": f"kernel_{n}", "label": f"BLOCK={n}", "asked": n / 100, "began": n / 50, "worker": n % 8}
        for n in range(1000)
    ]
    stages = ("front end", "ttgir", "llir", "ptx", "assembler")
    data["lanes"] = [
        {
            "label": f"worker {worker}",
            "kind": "worker",
            "process": 0,
            "bars": [
                [n / 50 + part / 40, n / 50 + (part + 1) / 40, n, stage]
                for n in range(worker, 1000, 8)
                for part, stage in enumerate(stages)
            ],
        }
        for worker in range(8)
    ]
    data["processes"][0]["end"] = 20.5
    data["figures"] = {**data["figures"], "origins": {"worker": 1000}}
    data = {**data, "stalls": [], "misses": [], "sweeps": []}
    shown = show(data=data)
    assert shown.locator("#rows tr").count() == 1000
    assert drawn(shown, "lanes") > 5
    shown.fill("#filter", "kernel_77")
    assert shown.inner_text("#count") == "11 of 1000 kernels"
    took = shown.evaluate("performance.getEntriesByType('navigation')[0].duration")
    assert took < 30_000  # milliseconds, on whatever this runs


def test_it_fits_a_narrow_screen(show: Show, a_run: runs.Run) -> None:
    shown = show(a_run, viewport={"width": 420, "height": 900})
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
