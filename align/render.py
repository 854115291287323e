"""Records to model inputs: chat text, token ids, the loss mask and the image's place. The only place that
masks.

The chat template is rendered once for each shape of conversation (its roles, with or without an image), with
markers where the contents go; contents are then filled in as plain text. So the place of every assistant
token is known exactly, special tokens planted in a content stay plain text, and no template runs for each
sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import LlavaProcessor

from align.ceiling import Ceiling
from align.rows import IGNORE as IGNORE
from align.rows import RenderError as RenderError
from align.rows import Row, fit, pad, pad_like
from align.template import FACTS_HEADER as FACTS_HEADER
from align.template import REWARD_TEMPLATE as REWARD_TEMPLATE
from align.template import facts_text as facts_text
from align.template import fill as fill
from data.images import pad_square
from data.schema import Example, Message

#: a picture; or its normalised pixels (3, S, S); or its grid features (N, D), see ``lmm.vision_features``
ImageInput: TypeAlias = PILImage.Image | Tensor | None

#: stands for a picture where only its place counts
_BLANK = PILImage.new("RGB", (32, 32))


def break_tokens(text: str, special: re.Pattern[str]) -> str:
    """``text`` with every match of ``special`` broken by a space behind its first character."""
    while special.search(text):
        text = special.sub(lambda m: f"{m[0][0]} {m[0][1:]}" if len(m[0]) > 1 else " ", text)
    return text


class Renderer:
    """Renders conversations with the chat template and tokenizer of one processor.

    ``end_token`` is what closes an assistant turn: the special token that the template puts after it, or the
    tokenizer's eos where the template puts none (LLaVA-1.5's), in which case it is added here.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not self.tokenizer.is_fast:
            raise RenderError("the tokenizer is a slow one; the loss mask needs a fast tokenizer's offsets")
        if not getattr(processor, "chat_template", None):
            raise RenderError("the processor has no chat template; save one with it (chat_template.jinja)")
        self._layouts: dict[tuple[tuple[str, ...], bool, bool], list[str | int]] = {}
        self.image_token = getattr(processor, "image_token", "<image>")
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self.pad_id = self.tokenizer.pad_token_id
        if self.pad_id is None:
            raise RenderError("the tokenizer has no pad_token; set one that differs from eos_token")
        self._special = self._special_tokens()
        self._special_pattern = re.compile("|".join(map(re.escape, self._special)))
        self._prefix = self._bos_prefix()
        self._ceiling = Ceiling(self.tokenizer)
        self._adds_end = False
        self.end_token = self._find_end_token()
        self.end_token_id = self.tokenizer.convert_tokens_to_ids(self.end_token)

    def train_batch(
        self,
        examples: Sequence[Example],
        images: Sequence[ImageInput] | None = None,
        max_length: int | None = None,
    ) -> dict[str, Tensor]:
        """Whole conversations, right padded (B, T): input_ids, attention_mask, labels and the images' inputs.

        ``labels`` are the ids of every assistant turn, from the end of its generation prompt to its end token
        included, and -100 elsewhere. Rows longer than ``max_length`` lose their end; RenderError names the
        sample if that would cut its image or leave nothing to learn.
        """
        images = images if images is not None else [None] * len(examples)
        for example, image in zip(examples, images, strict=True):
            if example.image is not None and image is None:
                raise RenderError(f"sample {example.id}: its image was not given; pass the opened image")
        turns = [self._clean(e.messages) for e in examples]
        names = [e.id for e in examples]
        rows = self._encode(turns, images, generate=False, names=names)
        return self._collate(rows, images, "right", max_length)

    def prompt_batch(
        self,
        items: Sequence[tuple[Sequence[Message], ImageInput]],
        *,
        max_length: int | None = None,
        names: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Conversations that end with a user turn, left padded (B, T), each closed by the generation prompt.

        A row is a token prefix of the same conversation in ``train_batch``. Prompts are never cut:
        RenderError for one longer than ``max_length``.
        """
        images = [image for _, image in items]
        names = list(names) if names is not None else [f"#{i}" for i in range(len(items))]
        rows = self._encode([self._clean(m) for m, _ in items], images, generate=True, names=names)
        return self._collate(rows, images, "left", max_length)

    def reward_batch(
        self,
        items: Sequence[tuple[Sequence[Message], str, str | None, ImageInput]],
        template: str | None = None,
        *,
        max_length: int | None = None,
        names: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """(messages, response, facts, image) items as texts to score, left padded: read the score at [:, -1].

        The response becomes an assistant turn; after it comes a user turn, ``template`` (default
        ``REWARD_TEMPLATE``) with the facts in the place of ``{facts}``, and the generation prompt. A template
        with ``{response}`` repeats the response there: a small causal model can then check it against the
        facts, which it has read by that time.
        """
        return self.prompt_batch(self.judged(items, template), max_length=max_length, names=names)

    def judged(
        self, items: Sequence[tuple[Sequence[Message], str, str | None, ImageInput]], template: str | None
    ) -> list[tuple[list[Message], ImageInput]]:
        """The conversations that ``reward_batch`` renders."""
        template = template or REWARD_TEMPLATE
        conversations = []
        for messages, response, facts, image in items:
            if facts and "{facts}" not in template:
                raise RenderError(
                    "the reward template has no place for facts; put {facts} where they should stand"
                )
            question = fill(template, facts=facts or "", response=response)
            turns = [
                *messages,
                Message(role="assistant", content=response),
                Message(role="user", content=question),
            ]
            conversations.append((turns, image))
        return conversations

    def prompt_lengths(self, items: Sequence[tuple[Sequence[Message], ImageInput]]) -> list[int]:
        """Tokens of each prompt, an image counted as one: what batches are sorted by."""
        turns = [self._clean(m) for m, _ in items]
        names = [f"#{i}" for i in range(len(items))]
        return [len(r.ids) for r in self._encode(turns, [i for _, i in items], generate=True, names=names)]

    def most_tokens(self, items: Sequence[tuple[Sequence[Message], ImageInput]]) -> list[int]:
        """At least as many as ``prompt_lengths``, found from bytes, which takes far less time."""
        texts = (self._text(self._clean(m), image is not None, generate=True)[0] for m, image in items)
        return [self._ceiling.of(text) + len(self._prefix) for text in texts]

    def image_length(self) -> int:
        """Tokens of an image in the text; 1 where the processor is not LLaVA's and the picture decides."""
        if not isinstance(self.processor, LlavaProcessor):
            return 1
        return self._image_tokens(self._image_inputs([_BLANK]))

    def reward_lengths(
        self,
        items: Sequence[tuple[Sequence[Message], str, str | None, bool]],
        template: str | None = None,
    ) -> list[int]:
        """Tokens of each (messages, response, facts, has an image) item as ``reward_batch`` renders it, an
        image counted as ``image_length``. No picture is opened."""
        shown = [(ask, said, facts, _BLANK if seen else None) for ask, said, facts, seen in items]
        lengths = self.prompt_lengths(self.judged(shown, template))
        more = self.image_length() - 1
        return [n + more * item[3] for n, item in zip(lengths, items, strict=True)]

    def train_lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each conversation as ``train_batch`` renders it, an image counted as ``image_length``."""
        return [len(row.ids) + max(count - 1, 0) for row, count in self._train_rows(examples)]

    def _train_rows(self, examples: Sequence[Example]) -> Iterator[tuple[Row, int]]:
        """Each sample's row, its image still one token, and how many that stands for (0: no image)."""
        count = self.image_length()
        for start in range(0, len(examples), 256):
            part = examples[start : start + 256]
            images = [None if e.image is None else _BLANK for e in part]
            turns = [self._clean(e.messages) for e in part]
            rows = self._encode(turns, images, generate=False, names=[e.id for e in part])
            yield from ((row, 0 if image is None else count) for row, image in zip(rows, images, strict=True))

    def misfits(self, examples: Sequence[Example], max_length: int) -> list[str]:
        """What ``train_batch`` would say of the samples that cannot be cut to ``max_length``.

        No picture is opened; an image counts as ``image_length``.
        """
        said = []
        for row, count in self._train_rows(examples):
            try:
                if isinstance(self.processor, LlavaProcessor):
                    self._expand(row, count)
                fit(row, max_length)
            except RenderError as error:
                said.append(str(error))
        return said

    def pixel_values(self, pictures: Sequence[PILImage.Image]) -> Tensor:
        """Normalised pixels (n, 3, S, S) of a LLaVA processor's pictures, each seen whole."""
        return self.processor.image_processor(self.whole(pictures), return_tensors="pt")["pixel_values"]

    def whole(self, pictures: Sequence[PILImage.Image]) -> list[PILImage.Image]:
        """Padded to squares with the mean colour, as LLaVA-1.5 was trained, if the processor would crop.

        What any other code gives this processor, for the model to see what it sees from here."""
        image_processor = getattr(self.processor, "image_processor", None)
        if image_processor is None or not getattr(image_processor, "do_center_crop", False):
            return list(pictures)
        red, green, blue = (int(255 * mean) for mean in image_processor.image_mean)
        return [pad_square(picture.convert("RGB"), (red, green, blue)) for picture in pictures]

    def sanitize(self, text: str) -> str:
        """``text`` with special tokens broken by a space ("</s>" -> "< /s>"), so that they stay text."""
        return break_tokens(text.strip(), self._special_pattern)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response's ids, without special tokens and outer spaces."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _clean(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        return [(m.role, self.sanitize(m.content)) for m in messages]

    def _special_tokens(self) -> list[str]:
        tokens = {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        tokens |= {getattr(self.processor, k, None) or "" for k in ("image_token", "video_token")}
        # longest first, so that no token hides in a longer one
        return sorted((t for t in tokens | {self.image_token} if t.strip()), key=lambda t: (-len(t), t))

    def _bos_prefix(self) -> list[int]:
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        for at in range(len(full) - len(plain) + 1):
            if full[at : at + len(plain)] == plain:
                return full[:at]
        return []

    def _find_end_token(self) -> str:
        layout = self._layout(("user", "assistant"), image=False, generate=False)
        after = "".join(p for p in layout[layout.index(1) + 1 :] if isinstance(p, str))
        found = next((t for t in self._special if after.lstrip().startswith(t)), None)
        self._adds_end = found is None
        if found is None and self.tokenizer.eos_token is None:
            raise RenderError(
                "neither the chat template nor the tokenizer has an end token; set tokenizer.eos_token"
            )
        return found or self.tokenizer.eos_token

    def _layout(self, roles: tuple[str, ...], image: bool, generate: bool) -> list[str | int]:
        """The template's text for a shape of conversation: literals, and turn numbers where contents go."""
        key = (roles, image, generate)
        if key in self._layouts:
            return self._layouts[key]
        first_user = roles.index("user")
        conversation = []
        for i, role in enumerate(roles):
            content: list[dict[str, str]] = [{"type": "text", "text": f"\ue000{i}\ue001"}]
            if image and i == first_user:
                content.insert(0, {"type": "image"})
            conversation.append({"role": role, "content": content})
        text = self.processor.apply_chat_template(
            conversation, add_generation_prompt=generate, tokenize=False
        )
        pieces = re.split("\ue000(\\d+)\ue001", text)
        layout: list[str | int] = [int(p) if i % 2 else p for i, p in enumerate(pieces)]
        if [p for p in layout if isinstance(p, int)] != list(range(len(roles))):
            raise RenderError(
                f"the chat template drops, repeats or reorders turns of {roles}; it cannot be used"
            )
        self._layouts[key] = layout
        return layout

    def _text(
        self, turns: list[tuple[str, str]], image: bool, generate: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation's text, and the (start, end) characters of what the assistant says."""
        roles = tuple(role for role, _ in turns)
        layout = self._layout(roles, image, generate)
        parts: list[str] = []
        length = 0
        spans = []
        for at, piece in enumerate(layout):
            text = piece if isinstance(piece, str) else turns[piece][1]
            if isinstance(piece, int) and roles[piece] == "assistant":
                follow = str(layout[at + 1]).find(self.end_token)
                if self._adds_end or follow < 0:
                    text, follow = text + self.end_token, -len(self.end_token)
                start = length - len(self._lead(roles, image, piece, str(layout[at - 1])))
                spans.append((start, length + len(text) + follow + len(self.end_token)))
            parts.append(text)
            length += len(text)
        whole = "".join(parts)
        # what a template writes after the last end token teaches nothing
        return (whole if generate else whole[: spans[-1][1]]), spans

    def _lead(self, roles: tuple[str, ...], image: bool, turn: int, before: str) -> str:
        """What stands between the generation prompt and the content of an assistant turn, e.g. a space."""
        prompt = str(self._layout(roles[:turn], image, generate=True)[-1])
        return before[len(prompt) :] if before.startswith(prompt) else ""

    def _encode(
        self,
        turns: Sequence[list[tuple[str, str]]],
        images: Sequence[ImageInput],
        generate: bool,
        names: Sequence[str],
    ) -> list[Row]:
        """Token ids and labels, the image still a single token."""
        rendered = [
            self._text(t, image is not None, generate) for t, image in zip(turns, images, strict=True)
        ]
        encoded = self.tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=not generate,
        )
        rows = []
        bos = self.tokenizer.bos_token
        for i, (text, spans) in enumerate(rendered):
            ids = list(encoded["input_ids"][i])
            labels = [] if generate else _labels(ids, encoded["offset_mapping"][i], spans)
            begin = [] if bos and text.startswith(bos) else self._prefix
            labels = labels and [IGNORE] * len(begin) + labels
            rows.append(Row(names[i], text, begin + ids, labels, begin))
        return rows

    def _collate(
        self, rows: list[Row], images: Sequence[ImageInput], side: str, max_length: int | None
    ) -> dict[str, Tensor]:
        """Put the images in and pad; ``labels`` only if the rows have some."""
        given = [image for image in images if image is not None]
        if isinstance(self.processor, LlavaProcessor) or not given:
            extra = self._image_inputs(given) if given else {}
            counts = self._image_tokens(extra)
            for row, image in zip(rows, images, strict=True):
                self._expand(row, counts if image is not None else 0)
        else:
            extra = self._foreign_inputs(rows, given, images)
        for row in rows:
            fit(row, max_length)
        longest = max(len(row.ids) for row in rows)
        batch = pad(rows, longest, side, self.pad_id)
        for key, values in extra.items():
            # per-token inputs of other processors (token types) are padded like the ids
            batch[key] = pad_like(values, rows, longest, side) if isinstance(values, list) else values
        return batch

    def _image_inputs(self, images: list[Any]) -> dict[str, Tensor]:
        kinds = {3 if isinstance(i, PILImage.Image) else i.ndim for i in images}
        if kinds == {2}:
            return {"vision_features": torch.stack(images)}
        if kinds != {3}:
            raise RenderError("a batch mixes cached features with pictures; give all images in one form")
        pictures = [i for i in images if isinstance(i, PILImage.Image)]
        done = iter(self.pixel_values(pictures) if pictures else ())
        return {"pixel_values": torch.stack([i if isinstance(i, Tensor) else next(done) for i in images])}

    def _image_tokens(self, inputs: dict[str, Tensor]) -> int:
        """Tokens that one image takes in the text (equal for all: the pictures are one size)."""
        if "vision_features" in inputs:
            return inputs["vision_features"].shape[1]
        if "pixel_values" not in inputs:
            return 0
        height, width = inputs["pixel_values"].shape[-2:]
        cells = (height // self.processor.patch_size) * (width // self.processor.patch_size)
        default = self.processor.vision_feature_select_strategy == "default"
        return cells + self.processor.num_additional_image_tokens - int(default)

    def _expand(self, row: Row, count: int) -> None:
        found = row.ids.count(self.image_token_id)
        if found != (count > 0):
            raise RenderError(
                f"sample {row.name}: {found} image tokens for {int(count > 0)} image; "
                "the chat template must write the image token once for an image"
            )
        if count:
            at = row.ids.index(self.image_token_id)
            row.ids[at : at + 1] = [self.image_token_id] * count
            row.image_end = at + count
            if row.labels:
                row.labels[at : at + 1] = [IGNORE] * count

    def _foreign_inputs(
        self, rows: list[Row], given: list[Any], images: Sequence[ImageInput]
    ) -> dict[str, Tensor | list[Tensor]]:
        """Any other processor expands its own image tokens; our labels are aligned from the right."""
        if any(isinstance(image, Tensor) for image in given):
            raise RenderError("cached features need a LLaVA model; pass pictures to this processor")
        given = self.whole(given)
        nested = [[image] for image in given] if len(given) == len(images) else given
        inputs = self.processor(
            text=[row.text for row in rows],
            images=nested,
            return_tensors="pt",
            padding=True,
            padding_side="right",
            add_special_tokens=False,
        )
        width = inputs["input_ids"].shape
        real = inputs["attention_mask"].sum(-1).tolist()
        for i, row in enumerate(rows):
            ids = row.begin + inputs["input_ids"][i, : real[i]].tolist()
            added = len(ids) - len(row.ids)
            first = next((j for j, x in enumerate(row.labels) if x != IGNORE), len(row.ids) - 1)
            if added < 0 or ids[first + added :] != row.ids[first:]:
                raise RenderError(
                    f"sample {row.name}: the processor changes the text after the image; unsupported"
                )
            row.labels = [IGNORE] * added + row.labels if row.labels else row.labels
            row.ids = ids
            row.image_end = max((j + 1 for j, x in enumerate(ids) if x == self.image_token_id), default=0)
        extra = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        per_token = {k for k, v in extra.items() if isinstance(v, Tensor) and v.shape == width}
        return {k: list(v) if k in per_token else v for k, v in extra.items()}


def _labels(ids: list[int], offsets: Sequence[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """The ids of tokens that end inside a span of characters, -100 for all others."""
    labels = [IGNORE] * len(ids)
    at = 0
    for start, end in spans:
        while at < len(ids) and offsets[at][1] <= start:
            at += 1
        while at < len(ids) and offsets[at][1] <= end:
            labels[at] = ids[at]
            at += 1
    return labels
