"""The stream of elements against the standard library, which reads the same bytes whole."""

from __future__ import annotations

import collections
import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.jsonstream import CHUNK, Element, JsonStream

CHUNKS = (1, 2, 3, 7, 64, CHUNK)
# every character that UTF-8 holds; JSON escapes some, and is long for others
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(TEXTS, x, max_size=4), max_leaves=12
)
LAYOUTS = st.fixed_dictionaries({"indent": st.sampled_from([None, 0, 3]), "ensure_ascii": st.booleans()})


def stream(data: bytes | str, chunk: int = CHUNK) -> list[Element]:
    data = data.encode() if isinstance(data, str) else data
    return list(JsonStream(io.BytesIO(data), "f.json", chunk))


def whole(elements: list[Element]) -> Any:
    """The value that the elements are parts of; keys whose arrays are empty have none."""
    if len(elements) == 1 and elements[0].key is None and elements[0].index is None:
        return elements[0].value
    if not elements or elements[0].key is None:
        assert [e.index for e in elements] == list(range(len(elements)))
        return [e.value for e in elements]
    found: dict[str, Any] = {}
    for e in elements:
        assert e.key is not None
        if e.index is None:
            found[e.key] = e.value
        else:
            assert e.index == len(found.setdefault(e.key, []))
            found[e.key].append(e.value)
    return found


def same(a: Any, b: Any) -> bool:
    """Equal in values and types, NaN and the sign of zero included."""
    return repr(a) == repr(b)


def fault(data: bytes | str, chunk: int = CHUNK) -> DataError:
    with pytest.raises(DataError) as caught:
        stream(data, chunk)
    assert caught.value.file == "f.json" and caught.value.mend
    return caught.value


@settings(max_examples=50, deadline=None)
@given(VALUES, LAYOUTS, st.sampled_from(["", "\ufeff"]), st.sampled_from(["", " \n"]))
def test_it_reads_what_the_standard_library_reads(
    value: Any, layout: dict[str, Any], mark: str, space: str
) -> None:
    text = space + json.dumps(value, **layout) + space
    expected = json.loads(text)
    if isinstance(expected, dict):
        expected = {k: v for k, v in expected.items() if v != []}
        if not expected:
            expected = []  # no elements at all
    for chunk in CHUNKS:
        assert same(whole(stream(mark + text, chunk)), expected)


def test_the_elements_of_an_object_of_arrays() -> None:
    text = '{"info": {"year": 1},\n"images": [{"id": 1},\n\n {"id": 2}],\n"none": [], "deep": [[3]]}\n'
    for chunk in CHUNKS:
        assert stream(text, chunk) == [
            Element("info", None, 1, {"year": 1}, False),
            Element("images", 0, 2, {"id": 1}, False),
            Element("images", 1, 4, {"id": 2}, False),
            Element("deep", 0, 5, [3], False),
        ]


def test_lines_of_elements() -> None:
    lines = ["[", "1", ",", "", '"a",  2, [', "3,", "4", "],", "{", '"k": 5', "}", "]"]
    for newline in ("\n", "\r\n"):
        for chunk in CHUNKS:
            found = [(e.line, e.value) for e in stream(newline.join(lines), chunk)]
            assert found == [(2, 1), (5, "a"), (5, 2), (5, [3, 4]), (9, {"k": 5})]


DOCUMENT = '\ufeff[{"a": "é\\u00e9\\n😀"},\n -1.5e+3, true,\n\n[null, 12], "last"]\n'.encode()


def test_every_prefix_is_an_error_where_the_library_finds_it() -> None:
    end = DOCUMENT.rindex(b"]") + 1
    for cut in range(end):
        with pytest.raises(json.JSONDecodeError) as caught:
            json.loads(DOCUMENT[:cut].decode("utf-8-sig", "surrogateescape"))
        for chunk in (1, 3, CHUNK):
            assert fault(DOCUMENT[:cut], chunk).line == caught.value.lineno
    for cut in (end, end + 1):
        assert len(stream(DOCUMENT[:cut])) == 5


def test_elements_ahead_of_the_cut_are_there() -> None:
    found = []
    with pytest.raises(DataError):
        for element in JsonStream(io.BytesIO(b'[1, {"a": 2}, "thr'), "f", 4):
            found.append(element.value)
    assert found == [1, {"a": 2}]


@pytest.mark.parametrize("byte", [b"\0", b"]", b'"', b"\xff", b"\\", b"x", b"\n"])
def test_any_byte_replaced_reads_as_the_library_does_or_is_an_error(byte: bytes) -> None:
    for at in range(len(DOCUMENT)):
        broken = DOCUMENT[:at] + byte + DOCUMENT[at + 1 :]
        text = broken.decode("utf-8-sig", "surrogateescape")
        try:
            expected = json.loads(text)
        except json.JSONDecodeError as error:
            line = error.lineno
            for chunk in (1, 3, CHUNK):
                assert fault(broken, chunk).line == line
        else:
            for chunk in (1, 3, CHUNK):
                assert same(whole(stream(broken, chunk)), expected)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "Expecting value"),
        (" \n\n", 3, "Expecting value"),
        ("[1,\n2,\n", 3, "Expecting value"),
        ("[1,\n2 3]", 2, "'3' stands where ',' or ']' is needed"),
        ("[1,\n2", 2, "the file ends where ',' or ']' is needed"),
        ("[1,\n]", 2, "Expecting value"),
        ('{"a": 1,\n2: 3}', 2, "a name in double quotes"),
        ('{"a": 1,\n}', 2, "a name in double quotes"),
        ('{"a"\n 1}', 2, "':' is needed"),
        ('{"a": [1,\n\nx]}', 3, "Expecting value"),
        ('{"a": 1\n]', 2, "']' stands where ',' or '}' is needed"),
        ('[\n{"a": 1,\n "b" 2}]', 3, "Expecting ':' delimiter"),
        ('[\n"a\nb"]', 2, "Invalid control character"),
        ('[\n"a\\q"]', 2, "Invalid \\\\escape"),
        ('[\n\n"a\\u12"]', 3, "Invalid \\\\uXXXX escape"),
        ('["a",\n"never ends, ' + "x" * 500 + "]", 2, "Unterminated string"),
        ("[1]\n\n[2]", 3, "text behind the end"),
        ("{}\n,", 2, "text behind the end"),
        ("1\n2", 2, "text behind the end"),
        ("[truth]", 1, "Expecting value"),
        ("[01]", 1, "'1' stands"),
        ("[1.]", 1, "'.' stands"),
        ("[\n-]", 2, "Expecting value"),
    ],
)
def test_what_is_no_json_is_told_with_its_line(text: str, line: int, words: str) -> None:
    for chunk in CHUNKS:
        error = fault(text, chunk)
        assert error.line == line and words.replace("\\\\", "\\") in error.rule


@pytest.mark.parametrize(
    "number",
    ["0", "-0.0", "12345678901234567890", "1.25", "1e5", "-1.5E-10", "1e400", "NaN", "-Infinity", "9" * 300,
     "9" * 200 + "." + "3" * 200 + "e-12"],
)  # fmt: skip
def test_numbers_cut_by_a_chunk(number: str) -> None:
    text = f'[{number},{number}\n,{{"a":{number}}}]'
    for chunk in (*CHUNKS, len(number), len(number) + 1, len(number) + 2):
        assert same(whole(stream(text, chunk)), json.loads(text))
        assert same(stream(number, chunk)[0].value, json.loads(number))


def test_numbers_of_thousands_of_digits() -> None:
    digits = "7" * 5000
    for chunk in CHUNKS:
        error = fault(f"[1,\n{digits}, 2]", chunk)
        assert error.line == 2 and "not readable" in error.rule and error.mend == "correct the number"
        assert fault(digits, chunk).line == 1
    # a fraction may be as long; no chunk that ends within it makes a whole number of its first part
    for chunk in (*CHUNKS, 4500, 5000, 5001, 5002):
        assert stream(f"[{digits}.5]", chunk)[0].value == float(digits)
        assert stream(f'["a", {digits}e-4990]', chunk)[1].value == float(f"{digits}e-4990")


def test_one_huge_string() -> None:
    text = "é\n" * 300_000
    for chunk in (64, 4096, CHUNK):
        (found,) = stream(json.dumps([text], ensure_ascii=False), chunk)
        assert found.value == text and not found.doubtful


def test_a_byte_order_mark_is_no_text_and_only_at_the_start() -> None:
    for chunk in CHUNKS:
        (found,) = stream(b'\xef\xbb\xbf["\xef\xbb\xbfa"]', chunk)
        assert found.value == "\ufeffa"
        fault(b"\xef\xbb\xbf\xef\xbb\xbf[]", chunk)
        assert fault(b"\xef\xbb", chunk).line == 1
        assert fault(b"[\xef\xbb\xbf1]", chunk).line == 1


def test_bytes_that_are_no_utf8_are_flagged_with_their_element_only() -> None:
    data = b'["a", "\xff", {"\xc3": 1}, "\xed\xa0\xbd", "\xc3\xa9", "\xf0\x9f\x98\x80", 1, "\xe2\x82"]'
    for chunk in CHUNKS:
        found = stream(data, chunk)
        assert [e.doubtful for e in found] == [False, True, True, True, False, False, False, True]
        assert [found[i].value for i in (0, 4, 5, 6)] == ["a", "é", "😀", 1]
        assert found[1].value.encode("utf-8", "surrogateescape") == b"\xff"


def test_escapes_of_half_characters_are_flagged() -> None:
    # a whole pair is doubtful too: it is looked at again, and found to be well
    text = r'["\ud83d", "\ud83d\ude00", {"\udc00": 1}, "\\n", "é"]'
    for chunk in CHUNKS:
        found = stream(text, chunk)
        assert [e.value for e in found] == json.loads(text)
        assert [e.doubtful for e in found][:3] == [True] * 3 and not found[4].doubtful


@pytest.mark.parametrize("name", [b"\xff", b"\\ud83d"])
def test_a_name_that_is_no_text_is_an_error(name: bytes) -> None:
    for chunk in CHUNKS:
        error = fault(b'{"a": 1,\n"' + name + b'": [1]}', chunk)
        assert error.line == 2 and "half a character" in error.rule
    assert stream(b'{"\\ud83d\\ude00": [1]}')[0].key == "😀"


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a": '])
def test_nested_too_deep(opening: str) -> None:
    for chunk in (7, CHUNK):
        error = fault("[1,\n" + opening * 100_000, chunk)
        assert error.line == 2 and "nested too deep" in error.rule


def test_memory_holds_an_element_and_a_chunk() -> None:
    class Elements(io.RawIOBase):
        """An array of 200,000 small objects that is made as it is read."""

        numbers, rest = iter(range(200_001)), b"["

        def read(self, size: int = -1) -> bytes:
            while len(self.rest) < size and (n := next(self.numbers, None)) is not None:
                self.rest += b"0]" if n == 200_000 else b'{"id": %d, "text": "some words"},\n' % n
            data, self.rest = self.rest[:size], self.rest[size:]
            return data

    tracemalloc.start()
    try:
        (last,) = collections.deque(JsonStream(Elements(), "f", 4096), maxlen=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last == Element(None, 200_000, 200_001, 0, False)
    assert peak < 2_000_000
