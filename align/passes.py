"""The passes of a PPO step on the meta device, and what each phase needs beside weights and optimizer state.

Each pass is the one that ``align.ppo`` makes, with the run's number of rows, all as long as they can become.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from align.actors import POLICY, VALUE
from align.config import PpoSettings
from align.decode import ROOM, capacity, is_able, read
from align.footprint import over_depth, peak_of
from align.meta import META, Build, held, size
from align.models.lmm import (
    Lmm,
    hidden_states,
    image_features,
    is_llava,
    token_logprobs,
    unwrap,
    use_adapter,
    vision_features,
)
from align.models.memory import checkpointed
from align.reward_model import ADAPTER
from align.rl import policy_loss, value_loss

#: pictures that ``align.generate.grid_features`` encodes at once
ENCODED = 64
#: what ``grid`` found
_GRIDS: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest row."""

    #: the prompt's text, its template included
    prompt: int
    #: one picture
    image: int
    response: int
    #: what the reward model reads behind the response: its question, facts, perhaps the response again
    judged: int

    @property
    def asked(self) -> int:
        """Of a prompt with its picture."""
        return self.prompt + self.image

    @property
    def row(self) -> int:
        """Of a prompt with its response."""
        return self.asked + self.response


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    name: str
    bytes: int
    #: whether the bytes are those of known tensors, not the peak of a simulated pass
    exact: bool = True


@dataclass(frozen=True)
class Phase:
    """One stretch of a PPO step, and what it needs beside what is always held."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        return total(self.parts)


def total(parts: Sequence[Part]) -> int:
    """Bytes of all parts."""
    return sum(part.bytes for part in parts)


def grid(model: Any) -> tuple[int, int]:
    """(N, D): cells of a LLaVA's picture and channels of each, ahead of the projector."""
    base = unwrap(model)
    if base not in _GRIDS:
        with torch.no_grad():
            _, cells, channels = vision_features(model, _pixels(model, 1)).shape
        _GRIDS[base] = cells, channels
    return _GRIDS[base]


def cache_bytes(config: Any, rows: int, tokens: int, itemsize: int) -> int:
    """Keys and values: 2 · layers · rows · tokens · key-value heads · channels of a head · bytes of a number.

    ``config`` is the language model's. With a sliding window less may be held.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * rows * tokens * heads * channels * itemsize


class Passes:
    """The phases of one process; ``peaks`` keeps what was measured, for plans that differ in other things."""

    def __init__(
        self, build: Build, lengths: Lengths, settings: PpoSettings, processes: int, peaks: dict[Any, int]
    ) -> None:
        self.build, self.lengths, self.settings, self.peaks = build, lengths, settings, peaks
        self.rollouts = -(-settings.rollouts // processes)
        #: rows that are written at once, and rows of the passes over what was written
        self.written = min(settings.generate.batch_size, self.rollouts)
        self.rows = min(settings.micro_batch or -(-settings.minibatch // processes), self.rollouts)
        self.checkpointing = settings.gradient_checkpointing
        self.dtype = getattr(torch, settings.model.dtype)
        #: the model whose adapter scores
        self.judge = build.model if build.reward is None else build.reward

    def phases(self) -> list[Phase]:
        """In the order of a step."""
        pictures = self._pictures()
        tensors = (*pictures, Part("rollouts: tokens and numbers", self._numbers()))
        gradients = (Part("gradients", size(self.build.learned())),)
        found = self._writing(pictures)
        for name, run, more in (
            ("scoring: policy and reference", self._judge, ()),
            ("scoring: values", self._values, ()),
            ("scoring: reward model", self._score, self._seen()),
            ("update: policy", self._learn_policy, gradients),
            ("update: value", self._learn_value, gradients),
        ):
            found.append(Phase(name, (*tensors, *more, self._pass(name, run, self.rows))))
        # on a GPU it takes a group's parameters at once, and first the roots of their second moments
        largest = max(size(group["params"]) for group in self.build.groups)
        step = Part("AdamW's temporaries", largest, exact=False)
        return [*found, Phase("update: optimizer step", (*tensors, *gradients, step))]

    def _pictures(self) -> tuple[Part, ...]:
        """Features that a step keeps, were all of its pictures different."""
        if not is_llava(self.build.model):
            return ()
        cells, channels = grid(self.build.model)
        count = self.rollouts * cells * self.dtype.itemsize
        return (
            Part("pictures: the tower's features", count * channels),
            Part("pictures: projected features", count * _width(self.build.model)),
        )

    def _seen(self) -> tuple[Part, ...]:
        """Features of the pictures for a reward model of another base."""
        if self.build.reward is None or not is_llava(self.judge):
            return ()
        cells, channels = grid(self.judge)
        count = self.rollouts * cells * channels * _tower_dtype(self.judge).itemsize
        return (Part("pictures: features of the reward model's tower", count),)

    def _numbers(self) -> int:
        """Ids and masks (int64), and nine (B, R) float32: log-probabilities, values, rewards and so on."""
        return self.rollouts * (16 * self.lengths.row + 36 * self.lengths.response)

    def _writing(self, pictures: tuple[Part, ...]) -> list[Phase]:
        """Rollouts: encode the pictures, read the prompts, write, put the batches together."""
        text = unwrap(self.build.model).config.get_text_config()
        itemsize = self.dtype.itemsize
        columns = capacity(self.lengths.row)
        cache = cache_bytes(text, self.written, columns, itemsize)
        # a layer's old ones, while it gets more room
        grows = capacity(self.lengths.asked) < columns
        old = grows * cache_bytes(text, self.written, columns - ROOM, itemsize) // text.num_hidden_layers
        # raw, in float32, as probabilities, and a copy ahead of the choice
        logits = self.written * text.vocab_size * (itemsize + 12)
        name = "rollout: read prompts"
        found = [Phase(name, (*pictures, self._pass(name, self._read, self.written)))]
        step = Part("logits, or one layer's keys and values while they move", max(old, logits), False)
        found.append(Phase("rollout: write responses", (*pictures, Part("keys and values", cache), step)))
        if not pictures:
            return found
        name = "rollout: encode pictures"
        encoded = self._pass(name, self._encode, min(ENCODED, self.rollouts))
        # the batches' features, all of them in one tensor, and in the prompts' order
        joined = Part("projected features, twice more", 2 * pictures[1].bytes, exact=False)
        return [
            Phase(name, (pictures[0], encoded)),
            *found,
            Phase("rollout: join batches", (*pictures, joined)),
        ]

    # --- measuring ---

    def _pass(self, name: str, run: Callable[[int], object], rows: int) -> Part:
        """The peak of ``run(rows)``, beside weights and gradients."""
        learns = name.startswith("update")
        key = (id(self.build), name, rows, self.lengths, learns and self.checkpointing)
        if key not in self.peaks:
            model = self.judge if name == "scoring: reward model" else self.build.model
            present = self._present()
            computed_again = checkpointed(self.build.model, learns and self.checkpointing)
            with torch.set_grad_enabled(learns), computed_again:
                self.peaks[key] = over_depth(model, lambda: peak_of(lambda: run(rows), present))
        return Part(f"the pass over {rows} rows", self.peaks[key], exact=False)

    def _present(self) -> list[Tensor]:
        """Weights, and the gradients of all that learns, as they are from the second micro-batch on."""
        learned = self.build.learned()
        for parameter in learned:
            parameter.grad = torch.empty_like(parameter)
        heads = [p for head in self.build.heads.values() for p in head.parameters()]
        models = [*held(self.build.model), *held(self.judge)]
        return [*models, *heads, *(p.grad for p in learned if p.grad is not None)]

    # --- the passes ---

    def _encode(self, pictures: int) -> None:
        vision_features(self.build.model, _pixels(self.build.model, pictures))

    def _read(self, rows: int) -> None:
        """Prompts through the policy, keys and values kept."""
        model, asked = self.build.model, _batch(rows, self.lengths.asked)
        use_adapter(model, POLICY)
        if not is_able(Lmm(model, None)):
            hidden_states(model, asked)
            return
        features = image_features(model, _given(model, rows))
        inputs = torch.empty(rows, self.lengths.asked, _width(model), device=META, dtype=self.dtype)
        read(unwrap(model), inputs, asked["attention_mask"])
        del features

    def _judge(self, rows: int) -> None:
        self._logprobs(rows, with_entropy=True)

    def _logprobs(self, rows: int, with_entropy: bool = False) -> Tensor:
        """(rows, R) under the policy."""
        use_adapter(self.build.model, POLICY)
        features = self._picked(rows)
        found, _ = token_logprobs(
            self.build.model,
            _batch(rows, self.lengths.row),
            response_len=self.lengths.response,
            temperature=self.settings.generate.temperature,
            with_entropy=with_entropy,
        )
        del features
        return found

    def _values(self, rows: int) -> Tensor:
        """(rows, R) under the value model."""
        use_adapter(self.build.model, VALUE)
        features = self._picked(rows)
        hidden = hidden_states(self.build.model, _batch(rows, self.lengths.row))
        del features
        return self.build.heads[VALUE](hidden[:, -self.lengths.response - 1 : -1])

    def _score(self, rows: int) -> None:
        use_adapter(self.judge, ADAPTER)
        features = image_features(self.judge, _given(self.judge, rows)) if is_llava(self.judge) else None
        hidden = hidden_states(self.judge, _batch(rows, self.lengths.row + self.lengths.judged))
        self.build.heads[ADAPTER](hidden[:, -1])
        del features

    def _learn_policy(self, rows: int) -> None:
        new = self._logprobs(rows)
        old, advantages, mask = (torch.empty(new.shape, device=META) for _ in range(3))
        torch.autograd.backward(policy_loss(new, old, advantages, mask, self.settings.clip).loss)

    def _learn_value(self, rows: int) -> None:
        new = self._values(rows)
        old, returns, mask = (torch.empty(new.shape, device=META) for _ in range(3))
        torch.autograd.backward(value_loss(new, old, returns, mask, self.settings.value_clip).loss)

    def _picked(self, rows: int) -> Tensor | None:
        """The rows' projected features, which are held during their pass.

        Their way into the embeddings depends on values; it is shorter than any layer.
        """
        if not is_llava(self.build.model):
            return None
        shape = rows, self.lengths.image, _width(self.build.model)
        return torch.empty(shape, device=META, dtype=self.dtype)


def _batch(rows: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.zeros(rows, tokens, dtype=torch.long, device=META)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _given(model: Any, rows: int) -> dict[str, Tensor]:
    """The tower's features of a LLaVA's batch, stacked."""
    return {"vision_features": torch.empty(rows, *grid(model), device=META, dtype=_tower_dtype(model))}


def _pixels(model: Any, pictures: int) -> Tensor:
    side = unwrap(model).config.vision_config.image_size
    return torch.empty(pictures, 3, side, side, device=META)


def _width(model: Any) -> int:
    return unwrap(model).config.get_text_config().hidden_size


def _tower_dtype(model: Any) -> torch.dtype:
    return next(unwrap(model).model.vision_tower.parameters()).dtype
