"""Yes/no questions answered from the probabilities of the first token, in one pass and without sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.generate import inference
from align.models.lmm import Lmm, is_llava, move, unwrap
from align.prefix import Item, batches, read
from align.render import Renderer
from data.schema import Message


class YesNoError(ValueError):
    """Yes and no cannot be told apart by a first token."""


_YES = ("Yes", "Yes.", "yes", "YES")
_NO = ("No", "No.", "no", "NO")


def first_tokens(renderer: Renderer, item: Item) -> tuple[list[int], list[int]]:
    """Ids with which an answer of yes, and one of no, may begin after the item's prompt.

    Taken from whole conversations, because a word's token depends on what stands before it.

    Raises:
        YesNoError: to this tokenizer "yes" and "no" begin alike.
    """
    messages, image = item
    start = int(renderer.prompt_batch([item])["attention_mask"].sum())

    def begin(texts: Sequence[str]) -> set[int]:
        after = Message(role="user", content="?")
        whole = [([*messages, Message(role="assistant", content=text), after], image) for text in texts]
        batch = renderer.prompt_batch(whole)
        rows = zip(batch["input_ids"], batch["attention_mask"])
        found = [int(ids[mask.bool()][start]) for ids, mask in rows]
        # the whole word, where the tokenizer has it: "N" would count "Nothing" as a no
        words = {token for token in found if renderer.decode([token]).lower() in ("yes", "no")}
        return words or {found[0]}

    yes, no = begin(_YES), begin(_NO)
    if yes <= no or no <= yes:
        raise YesNoError('to this tokenizer "yes" and "no" begin with the same token; generate answers')
    return sorted(yes - no), sorted(no - yes)


@torch.no_grad()
def probabilities(lmm: Lmm, renderer: Renderer, items: Sequence[Item], batch_size: int) -> list[float]:
    """P(yes) of each item, in their order: of the answers that begin with yes or no, the share of yes."""
    if not items:
        return []
    yes, no = first_tokens(renderer, items[0])
    found = [0.0] * len(items)
    with inference(lmm.model):
        for rows in batches(items, renderer.prompt_lengths(items), batch_size):
            logits = _logits(lmm, renderer, [items[i] for i in rows])
            sums = torch.stack([logits[:, ids].logsumexp(-1) for ids in (yes, no)], dim=-1)
            for i, p in zip(rows, sums.softmax(-1)[:, 0].tolist()):
                found[i] = p
    return found


def _logits(lmm: Lmm, renderer: Renderer, items: Sequence[Item]) -> Tensor:
    if is_llava(lmm.model):
        return read(lmm, renderer, items).logits
    batch = move(renderer.prompt_batch(items), lmm.device)
    return unwrap(lmm.model)(**batch, logits_to_keep=1).logits[:, -1].float()
