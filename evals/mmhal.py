"""MMHal-Bench: open questions rated 0..6 by a judge; under 3 is a hallucination (thesis, sections 9.5 and H).

The judge prompt here is our own wording; a prompt file can be given, and each result names the one used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from data.formats.base import build, named_image
from data.formats.mmhal import MmhalItem
from data.formats.mmhal import read as read_items
from data.images import image_path
from data.jsonl import DataError, Row
from data.schema import Image, Verdict
from evals import metrics
from evals.journal import content_hash, file_hash
from evals.judges import Judge, JudgeRequest
from evals.parse import rating_official
from evals.runner import EvalItem, Scored, check_ids

#: question types in the official file's order (an item's type is its index mod 8)
TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
#: ratings from here on count as free of hallucination
NO_HALLUCINATION = 3

DEFAULT_PROMPT = """\
You check answers of a program that looks at pictures. You cannot see the picture. What you know of it is \
the list of things in it and the answer that a person gave; take both as true. A claim in the program's \
answer that contradicts them, or that they give no ground for, is a hallucination. Statements of general \
knowledge and honest remarks that something cannot be told from the picture are none.

Things in the picture: {objects}
Question: {question}
A person's answer: {reference}
The program's answer: {response}

First compare the program's answer with what you know, claim by claim. Then rate it:
6 - no hallucination, and very informative, with sound reasoning or detail beyond the question
5 - no hallucination, informative
4 - no hallucination, somewhat informative
3 - no hallucination, but says little or does not answer the question
2 - some hallucination, yet informative
1 - some hallucination, and says little
0 - mostly hallucination

End with one line of exactly this form: Rating: <number>
"""

_NAMED = re.compile(r"\{(objects|question|reference|response)\}")
_ORDER = ("objects", "question", "reference", "response")


@dataclass(frozen=True)
class JudgePrompt:
    """Instructions with ``{objects} {question} {reference} {response}``, or four ``{}`` in this order."""

    name: str
    template: str

    def __post_init__(self) -> None:
        if set(_NAMED.findall(self.template)) != set(_ORDER) and self.template.count("{}") != 4:
            rule = "the judge prompt lacks its four places"
            mend = "write {objects}, {question}, {reference} and {response}, or four {} in this order"
            raise DataError(rule, file=self.name, mend=mend)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.template.encode()).hexdigest()

    def fill(self, item: MmhalItem, response: str) -> str:
        """The prompt for one response. Values are put in once; braces in them mean nothing."""
        values = dict(zip(_ORDER, (", ".join(item.image_content), item.question, item.gt_answer, response)))
        if _NAMED.search(self.template):
            return _NAMED.sub(lambda match: values[match[1]], self.template)
        pieces = self.template.split("{}")
        filled = "".join(piece + values[name] for piece, name in zip(pieces, _ORDER))
        return filled + pieces[-1]


BUILT_IN = JudgePrompt("built-in", DEFAULT_PROMPT)


def read_prompt(path: str | Path) -> JudgePrompt:
    """A judge prompt from a text file."""
    try:
        return JudgePrompt(Path(path).name, Path(path).read_text("utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=str(path), mend="check the path") from None


@dataclass(frozen=True)
class MmhalBenchmark:
    """The questions with their judge; ids are the questions' positions in the file, as text.

    Without a judge the questions are asked and not rated: ``answered`` gives them to whoever rates them.
    The official file names its images by URL. With an image root (``images``) each is the file there that
    bears the last part of its URL; without one, URLs are for the ``generate`` that is asked.
    """

    questions: tuple[MmhalItem, ...]
    sha256: str
    judge: Judge | None
    prompt: JudgePrompt = BUILT_IN
    name: str = "mmhal"
    n_boot: int = 1000
    seed: int = 0
    images: str | Path | None = None
    #: where the questions were read, for messages
    file: str | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise DataError("no questions", key=self.name, mend="give a file with questions")

    def _by_id(self) -> dict[str, MmhalItem]:
        places = [i if item.index is None else item.index for i, item in enumerate(self.questions)]
        return {str(place): item for place, item in zip(places, self.questions)}

    @property
    def items(self) -> list[EvalItem]:
        """The questions. DataError, naming the one, for an ``image_src`` that is none or has no file."""
        return [
            EvalItem(name, self._image(name, item), item.question) for name, item in self._by_id().items()
        ]

    def _image(self, name: str, item: MmhalItem) -> Image:
        try:
            image = named_image(item.image_src, "image_src")
            if image.url is not None and self.images is not None:
                image = _downloaded(image.url, self.images)
        except DataError as error:
            raise Row(self.file or self.name, index=int(name)).locate(error) from None
        return image.model_copy(update={"id": item.image_id or image.id})

    def answered(self, responses: Mapping[str, str]) -> list[MmhalItem]:
        """The questions with ``model_answer`` filled in: the content of MMHal-Bench's response file."""
        questions = self._by_id()
        check_ids(f"{self.name}: responses", questions, responses)
        return [item.model_copy(update={"model_answer": responses[name]}) for name, item in questions.items()]

    def score(self, responses: Mapping[str, str]) -> Scored:
        """Mean rating, hallucination rate (share under 3), and both per type; no figures without a judge.

        A judge's text with no rating, or with several, counts 0 (the official rule) and its id is listed
        in ``unrated``. DataError unless every id has a response and a verdict.
        """
        questions = self._by_id()
        check_ids(f"{self.name}: responses", questions, responses)
        if self.judge is None:
            return Scored({"n": len(questions), "sha256": self.sha256, "judge": None}, [])
        requests = self._requests(responses)
        said = self.judge.judge(requests)
        check_ids(f"{self.name}: verdicts of {self.judge.name}", questions, said)
        found = {name: rating_official(said[name]) for name in questions}
        ratings = {name: rating or 0 for name, rating in found.items()}
        verdicts = [
            Verdict(
                id=request.id,
                image=request.image,
                question=request.question,
                response=request.response,
                score=float(ratings[request.id]),
                judge=self.judge.name,
                reason=said[request.id],
                label="hallucination" if ratings[request.id] < NO_HALLUCINATION else "none",
                meta={"type": questions[request.id].question_type},
            )
            for request in requests
        ]
        unrated = [name for name, rating in found.items() if rating is None]
        return Scored(self._result(ratings, unrated, self.judge.name), verdicts)

    def _requests(self, responses: Mapping[str, str]) -> list[JudgeRequest]:
        return [
            JudgeRequest(
                id=name,
                image=item.image_id,
                question=item.question,
                response=responses[name],
                reference=item.gt_answer,
                objects=tuple(item.image_content),
                prompt=self.prompt.fill(item, responses[name]),
            )
            for name, item in self._by_id().items()
        ]

    def _result(self, ratings: Mapping[str, int], unrated: list[str], judge: str) -> dict[str, Any]:
        questions = self._by_id()
        options: dict[str, Any] = {"n_boot": self.n_boot, "seed": self.seed}

        def figures(names: list[str]) -> dict[str, Any]:
            scores = [ratings[name] for name in names]
            false = [score < NO_HALLUCINATION for score in scores]
            return {
                "score": metrics.mean_interval(scores, **options).as_dict(),
                "hallucination_rate": metrics.mean_interval(false, **options).as_dict(),
            }

        of_type: dict[str, list[str]] = {}
        for name, item in questions.items():
            of_type.setdefault(item.question_type, []).append(name)
        order = sorted(of_type, key=lambda t: (TYPES.index(t) if t in TYPES else len(TYPES), t))
        return {
            "n": len(questions),
            "sha256": self.sha256,
            "judge": judge,
            "prompt": {"name": self.prompt.name, "sha256": self.prompt.sha256},
            **figures(list(questions)),
            "by_type": {kind: figures(of_type[kind]) for kind in order},
            "unrated": unrated,
        }


def _downloaded(url: str, root: str | Path) -> Image:
    """The file under ``root`` that bears the last part of a URL's path. DataError where there is none."""
    name = PurePosixPath(unquote(re.split("[?#]", url)[0])).name
    image = build(Image, id=url, path=name)
    try:
        image_path(image, root)
    except DataError as error:
        rule = f"{error.rule} for {url}"
        mend = "download it there under this name, or give its path below the image root"
        raise DataError(rule, key="image_src", mend=mend) from None
    return image


def read_benchmark(
    path: str | Path, judge: Judge | None, *, limit: int | None = None, **options: Any
) -> MmhalBenchmark:
    """The benchmark from MMHal-Bench's template file (or one of its layout)."""
    questions = tuple(read_items(path, limit=limit))
    return MmhalBenchmark(questions, file_hash(path), judge, file=str(path), **options)


def benchmark_of(items: list[MmhalItem], judge: Judge | None, **options: Any) -> MmhalBenchmark:
    """The benchmark from items in memory; the hash is of their content."""
    content = [item.model_dump(mode="json") for item in items]
    return MmhalBenchmark(tuple(items), content_hash(content), judge, **options)
