"""Sentences to add: alike but for being true or false, and away from the facts that are shown."""

from __future__ import annotations

import random

import pytest

from align.padding import of_captions, of_scene, padded, without
from data.schema import Facts
from data.world.language import captions, mentioned
from data.world.scene import OBJECTS, sample_scene


def test_padding_of_a_scene_is_alike_but_for_the_name() -> None:
    seen = 0
    for index in range(60):
        scene = sample_scene(5, index)
        said = f"There is a {scene.objects[0]} and a {next(n for n in OBJECTS if n not in scene.objects)}."
        found = of_scene(scene, said, random.Random(index), 3)
        assert found == of_scene(scene, said, random.Random(index), 3)
        assert found is not None and len(found.true) == len(found.false) == min(3, len(scene.groups) - 1)
        true, false = mentioned(" ".join(found.true)), mentioned(" ".join(found.false))
        assert set(true) <= set(scene.objects) - set(mentioned(said))
        assert set(false).isdisjoint({*scene.objects, *mentioned(said)}) and len(set(false)) == len(false)
        for one, other in zip(found.true, found.false, strict=True):
            # article or number, and colour
            assert one.split()[:-1] == other.split()[:-1]
            seen += one.split()[1] == "are"
    assert seen > 5
    assert of_scene(scene, " ".join(scene.objects), random.Random(0), 1) is None
    assert of_scene(scene, " ".join(OBJECTS), random.Random(0), 1) is None


def test_padding_of_captions() -> None:
    own = Facts(captions=["A cat.", "A cat sits.", "A mat.", "A cat."])
    other = Facts(captions=["A dog.", "A cat sits.", "A bone."])
    found = of_captions(own, other, "I see: A mat. A bone. Good.", random.Random(0), 5)
    # what the response holds is left out, and so is another's caption that is true here
    assert found is not None and len(found.true) == 1 and found.false == ("A dog.",)
    assert found.true[0] in {"A cat.", "A cat sits."}
    drawn = {of_captions(own, other, "x", random.Random(i), 1) for i in range(30)}
    assert {p.true[0] for p in drawn if p} == {"A cat.", "A cat sits.", "A mat."}
    assert of_captions(own, Facts(), "x", random.Random(0), 1) is None
    assert of_captions(Facts(), other, "x", random.Random(0), 1) is None
    scene = sample_scene(1, 1)
    world = of_captions(Facts(captions=captions(scene)), other, "x", random.Random(0), 2)
    assert world is not None and set(world.true) <= set(captions(scene))


def test_facts_without_a_sentence() -> None:
    told = Facts(
        captions=["A cat on a mat", "a cat on a  mat.", "A cathedral.", "The mat."],
        rationales=["There is a cat on a mat, so it is calm."],
        knowledge=["Cats sleep."],
        objects=["cat"],
        answer="A cat on a mat.",
    )
    found = without(told, ["A cat on a mat."])
    assert found == told.model_copy(update={"captions": ["A cathedral.", "The mat."], "rationales": []})
    assert without(told, ["…"]) == told
    assert without(told, ["A cat."]).captions == ["A cathedral.", "The mat."]
    # another picture's caption that says the same is no false one
    own, other = Facts(captions=["A cat on a mat"]), Facts(captions=["a cat on a mat.", "A dog"])
    found_false = of_captions(own, other, "x", random.Random(0), 2)
    assert found_false is not None and found_false.false == ("A dog",)


@pytest.mark.parametrize(
    ("response", "expected"),
    [("Yes", "Yes. A cat."), ("Yes.", "Yes. A cat."), ("Really? ", "Really? A cat."), ("", "A cat."),
     ('He said "no"', 'He said "no" A cat.')],
)  # fmt: skip
def test_padded(response: str, expected: str) -> None:
    assert padded(response, ("A cat.",)) == expected
