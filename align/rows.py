"""One sample as token ids on their way into a batch: cutting and padding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

#: the label of a token that is not learned
IGNORE = -100


class RenderError(ValueError):
    """A sample that cannot be rendered; the text names it, the rule and the mend."""


@dataclass
class Row:
    """Ids of one sample and, in training, as many labels (``IGNORE`` where nothing is learned)."""

    name: str
    text: str
    ids: list[int]
    labels: list[int]
    #: the leading ids that the tokenizer adds to the text
    begin: list[int] = field(default_factory=list)
    #: index behind the last image token, 0 without an image
    image_end: int = 0


def fit(row: Row, max_length: int | None) -> None:
    """Cut a training row to ``max_length`` tokens.

    Raises RenderError for a prompt that is too long, for a cut inside the image's tokens, and if nothing to
    learn is left.
    """
    if max_length is None or len(row.ids) <= max_length:
        return
    where = f"sample {row.name}: {len(row.ids)} tokens exceed max_length {max_length}"
    if not row.labels:
        raise RenderError(f"{where}, and a prompt is never cut; raise max_length or drop the sample")
    if row.image_end > max_length:
        raise RenderError(f"{where} inside the image, which ends at {row.image_end}; raise max_length")
    row.ids, row.labels = row.ids[:max_length], row.labels[:max_length]
    if all(label == IGNORE for label in row.labels):
        raise RenderError(f"{where} and no assistant token is left; raise max_length or drop the sample")


def pad(rows: list[Row], longest: int, side: str, pad_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and, if the rows have them, labels: each (B, longest)."""
    shape = (len(rows), longest)
    ids = torch.full(shape, pad_id)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE)
    for i, row in enumerate(rows):
        place = _place(len(row.ids), longest, side)
        ids[i, place] = torch.tensor(row.ids)
        mask[i, place] = 1
        if row.labels:
            labels[i, place] = torch.tensor(row.labels)
    batch = {"input_ids": ids, "attention_mask": mask}
    return {**batch, "labels": labels} if rows[0].labels else batch


def pad_like(values: list[Tensor], rows: list[Row], longest: int, side: str) -> Tensor:
    """Pad a processor's own per-token inputs (right padded, e.g. token types) as ``pad`` pads the ids."""
    out = torch.zeros((len(rows), longest), dtype=values[0].dtype)
    for i, (value, row) in enumerate(zip(values, rows, strict=True)):
        # the begin ids are not the processor's; they are text, like its first token
        whole = torch.cat([value[:1].repeat(len(row.begin)), value])[: len(row.ids)]
        out[i, _place(len(row.ids), longest, side)] = whole
    return out


def _place(n: int, longest: int, side: str) -> slice:
    return slice(0, n) if side == "right" else slice(longest - n, longest)
