"""Who rates an open answer: any function, a world's oracle, or verdicts recorded before; cached by content.

A judge sees text only (the image's objects, the question, a human answer, the response), as MMHal-Bench's
does, and answers in its own words; the benchmark parses the rating out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from data.jsonl import DataError, read_records
from data.schema import Verdict
from evals.journal import Journal, content_hash


@dataclass(frozen=True)
class JudgeRequest:
    """One response to be rated, with all that the judge may know."""

    id: str
    #: id of the image
    image: str
    question: str
    response: str
    #: a human's answer
    reference: str
    #: names of the objects in the image
    objects: tuple[str, ...]
    #: the whole text for a judge that reads a prompt
    prompt: str
    #: a further asking of the same, to see how steady the judge is
    repeat: int = 0

    @property
    def key(self) -> str:
        """Hash of everything but the id: equal questions need one verdict only."""
        # a first asking is hashed as before there were repeats, so that old caches stay good
        left_out = {"id"} if self.repeat else {"id", "repeat"}
        return content_hash({k: v for k, v in asdict(self).items() if k not in left_out})


class Judge(Protocol):
    """Answers requests: id -> the judge's words. A request that got none has no entry, and is counted."""

    @property
    def name(self) -> str: ...

    def judge(self, requests: Sequence[JudgeRequest]) -> dict[str, str]: ...


@runtime_checkable
class Announces(Protocol):
    """A judge that says what requests will cost before it is asked."""

    def announce(self, requests: Sequence[JudgeRequest]) -> None: ...


def announce(judge: Judge, requests: Sequence[JudgeRequest]) -> None:
    """Let a judge that :class:`Announces` say what all the requests of a benchmark will cost."""
    if isinstance(judge, Announces):
        judge.announce(requests)


@dataclass(frozen=True)
class FunctionJudge:
    """A judge from a function of one request, such as the oracle of the built-in world."""

    name: str
    function: Callable[[JudgeRequest], str]

    def judge(self, requests: Sequence[JudgeRequest]) -> dict[str, str]:
        return {request.id: self.function(request) for request in requests}


class CachedJudge:
    """Keeps every verdict of another judge on disk, by the content judged; never asks twice.

    A changed prompt, response or judge is other content: a judge may have ``settings`` (a hash of all that
    decides its words) beside its name. Several judges may share one file.
    """

    def __init__(self, judge: Judge, path: str | Path, *, chunk: int = 16) -> None:
        self.inner, self.chunk = judge, chunk
        self.journal = Journal(path)
        self.asked = 0
        self._who = {"judge": judge.name, "settings": getattr(judge, "settings", None)}
        self._known = {
            row["key"]: row["text"]
            for row in self.journal.rows
            if all(row.get(key) == value for key, value in self._who.items())
        }

    @property
    def name(self) -> str:
        return self.inner.name

    def _new(self, requests: Sequence[JudgeRequest]) -> dict[str, JudgeRequest]:
        return {request.key: request for request in requests if request.key not in self._known}

    def announce(self, requests: Sequence[JudgeRequest]) -> None:
        """Announce those that no cached verdict answers."""
        if new := self._new(requests):
            announce(self.inner, list(new.values()))

    def judge(self, requests: Sequence[JudgeRequest]) -> dict[str, str]:
        """Cached words where there are any; the rest is asked and written chunk by chunk.

        A failure is not kept: the next run asks again.
        """
        todo = list(self._new(requests).items())
        for start in range(0, len(todo), self.chunk):
            part = todo[start : start + self.chunk]
            said = self.inner.judge([request for _, request in part])
            given = {key: said[request.id] for key, request in part if isinstance(said.get(request.id), str)}
            self.journal.add(
                {**self._who, "key": key, "id": request.id, "text": given[key]}
                for key, request in part
                if key in given
            )
            self._known |= given
            self.asked += len(part)
        return {r.id: self._known[r.key] for r in requests if r.key in self._known}


class RecordedJudge:
    """Replays verdicts recorded before (``reason`` holds the judge's words), and no others."""

    def __init__(self, verdicts: Iterable[Verdict]) -> None:
        """A rule's verdicts, which never have words (an evaluation writes them too), are passed over."""
        self._said: dict[tuple[str, str, str], str] = {}
        names = set()
        every = list(verdicts)
        speaking = {verdict.judge for verdict in every if verdict.reason is not None}
        for verdict in every:
            if speaking and verdict.judge not in speaking:
                continue
            if verdict.reason is None:
                mend = "record what the judge wrote, e.g. 'Rating: 4'"
                rule = f"the verdict on {verdict.id!r} holds no words of its judge"
                raise DataError(rule, key="reason", mend=mend)
            key = (verdict.id, verdict.question, verdict.response)
            if self._said.setdefault(key, verdict.reason) != verdict.reason:
                rule = f"two different verdicts on one response to {verdict.id!r}"
                raise DataError(rule, mend="keep one of them")
            names.add(verdict.judge)
        if len(names) != 1:
            rule = f"verdicts of {len(names)} judges ({', '.join(sorted(names))})"
            raise DataError(rule, key="judge", mend="give those of one judge")
        self.name = f"recorded {names.pop()}"

    def judge(self, requests: Sequence[JudgeRequest]) -> dict[str, str]:
        """The recorded words; a response that was not judged, or has changed since, gets none."""
        keys = {request.id: (request.id, request.question, request.response) for request in requests}
        return {name: self._said[key] for name, key in keys.items() if key in self._said}


def read_recorded(path: str | Path) -> RecordedJudge:
    """A RecordedJudge from a file of Verdict records."""
    try:
        return RecordedJudge(v for v in read_records(path, "verdict") if isinstance(v, Verdict))
    except DataError as error:
        if error.file is not None:
            raise
        raise DataError(error.rule, file=str(path), key=error.key, mend=error.mend) from None
