"""The loop that writes answers for a LLaVA: one token a row and step, on keys and values that are kept.

transformers' ``generate`` goes on with every row until the last has ended, and reads the prompt of each
sample anew. Here rows that have ended leave the batch, and the samples of one prompt share what was read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache

from align.models.lmm import Lmm, is_llava, next_logits, position_ids, unwrap

#: (B, V) logits in float32 -> (B,) tokens
Choose: TypeAlias = Callable[[Tensor], Tensor]
#: ended rows leave once they are this share of the batch: each time, keys and values are copied
LEAVING = 0.1


@dataclass
class Read:
    """B prompts as the language model has read them."""

    cache: DynamicCache
    #: (B, T), 1 at real tokens
    mask: Tensor
    #: (B, V) logits of the next token
    logits: Tensor

    def keep(self, rows: Tensor) -> None:
        """Only these rows (indices, any may stand several times) from now on."""
        self.cache.batch_select_indices(rows)
        self.mask, self.logits = self.mask[rows], self.logits[rows]


def is_able(lmm: Lmm) -> bool:
    """Whether the loop serves this model: a LLaVA whose language model does not attend to a window only.

    Padding in the middle, as shared prefixes have it, would shorten a window.
    """
    if not is_llava(lmm.model):
        return False
    text = unwrap(lmm.model).config.get_text_config()
    return getattr(text, "sliding_window", None) is None or not getattr(text, "use_sliding_window", True)


def read(base: Any, inputs: Tensor, mask: Tensor) -> Read:
    """Read left padded prompts, given as embeddings (B, T, H) and their mask (B, T)."""
    return forward(base, DynamicCache(config=base.config.get_text_config()), inputs, mask)


def forward(base: Any, cache: DynamicCache, inputs: Tensor, mask: Tensor, *, logits: bool = True) -> Read:
    """One pass over the last ``inputs.shape[1]`` tokens of rows whose whole mask is (B, T)."""
    positions = position_ids(mask)[:, -inputs.shape[1] :]
    language = base.model.language_model
    # transformers 5.24 renamed it
    name = "cache" if "cache" in inspect.signature(language.forward).parameters else "past_key_values"
    hidden = language(
        inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=True, **{name: cache}
    ).last_hidden_state
    return Read(cache, mask, next_logits(base, hidden[:, -1]) if logits else hidden[:, -1])


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row."""
    return logits.argmax(-1)


def sampler(temperature: float, top_p: float = 1.0) -> Choose:
    """Draws from softmax(logits / temperature), among the likeliest tokens that make up ``top_p``.

    Uses torch's global random state.
    """

    def choose(logits: Tensor) -> Tensor:
        probabilities = torch.softmax(logits / temperature, -1)
        if top_p < 1:
            ranked, order = probabilities.sort(-1, descending=True)
            # the token that crosses the line is kept
            ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)
            probabilities = torch.zeros_like(ranked).scatter(-1, order, ranked)
        return torch.multinomial(probabilities, 1).squeeze(-1)

    return choose


@torch.no_grad()
def decode(
    base: Any,
    state: Read,
    choose: Choose,
    ends: Sequence[int],
    never: Sequence[int],
    max_new_tokens: int,
    any_going: Callable[[bool], bool] = bool,
) -> list[tuple[list[int], bool]]:
    """Each row's tokens (its end token included) and whether the end came; ``state`` is used up.

    ``ends`` are end tokens, ``never`` are never chosen. ``any_going``: :attr:`Lmm.any_going`; as long as it
    is true one row goes on, unheard.
    """
    found: list[list[int]] = [[] for _ in state.mask]
    complete = [False] * len(found)
    left = list(range(len(found)))
    for step in range(max_new_tokens):
        state.logits[:, list(never)] = float("-inf")
        chosen = choose(state.logits)
        for row, token in zip(left, chosen.tolist()):
            if not complete[row]:
                found[row].append(token)
                complete[row] = token in ends
        going = [k for k, row in enumerate(left) if not complete[row]]
        if not any_going(bool(going)) or step + 1 == max_new_tokens:
            break
        going = going or [0]
        if len(going) <= (1 - LEAVING) * len(left):
            rows = torch.tensor(going, device=chosen.device)
            state.keep(rows)
            left, chosen = [left[k] for k in going], chosen[rows]
        mask = torch.cat([state.mask, state.mask.new_ones(len(left), 1)], dim=1)
        state = forward(base, state.cache, base.get_input_embeddings()(chosen[:, None]), mask)
    return list(zip(found, complete))
