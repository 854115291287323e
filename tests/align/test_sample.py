"""align.sample on a tiny model: what it writes, and the same again after any interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from align import sample
from align.checkpoint import CheckpointError
from align.config import SampleSettings
from align.launch import LaunchError
from align.models.build import ModelError
from data.jsonl import DataError, read_records, write_records
from data.schema import Facts, Image, Preference, Prompt, Response

#: prompts; with a batch of 8 a part holds 64
COUNT = 70


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 prompts about four pictures; every tenth has none."""
    folder = tmp_path_factory.mktemp("prompts")
    rng = np.random.default_rng(0)
    for i in range(4):
        PilImage.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    records = [
        Prompt(
            id=f"q{i}",
            question="What is in the image?" if i % 2 else "Is there a dog?",
            image=None if i % 10 == 9 else Image(id=str(i % 4), path=f"{i % 4}.png"),
            facts=Facts(captions=[f"Caption {i}."]),
            source="here",
            split="train",
        )
        for i in range(COUNT)
    ]
    write_records(folder / "prompts.jsonl", records)
    return folder


def settings(base: Path, prompts: Path, output: Path, **changes: Any) -> SampleSettings:
    values: dict[str, Any] = {
        "output": str(output),
        "model": {"path": str(base), "device": "cpu"},
        "data": {"path": str(prompts / "prompts.jsonl"), "images": str(prompts)},
        "generate": {"max_new_tokens": 4, "temperature": 0.7, "batch_size": 8},
        "distinct": False,
        "report_to": [],
    }
    return SampleSettings.model_validate(values | changes)


@pytest.fixture(scope="module")
def sampled(tiny_llava: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.run(settings(tiny_llava, prompts, tmp_path_factory.mktemp("sampled") / "run"))


def records(run: Path) -> list[Preference]:
    found = read_records(run / "samples.jsonl", "preference", strict=True)
    return [record for record in found if isinstance(record, Preference)]


def test_each_prompt_gets_its_responses(sampled: Path, prompts: Path, tiny_llava: Path) -> None:
    asked = read_records(prompts / "prompts.jsonl", "prompt")
    found = records(sampled)
    assert [record.id for record in found] == [f"q{i}" for i in range(COUNT)]
    for record, prompt in zip(found, asked, strict=True):
        assert isinstance(prompt, Prompt)
        assert [(m.role, m.content) for m in record.messages] == [("user", prompt.question)]
        assert (record.image, record.facts) == (prompt.image, prompt.facts)
        assert (record.source, record.split, record.choices) == ("here", "train", {})
        assert len(record.responses) == 2
        assert {response.model for response in record.responses} == {str(tiny_llava)}
    assert sum(len({r.text for r in record.responses}) == 2 for record in found) > COUNT / 2
    assert (sampled / "DONE").exists()


def test_equal_responses_are_left_out_when_asked(tiny_llava: Path, prompts: Path, tmp_path: Path) -> None:
    def same(*_: Any, **__: Any) -> Iterator[Preference]:
        yield from changed

    whole = records(sample.run(settings(tiny_llava, prompts, tmp_path / "all", data=limited(prompts, 6))))
    changed = [r.model_copy(update={"responses": [r.responses[0]] * 2}) if r.id == "q3" else r for r in whole]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "answered", same)
        run = sample.run(
            settings(tiny_llava, prompts, tmp_path / "some", data=limited(prompts, 6), distinct=True)
        )
    different = [r.id for r in changed if len({x.text for x in r.responses}) > 1]
    assert [record.id for record in records(run)] == different and "q3" not in different


def limited(prompts: Path, limit: int) -> dict[str, Any]:
    return {"path": str(prompts / "prompts.jsonl"), "images": str(prompts), "limit": limit}


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 40], ids=["first-part", "between-parts", "inside-a-part"])
def test_a_killed_run_goes_on_and_writes_the_same(
    tiny_llava: Path,
    prompts: Path,
    sampled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """Killed as the first part begins, as the second does, or when 40 records of the first were written."""
    real, calls = sample.answered, []

    def answered(*arguments: Any) -> Iterator[Preference]:
        calls.append(arguments)
        if len(calls) > 1 or after == 0:
            raise Killed
        for count, record in enumerate(real(*arguments)):
            if count == after > 1:
                raise Killed
            yield record

    with monkeypatch.context() as patch:
        patch.setattr(sample, "answered", answered)
        with pytest.raises(Killed):
            sample.run(settings(tiny_llava, prompts, tmp_path / "run"))
    parts = (
        [path.name for path in (tmp_path / "run/parts").glob("*")]
        if (tmp_path / "run/parts").exists()
        else []
    )
    assert parts == (["00000000.jsonl"] if after == 1 else [])
    run = sample.run(settings(tiny_llava, prompts, tmp_path / "run", resume=True))
    assert (run / "samples.jsonl").read_bytes() == (sampled / "samples.jsonl").read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == (sampled / "metrics.jsonl").read_bytes()


def other_question(found: list[Prompt]) -> None:
    found[5] = found[5].model_copy(update={"question": "What else?"})


def other_picture(found: list[Prompt]) -> None:
    found[5] = found[5].model_copy(update={"image": found[6].image})


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (other_question, "q5"),
        (other_picture, "q5"),
        (list.reverse, f"q{COUNT - 1}"),
        (lambda f: f.pop(0), "q1"),
    ],
    ids=["question", "picture", "order", "one-less"],
)
def test_parts_of_other_prompts_are_not_taken(
    tiny_llava: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[Prompt]], object],
    first: str,
) -> None:
    """The settings name the file of prompts, not what stands in it."""
    asked = [p for p in read_records(prompts / "prompts.jsonl") if isinstance(p, Prompt)]
    write_records(tmp_path / "prompts.jsonl", asked)
    data = {"path": str(tmp_path / "prompts.jsonl"), "images": str(prompts)}

    def answers(_: object, __: object, ___: object, part: list[Prompt], ____: int) -> Iterator[Preference]:
        if part[0].id != "q0":
            raise Killed
        return (sample._preference(p, [Response(text="a"), Response(text="b")]) for p in part)

    monkeypatch.setattr(sample, "load_lmm", lambda *_: SimpleNamespace(processor=None))
    monkeypatch.setattr(sample, "Renderer", lambda *_: None)
    monkeypatch.setattr(sample, "answered", answers)
    with pytest.raises(Killed):
        sample.run(settings(tiny_llava, prompts, tmp_path / "run", data=data))
    change(asked)
    write_records(tmp_path / "prompts.jsonl", asked)
    told = rf"parts/00000000\.jsonl: answers other prompts .* \(the first that differs: '{first}'\); choose"
    with pytest.raises(CheckpointError, match=told):
        sample.run(settings(tiny_llava, prompts, tmp_path / "run", data=data, resume=True))


def test_the_seed_decides(tiny_llava: Path, prompts: Path, sampled: Path, tmp_path: Path) -> None:
    again = sample.run(settings(tiny_llava, prompts, tmp_path / "again"))
    other = sample.run(settings(tiny_llava, prompts, tmp_path / "other", seed=1))
    assert (again / "samples.jsonl").read_bytes() == (sampled / "samples.jsonl").read_bytes()
    assert (other / "samples.jsonl").read_bytes() != (sampled / "samples.jsonl").read_bytes()


def test_a_finished_run_loads_nothing(
    tiny_llava: Path, prompts: Path, sampled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "load_lmm", lambda *_: pytest.fail("weights were loaded"))
    before = (sampled / "samples.jsonl").stat().st_mtime_ns
    assert sample.run(settings(tiny_llava, prompts, sampled, resume=True)) == sampled
    assert (sampled / "samples.jsonl").stat().st_mtime_ns == before


def test_nothing_is_written_for_bad_input(
    tiny_llava: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "load_lmm", lambda *_: pytest.fail("weights were loaded"))
    for dry in (True, False):
        with pytest.raises(ModelError, match=r"config\.json is missing"):
            sample.run(settings(prompts, prompts, tmp_path / "run", dry_run=dry))
        with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
            gone = {"path": str(tmp_path / "gone.jsonl")}
            sample.run(settings(tiny_llava, prompts, tmp_path / "run", data=gone, dry_run=dry))
    sample.run(settings(tiny_llava, prompts, tmp_path / "run", dry_run=True))
    assert not (tmp_path / "run").exists()


def test_bad_records_are_kept_aside(tiny_llava: Path, prompts: Path, tmp_path: Path) -> None:
    lines = (prompts / "prompts.jsonl").read_text().splitlines()[:3]
    gone = lines[0].replace('"q0"', '"gone"').replace("0.png", "gone.png")
    (tmp_path / "prompts.jsonl").write_text("\n".join([gone, *lines]))
    data = {"path": str(tmp_path / "prompts.jsonl"), "images": str(prompts), "max_bad": 0.3}
    sample.run(settings(tiny_llava, prompts, tmp_path / "run", data=data, dry_run=True))
    assert not (tmp_path / "run").exists()
    run = sample.run(settings(tiny_llava, prompts, tmp_path / "run", data=data))
    assert [record.id for record in records(run)] == ["q0", "q1", "q2"]
    (reject,) = [json.loads(line) for line in (run / "rejects.jsonl").read_text().splitlines()]
    assert (reject["line"], reject["key"], reject["record"]["id"]) == (1, "image.path", "gone")


def test_a_picture_that_cannot_be_decoded_names_its_prompt(
    tiny_llava: Path, prompts: Path, tmp_path: Path
) -> None:
    """Damage behind the header is found when the picture is needed."""
    picture = (prompts / "1.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(picture[: len(picture) // 2])
    cut = Prompt(id="q7", question="What?", image=Image(id="c", path="cut.png"))
    write_records(tmp_path / "prompts.jsonl", [Prompt(id="words", question="What?"), cut])
    data = {"path": str(tmp_path / "prompts.jsonl"), "images": str(tmp_path)}
    with pytest.raises(DataError, match=r"'cut\.png' cannot be decoded \(.*\), in record 'q7'; replace"):
        sample.run(settings(tiny_llava, prompts, tmp_path / "run", data=data))


def test_one_process_only(
    tiny_llava: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match=r"sample runs in one process, and WORLD_SIZE is 2"):
        sample.run(settings(tiny_llava, prompts, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
