"""`headstart remote`, `bundle push` and `pull`, and `cache prune --remote`."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bad_servers
import pytest
import servers
from servers import needs
from test_bundle import A, B, C, entry, write
from test_cli import run

from headstart.artifacts.bundle import Bundle
from headstart.stores.remote.folder import FolderRemote
from headstart.stores.remote.oci import MANIFEST_TYPE, Descriptor, manifest_of
from headstart.stores.remote.oci_bundles import BUNDLE_TYPE
from headstart.stores.remote.registry import Registry, digest_of
from headstart.stores.remote.urls import parse_url
from headstart.system import files

SECRET = "hunter2-of-mine"
KEY = hashlib.sha256(b"key").hexdigest()
NOTES = "x = 1  # a user's own file\n"


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)


# remote check


def test_check_says_what_was_done_and_leaves_nothing(tmp_path: Path) -> None:
    result = run("remote", "check", f"file://{tmp_path}/shared")
    assert result.exit_code == 0
    first, took, counts = result.stdout.splitlines()
    assert first == f"file://{tmp_path}/shared: good"
    assert [word.split()[0] for word in took.split(",")] == ["reached", "wrote", "read", "deleted"]
    assert counts.strip() == "what is there counts without a signature"
    assert [path for path in (tmp_path / "shared").rglob("*") if path.is_file()] == []


def test_check_says_what_is_wrong_whatever_the_user_is_called() -> None:
    (port,) = servers.free_ports(1)
    result = run("remote", "check", f"redis://u:{SECRET}@127.0.0.1:{port}/0")
    assert result.exit_code == 1
    assert "refused" in result.stdout
    assert SECRET not in result.stdout + result.stderr


def test_check_takes_the_remotes_of_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_REMOTE", f"file://{tmp_path}/a file://{tmp_path}/b?read-only")
    result = run("remote", "check", "--json")
    assert result.exit_code == 0
    one, other = map(json.loads, result.stdout.splitlines())
    assert (list(one["seconds"]), list(other["seconds"])) == (["reached", "wrote", "read", "deleted"], ["reached"])
    assert (one["good"], one["error"], one["needs_signature"], other["needs_signature"]) == (True, None, False, True)
    assert not (tmp_path / "b").exists()


def test_check_says_what_is_wrong_what_to_do_and_no_password(tmp_path: Path) -> None:
    (port,) = servers.free_ports(1)
    url = f"redis://me:{SECRET}@127.0.0.1:{port}/0"
    result = run("remote", "check", url, f"file://{tmp_path}/shared")
    assert result.exit_code == 1
    assert f"redis://127.0.0.1:{port}/0: wrong" in result.stdout
    assert "cannot be reached" in result.stdout
    assert "what to do: see whether it runs" in result.stdout
    assert f"file://{tmp_path}/shared: good" in result.stdout
    assert "1 of 2 remotes cannot be used" in result.stderr
    assert SECRET not in result.output
    result = run("remote", "check", "--json", url)
    assert (result.exit_code, json.loads(result.stdout)["good"]) == (1, False)
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which remote?"),
        (["redi://host"], "did you mean redis://"),
        ([f"redis://me:{SECRET}@host?pasword={SECRET}"], "pasword is no option"),
        ([f"redis://me:{SECRET}@host/name"], "with the number of a database"),
    ],
)
def test_check_refuses_what_is_no_remote(arguments: list[str], said: str) -> None:
    result = run("remote", "check", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert SECRET not in result.output


def test_check_notices_a_store_that_does_not_keep_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderRemote, "put", lambda self, key, blob: None)
    result = run("remote", "check", f"file://{tmp_path}/shared")
    assert result.exit_code == 1
    assert "what was written is not there" in result.stdout
    monkeypatch.setattr(FolderRemote, "get_many", lambda self, keys: dict.fromkeys(keys, b"another"))
    result = run("remote", "check", f"file://{tmp_path}/shared")
    assert "came back as something else" in result.stdout
    assert "is left there" in result.stdout


def test_check_says_that_a_kind_of_store_has_no_claims(tmp_path: Path) -> None:
    result = run("remote", "check", f"file://{tmp_path}/shared?claims")
    assert result.exit_code == 1
    assert "this kind of remote has no claims" in result.stdout


@pytest.mark.parametrize("_", [pytest.param(None, marks=needs("redis"))])
def test_check_tries_claims_where_they_are_asked_for(tmp_path: Path, _: None) -> None:
    with servers.running(servers.redis_server(tmp_path)) as server:
        result = run("remote", "check", f"redis://{server.address}?claims&trust=all")
    assert result.exit_code == 0
    assert "claimed in" in result.stdout
    assert "counts without a signature" in result.stdout


# cache prune --remote


def test_prune_removes_what_was_not_used_for_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = FolderRemote(tmp_path / "shared")
    shared.put(KEY, b"12345")
    (path,) = (each for each in (tmp_path / "shared").rglob("*") if each.is_file())
    monkeypatch.setenv(
        "HEADSTART_REMOTE", f"redis://127.0.0.1:1 file://{tmp_path}/shared file://{tmp_path}/b?read-only"
    )
    result = run("cache", "prune", "--remote", "--older-than", "2d")
    assert result.stdout == f"file://{tmp_path}/shared: removed 0 entries (0 bytes), 1 left (5 bytes)\n"
    then = time.time() - 3 * 86400
    os.utime(path, (then, then))
    result = run("cache", "prune", "--remote", "--older-than", "2d")
    assert result.exit_code == 0
    assert result.stdout == f"file://{tmp_path}/shared: removed 1 entry (5 bytes), 0 left (0 bytes)\n"
    assert not path.exists()


@pytest.mark.parametrize(
    ("remote", "arguments", "said"),
    [
        ("", ["--remote", "--older-than", "2d"], "there is no remote to prune"),
        ("redis://h", ["--remote", "--older-than", "2d"], "there is no remote to prune"),
        ("file:///x?read-only", ["--remote", "--older-than", "2d"], "there is no remote to prune"),
        ("file:///x", ["--remote"], "--remote takes --older-than"),
        ("file:///x", ["--remote", "--older-than", "2d", "--max-size", "1G"], "--remote takes --older-than"),
        ("file:///x", ["--remote", "--older-than", "soon"], "such as 90s, 12h or 7d"),
        ("file:///x", ["--older-than", "2d"], "--older-than is for --remote"),
        ("file:///x", [], "expected --max-size"),
    ],
)
def test_prune_refuses_what_does_not_go_together(
    remote: str, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_REMOTE", remote)
    result = run("cache", "prune", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_prune_goes_on_after_one_that_cannot_be_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FolderRemote(tmp_path / "good").put(KEY, b"1")
    (tmp_path / "bad" / "v1").mkdir(parents=True)
    (tmp_path / "bad" / "v1" / "ab").write_text("a file in a folder's place")
    real = FolderRemote._now

    def now(self: FolderRemote) -> float:
        if "bad" in self.name:
            raise OSError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(FolderRemote, "_now", now)
    monkeypatch.setenv("HEADSTART_REMOTE", f"file://{tmp_path}/bad file://{tmp_path}/good")
    result = run("cache", "prune", "--remote", "--older-than", "2d")
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr
    assert f"file://{tmp_path}/good: removed 0 entries" in result.stdout


# bundle push and pull


@pytest.fixture
def bundle() -> Path:
    return write(Path("app.bundle"), entry(A), entry(B))


@pytest.fixture(params=[pytest.param("", marks=needs("registry"))])
def repository(tmp_path: Path) -> Iterator[str]:
    """The URL of one in a registry that runs."""
    (tmp_path / "registry").mkdir()
    with servers.running(servers.registry_server(tmp_path / "registry")) as server:
        yield f"oci://{server.address}/team/app"


def test_a_bundle_comes_back_as_it_was_pushed(bundle: Path, repository: str) -> None:
    pushed = run("bundle", "push", bundle, f"{repository}:v1")
    assert pushed.exit_code == 0
    name = pushed.stdout.strip()
    assert name.startswith(f"{repository}@sha256:")
    assert run("bundle", "push", bundle, f"{repository}:v1").stdout == pushed.stdout  # the same is the same
    for number, url in enumerate((f"{repository}:v1", name)):
        pulled = run("bundle", "pull", url, "-o", f"{number}.bundle")
        assert pulled.exit_code == 0
        assert name in pulled.stdout
        assert Path(f"{number}.bundle").read_bytes() == bundle.read_bytes()
    assert sorted(os.listdir()) == ["0.bundle", "1.bundle", "app.bundle"]
    assert len(Bundle.open("0.bundle")) == 2


def test_a_bundle_is_replaced_and_nothing_else(bundle: Path, repository: str) -> None:
    run("bundle", "push", bundle, repository)
    write(Path("old.bundle"), entry(A))
    assert run("bundle", "pull", repository, "-o", "old.bundle").exit_code == 0
    assert Path("old.bundle").read_bytes() == bundle.read_bytes()
    Path("notes.py").write_text(NOTES)
    result = run("bundle", "pull", repository, "-o", "notes.py")
    assert result.exit_code == 2
    assert "is not a bundle of headstart's, so it is not replaced" in result.stderr
    assert Path("notes.py").read_text() == NOTES
    assert run("bundle", "pull", repository, "-o", "folder/").exit_code == 2


def test_a_tag_that_moved_does_not_move_a_digest(bundle: Path, repository: str) -> None:
    first = run("bundle", "push", bundle, repository).stdout.strip()
    other = write(Path("other.bundle"), entry(A))
    second = run("bundle", "push", other, repository).stdout.strip()
    assert first != second
    run("bundle", "pull", first, "-o", "first.bundle")
    run("bundle", "pull", repository, "-o", "latest.bundle")
    assert Path("first.bundle").read_bytes() == bundle.read_bytes()
    assert Path("latest.bundle").read_bytes() == other.read_bytes()


# run --bundle oci://…


def run_program(*options: str) -> subprocess.CompletedProcess[str]:
    """A program that says which bundle it has."""
    Path("app.py").write_text("import os, json\nprint(json.loads(os.environ['HEADSTART_RUN'])['bundle'])\n")
    command = [sys.executable, "-m", "headstart", "run", *options, "app.py"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_program_starts_from_a_bundle_in_a_registry(bundle: Path, repository: str) -> None:
    name = run("bundle", "push", bundle, f"{repository}:v1").stdout.strip()
    by_tag = run_program("--bundle", f"{repository}:v1")
    assert by_tag.returncode == 0, by_tag.stderr
    copy = Path(by_tag.stdout.strip())
    assert copy.read_bytes() == bundle.read_bytes()
    assert f"headstart: pulled {repository}:v1, " in by_tag.stderr
    again = run_program("--bundle", f"{repository}:v1")
    assert (again.stdout, again.stderr) == (by_tag.stdout, ""), "what is there is not pulled again"
    assert Path(run_program("--bundle", name).stdout.strip()).read_bytes() == bundle.read_bytes()
    other = write(Path("other.bundle"), entry(A))
    run("bundle", "push", other, f"{repository}:v1")
    moved = run_program("--bundle", f"{repository}:v1")
    assert Path(moved.stdout.strip()).read_bytes() == other.read_bytes()
    assert copy.read_bytes() == bundle.read_bytes()


def test_what_a_run_adds_to_its_copy_stays_there(bundle: Path, repository: str) -> None:
    run("bundle", "push", bundle, repository)
    copy = Path(run_program("--bundle", repository).stdout.strip())
    extended = write(Path("extended.bundle"), entry(A), entry(B), entry(C)).read_bytes()
    copy.write_bytes(extended)
    assert run_program("--bundle", repository).stdout.strip() == str(copy)
    assert copy.read_bytes() == extended


@pytest.mark.parametrize("folder", [pytest.param("registry", marks=needs("registry"))])
def test_with_the_registry_away_a_program_starts_all_the_same(bundle: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    with servers.running(servers.registry_server(tmp_path / "registry")) as server:
        url = f"oci://user:{SECRET}@{server.address}/team/app:v1"
        name = run("bundle", "push", bundle, url).stdout.strip()
        copies = [run_program("--bundle", each).stdout for each in (url, name)]
    by_tag, by_digest = run_program("--bundle", url), run_program("--bundle", name)
    assert by_tag.stdout == copies[0]
    assert "the copy that was pulled last is used" in by_tag.stderr
    assert (by_digest.stdout, by_digest.stderr) == (copies[1], "")
    other = url.replace("app:v1", "other:v1")
    without = run_program("--bundle", other)
    assert (without.returncode, without.stdout) == (0, "None\n")
    assert "the program runs without a bundle" in without.stderr
    required = run_program("--require-bundle", "--bundle", other)
    assert (required.returncode, required.stdout) == (1, "")
    assert SECRET not in by_tag.stderr + without.stderr + required.stderr


def test_a_copy_in_a_folder_that_others_can_write_is_not_used(bundle: Path, tmp_path: Path) -> None:
    url = "oci://127.0.0.1:1/team/app"
    cache = Path(os.environ["HEADSTART_CACHE_DIR"])
    planted = cache / "pulled" / hashlib.sha256(f"{url}".encode()).hexdigest()[:16]
    planted.mkdir(parents=True)
    name = f"{'a' * 64}.bundle"
    (planted / name).write_bytes(bundle.read_bytes())
    (planted / f".{name}.lock").touch()
    assert run_program("--bundle", url).stdout == f"{planted / name}\n", "it is this user's own"
    cache.chmod(0o777)
    done = run_program("--bundle", url)
    assert done.stdout == "None\n"
    assert "the program runs without a bundle" in done.stderr
    assert run_program("--require-bundle", "--bundle", url).returncode == 1


def test_a_url_that_no_registry_could_have_is_bad_usage() -> None:
    done = run_program("--bundle", "oci://registry.example/Team/App")
    assert done.returncode == 2
    assert "a repository is of lower-case words" in done.stderr


def test_copies_that_nobody_has_used_for_long_go(bundle: Path, repository: str) -> None:
    run("bundle", "push", bundle, repository)
    old = Path(run_program("--bundle", repository).stdout.strip())
    os.utime(old.with_name(f".{old.name}.lock"), (time.time() - 100 * 86400,) * 2)
    run("bundle", "push", write(Path("other.bundle"), entry(A)), repository)
    new = Path(run_program("--bundle", repository).stdout.strip())
    assert [path for path in new.parent.iterdir() if path.suffix == ".bundle"] == [new]


def test_what_is_not_there_or_no_bundle_is_said(bundle: Path, repository: str) -> None:
    result = run("bundle", "pull", f"{repository}:none", "-o", "out.bundle")
    assert result.exit_code == 1
    assert "there is no such bundle" in result.stderr
    registry = Registry(parse_url(repository))
    kept = bundle.read_bytes()
    for tag, media_type, content, said in (
        ("image", "application/vnd.docker.image.rootfs.diff.tar.gzip", b"layer", "this is no bundle but"),
        ("notes", BUNDLE_TYPE, NOTES.encode(), "notes: "),
        ("cut", BUNDLE_TYPE, kept[:-40], "cut: "),
    ):
        registry.put_blob(digest_of(content), len(content), content)
        registry.put_blob(digest_of(b"{}"), 2, b"{}")
        layer = Descriptor(media_type, digest_of(content), len(content))
        registry.put_manifest(tag, manifest_of("application/x", [layer]), MANIFEST_TYPE)
        result = run("bundle", "pull", f"{repository}:{tag}", "-o", "app.bundle")
        assert result.exit_code == 1
        assert said in result.stderr
        assert bundle.read_bytes() == kept
    registry.close()
    assert os.listdir() == ["app.bundle"]


def test_what_is_no_bundle_is_not_pushed(repository: str) -> None:
    Path("notes.py").write_text(NOTES)
    result = run("bundle", "push", "notes.py", repository)
    assert result.exit_code == 2
    assert "notes.py" in result.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/app", "registries"),
        ("registry.example/app", "is no URL of a remote"),
        ("oci://registry.example", "expected a repository"),
        (f"oci://registry.example/app@sha256:{'ab' * 32}", "gets its digest from what it is"),
    ],
)
def test_what_cannot_be_pushed_to_is_refused(bundle: Path, url: str, said: str) -> None:
    result = run("bundle", "push", bundle, url)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("lie", ["another manifest", "another blob", "a longer blob"])
def test_a_registry_that_gives_something_else_than_was_asked_for_is_found_out(bundle: Path, lie: str) -> None:
    content = bundle.read_bytes()
    body = manifest_of(BUNDLE_TYPE, [Descriptor(BUNDLE_TYPE, digest_of(content), len(content))])
    given = {"another blob": content[:-1] + b"x", "a longer blob": content + b"x"}.get(lie, content)

    def registry(connection: socket.socket) -> None:
        asked = connection.recv(65536)
        answer = given if b"/blobs/" in asked else body
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + answer)

    digest = digest_of(body) if lie != "another manifest" else digest_of(b"something else")
    with bad_servers.serving(registry) as port:
        result = run("bundle", "pull", f"oci://127.0.0.1:{port}/team/app@{digest}", "-o", "out.bundle")
    assert result.exit_code == 1
    assert "is something else" in result.stderr or "longer than it should be" in result.stderr
    assert os.listdir() == ["app.bundle"]


def test_a_full_disk_is_said_to_be_one(bundle: Path, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("bundle", "push", bundle, repository)
    kept = bundle.read_bytes()

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fdopen", lambda fd, mode: (os.close(fd), Full())[1])
        result = run("bundle", "pull", repository, "-o", "app.bundle")
    assert result.exit_code == 1
    assert "app.bundle: No space left on device" in result.stderr
    assert Path("app.bundle").read_bytes() == kept
    assert os.listdir() == ["app.bundle"]


def test_a_password_in_the_url_is_not_printed(bundle: Path) -> None:
    with bad_servers.serving(bad_servers.saying(b"nonsense")) as port:
        for arguments in (["push", bundle], ["pull", "-o", "out.bundle"]):
            result = run("bundle", *arguments, f"oci://me:{SECRET}@127.0.0.1:{port}/team/app")
            assert result.exit_code == 1
            assert SECRET not in result.output
