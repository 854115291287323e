"""Greedy answers to several questions about each picture, whose common prefix is read once for all of them.

The prompts of one template begin alike: a system text and the picture's tokens, hundreds of them, then the
question's few. Keys and values of the prefix are computed once a picture and handed to each question's row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from align import decode
from align.models.lmm import Lmm, embed, image_features, move, unwrap
from align.render import ImageInput, Renderer
from data.schema import Message

Item: TypeAlias = tuple[Sequence[Message], ImageInput]


def is_shared(lmm: Lmm, items: Sequence[Item]) -> bool:
    """Whether reading prefixes apart saves anything: a LLaVA, and a picture that is asked about twice."""
    pictures = [id(image) for _, image in items if image is not None]
    return decode.is_able(lmm) and len(set(pictures)) < len(pictures)


def batches(items: Sequence[Item], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of at most ``size`` items each, a picture's together where they fit, the longest first."""
    groups: dict[int, list[int]] = {}
    for i, (_, image) in enumerate(items):
        groups.setdefault(id(image), []).append(i)
    found: list[list[int]] = []
    for group in sorted(groups.values(), key=lambda g: (-max(lengths[i] for i in g), g[0])):
        for start in range(0, len(group), size):
            part = group[start : start + size]
            if not found or len(found[-1]) + len(part) > size:
                found.append([])
            found[-1] += part
    return found


@torch.no_grad()
def read(lmm: Lmm, renderer: Renderer, items: Sequence[Item]) -> decode.Read:
    """Read the prompts of one batch, what all of them begin with once a picture.

    The common prefix must reach behind the picture; where it does not (a text before the picture differs,
    or a prompt has none) every prompt is read whole.
    """
    base = unwrap(lmm.model)
    batch = move(renderer.prompt_batch(items), lmm.device)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    pictures = list(dict.fromkeys(id(image) for _, image in items))
    of = torch.tensor([pictures.index(id(image)) for _, image in items], device=lmm.device)
    first = [int((of == k).nonzero()[0]) for k in range(len(pictures))]
    rows = [row[keep.bool()] for row, keep in zip(ids, mask)]
    length = _common(rows, base.config.image_token_index)
    if not length or not is_shared(lmm, items):
        # nothing is shared
        return decode.read(base, embed(base, batch, image_features(base, batch)), mask)
    alone = move(renderer.prompt_batch([items[k] for k in first]), lmm.device)
    features = image_features(base, alone)
    prefix = torch.stack([rows[k][:length] for k in first])
    inputs = embed(base, {"input_ids": prefix}, features)
    cache = decode.new_cache(base)
    decode.forward(base, cache, inputs, torch.ones_like(prefix), logits=False)
    cache.batch_select_indices(of)
    width = max(len(row) for row in rows) - length
    tail = torch.full((len(rows), width), renderer.pad_id, device=lmm.device)
    seen = torch.zeros_like(tail)
    for k, row in enumerate(rows):
        tail[k, width - (len(row) - length) :] = row[length:]
        seen[k, width - (len(row) - length) :] = 1
    whole = torch.cat([torch.ones(len(rows), length, dtype=seen.dtype, device=lmm.device), seen], dim=1)
    return decode.forward(base, cache, base.get_input_embeddings()(tail), whole)


def _common(rows: Sequence[Tensor], image_token: int) -> int:
    """Tokens that all rows begin with, at least one short of the shortest; 0 unless it covers the picture."""
    shortest = min(len(row) for row in rows)
    stacked = torch.stack([row[:shortest] for row in rows])
    differs = (stacked != stacked[0]).any(0).nonzero()
    length = min(int(differs[0]) if len(differs) else shortest, shortest - 1)
    covered = bool((rows[0][:length] == image_token).any())
    whole = all(not bool((row[length:] == image_token).any()) for row in rows)
    return length if covered and whole else 0


def answer(
    lmm: Lmm,
    renderer: Renderer,
    items: Sequence[Item],
    ends: Sequence[int],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> list[tuple[list[int], bool]]:
    """Each item's tokens (its end token included) and whether the end came, at temperature 0."""
    base = unwrap(lmm.model)
    rows = batches(items, renderer.prompt_lengths(items), batch_size)
    found: dict[int, tuple[list[int], bool]] = {}
    for part in progress(rows) if progress else rows:
        state = read(lmm, renderer, [items[i] for i in part])
        said = decode.decode(base, state, decode.greedy, ends, [renderer.image_token_id], max_new_tokens)
        found |= zip(part, said)
    return [found[i] for i in range(len(items))]
