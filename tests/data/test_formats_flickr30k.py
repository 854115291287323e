from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.formats import flickr30k
from data.jsonl import DataError
from data.schema import Example, Facts, Image, Message

LINES = [
    "A couple of [/EN#0/notvisual others] rest in [/EN#9/scene the yard] .",
    "[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#3/bodyparts hands] .",
    "[/EN#1/people/other Two men] with [/EN#2/bodyparts hair] .",
    "Nobody is here .",
    "[/EN#1/people Two] .",
]
PLAIN = [
    "A couple of others rest in the yard .",
    "Two young guys with shaggy hair look at hands .",
    "Two men with hair .",
    "Nobody is here .",
    "Two .",
]
XML = """<annotation>
  <filename>36.jpg</filename>
  <size><width>200</width><height>100</height><depth>3</depth></size>
  <object><name>1</name><bndbox><xmin>0</xmin><ymin>1</ymin><xmax>50</xmax><ymax>99</ymax></bndbox></object>
  <object><name>1</name><name>2</name>
    <bndbox><xmin>101</xmin><ymin>20</ymin><xmax>200</xmax><ymax>100</ymax></bndbox></object>
  <object><name>9</name><scene>1</scene><nobndbox>1</nobndbox></object>
  <object><name>3</name><nobndbox>1</nobndbox></object>
</annotation>
"""
FIRST, SECOND = "0.000,0.010,0.250,0.990", "0.505,0.200,1.000,1.000"


def put(folder: Path, name: str, lines: list[str] = LINES, xml: str | bytes = XML) -> None:
    for part in ("Sentences", "Annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "Sentences" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = xml.encode() if isinstance(xml, str) else xml
    (folder / "Annotations" / f"{name}.xml").write_bytes(data)


def test_a_picture_becomes_a_caption_with_boxes(tmp_path: Path) -> None:
    put(tmp_path, "36")
    put(tmp_path, "100", lines=[LINES[3]] * 4 + [LINES[0]])
    (tmp_path / "Sentences" / "._36.txt").touch()
    (tmp_path / "Sentences" / "README").touch()
    last, first = reversed(flickr30k.read(tmp_path, strict=True))
    answer = f"Two young guys [{FIRST};{SECOND}] with shaggy hair [{SECOND}] look at hands ."
    assert last == Example(
        id="36",
        image=Image(id="36.jpg", path="36.jpg"),
        messages=[
            Message(role="user", content=flickr30k.REQUEST),
            Message(role="assistant", content=answer),
        ],
        task="grounded_caption",
        facts=Facts(captions=PLAIN),
        source="flickr30k",
    )
    assert first.id == "100" and first.messages[1].content == PLAIN[3]
    assert "<image>" not in flickr30k.REQUEST


def error_of(folder: Path) -> DataError:
    good, bad = flickr30k.FLICKR30K.pairs(folder)
    assert isinstance(good[1], Example) and isinstance(bad[1], DataError)
    assert bad[1].mend and bad[0].file == bad[1].file
    return bad[1]


@pytest.mark.parametrize(
    ("old", "new", "key", "rule"),
    [
        ("<annotation>", '<!DOCTYPE a [<!ENTITY x "y">]><annotation>', None, "DOCTYPE"),
        ("<xmax>50<", "<xmax>201<", "object.0.bndbox", "leaves the picture"),
        ("<ymax>99<", "<ymax>101<", "object.0.bndbox", "leaves the picture"),
        ("<xmin>0<", "<xmin>-1<", "object.0.bndbox", "leaves the picture"),
        ("<ymin>1<", "<ymin>-1<", "object.0.bndbox", "leaves the picture"),
        ("<xmin>101<", "<xmin>201<", "object.1.bndbox", "ends before it begins"),
        ("<ymin>20<", "<ymin>101<", "object.1.bndbox", "ends before it begins"),
        ("<xmax>50<", "<xmax>5e1<", "object.0.bndbox.xmax", "whole number"),
        ("<xmin>0</xmin>", "", "object.0.bndbox.xmin", "whole number"),
        ("<width>200<", "<width>0<", "size", "0x100"),
        ("<height>100</height>", "", "size.height", "whole number"),
        ("size>", "sizes>", "size", "missing"),
        ("<name>9</name>", "", "object.2.name", "chain ids"),
        ("<name>9<", "<name>x<", "object.2.name", "chain ids"),
        ("<nobndbox>1</nobndbox></object>\n</ann", "</object>\n</ann", "object.3", "neither"),
    ],
)
def test_bad_boxes_name_the_file_and_element(
    old: str, new: str, key: str | None, rule: str, tmp_path: Path
) -> None:
    assert old in XML
    put(tmp_path, "1")
    put(tmp_path, "2", xml=XML.replace(old, new))
    error = error_of(tmp_path)
    assert error.file == str(tmp_path / "Annotations" / "2.xml")
    assert error.key == key and rule in error.rule


def test_broken_files_name_the_line(tmp_path: Path) -> None:
    put(tmp_path, "1")
    put(tmp_path, "2", xml=XML.replace("</size>", "</sizes>"))
    error = error_of(tmp_path)
    assert (error.file, error.line) == (str(tmp_path / "Annotations" / "2.xml"), 3)
    put(tmp_path, "2", xml=XML.encode("utf-16"))
    assert "UTF-8" in error_of(tmp_path).rule


@pytest.mark.parametrize(
    "line",
    [
        "[/EN#1/people Two",
        "Two] guys",
        "[/EN#x/people Two] guys",
        "[/EN#1 Two] guys",
        "[/EN#1/people] guys",
        "[/EN#1/people a [/EN#2/people b] c]",
        "[Two] guys",
        "/EN#1/people Two",
    ],
)
def test_unknown_markup_names_the_line(line: str, tmp_path: Path) -> None:
    put(tmp_path, "1")
    put(tmp_path, "2", lines=[*LINES[:2], line, *LINES[3:]])
    error = error_of(tmp_path)
    assert (error.file, error.line) == (str(tmp_path / "Sentences" / "2.txt"), 3)
    assert error.key == "sentence" and "no phrase" in error.rule


@pytest.mark.parametrize("lines", [LINES[:4], [*LINES, "One more ."], [], [*LINES[:4], " "]])
def test_five_sentences_are_needed(lines: list[str], tmp_path: Path) -> None:
    put(tmp_path, "1")
    put(tmp_path, "2", lines=lines)
    error = error_of(tmp_path)
    assert error.file == str(tmp_path / "Sentences" / "2.txt") and "where 5 are needed" in error.rule


@pytest.mark.parametrize(
    ("gone", "kept"), [("Sentences/2.txt", "Annotations/2.xml"), ("Annotations/2.xml", "Sentences/2.txt")]
)
def test_a_missing_partner_is_an_error_of_its_picture(gone: str, kept: str, tmp_path: Path) -> None:
    put(tmp_path, "1")
    put(tmp_path, "2")
    (tmp_path / gone).unlink()
    error = error_of(tmp_path)
    assert error.file == str(tmp_path / kept) and gone in error.rule


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    for name in ("Sentences", "Annotations"):
        with pytest.raises(DataError) as caught:
            flickr30k.read(tmp_path)
        assert f"no folder {name}" in caught.value.rule and caught.value.file == str(tmp_path)
        (tmp_path / name).mkdir()
    assert flickr30k.read(tmp_path) == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, 700),
    gone=st.integers(0, 12),
    new=st.binary(max_size=8) | st.sampled_from([b"<", b"[", b"]", b"/EN#", b"&x;", b"<!ENTITY", b"\x00"]),
    xml=st.booleans(),
)
def test_nothing_but_data_errors_comes_out(at: int, gone: int, new: bytes, xml: bool, tmp_path: Path) -> None:
    put(tmp_path, "1")
    path = tmp_path / ("Annotations/1.xml" if xml else "Sentences/1.txt")
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + new + whole[at + gone :])
    ((row, got),) = flickr30k.FLICKR30K.pairs(tmp_path)
    assert isinstance(got, Example | DataError)
    assert isinstance(got, Example) or (got.file == row.file == str(path))
