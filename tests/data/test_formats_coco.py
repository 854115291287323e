from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import coco
from data.formats.base import Format
from data.jsonl import DataError, write_json
from data.schema import Example, Facts, Image, Message, Prompt

STRANGE = [
    *(None, True, -1, 0, 7, 10**30, 1.5, "", " ", "x", "\ud83d", "../x", "a\0b"),
    *([], ["x"], [[]], {}, {"id": 1}),
]


def picture(number: Any, name: str, **more: Any) -> dict[str, Any]:
    return {"license": 3, "file_name": name, "height": 480, "width": 640, "id": number} | more


def caption(image: Any, text: Any, number: int = 1) -> dict[str, Any]:
    return {"image_id": image, "id": number, "caption": text}


def thing(image: Any, category: Any) -> dict[str, Any]:
    polygon = [[510.66, 423.01, 511.72, 420.03, 510.45, 423.01]]
    box = {"area": 702.1, "iscrowd": 0, "bbox": [473.07, 395.93, 38.65, 28.67]}
    return {"segmentation": polygon, "image_id": image, "category_id": category, "id": 1, **box}


PICTURES = [picture(30, "000000000030.jpg"), picture(9, "000000000009.jpg")]


def captions_file(**changes: Any) -> dict[str, Any]:
    told = [
        caption(9, " A plate of food. \n"),
        caption(30, "Flowers in a vase."),
        caption(9, "Broccoli and bread."),
        caption(9, "A plate of food."),
    ]
    info = {"description": "COCO 2017 Dataset", "year": 2017}
    return {"info": info, "licenses": [], "images": PICTURES, "annotations": told} | changes


def instances_file(**changes: Any) -> dict[str, Any]:
    names = [(56, "broccoli"), (51, "bowl"), (1, "person")]
    categories = [{"supercategory": "any", "id": i, "name": name} for i, name in names]
    told = [thing(9, 56), thing(9, 51), thing(9, 56)]
    return {"images": PICTURES, "annotations": told, "categories": categories} | changes


def write(tmp_path: Path, value: Any, name: str = "in.json") -> str:
    write_json(tmp_path / name, value)
    return str(tmp_path / name)


def first_error(fmt: Format, path: str, **options: str) -> DataError:
    with pytest.raises(DataError) as caught:
        fmt.read(path, strict=True, options=options)
    return caught.value


def image(name: str) -> Image:
    return Image(id=name, path=name)


def asked(question: str, answer: str) -> list[Message]:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


def test_an_image_becomes_an_example_with_all_its_captions_and_things(tmp_path: Path) -> None:
    path = write(tmp_path, captions_file())
    instances = write(tmp_path, instances_file(), "instances.json")
    assert coco.read(path, instances, strict=True) == [
        Example(
            id="30",
            image=image("000000000030.jpg"),
            messages=asked("Sum up in one sentence what can be seen here.", "Flowers in a vase."),
            task="caption",
            facts=Facts(captions=["Flowers in a vase."]),
            source="coco",
        ),
        Example(
            id="9",
            image=image("000000000009.jpg"),
            messages=asked("Describe this picture in one sentence.", "A plate of food."),
            task="caption",
            facts=Facts(captions=["A plate of food.", "Broccoli and bread."], objects=["bowl", "broccoli"]),
            source="coco",
        ),
    ]
    assert [e.facts.objects for e in coco.read(path, strict=True)] == [[], []]


def test_prompts_ask_for_a_caption_or_for_the_things(tmp_path: Path) -> None:
    path, instances = write(tmp_path, captions_file()), write(tmp_path, instances_file(), "i.json")
    _, prompt = coco.PROMPTS.read(path, strict=True, options={"instances": instances})
    assert prompt == Prompt(
        id="9",
        image=image("000000000009.jpg"),
        question="Describe this picture in one sentence.",
        facts=Facts(captions=["A plate of food.", "Broccoli and bread."], objects=["bowl", "broccoli"]),
        answer_type="general",
        length_class="general",
        source="coco",
    )
    empty, things = coco.INSTANCES.read(instances, strict=True)
    assert (empty.id, empty.facts) == ("30", Facts())
    assert things == Prompt(
        id="9",
        image=image("000000000009.jpg"),
        question="Which things are in this picture?",
        facts=Facts(objects=["bowl", "broccoli"]),
        source="coco",
    )


def test_keys_may_stand_in_any_order(tmp_path: Path) -> None:
    path, instances = write(tmp_path, captions_file()), write(tmp_path, instances_file(), "i.json")
    want = coco.read(path, instances)
    backwards = dict(reversed(captions_file().items()))
    turned = dict(reversed(instances_file().items()))
    assert [next(iter(value)) for value in (backwards, turned)] == ["annotations", "categories"]
    got = coco.read(write(tmp_path, backwards), write(tmp_path, turned, "i.json"), strict=True)
    assert got == want


def test_each_wording_is_used_and_always_for_the_same_image(tmp_path: Path) -> None:
    pictures = [picture(i, f"{i}.jpg") for i in range(60)]
    told = [caption(i, "A cat.") for i in range(60)]
    path = write(tmp_path, {"images": pictures, "annotations": told})
    questions = [e.messages[0].content for e in coco.read(path)]
    assert set(questions) == set(coco.CAPTION_REQUESTS)
    turned = write(tmp_path, {"images": pictures[::-1], "annotations": told})
    assert [e.messages[0].content for e in coco.read(turned)] == questions[::-1]


@pytest.mark.parametrize(
    ("changes", "index", "key", "rule"),
    [
        ({"images": [*PICTURES, picture(30, "x.jpg")]}, 2, "images.2.id", "image 30 stands at images.0"),
        ({"images": [*PICTURES, picture(1.0, "x.jpg")]}, 2, "images.2.id", "a number, where"),
        ({"images": [*PICTURES, picture(1, "../x.jpg")]}, 2, "images.2.file_name", "inside an image root"),
        ({"images": [*PICTURES, {"id": 1}]}, 2, "images.2.file_name", "missing"),
        ({"images": [*PICTURES, picture(1, "x.jpg")]}, 2, "images.2", "image 1 has no caption"),
        ({"images": [*PICTURES, picture("9", "x.jpg")]}, 2, "images.2", "image '9' has no caption"),
        ({"images": [*PICTURES, 7]}, 2, "images.2", "not an object"),
        ({"images": [*PICTURES, picture(1, "\ud83d")]}, 2, "images.2.file_name", "lone surrogate"),
        ({"annotations": [caption(9, "a"), caption(30, None)]}, 1, "annotations.1.caption", "null, where"),
        ({"annotations": [caption(9, "a"), caption(30, " ")]}, 1, "annotations.1.caption", "is empty"),
        ({"annotations": [caption(9, "a"), {"image_id": 9}]}, 1, "annotations.1.caption", "missing"),
        ({"annotations": [caption(9, "a"), {"caption": "b"}]}, 1, "annotations.1.image_id", "missing"),
        ({"annotations": [caption(9, "a"), caption(8, "b")]}, 1, "annotations.1.image_id", "image 8 is not"),
        ({"annotations": [caption(9, "a"), []]}, 1, "annotations.1", "not an object"),
        ({"annotations": [thing(9, 51)]}, 0, "annotations.0.caption", "missing"),
    ],
)
def test_bad_captions_name_their_place(
    tmp_path: Path, changes: dict[str, Any], index: int, key: str, rule: str
) -> None:
    path = tmp_path / "in.json"
    path.write_text(json.dumps(captions_file(**changes)))  # as escapes, where a text is none
    error = first_error(coco.CAPTIONS, str(path))
    assert str(error).startswith(f"{path}[{index}]: {key}: ")
    assert rule in error.rule and error.mend


@pytest.mark.parametrize(
    ("changes", "index", "key", "rule"),
    [
        ({"annotations": [thing(9, 51), thing(9, 90)]}, 1, "annotations.1.category_id", "category 90 is not"),
        ({"annotations": [thing(9, 51), thing(8, 51)]}, 1, "annotations.1.image_id", "image 8 is not"),
        ({"annotations": [thing(9, "51")]}, 0, "annotations.0.category_id", "a string, where a whole"),
        ({"annotations": [caption(9, "a")]}, 0, "annotations.0.category_id", "missing"),
        (
            {"categories": [{"id": 51, "name": "a"}, {"id": 51, "name": "b"}]},
            1,
            "categories.1.id",
            "'a' already",
        ),
        ({"categories": [{"id": 51}]}, 0, "categories.0.name", "missing"),
        ({"categories": [{"id": 51, "name": ""}]}, 0, "categories.0.name", "empty"),
    ],
)
def test_bad_instances_name_their_place_alone_and_beside_captions(
    tmp_path: Path, changes: dict[str, Any], index: int, key: str, rule: str
) -> None:
    path = write(tmp_path, instances_file(**changes), "i.json")
    alone = first_error(coco.INSTANCES, path)
    beside = first_error(coco.CAPTIONS, write(tmp_path, captions_file()), instances=path)
    for error in (alone, beside):
        assert str(error).startswith(f"{path}[{index}]: {key}: ") and rule in error.rule and error.mend


def test_what_is_wrong_costs_itself_alone(tmp_path: Path) -> None:
    pictures = [*PICTURES, picture(4, "/4.jpg"), picture(5, "5.jpg")]
    told = [*captions_file()["annotations"], caption(4, "Of a bad image."), caption(77, "Of none.")]
    path = write(tmp_path, captions_file(images=pictures, annotations=told))
    pairs = list(coco.CAPTIONS.pairs(path))
    errors = [got.key for _, got in pairs if isinstance(got, DataError)]
    assert errors == ["images.2.file_name", "annotations.5.image_id", "images.3"]
    assert [got.id for _, got in pairs if isinstance(got, Example)] == ["30", "9"]
    (stray,) = [row for row, got in pairs if isinstance(got, DataError) and got.key == errors[1]]
    assert stray.raw == {"image_id": 77, "caption": "Of none."} and stray.index == 5


def test_instances_of_another_split_are_told(tmp_path: Path) -> None:
    other = [picture(9, "000000000009.jpg")]
    path = write(tmp_path, captions_file())
    instances = write(tmp_path, instances_file(images=other), "other.json")
    error = first_error(coco.CAPTIONS, path, instances=instances)
    assert str(error).startswith(f"{path}[0]: images.0.id: image 30 is not in {instances}")
    assert "same split" in error.mend


@pytest.mark.parametrize(
    ("text", "key", "rule"),
    [
        ("[1]", None, "not one JSON object"),
        ("7", None, "not one JSON object"),
        ("{}", "images", "none"),
        ('{"images": {}}', "images", "not a list"),
        ('{"images": [{"id": 1, "file_name": "a"}]}', "annotations", "none"),
        ('{"images": [{"id": 1', None, "not valid JSON"),
    ],
)
def test_a_file_that_is_none_of_coco(tmp_path: Path, text: str, key: str | None, rule: str) -> None:
    path = tmp_path / "in.json"
    path.write_text(text)
    error = first_error(coco.CAPTIONS, str(path))
    assert error.file == str(path) and error.key == key and rule in error.rule and error.mend


def test_facts_by_file_name(tmp_path: Path) -> None:
    captions = write(tmp_path, captions_file())
    more = [*PICTURES, picture(5, "5.jpg")]
    instances = write(tmp_path, instances_file(images=more), "i.json")
    told, objects = ["A plate of food.", "Broccoli and bread."], ["bowl", "broccoli"]
    assert coco.read_facts(captions, instances) == {
        "000000000030.jpg": Facts(captions=["Flowers in a vase."]),
        "000000000009.jpg": Facts(captions=told, objects=objects),
        "5.jpg": Facts(),
    }
    assert coco.read_facts(captions)["000000000009.jpg"] == Facts(captions=told)
    assert coco.read_facts(None, instances)["000000000009.jpg"] == Facts(objects=objects)
    bad = write(tmp_path, captions_file(annotations=[caption(8, "a")]))
    with pytest.raises(DataError, match="image 8 is not among"):
        coco.read_facts(bad, instances)
    with pytest.raises(DataError, match="no file is given"):
        coco.read_facts(None, None)


def test_polygons_are_not_held(tmp_path: Path) -> None:
    polygon = [[i / 7 for i in range(2000)]]
    told = [thing(9, 51) | {"segmentation": polygon} for _ in range(200)]
    path = Path(write(tmp_path, instances_file(annotations=told)))
    tracemalloc.start()
    try:
        coco.INSTANCES.read(path, strict=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # a chunk of the file and an element; the numbers of the whole take several times as much
    assert peak < 4e6 < path.stat().st_size


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key or index) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def mutated(data: st.DataObject, value: Any) -> bytes:
    """A JSON value with something strange in some places, or nothing, as bytes."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        if found := list(places(value)):
            holder, key = found[data.draw(st.integers(0, len(found) - 1))]
            if data.draw(st.booleans()):
                # a copy, or the next turn would change what later examples draw
                holder[key] = copy.deepcopy(data.draw(st.sampled_from(STRANGE)))
            else:
                del holder[key]
    return json.dumps(value).encode()


def spoiled(data: st.DataObject, value: Any) -> bytes:
    """A JSON value's bytes, with some of them cut out or put in."""
    whole = json.dumps(value).encode()
    at, cut = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 9))
    return whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + cut :]


def check_pairs(fmt: Format, path: Path, model: type[Example | Prompt], **options: str) -> None:
    """Read a file that may be damaged: nothing but records and errors that name a file comes out."""
    try:
        for _, got in fmt.pairs(path, **options):
            assert isinstance(got, DataError | model)
            if isinstance(got, DataError):
                assert got.file and got.rule and got.mend
    except DataError as error:
        assert error.file and error.rule


@settings(max_examples=50, deadline=None)
@given(data=st.data(), change=st.sampled_from([mutated, spoiled]), first=st.booleans())
def test_only_data_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, change: Any, first: bool
) -> None:
    captions, instances = (tmp_path_factory.getbasetemp() / name for name in ("coco.json", "things.json"))
    whole = json.dumps(captions_file()).encode(), json.dumps(instances_file()).encode()
    captions.write_bytes(change(data, captions_file()) if first else whole[0])
    instances.write_bytes(whole[1] if first else change(data, instances_file()))
    check_pairs(coco.CAPTIONS, captions, Example, instances=str(instances))
    check_pairs(coco.PROMPTS, captions, Prompt)
    check_pairs(coco.INSTANCES, instances, Prompt)
