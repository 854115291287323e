from __future__ import annotations

import base64
from pathlib import Path

import pytest

from data.jsonl import DataError
from evals.mmbench import Choice, MmbenchBenchmark, letter_official, letter_strict, read_questions

OPTIONS = ("a red cat", "a dog", "a bird", "a horse")


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("B", "B", "B"),
        ("B.", "B", "B"),
        ("(C) a bird", "C", "C"),
        ("The answer is D.", "D", "D"),
        # an article: "A" in more than three words is no letter, and the text of B decides
        ("A dog is in the picture", "B", None),
        ("It shows a dog", "B", None),
        ("a dog", "B", "B"),
        ("A", "A", "A"),
        ("A. a red cat", "A", "A"),
        ("C because it flies", "C", None),
        ("D a horse", "D", "D"),
        # two letters, no option's text
        ("B or C", None, None),
        ("I cannot tell", None, None),
        ("", None, None),
        ("E", None, None),
        # lower case letters are no letters to either
        ("b", None, None),
    ],
)
def test_the_letter_of_an_answer(text: str, official: str | None, strict: str | None) -> None:
    assert letter_official(text, OPTIONS) == official
    assert letter_strict(text, OPTIONS) == strict


def test_rotations_move_the_right_letter() -> None:
    question = Choice("1", "What is it?", OPTIONS, answer=1)
    assert [question.rotated(by)[1] for by in range(4)] == ["B", "A", "D", "C"]
    for by in range(4):
        options, letter = question.rotated(by)
        assert options["ABCD".index(letter)] == "a dog"
    assert question.prompt(1).splitlines()[1] == "A. a dog"


def test_a_model_that_always_says_a_is_right_once_and_never_in_circles() -> None:
    bench = MmbenchBenchmark(
        (Choice("1", "?", OPTIONS, 0, category="x"), Choice("2", "?", OPTIONS, 1)), n_boot=50
    )
    got = bench.score({item.id: "A" for item in bench.items}).result
    assert got["official"]["vanilla"]["value"] == 0.5 and got["official"]["circular"]["value"] == 0.0
    assert got["official"]["by_category"]["x"]["vanilla"]["value"] == 1.0
    by_text = {f"{q.id}/{k}": q.options[q.answer] for q in bench.questions for k in range(4)}
    got = bench.score(by_text).result
    assert got["official"]["circular"]["value"] == got["strict"]["circular"]["value"] == 1.0
    # one rotation of question 2 wrong: its whole circle is
    found = bench.compare(by_text, by_text | {"2/3": "nothing"})
    assert found["circular"]["value"] == 0.5 and found["mcnemar"]["only_a"] == 1
    assert bench.score(by_text | {"2/3": "nothing"}).result["strict"]["unparsed"] == 1


def _tsv(path: Path, *rows: str) -> Path:
    path.write_text(
        "\n".join(["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage", *rows]) + "\n", "utf-8"
    )
    return path


def test_the_official_table_is_read(tmp_path: Path) -> None:
    picture = base64.b64encode(b"bytes of a file").decode()
    path = _tsv(
        tmp_path / "mm.tsv",
        f"5\tWhat?\tnan\tcat\tdog\t\t\tB\tanimals\t{picture}",
        "6\tWhich?\tLook up.\tone\ttwo\tthree\tfour\tD\tnumbers\t5",
    )
    first, second = read_questions(path)
    assert first.options == ("cat", "dog") and first.hint == "" and first.answer == 1
    assert second.image == first.image and first.image is not None and first.image.data == b"bytes of a file"
    assert second.prompt(0).startswith("Look up.\nWhich?\nA. one")
    assert len(MmbenchBenchmark((first, second)).items) == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1\tq\t\ta\t\t\t\tA\tc\t", "1 options"),
        ("1\tq\t\ta\tb\t\t\tC\tc\t", "answer 'C' is none of the options"),
        ("1\tq\t\ta\tb\t\t\tA\tc\tno base64!", "not base64"),
        ("\tq\t\ta\tb\t\t\tA\tc\t", "index is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = _tsv(tmp_path / "mm.tsv", row)
    with pytest.raises(DataError, match=message) as caught:
        read_questions(path)
    assert f"{path}:2" in str(caught.value)


def test_a_table_without_answers_is_no_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "mm.tsv"
    path.write_text("index\tquestion\tA\tB\n1\tq\ta\tb\n")
    with pytest.raises(DataError, match="no column 'answer'"):
        read_questions(path)
