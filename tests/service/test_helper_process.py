"""What a service says of a process that talked to a network for it, and died."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from headstart import wire
from headstart.service import bridge_process, remote_process
from headstart.service.bridge_process import BridgeProcess
from headstart.service.helper_process import HelperProcess
from headstart.service.loop import Loop
from headstart.service.remote_process import RemoteProcess

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a process that says what it was told to, on its standard error, and dies."""
    (tmp_path / "dying_process.py").write_text(
        dedent(
            """
            import os, pathlib
            def main(argument):
                os.write(2, (pathlib.Path(__file__).parent / "words").read_bytes())
                os.write(2, b", " + repr(os.environ.get("RAY_ADDRESS")).encode())
                os._exit(3)
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(bridge_process, "MODULE", "dying_process")
    monkeypatch.setattr(remote_process, "MODULE", "dying_process")
    return "dying_process"


def said(loop: Loop, gone: list[str], process: HelperProcess) -> str:
    while not gone:
        loop.once(30.0)
    (text,) = gone
    return text


def test_last_words_do_nothing_to_a_terminal(module: str, tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(b"first\x1b]0;title\x07 line\nsecond \xe2\x80\xae\x1b[2J\x9b line")
    loop, gone = Loop(), list[str]()
    text = said(loop, gone, BridgeProcess(loop, wire.FarmSettings("ray"), lambda _: None, gone.append))
    assert text.startswith("the bridge to the farm exited with code 3; its last words: first")
    assert "second" in text
    assert all(each.isprintable() or each == "\n" for each in text)


def test_last_words_of_a_bridge_are_shown_whole_since_an_address_is_no_secret(module: str, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("ray.exceptions.RaySystemError: an array of rays")
    loop, gone = Loop(), list[str]()
    text = said(loop, gone, BridgeProcess(loop, wire.FarmSettings("ray"), lambda _: None, gone.append))
    assert text.endswith("its last words: ray.exceptions.RaySystemError: an array of rays, None")


@pytest.mark.parametrize("address", ["head:6379", ""])
def test_a_bridge_belongs_to_the_cluster_of_its_clients_and_not_of_whoever_started_the_service(
    module: str, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words").write_text("RAY_ADDRESS")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    loop, gone = Loop(), list[str]()
    settings = wire.FarmSettings("ray", ray_address=address)
    text = said(loop, gone, BridgeProcess(loop, settings, lambda _: None, gone.append))
    assert text.endswith(f"RAY_ADDRESS, {address or None!r}")


def test_last_words_quote_no_password_not_even_one_with_odd_characters(module: str, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("cannot log in as me with pass\x1bword")
    loop, gone = Loop(), list[str]()
    settings = wire.RemoteSettings("redis://me:pass\x1bword@host", False)
    text = said(loop, gone, RemoteProcess(loop, settings, lambda _: None, gone.append))
    assert "pass" not in text
    assert "word" not in text.partition("its last words:")[2]
    assert "cannot log in as" in text
