"""Keys are as different as what they are made of, and can say why."""

from __future__ import annotations

import doctest
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from headstart.model import keys

texts = st.text(max_size=8)
components = st.lists(st.tuples(texts, texts), max_size=5)
# Distinct names, as every request has.
named = st.dictionaries(st.text("abc", min_size=1, max_size=2), texts, max_size=4).map(lambda d: list(d.items()))


def digested(parts: list[tuple[str, str]]) -> bytes:
    """The bytes that `keys.digest` is documented to hash."""
    encoded = [text.encode() for component in parts for text in component]
    return b"".join(len(data).to_bytes(8, "little") + data for data in encoded)


@given(components)
def test_a_digest_is_the_sha256_of_the_length_prefixed_components(parts: list[tuple[str, str]]) -> None:
    assert keys.digest(parts) == hashlib.sha256(digested(parts)).hexdigest()


@given(components, components)
def test_different_components_have_different_digests(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    assert (keys.digest(one) == keys.digest(other)) == (one == other)


@given(st.text(min_size=1, max_size=8), st.data())
def test_components_cannot_run_together(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    splits = {keys.digest([(text[:at], text[at:])]) for at in range(len(text) + 1)}
    assert len(splits) == len(text) + 1
    assert keys.digest([(text, ""), ("", "")]) != keys.digest([(text, "")])
    assert keys.digest([(text[:cut], text[cut:])]) != keys.digest([(text, ""), ("", "")])


@given(components.filter(lambda parts: parts != parts[::-1]))
def test_the_order_of_components_counts(parts: list[tuple[str, str]]) -> None:
    assert keys.digest(parts) != keys.digest(parts[::-1])


def test_an_entry_key_depends_on_the_format_the_toolchain_and_the_request() -> None:
    key = keys.entry_key("toolchain", "request")
    assert key == keys.digest([("format", keys.KEY_FORMAT), ("toolchain", "toolchain"), ("request", "request")])
    assert len({key, keys.entry_key("request", "toolchain"), keys.entry_key("toolchain", "other")}) == 3


@given(named)
def test_equal_components_need_no_explanation(parts: list[tuple[str, str]]) -> None:
    assert keys.explain(parts, list(parts)) == []


@given(named, named)
def test_each_difference_is_explained_by_one_line_that_names_it(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    old, new = dict(before), dict(after)
    different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    assert [line.split(" ")[0] for line in keys.explain(before, after)] == different


def test_a_changed_value_is_told_with_both_sides() -> None:
    assert keys.explain([("target", "cuda:90")], [("target", "hip:gfx942")]) == ["target was cuda:90, now hip:gfx942"]


def test_added_and_removed_components_are_told_as_such() -> None:
    parts = [("options.num_warps", "4")]
    assert keys.explain([], parts) == ["options.num_warps was not given, now 4"]
    assert keys.explain(parts, []) == ["options.num_warps was 4, now not given"]


def test_of_a_changed_source_only_the_first_differing_line_is_shown() -> None:
    before, after = "a = 1\nb = 2\n", "a = 1\nb = 3\nc = 4\n"
    assert keys.explain([("source", before)], [("source", after)]) == [
        "source differs first at line 2: was 'b = 2', now 'b = 3'"
    ]


def test_a_source_that_became_longer_or_shorter_differs_where_it_ends() -> None:
    short, long = [("source", "a\nb\n")], [("source", "a\nb\nc\n")]
    assert keys.explain(short, long) == ["source differs first at line 3: was nothing, now 'c'"]
    assert keys.explain(long, short) == ["source differs first at line 3: was 'c', now nothing"]


def test_a_difference_in_indentation_can_be_seen() -> None:
    (line,) = keys.explain([("source", "if a:\n    b\n    c\n")], [("source", "if a:\n    b\nc\n")])
    _, _, sides = line.partition("was ")
    was, now = sides.split(", now ")
    assert was != now


def test_a_difference_in_line_endings_alone_is_told() -> None:
    unix, windows = [("source", "a\nb\n")], [("source", "a\r\nb\r\n")]
    assert keys.explain(unix, windows) == ["source differs in its line endings"]


def test_the_examples_in_the_module_are_right() -> None:
    result = doctest.testmod(keys)
    assert result.attempted > 0
    assert result.failed == 0
