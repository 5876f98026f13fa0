"""`HEADSTART_REMOTE`: what is accepted, what is said of the rest, and that nothing says a password."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st

from headstart.errors import UsageError
from headstart.stores.remote import open_remote, open_remotes
from headstart.stores.remote.base import RemoteError, plain
from headstart.stores.remote.references import Reference, reference_of
from headstart.stores.remote.urls import SCHEMES, RemoteUrl, parse_url, parse_urls, seconds_of

SECRET = "hunter2-of-mine"
DIGEST = f"sha256:{'ab' * 32}"


def test_remotes_are_separated_by_blanks_and_the_nearest_is_first() -> None:
    urls = parse_urls("  file:///mnt/a\n redis://b\ts3://c?read-only ")
    assert [url.scheme for url in urls] == ["file", "redis", "s3"]
    assert [url.read_only for url in urls] == [False, False, True]
    assert parse_urls("") == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"redis://me:{SECRET}@host:6379/0?ttl=7d", "redis://host:6379/0"),
        (f"rediss://:{SECRET}@host", "rediss://host"),
        (f"valkey://:{SECRET}@host", "redis://host"),
        (f"redis://me:{SECRET}/with/slashes@and@host:1", "redis://host:1"),
        (f"oci://me:{SECRET}@reg.example/a/b:t", "oci://reg.example/a/b:t"),
        (f"oci://me:{SECRET}@reg.example/a/b:t@{DIGEST}", f"oci://reg.example/a/b:t@{DIGEST}"),
        ("file:///mnt/shared%20one", "file:///mnt/shared%20one"),
        ("S3://bucket/prefix?region=eu-west-1&endpoint=https://minio", "s3://bucket/prefix"),
    ],
)
def test_what_is_shown_has_no_credentials(text: str, shown: str) -> None:
    url = parse_url(text)
    assert url.shown == shown
    for told in (repr(url), str(url), f"{[url]}", repr(copy.copy(url))):
        assert SECRET not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redi://host", "did you mean redis://"),
        ("htps://host", "there are redis://"),
        ("/mnt/shared", "did you mean file:///mnt/shared"),
        ("host:6379", "is no URL of a remote"),
        (f"me:{SECRET}@host", "is no URL of a remote"),
        ("file://mnt/shared", "three slashes"),
        ("file:///a%00b", "no path"),
        ("redis://", "redis://host:6379/0"),
        (f"redis://:{SECRET}@", "redis://host:6379/0"),
        ("s3:///prefix", "s3://bucket/prefix"),
        (f"s3://key:{SECRET}@bucket/prefix", "credentials are not taken from the URL"),
        ("oci://registry", "expected a repository"),
        (f"redis://host?pasword={SECRET}", "pasword is no option of it; there are claims, prefix, read-only"),
        (f"s3://bucket?secret_access_key={SECRET}", "is no option of it"),
        ("redis://host?ttl=soon", "such as 90s, 12h or 7d, got 'soon'"),
        ("redis://host?ttl=0", "such as 90s"),
        ("redis://host?ttl=99999999999999", "such as 90s"),
        ("redis://host?ttl", "ttl: expected a value"),
        ("redis://host?trust=everybody", "expected all or signed"),
        ("redis://host?claims=perhaps", "expected 1 or 0"),
    ],
)
def test_what_is_wrong_is_said_and_no_password(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_urls(text)
    assert said in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_typo_is_told_which_schemes_there_are(scheme: str) -> None:
    with pytest.raises(UsageError, match=f"{scheme}://"):
        parse_url("nonsense://host")


@pytest.mark.parametrize(
    "text",
    [
        "redis://host:port",
        "redis://host:99999999",
        "redis://host/name",
        "redis://host/0/1",
        "redis://[::1",
        "oci://reg.example/Team/kernels",
        "oci://reg.example/team/kernels:" + "t" * 129,
        "oci://reg.example/team/kernels:" + "t" * 100,
        "oci://reg.example/team/../kernels",
        "oci://reg.example/team/kernels@sha256:123",
        f"oci://reg.example/team/kernels@{DIGEST}",
        "oci://reg example/x",
        "oci://-:x/y",
        "s3://bucket?endpoint=minio:9000",
        "s3://bucket?endpoint=ftp://minio",
        f"s3://bucket?endpoint=https://me:{SECRET}@minio",
        "s3://bucket?endpoint=http://minio.example",
    ],
)
def test_what_no_store_could_be_is_refused_before_anything_is_sent(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_remotes(text)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_the_object_stores_of_other_clouds_are_opened_by_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert open_remotes("gs://bucket/prefix").tiers[0].name == "gs://bucket/prefix"
    for name in servers.AZURE_ENVIRONMENT:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="Account must be specified"):
        open_remotes("az://container/prefix")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    for url in ("az://container/prefix", "az://container?endpoint=http://127.0.0.1:10000/account"):
        assert open_remotes(url).writable


def test_http_is_for_this_host_or_for_those_who_ask_for_it() -> None:
    for text in (
        "s3://bucket?endpoint=http://127.0.0.1:9000",
        "s3://bucket?endpoint=http://localhost:9000",
        "s3://bucket?endpoint=http://minio.example&allow-http",
    ):
        open_remote(parse_url(text))
    assert parse_url("oci://localhost:5000/a").allows_http("localhost")
    assert not parse_url("oci://reg.example/a").allows_http("reg.example")
    assert parse_url("oci://reg.example/a?allow-http").allows_http("reg.example")
    assert not parse_url("oci://localhost:5000/a?allow-http=0").allows_http("localhost")
    assert not parse_url("oci://localhost:5000/a").allows_http("reg.example")


def test_trust_is_what_the_url_says() -> None:
    assert parse_url("redis://host?trust=all").trust_all
    assert not parse_url("redis://host?trust=signed").trust_all
    assert not open_remotes("redis://host").trusted
    assert open_remotes("redis://host?trust=all").trusted
    assert not open_remotes("redis://host?trust=all s3://bucket?region=us-east-1").trusted


def test_references_are_taken_apart() -> None:
    url = parse_url(f"oci://me:{SECRET}@reg.example:5000/team/kernels:v1@{DIGEST}")
    assert reference_of(url) == Reference("reg.example:5000", "team/kernels", "v1", DIGEST)
    hub = reference_of(parse_url("oci://docker.io/kernels"))
    assert (hub.repository, hub.api_host) == ("library/kernels", "registry-1.docker.io")


def test_times_have_units() -> None:
    assert [seconds_of(text, "ttl", "x") for text in ("90", "90s", "2m", "3h", "7d")] == [90, 90, 120, 10800, 604800]


@given(st.text(max_size=60))
def test_any_text_is_a_remote_or_bad_usage(text: str) -> None:
    for setting in (text, f"redis://{text}", f"oci://{text}", f"file:///{text}", f"s3://b?{text}"):
        said = ""
        urls: list[RemoteUrl] = []
        try:
            urls = parse_urls(setting)
        except UsageError as error:
            said = str(error)
        assert said.isprintable()
        assert all(url.shown.isprintable() for url in urls)


def test_an_error_says_what_to_do_and_survives_being_handed_on() -> None:
    error = RemoteError("redis://h: no", advice="go away", lasting=True)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - of this test
    assert str(again) == str(error) == "redis://h: no; go away"
    assert (again.summary, again.advice, again.lasting) == ("redis://h: no", "go away", True)


def test_what_servers_say_is_one_short_line_without_secrets() -> None:
    said = plain(f"\n ERR unknown 'AUTH' '{SECRET}' \x1b[31m {'x' * 500}\nmore", [SECRET, ""])
    assert SECRET not in said
    assert said.isprintable()
    assert said.startswith("ERR unknown 'AUTH' '***'")
    assert len(said) < 230
