"""Records that fill every field: their rows have every column that a layout can write."""

from __future__ import annotations

from data.schema import Example, Facts, Image, Message, Preference, Prompt, Response

_ASKED = Message(role="user", content="question")
_SAID = Message(role="assistant", content="answer")
_IMAGE = Image(id="picture.png", path="picture.png")
_FACTS = Facts(captions=["text"], rationales=["text"], answer="text", objects=["text"], knowledge=["text"])

EXAMPLE = Example(
    id="id",
    image=_IMAGE,
    messages=[_ASKED, _SAID],
    task="text",
    facts=_FACTS,
    answer="text",
    source="text",
    split="text",
)
PREFERENCE = Preference(
    id="id",
    image=_IMAGE,
    messages=[_ASKED],
    responses=[Response(text="text", model="text"), Response(text="other", model="text")],
    choices={"hallucination": None, "helpfulness": 0},
    annotator="text",
    facts=_FACTS,
    source="text",
    split="text",
    meta={"hallucination": True, "replaced_turn": "text"},
)
PROMPT = Prompt(
    id="id",
    image=_IMAGE,
    question="question",
    facts=_FACTS,
    answer_type="yes",
    length_class="detail",
    source="text",
    split="text",
)
