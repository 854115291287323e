"""The loop that writes answers for a LLaVA: one token a row and step, on keys and values that are kept.

transformers' ``generate`` goes on with every row until the last has ended, and reads the prompt of each
sample anew. Here rows that have ended leave the batch, and the samples of one prompt share what was read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from align.models.lmm import Lmm, is_llava, next_logits, position_ids, unwrap

#: (B, V) logits in float32 -> (B,) tokens
Choose: TypeAlias = Callable[[Tensor], Tensor]
#: ended rows leave once they are this share of the batch: each time, keys and values are copied
LEAVING = 0.1
#: keys and values are made for so many tokens at once
ROOM = 64


def capacity(tokens: int) -> int:
    """For how many tokens there is room once there are ``tokens``."""
    return -(-tokens // ROOM) * ROOM


class RoomyLayer(DynamicLayer):
    """Keys and values (B, heads, T, D) with room behind them; the stock layer copies all for each token."""

    _room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the new tokens' (B, heads, t, D); returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < after:
            self._room = tuple(
                new.new_empty(*new.shape[:-2], capacity(after), new.shape[-1])
                for new in (key_states, value_states)
            )  # type: ignore[assignment]
            if before:
                for room, old in zip(self._room, (self.keys, self.values)):
                    room[..., :before, :] = old
        for room, new in zip(self._room, (key_states, value_states)):
            room[..., before:after, :] = new
        return self._show(after)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        length = self.get_seq_length()
        if length and self._room is not None:
            self._room = self._room[0][indices], self._room[1][indices]
            self._show(length)

    def join(self, other: RoomyLayer, first: int) -> None:
        """The rows of ``other`` below these, of which tokens ahead of ``first`` are dropped; the shorter are
        padded on the left."""
        length = max(self.get_seq_length() - first, other.get_seq_length())
        joined = []
        for mine, theirs in (
            (self.keys[..., first:, :], other.keys),
            (self.values[..., first:, :], other.values),
        ):
            rows = len(mine) + len(theirs)
            room = mine.new_empty(rows, mine.shape[1], capacity(length), mine.shape[-1])
            for part, at in ((mine, slice(len(mine))), (theirs, slice(len(mine), rows))):
                # masked, but attention multiplies them by 0: what was not written might be NaN
                room[at, :, : length - part.shape[-2]] = 0
                room[at, :, length - part.shape[-2] : length] = part
            joined.append(room)
        self._room = joined[0], joined[1]
        self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._room is not None
        self.keys, self.values = (room[..., :length, :] for room in self._room)
        return self.keys, self.values


def new_cache(base: Any) -> DynamicCache:
    """An empty cache for the language model of ``base``."""
    cache = DynamicCache(config=base.config.get_text_config())
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


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

    def join(self, other: Read) -> None:
        """The rows of ``other``, which is used up, below these. Both caches are of ``RoomyLayer`` alone."""
        first = int(self.mask.any(0).long().argmax())
        mine, theirs = self.mask[:, first:], other.mask
        for layer, more in zip(self.cache.layers, other.cache.layers):
            layer.join(more, first)
        width = max(mine.shape[1], theirs.shape[1])
        padded = [torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in (mine, theirs)]
        self.mask = torch.cat(padded)
        self.logits = torch.cat([self.logits, other.logits])


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
    return forward(base, new_cache(base), inputs, mask)


def forward(base: Any, cache: DynamicCache, inputs: Tensor, mask: Tensor, *, logits: bool = True) -> Read:
    """One pass over the last ``inputs.shape[1]`` tokens of rows whose whole mask is (B, T)."""
    positions = position_ids(mask)[:, -inputs.shape[1] :]
    language = base.model.language_model
    kind: Any = type(language)
    named = {_cache_name(kind): cache}
    hidden = language(
        inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=True, **named
    ).last_hidden_state
    return Read(cache, mask, next_logits(base, hidden[:, -1]) if logits else hidden[:, -1])


@functools.cache
def _cache_name(kind: Any) -> str:
    # transformers 5.24 renamed it
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


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


class Heard:
    """Log-probabilities of tokens as they are drawn: of softmax(logits / temperature), whatever is then kept
    from being chosen."""

    def __init__(self, temperature: float) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; log-probabilities need a positive one")
        self.temperature = temperature
        #: by row, as :func:`decode` returns the rows; as many as there are tokens
        self.rows: dict[int, list[float]] = {}

    def norms(self, logits: Tensor) -> Tensor:
        """(B, V) logits as the model gives them -> (B,) logarithms of the sums of their exponentials."""
        return (logits / self.temperature).logsumexp(-1)

    def said(self, logits: Tensor, norms: Tensor, chosen: Tensor) -> Tensor:
        """(B,) of the ``chosen`` tokens (B,), given ``norms`` of all tokens."""
        return logits.gather(-1, chosen[:, None])[:, 0] / self.temperature - norms


@torch.no_grad()
def decode(
    base: Any,
    state: Read,
    choose: Choose,
    ends: Sequence[int],
    never: Sequence[int],
    max_new_tokens: int,
    any_going: Callable[[bool], bool] = bool,
    more: Callable[[int], Read | None] | None = None,
    heard: Heard | None = None,
) -> list[tuple[list[int], bool]]:
    """Each row's tokens (its end token included) and whether the end came; ``state`` is used up.

    ``ends`` are end tokens, ``never`` are never chosen. ``any_going``: :attr:`Lmm.any_going`; as long as it
    is true one row goes on, unheard. ``more(n)`` reads up to n rows that take the places of ended ones, or
    gives None when there are none left; they come behind the others in what is returned. ``heard`` is told
    the tokens' log-probabilities.
    """
    size = len(state.mask)
    found: list[list[int]] = [[] for _ in state.mask]
    complete = [False] * size
    left = list(range(size))
    while True:
        norms = heard.norms(state.logits) if heard else None
        state.logits[:, list(never)] = float("-inf")
        chosen = choose(state.logits)
        heard_now = heard.said(state.logits, norms, chosen).tolist() if heard and norms is not None else None
        for k, (row, token) in enumerate(zip(left, chosen.tolist())):
            if not complete[row] and len(found[row]) < max_new_tokens:
                found[row].append(token)
                complete[row] = token in ends
                if heard and heard_now:
                    heard.rows.setdefault(row, []).append(heard_now[k])
        going = [k for k, row in enumerate(left) if not complete[row] and len(found[row]) < max_new_tokens]
        fresh = more(size - len(going)) if more and len(going) <= (1 - LEAVING) * size else None
        if fresh is None and not any_going(bool(going)):
            break
        if going or fresh is None:
            leave = fresh is not None or len(going) <= (1 - LEAVING) * len(left)
            going = going or [0]
            if leave:
                rows = torch.tensor(going, device=chosen.device)
                state.keep(rows)
                left, chosen = [left[k] for k in going], chosen[rows]
            mask = torch.cat([state.mask, state.mask.new_ones(len(left), 1)], dim=1)
            state = forward(base, state.cache, base.get_input_embeddings()(chosen[:, None]), mask)
        if fresh is not None:
            if going:
                state.join(fresh)
            left = [*(left if going else []), *range(len(found), len(found) + len(fresh.mask))]
            state = state if going else fresh
            found += [[] for _ in fresh.mask]
            complete += [False] * len(fresh.mask)
    return list(zip(found, complete))
