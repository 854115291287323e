"""``align data world | annotate | contact-sheet`` as a person calls them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image as Pil

from apps import cli
from apps.world_commands import annotate
from data.jsonl import DataError, read_records, write_records
from data.schema import HALLUCINATION, HELPFULNESS, Image, Message, Preference, Response
from data.world.annotators import Labeler
from data.world.build import read_scenes
from data.world.scene import OBJECTS, Scene, sample_scene


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    assert (
        cli.main(["data", "world", str(folder), "--seed", "2", "--scale", "0.0001", "--difficulty", "0.1"])
        == 0
    )
    return folder


def pair(scene: Scene, name: str, *texts: str) -> Preference:
    return Preference(
        id=name,
        image=Image(id=scene.id, path=f"images/{scene.id}.png"),
        messages=[Message(role="user", content="What is in this picture?")],
        responses=[Response(text=t) for t in texts],
        choices={},
    )


def pairs_of(world: Path) -> list[Preference]:
    return [false_pair(scene, f"p{i}") for i, scene in enumerate(read_scenes(world).values())]


def false_pair(scene: Scene, name: str) -> Preference:
    """Everything that is there, and the same with something false."""
    absent = next(n for n in OBJECTS if n not in scene.objects)
    true = " ".join(f"A {n}." for n in scene.objects)
    return pair(scene, name, true, f"{true} A {absent}.")


def test_the_folder_is_written_at_the_smallest_scale(world: Path) -> None:
    assert len(read_records(world / "sft.jsonl", "example", strict=True)) == 24 + 24
    scenes = read_scenes(world)
    assert {s.difficulty for s in scenes.values()} == {0.1}
    assert sorted(p.stem for p in (world / "images").iterdir()) == sorted(scenes)


def test_another_world_does_not_go_into_the_folder(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "world", str(world), "--seed", "2", "--scale", "0.0001", "--difficulty", "0.2"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert (
        f"{world}: belongs to other settings, or to another version (difficulty: 0.1 there, 0.2 now); choose"
        in error
    )
    assert {s.difficulty for s in read_scenes(world).values()} == {0.1}


def test_clean_labelers_choose_what_is_true(world: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "samples.jsonl", pairs_of(world))
    done = tmp_path / "clean.jsonl"
    assert (
        cli.main(
            ["data", "annotate", str(tmp_path / "samples.jsonl"), str(done), "--world", str(world), "--clean"]
        )
        == 0
    )
    chosen = read_records(done, "preference", strict=True)
    assert all(
        isinstance(p, Preference) and p.choices == {HALLUCINATION: 0, HELPFULNESS: None} for p in chosen
    )
    assert {p.annotator for p in chosen if isinstance(p, Preference)} == {"world-clean"}


def test_noisy_labelers_err_and_their_seed_decides_where() -> None:
    """Noticed, the false object is chosen by a slip alone; unnoticed, the two responses are a coin's."""
    scenes = {scene.id: scene for scene in (sample_scene(2, i) for i in range(2400))}
    pairs = [false_pair(scene, name) for name, scene in scenes.items()]
    first = annotate(pairs, scenes, seed=0)
    assert first == annotate(list(reversed(pairs)), scenes, seed=0)[::-1]
    assert first != annotate(pairs, scenes, seed=1)
    labeler, n = Labeler(), len(pairs)
    share = labeler.notice * labeler.flip + (1 - labeler.notice) * 0.5
    wrong = sum(p.preferred == 1 for p in first) / n
    # 4 standard deviations: 0.03, and without slips 0.08 would be missing
    assert wrong == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


def test_no_pair_is_lost_and_no_labels_are_replaced_unasked(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad line in a hundred would pass where records are read to train on."""
    samples, done = tmp_path / "samples.jsonl", tmp_path / "done.jsonl"
    command = ["data", "annotate", str(samples), str(done), "--world", str(world)]
    write_records(samples, pairs_of(world))
    whole = samples.read_text()
    assert whole.count("\n") > 200
    samples.write_text(whole + "{oops\n")
    assert cli.main(command) == 2
    assert f"samples.jsonl:{whole.count(chr(10)) + 1}: not valid JSON" in capsys.readouterr().err
    assert not done.exists()
    samples.write_text(whole)
    assert cli.main(command) == 0
    first = done.read_bytes()
    assert cli.main([*command, "--seed", "1"]) == 2
    told = f"{done}: the output exists already; choose another, or --force"
    assert told in capsys.readouterr().err and done.read_bytes() == first
    assert cli.main([*command, "--seed", "1", "--force"]) == 0
    assert done.read_bytes() != first


def test_a_pair_of_another_world_is_an_error(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = Scene("w9-000001", "rest", "bedroom", (), 0)
    with pytest.raises(
        DataError, match="the image of 'x' is not a scene of this world; give the world folder"
    ):
        annotate([pair(stranger, "x", "a", "b")], read_scenes(world), seed=0)
    write_records(tmp_path / "s.jsonl", [pair(stranger, "x", "a", "b")])
    command = [
        "data",
        "annotate",
        str(tmp_path / "s.jsonl"),
        str(tmp_path / "o.jsonl"),
        "--world",
        str(world),
    ]
    assert cli.main(command) == 2
    assert "is not a scene of this world" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_a_labeler_compares_two(world: Path) -> None:
    scenes = read_scenes(world)
    three = pair(next(iter(scenes.values())), "x", "a", "b", "c")
    with pytest.raises(DataError, match="'x' has 3 responses, and a labeler compares two"):
        annotate([three], scenes, seed=0)


def test_a_folder_without_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = Scene("s", "rest", "bedroom", (), 0)
    write_records(tmp_path / "s.jsonl", [pair(scene, "x", "a", "b")])
    command = [
        "data",
        "annotate",
        str(tmp_path / "s.jsonl"),
        str(tmp_path / "o.jsonl"),
        "--world",
        str(tmp_path),
    ]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "scenes.jsonl" in error and error.count("\n") == 1


def test_difficulty_outside_its_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "world", str(tmp_path / "w"), "--difficulty", "2"]) == 2
    assert "--difficulty: 2.0 is not a share; give 0..1" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("scale", ["inf", "nan", "0", "-1", "1e300"])
def test_a_scale_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: str) -> None:
    assert cli.main(["data", "world", str(tmp_path / "w"), "--scale", scale]) == 2
    assert f"--scale: {float(scale)} is no scale; give a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "contact-sheet", str(tmp_path / "sheet.png")]) == 0
    assert Pil.open(tmp_path / "sheet.png").size == (2 * (84 + 64 * 8), 64 * 18)
    assert cli.main(["data", "contact-sheet", str(tmp_path / "sheet.doc")]) == 2
    assert "does not end in .png" in capsys.readouterr().err
