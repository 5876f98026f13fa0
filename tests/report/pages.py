"""A Chromium that tests share, of the machine or of `install_browser.sh`, and a run for it to look at."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headstart.artifacts import runs
from headstart.cli.report_data import report_data
from headstart.cli.report_page import page
from headstart.client import about
from headstart.client.run_log import RunLog
from headstart.errors import CompileError
from kernels import matmul, pointwise, raises
from run_logs import ask, result

NAMES = ("chromium", "chromium-browser", "google-chrome")
FETCHED = Path(sys.prefix, "browser")  # where `make test-report` puts one


def chromium() -> str | None:
    """The executable of a Chromium."""
    fetched = FETCHED / "usr" / "lib" / "chromium" / "chromium"
    return next(filter(None, map(shutil.which, NAMES)), str(fetched) if fetched.exists() else None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Playwright's browser. It is started before a test looks at which processes there are."""
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-report installs playwright")
    executable = chromium()
    if executable is None:
        pytest.skip("there is no Chromium: make test-report fetches Debian's, or says why not")
    libraries = ":".join(map(str, (FETCHED / "usr" / "lib").glob("*-linux-gnu")))
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries} if executable.startswith(str(FETCHED)) else None
    with playwright.sync_playwright() as driver:
        # In containers there is often no sandbox to be had, and what is shown is this test's own file.
        launched = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"], env=environment)
        # Chromium starts helpers with its first page, which are no test's.
        first = launched.new_page()
        first.goto(Path(__file__).as_uri())
        first.close()
        yield launched
        launched.close()


@pytest.fixture
def cache() -> Path:
    return Path(os.environ["HEADSTART_CACHE_DIR"])


@pytest.fixture
def a_run(cache: Path) -> runs.Run:
    """One of each kind of kernel, with a sweep, something that fell back, and a run before it."""
    about.describe(about.About(run="0000000a", program="/srv/app.py", kind="run"))
    first = RunLog(cache, 100, 2)
    ask(first, matmul(num_warps=4), result())
    first.close()
    about.describe(about.About(run="0000000b", program="/srv/app.py", kind="run", record="/srv/app.manifest"))
    with pytest.MonkeyPatch.context() as patched:
        begun = time.monotonic() - 5.0  # the program is some seconds old
        patched.setattr(time, "monotonic", lambda: begun)
        log = RunLog(cache, 100, 2)
    swept = [ask(log, matmul(16 << (n // 3), 32, num_warps=1 << (n % 3)), result()) for n in range(9)]
    log.swept("app.matmul", [(kickoff.log, 1.0 + n) for n, kickoff in enumerate(swept) if kickoff.log], swept[0].log)
    ask(log, pointwise(), result(cached=True))
    ask(log, raises(), CompileError("it is wrong", kernel="raises", target="cuda:90", options={}, stage="ttir"))
    waited = ask(log, pointwise(7.0, name="waited_for"))
    waited.began(waited.kicked_off, 1)
    waited.answer.set_result(result())
    waited.log.waited(waited.kicked_off - 0.5)  # type: ignore[union-attr]
    log.fell_back("app.scale", "its option extern_libs names a file")
    log.close()
    about.describe(about.About())
    run = runs.open_run(cache, "0000000b")
    assert run is not None
    return run


@pytest.fixture
def show(browser: Any, tmp_path: Path, cache: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page of a run, or of data; what is wrong with it, and what it asks a network for, is a failure."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def opened(
        run: runs.Run | None = None, *, data: Any = None, scheme: str = "light", watched: bool = True, **how: Any
    ) -> Any:
        path = tmp_path / f"page-{len(contexts)}.html"
        path.write_bytes(page(data if run is None else report_data(cache, run)))
        context = browser.new_context(color_scheme=scheme, **{"viewport": {"width": 1400, "height": 1000}, **how})
        contexts.append(context)
        shown = context.new_page()
        url = path.as_uri()
        if watched:
            shown.on("pageerror", lambda error: complaints.append(f"error: {error}"))
            shown.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
            shown.on("request", lambda request: request.url != url and complaints.append(f"asked for {request.url}"))
        shown.goto(url)
        shown.wait_for_selector("html[data-ready=yes]")
        return shown

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
