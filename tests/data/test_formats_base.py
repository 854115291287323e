from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.formats import choose
from data.formats.base import inside, original_ids, unique_ids
from data.jsonl import DataError, Row
from data.schema import Prompt

IDS = st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "b#2", "a#2#2", "#", "#2"]), max_size=8)


def prompts(ids: list[str]) -> list[Prompt]:
    return [Prompt(id=i, question="Q?") for i in ids]


def numbered(ids: list[str]) -> list[str]:
    pairs = ((Row("f", line=n), p) for n, p in enumerate(prompts(ids), start=1))
    return [got.id for _, got in unique_ids(pairs)]


def test_repeated_ids_are_numbered_and_restored() -> None:
    assert numbered(["x", "y", "x", "x"]) == ["x", "y", "x#2", "x#3"]
    assert [name for _, name in original_ids(prompts(["x", "y", "x#2", "x#3"]))] == ["x", "y", "x", "x"]
    assert [name for _, name in original_ids(prompts(["x#2", "x", "x#7"]))] == ["x#2", "x", "x#7"]


@given(IDS)
def test_numbered_ids_are_unique_whatever_the_file_holds(ids: list[str]) -> None:
    assert len(set(numbered(ids))) == len(ids)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=8))
def test_plain_ids_come_back_exactly(ids: list[str]) -> None:
    assert [name for _, name in original_ids(prompts(numbered(ids)))] == ids


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "b#2", "a#2#2"]), max_size=6, unique=True))
def test_our_unique_ids_survive_writing_and_reading(ids: list[str]) -> None:
    assert numbered([name for _, name in original_ids(prompts(ids))]) == ids


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/a", "C:\\a", "..", ".", "", "\\a", "a\0b"])
def test_paths_that_fit_no_root(path: str) -> None:
    with pytest.raises(DataError, match="inside an image root"):
        inside(path, "image")


@pytest.mark.parametrize("path", ["a.jpg", "a/b.jpg", "a/../b.jpg", "./a.jpg", "a..b/..c"])
def test_paths_that_fit_a_root(path: str, tmp_path: Path) -> None:
    inside(path, "image")
    # and they do lie there
    assert (tmp_path / path).resolve().is_relative_to(tmp_path.resolve())


def test_a_family_serves_the_kind_that_is_wanted() -> None:
    assert choose("trl", "example").name == "trl_messages"
    assert choose("trl", "preference").name == "trl"
    assert choose("llava_rlhf", "prompt").name == "llava_rlhf_prompts"
    with pytest.raises(DataError, match=r"gives 'example' records, not 'preference'; use one of llava_rlhf"):
        choose("llava", "preference")
    with pytest.raises(DataError, match="unknown format 'lava'; use one of llava, "):
        choose("lava")
