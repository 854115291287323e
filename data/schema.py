"""The record types that every stage reads and writes.

Converters in ``data.formats`` are the only code that knows another layout. A record is one JSON
object on one line of a ``.jsonl`` file; ``kind`` tells the reader which type it is, so one file may
hold several kinds. Records are joined by ``id``, never by position.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant"]
AnswerType = Literal["general", "A", "B", "C", "D", "no", "yes"]
LengthClass = Literal["general", "detail", "complex"]

#: The two questions put to an annotator, in the order in which they decide (thesis, section 9.3).
HALLUCINATION = "hallucination"
HELPFULNESS = "helpfulness"


class Record(BaseModel):
    """Base of all records: unknown keys are an error, so that a typo cannot drop data."""

    model_config = ConfigDict(extra="forbid")


class Image(Record):
    """One picture: exactly one of ``path`` (relative to the image root), ``url`` or ``data``.

    ``data`` holds the encoded bytes of the file (base64 in JSON). Nothing is decoded here;
    see ``data.images.open_image``.
    """

    model_config = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    id: str
    path: str | None = None
    url: str | None = None
    data: bytes | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _one_source(self) -> Image:
        given = [k for k in ("path", "url", "data") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"an image needs exactly one of path, url, data; got {given or 'none'}")
        return self


class Message(Record):
    """One turn. The picture is not named in ``content``; it belongs to the first user turn."""

    role: Role
    content: str


class Facts(Record):
    """Text known to be true of the image, shown to a fact-augmented reward model (thesis, 9.3)."""

    captions: list[str] = Field(default_factory=list)
    rationales: list[str] = Field(default_factory=list)
    answer: str | None = None
    objects: list[str] = Field(default_factory=list)
    knowledge: list[str] = Field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.captions or self.rationales or self.answer or self.objects or self.knowledge)


def _check_turns(messages: list[Message], last: Role) -> None:
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise ValueError("messages is empty; give at least one user turn")
    for i, message in enumerate(turns):
        want = "user" if i % 2 == 0 else "assistant"
        if message.role != want:
            raise ValueError(f"turn {i} is from {message.role!r}; turns alternate, starting with 'user'")
    if turns[-1].role != last:
        raise ValueError(f"the last turn is from {turns[-1].role!r}; it must be from {last!r}")


class Example(Record):
    """An image with a whole conversation: what SFT learns from. Ends with an assistant turn."""

    kind: Literal["example"] = "example"
    id: str
    image: Image | None = None
    messages: list[Message]
    task: str | None = None
    facts: Facts = Field(default_factory=Facts)
    answer: str | None = None
    source: str | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _turns(self) -> Example:
        _check_turns(self.messages, "assistant")
        return self


class Prompt(Record):
    """The first question of a conversation only: what reinforcement learning rolls out from."""

    kind: Literal["prompt"] = "prompt"
    id: str
    image: Image | None = None
    question: str
    facts: Facts = Field(default_factory=Facts)
    answer_type: AnswerType = "general"
    length_class: LengthClass = "general"
    source: str | None = None
    split: str | None = None


class Response(Record):
    """One answer of one model. ``complete`` is false when it was cut before its end token."""

    text: str
    model: str | None = None
    complete: bool = True


class Preference(Record):
    """Two or more responses to one conversation, and the choice made per question asked.

    ``choices`` maps a question (``hallucination``, ``helpfulness``, or ``overall`` where a source
    records one verdict only) to the index of the better response, or to None for a tie.
    """

    kind: Literal["preference"] = "preference"
    id: str
    image: Image | None = None
    messages: list[Message]
    responses: Annotated[list[Response], Field(min_length=2)]
    choices: dict[str, int | None]
    annotator: str | None = None
    facts: Facts = Field(default_factory=Facts)
    source: str | None = None
    split: str | None = None
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Preference:
        _check_turns(self.messages, "user")
        for question, choice in self.choices.items():
            if choice is not None and not 0 <= choice < len(self.responses):
                rule = f"it must be an index below {len(self.responses)} or null"
                raise ValueError(f"choices[{question!r}] is {choice}; {rule}")
        return self

    @property
    def preferred(self) -> int | None:
        """Index of the better response: hallucination decides, helpfulness breaks its tie; None is a tie."""
        for question in (HALLUCINATION, HELPFULNESS, "overall"):
            if self.choices.get(question) is not None:
                return self.choices[question]
        return None


class Verdict(Record):
    """What a judge or a parser says of one response. Joined to its item by ``id``."""

    kind: Literal["verdict"] = "verdict"
    id: str
    image: str | None = None
    question: str
    response: str
    label: str | None = None
    score: float | None = None
    judge: str
    reason: str | None = None
    meta: dict[str, Any] = Field(default_factory=dict)


AnyRecord = Example | Prompt | Preference | Verdict
RECORDS: dict[str, type[Example] | type[Prompt] | type[Preference] | type[Verdict]] = {
    "example": Example,
    "prompt": Prompt,
    "preference": Preference,
    "verdict": Verdict,
}
