from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data.jsonl import DataError, write_records
from data.schema import Verdict
from evals.judges import CachedJudge, FunctionJudge, JudgeRequest, RecordedJudge, read_recorded

REQUEST = JudgeRequest("0", "img", "what?", "a cat", "a cat", ("cat",), "rate: a cat")


class Counting:
    def __init__(self, name: str = "counting") -> None:
        self.name = name
        self.seen: list[str] = []

    def judge(self, requests: Sequence[JudgeRequest]) -> dict[str, str]:
        self.seen += [r.id for r in requests]
        return {r.id: f"Rating: {len(r.response) % 7}" for r in requests}


def test_cache_asks_once_for_equal_content(tmp_path: Path) -> None:
    inner = Counting()
    judge = CachedJudge(inner, tmp_path / "cache.jsonl")
    same, other = replace(REQUEST, id="1"), replace(REQUEST, id="2", response="a dog!")
    got = judge.judge([REQUEST, same, other])
    assert got == {"0": "Rating: 5", "1": "Rating: 5", "2": "Rating: 6"} and len(inner.seen) == 2
    again = Counting()
    assert CachedJudge(again, tmp_path / "cache.jsonl").judge([other, REQUEST]) == {
        "2": "Rating: 6",
        "0": "Rating: 5",
    }
    assert again.seen == []


@pytest.mark.parametrize("field", ["response", "prompt", "reference", "question", "image", "objects"])
def test_any_other_content_is_judged_anew(tmp_path: Path, field: str) -> None:
    inner = Counting()
    judge = CachedJudge(inner, tmp_path / "cache.jsonl")
    judge.judge([REQUEST])
    judge.judge([replace(REQUEST, **{field: ("dog",) if field == "objects" else "x"})])
    assert len(inner.seen) == 2


def test_judges_share_a_file_but_no_verdicts(tmp_path: Path) -> None:
    CachedJudge(Counting("a"), tmp_path / "cache.jsonl").judge([REQUEST])
    other = Counting("b")
    CachedJudge(other, tmp_path / "cache.jsonl").judge([REQUEST])
    assert other.seen == ["0"]


def test_a_torn_last_line_costs_one_verdict_only(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    CachedJudge(Counting(), path, chunk=1).judge([REQUEST, replace(REQUEST, id="1", response="b")])
    path.write_bytes(path.read_bytes()[:-9])
    inner = Counting()
    judge = CachedJudge(inner, path)
    judge.judge([REQUEST, replace(REQUEST, id="1", response="b")])
    assert inner.seen == ["1"]
    assert len(path.read_text().splitlines()) == 2


def test_a_crash_keeps_what_was_judged_before(tmp_path: Path) -> None:
    def fails(request: JudgeRequest) -> str:
        if request.id == "2":
            raise RuntimeError("judge is gone")
        return "Rating: 3"

    requests = [replace(REQUEST, id=str(i), response=str(i)) for i in range(4)]
    with pytest.raises(RuntimeError):
        CachedJudge(FunctionJudge("counting", fails), tmp_path / "c.jsonl", chunk=1).judge(requests)
    inner = Counting()
    got = CachedJudge(inner, tmp_path / "c.jsonl").judge(requests)
    assert inner.seen == ["2", "3"] and got["0"] == "Rating: 3"


def test_what_a_judge_leaves_out_is_asked_again_the_next_time(tmp_path: Path) -> None:
    class Moody(Counting):
        def judge(self, requests: Sequence[JudgeRequest]) -> dict[str, str]:
            return {k: v for k, v in super().judge(requests).items() if k != "1"}

    other = replace(REQUEST, id="1", response="b")
    assert CachedJudge(Moody(), tmp_path / "c.jsonl").judge([REQUEST, other]) == {"0": "Rating: 5"}
    inner = Counting()
    assert set(CachedJudge(inner, tmp_path / "c.jsonl").judge([REQUEST, other])) == {"0", "1"}
    assert inner.seen == ["1"]


def test_a_repeat_is_another_verdict_and_a_first_asking_keeps_its_key(tmp_path: Path) -> None:
    assert replace(REQUEST, repeat=1).key not in (REQUEST.key, replace(REQUEST, repeat=2).key)
    # caches of before there were repeats stay good
    assert REQUEST.key == "16ebb748787c6f257358f69bd58daf61c37f802db84b706b04a0f7b012f265dc"


def _verdict(**changes: object) -> Verdict:
    row = {"id": "0", "question": "what?", "response": "a cat", "judge": "gpt", "reason": "Rating: 4"}
    return Verdict.model_validate(row | changes)


def test_recorded_verdicts_are_replayed_and_only_for_the_same_response(tmp_path: Path) -> None:
    write_records(tmp_path / "verdicts.jsonl", [_verdict()])
    judge = read_recorded(tmp_path / "verdicts.jsonl")
    assert judge.name == "recorded gpt" and judge.judge([REQUEST]) == {"0": "Rating: 4"}
    assert judge.judge([replace(REQUEST, response="a dog"), replace(REQUEST, question="why?")]) == {}


def test_recorded_verdicts_must_be_of_one_judge_and_agree() -> None:
    with pytest.raises(DataError, match="2 judges"):
        RecordedJudge([_verdict(), _verdict(id="1", judge="other")])
    with pytest.raises(DataError, match="two different verdicts"):
        RecordedJudge([_verdict(), _verdict(reason="Rating: 5")])
    with pytest.raises(DataError, match="holds no words"):
        RecordedJudge([_verdict(reason=None)])
