"""A farm that cannot be had: programs compile as without one, and one line says so. Ray may be installed or not."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import headstart
from conftest import wait_until
from headstart.cli import main
from headstart.client.introduction import preferences
from headstart.errors import UsageError
from headstart.system.settings import Settings, parse_farm
from kernels import pointwise

AsyncCompile = Callable[..., headstart.AsyncCompile]


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.triton
def test_kernels_are_compiled_here_and_one_line_says_why_nothing_is_lent(
    open_compile: AsyncCompile, nobody: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HEADSTART_FARM", nobody)

    def told() -> list[str]:
        return [message for message in caplog.messages if message.startswith("the farm")]

    with caplog.at_level(logging.WARNING, "headstart"):
        compiler = open_compile()
        futures = [compiler.triton(**pointwise(float(number))) for number in range(4)]
        for future in futures:
            assert future.result(60).asm["cubin"]
        wait_until(told)
    assert len(told()) == 1
    assert "the farm is not used: " in told()[0]
    assert f"nobody listens at {nobody}" in told()[0] or "pip install 'headstart[ray]'" in told()[0]


@pytest.mark.parametrize("text", ["ray", "ray://head:10001", "head:6379", "[::1]:6379", "10.0.0.1:6379"])
def test_these_are_farms(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_FARM", text)
    assert Settings.load().farm == text


@pytest.mark.parametrize("text", ["", "off", " OFF "])
def test_these_are_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_FARM", text)
    assert Settings.load().farm == ""


@pytest.mark.parametrize("text", ["auto", "head", "http://head:8265", "ray://", "head:port", "a b:1", True, 6379])
def test_anything_else_is_an_error_that_says_what_is_meant(text: Any) -> None:
    with pytest.raises(UsageError, match="expected ray, off, or an address such as ray://head:10001"):
        parse_farm(text)


def test_an_argument_of_another_type_is_such_an_error_too() -> None:
    with pytest.raises(UsageError, match="expected ray, off, or an address"):
        Settings.load(farm=True)  # type: ignore[arg-type]


def test_an_argument_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_FARM", "head:6379")
    assert Settings.load(farm="off").farm == ""
    assert Settings.load(farm="ray").farm == "ray"


def test_signatures_are_wanted_only_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Settings.load().farm_signs
    monkeypatch.setenv("HEADSTART_REMOTE_TRUST", "signed")
    assert Settings.load().farm_signs


@pytest.mark.parametrize(("farm", "said"), [("ray", "mine:6379"), ("other:6379", "")])
def test_a_client_says_which_cluster_it_belongs_to(farm: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    told = preferences(Settings.load(farm=farm), keeps=True).farm
    assert told is not None
    assert (told.address, told.ray_address) == (farm, said)


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_a_command_says_what_is_missing(command: str, nobody: str) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(main, ["farm", command, "--address", nobody])
    assert result.exit_code == 1
    assert f"nobody listens at {nobody}" in result.output or "pip install 'headstart[ray]'" in result.output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--num-cpus", "nan"),
        ("--num-cpus", "inf"),
        ("--num-cpus", "-1"),
        ("--num-cpus", "1.5"),
        ("--resource", "disk=nan"),
        ("--resource", "disk=inf"),
        ("--resource", "disk=-1"),
        ("--resource", "disk=much"),
        ("--resource", "disk"),
        ("--resource", "CPU=1"),
        ("--resource", "GPU=1"),
        ("--resource", "memory=1"),
    ],
)
def test_what_ray_would_refuse_is_a_mistake_in_the_command(option: str, value: str, nobody: str) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(main, ["farm", "up", "--address", nobody, option, value])
    assert result.exit_code == 2
    assert f"headstart: Invalid value for '{option}': " in result.output


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_a_cluster_that_fails_once_it_was_joined_is_one_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from headstart.farm import ray_cluster

    def fail(**_: object) -> None:
        raise RuntimeError("the head\x1b[2J is gone\nand more of that")

    def none(name: str, namespace: str) -> None:
        raise ValueError(name)

    broken = SimpleNamespace(
        nodes=fail,
        util=SimpleNamespace(list_named_actors=fail),
        get_actor=none,
        kill=fail,
        is_initialized=lambda: True,
    )
    monkeypatch.setattr(ray_cluster, "_ray", lambda: broken)
    monkeypatch.setattr(ray_cluster, "open_cluster", ray_cluster.RayCluster)
    monkeypatch.setattr(ray_cluster, "_deploy", lambda ray, deployment: ray.nodes())
    result = CliRunner().invoke(main, ["farm", command])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, result.output) == (1, "headstart: RuntimeError: the head\\x1b[2J is gone\n")
