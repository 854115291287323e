"""The four models of PPO on one set of frozen weights: adapters "policy", "value" and "reward"; the reference
is the base with its adapters off. A reward model of another base keeps its own weights."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.checkpoint import load_state, load_tensors, save_state, save_tensors
from align.config import PpoSettings
from align.folders import new_folder
from align.generate import Generated, Item, join
from align.lending import lend_tower
from align.models.lmm import (
    Batch,
    Lmm,
    ScalarHead,
    adapter_of,
    adapters_off,
    add_adapters,
    hidden_states,
    load,
    logprobs_of,
    move,
    use_adapter,
)
from align.models.lora import lean
from align.models.memory import any_process, checkpointed, shard
from align.parts import parts
from align.render import Renderer
from align.reward_model import (
    RewardModel,
    attach,
    find_reward,
    load_head,
    read_info,
    same_base,
    write_adapter,
)
from data.jsonl import write_json, write_text

log = logging.getLogger(__name__)

POLICY, VALUE = "policy", "value"
LEARNERS = (POLICY, VALUE)


@dataclass
class Judged:
    """What is said of B responses, token by token: each (B, R) float32, 0 at padding."""

    logprobs: Tensor
    #: of the policy's distribution, in nats
    entropy: Tensor
    ref_logprobs: Tensor
    values: Tensor


@dataclass
class Sampled:
    """Prompts with their sampled responses, ready for forward passes over any rows of them."""

    generated: Generated
    #: the prompts: (messages, picture or its features)
    items: list[Item]
    renderer: Renderer
    #: as many parts as any other process has, see :func:`align.models.memory.shard`
    even: bool = False

    def __post_init__(self) -> None:
        made = self.generated
        has_image = torch.tensor([image is not None for _, image in self.items])
        #: row of ``generated.features`` that belongs to each prompt
        self._feature_row = (has_image.cumsum(0) - 1).masked_fill(~has_image, -1)
        self._prompt_length = made.prompt_mask.sum(-1).tolist()
        self._length = made.response_mask.sum(-1).tolist()
        lengths = zip(self._prompt_length, self._length)
        whole = [
            torch.cat([prompt[len(prompt) - p :], response[:n]])
            for prompt, response, (p, n) in zip(made.prompt_ids, made.response_ids, lengths)
        ]
        #: (B, T) prompts and responses without a gap, padding behind them
        self._whole = torch.nn.utils.rnn.pad_sequence(
            whole, batch_first=True, padding_value=self.renderer.pad_id
        )

    def split(self, rows: Sequence[int], size: int) -> list[list[int]]:
        """The rows in parts of at most ``size``: :func:`align.parts.parts`."""
        lengths = [self._prompt_length[i] + self._length[i] for i in rows]
        return [[rows[k] for k in part] for part in parts(lengths, size, even=self.even)]

    def batch(self, rows: Sequence[int]) -> tuple[Batch, Tensor | None, Tensor, Tensor]:
        """Model inputs of some rows and their image features; of their responses (b, R) the tokens, and the
        places of the states that predict them. What a state says at padding means nothing.

        Padding stands on the right: nothing ahead of it attends to it, so attention needs no mask and may
        take its fastest path.
        """
        made = self.generated
        index = torch.tensor(rows, device=made.response_ids.device)
        width = max(self._length[i] for i in rows)
        targets = made.response_ids[index, :width]
        if made.features is None and any(self.items[i][1] is not None for i in rows):
            # another kind of model: its own processor makes the inputs again
            prompt = move(self.renderer.prompt_batch([self.items[i] for i in rows]), index.device)
            seen = made.response_mask[index, :width]
            empty = prompt["input_ids"], prompt["attention_mask"]
            batch = join(prompt, Generated(*empty, targets, seen, made.complete[index], None))
            first = torch.full_like(index, batch["input_ids"].shape[1] - width)
            return batch, None, targets, self._places(first, width, batch["input_ids"].shape[1])
        total = max(self._prompt_length[i] + self._length[i] for i in rows)
        first = torch.tensor([self._prompt_length[i] for i in rows], device=index.device)
        pictured = [int(r) for r in self._feature_row[list(rows)] if r >= 0]
        features = made.features[pictured] if made.features is not None and pictured else None
        batch = {"input_ids": self._whole[index, :total], "attention_mask": None}
        return batch, features, targets, self._places(first, width, total)

    def _places(self, first: Tensor, width: int, total: int) -> Tensor:
        return (first[:, None] - 1 + torch.arange(width, device=first.device)).clamp(max=total - 1)


class Actors:
    """Policy, value, reward and reference; the methods make the right adapter the active one."""

    def __init__(self, lmm: Lmm, reward: RewardModel, value_head: ScalarHead, temperature: float) -> None:
        self.lmm, self.reward, self.value_head = lmm, reward, value_head
        self.temperature = temperature
        self.gradient_checkpointing = False
        #: whether pictures' features on the policy's base are those on the reward model's too
        self.one_tower = reward.lmm is lmm
        self.renderer = Renderer(lmm.processor)

    @classmethod
    def load(cls, settings: PpoSettings) -> Actors:
        """Load the base once and put the adapters on it.

        The policy starts as the base. The value model starts as the reward model (thesis, 9.3) where that has
        the policy's base, else from zero on the policy's base.
        """
        base = settings.model
        if settings.shard_base:
            # whole, it might not fit the device
            base = base.model_copy(update={"device": "cpu"})
        lmm = load(base)
        folder = find_reward(settings.reward_model)
        theirs = read_info(folder).model
        shared = same_base(theirs, settings.model)
        if shared and (theirs.bits, theirs.dtype) != (base.bits, base.dtype):
            log.warning(
                "%s: was trained on a base in %s and scores on the policy's, in %s; its held-out accuracy "
                "may not hold: train it with model.bits and model.dtype as here",
                folder,
                *(f"{m.bits} bits" if m.bits else m.dtype for m in (theirs, base)),
            )
        lmm.model = add_adapters(lmm.model, settings.lora, [POLICY] if shared else LEARNERS)
        # quantized weights are not split
        reward = RewardModel.load(folder, lmm, base=settings.model if theirs.bits and not shared else base)
        if shared:
            attach(lmm, folder, VALUE, trainable=True)
            head = load_head(folder, lmm)
        else:
            head = ScalarHead(lmm.model.config.get_text_config().hidden_size).to(lmm.device)
        reward.head.requires_grad_(False)
        lean(lmm.model)
        lean(reward.lmm.model)
        # no dropout: the ratio of new to old policy must compare one function
        lmm.model.eval()
        reward.lmm.model.eval()
        actors = cls(lmm, reward, head, settings.generate.temperature)
        actors.gradient_checkpointing = settings.gradient_checkpointing
        actors.one_tower = lend_tower(lmm, reward.lmm)
        if settings.shard_base:
            actors.split(torch.device(settings.model.device))
        return actors

    def split(self, device: torch.device) -> None:
        """Split the frozen weights over the processes, those of a quantized reward model's own base not."""
        bases = {id(self.lmm): self.lmm}
        if not self.reward.info.model.bits:
            bases[id(self.reward.lmm)] = self.reward.lmm
        for lmm in bases.values():
            shard(lmm.model, device)
            lmm.any_going = functools.partial(any_process, device=device)
        self.value_head.to(device)
        self.reward.head.to(device)

    @torch.no_grad()
    def share_start(self) -> None:
        """All processes start from the first one's adapters and value head."""
        if torch.distributed.is_initialized():
            for name in LEARNERS:
                for _, parameter in self.named_parameters(name):
                    torch.distributed.broadcast(parameter.data, 0)

    def use(self, name: str) -> None:
        """Make the adapter ``name`` the active one; those of ``LEARNERS`` learn, whichever is active."""
        use_adapter(self.lmm.model, name, trainable=LEARNERS)

    def logprobs(self, sampled: Sampled, rows: Sequence[int]) -> Tensor:
        """(b, r) log-probabilities of the responses under the active adapter; r is their longest."""
        return self.logprobs_and_entropy(sampled, rows, with_entropy=False)[0]

    def logprobs_and_entropy(
        self, sampled: Sampled, rows: Sequence[int], with_entropy: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """The same, and the entropy of each of their distributions (b, r)."""
        hidden, targets = self._hidden(sampled, rows)
        return logprobs_of(self.lmm.model, hidden, targets, self.temperature, with_entropy)

    def values(self, sampled: Sampled, rows: Sequence[int]) -> Tensor:
        """(b, r) values of the states ahead of each response token, under the active adapter."""
        return self.value_head(self._hidden(sampled, rows)[0])

    def _hidden(self, sampled: Sampled, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(b, r, H) the states ahead of each response token, and (b, r) those tokens."""
        batch, features, targets, places = sampled.batch(rows)
        hidden = hidden_states(self.lmm.model, batch, features)
        return hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])), targets

    def checkpointed(self) -> AbstractContextManager[None]:
        """Inside, activations of passes with gradients are computed again, if the settings ask for it."""
        return checkpointed(self.lmm.model, self.gradient_checkpointing)

    @torch.no_grad()
    def judge_tokens(self, sampled: Sampled, size: int) -> Judged:
        """What policy, reference and value model say of every token; ``size`` rows a pass."""
        mask = sampled.generated.response_mask
        policy, entropy, reference, values = (torch.zeros(mask.shape, device=mask.device) for _ in range(4))
        parts = [
            (rows, torch.tensor(rows, device=mask.device)) for rows in sampled.split(range(len(mask)), size)
        ]

        def put(out: Tensor, index: Tensor, part: Tensor | None) -> None:
            assert part is not None
            out[index, : part.shape[1]] = torch.where(mask[index, : part.shape[1]] > 0, part.float(), 0)

        self.use(POLICY)
        for rows, index in parts:
            found = self.logprobs_and_entropy(sampled, rows)
            put(policy, index, found[0])
            put(entropy, index, found[1])
        with adapters_off(self.lmm.model):
            for rows, index in parts:
                put(reference, index, self.logprobs(sampled, rows))
        self.use(VALUE)
        for rows, index in parts:
            put(values, index, self.values(sampled, rows))
        return Judged(policy, entropy, reference, values)

    def named_parameters(self, name: str) -> list[tuple[str, torch.nn.Parameter]]:
        """What learns of the policy or the value model, in a fixed order."""
        named = [(n, p) for n, p in self.lmm.model.named_parameters() if adapter_of(n) == name]
        if name == VALUE:
            named += [(f"value_head.{n}", p) for n, p in self.value_head.named_parameters()]
        return named

    def weights(self, names: Sequence[str] = LEARNERS) -> dict[str, Tensor]:
        """Copies of all that learns of ``names``, by parameter name, each of its parameter's shape."""
        return {n: p.detach().clone() for name in names for n, p in self.named_parameters(name)}

    @torch.no_grad()
    def put(self, tensors: dict[str, Tensor], names: Sequence[str] = LEARNERS) -> None:
        """Copy what ``weights`` gave into the parameters of ``names``. KeyError where one is missing."""
        for name in names:
            for key, parameter in self.named_parameters(name):
                parameter.copy_(tensors[key])

    def save_policy(self, directory: Path, card: str, settings: PpoSettings) -> Path:
        """Write the policy's adapter (PEFT's layout), its base and its card; complete or not at all."""
        with new_folder(directory) as folder:
            write_adapter(self.lmm.model, POLICY, folder)
            write_json(folder / "policy.json", {"model": settings.model.model_dump(mode="json")})
            write_text(folder / "README.md", card)
        return directory


@dataclass
class Training:
    """What a checkpoint of a PPO run holds. Everything else follows from (seed, step)."""

    actors: Actors
    optimizer: torch.optim.Optimizer
    #: the policy of the newest step whose KL was found within ``max_kl``; empty when that is not watched
    good: dict[str, Tensor]
    #: ``align.began.belongings``
    belongs: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Write ``run.json``, ``weights.safetensors``, ``optimizer.pt`` and, with one, ``good.safetensors``.

        OSError where the disk will not have them.
        """
        write_json(directory / "run.json", self.belongs)
        save_tensors(directory / "weights.safetensors", self.actors.weights())
        save_state(directory / "optimizer.pt", self.optimizer.state_dict())
        if self.good:
            save_tensors(directory / "good.safetensors", self.good)

    def restore(self, directory: Path) -> None:
        """Raises CheckpointError when a file is missing or damaged."""
        device = str(self.actors.lmm.device)
        self.actors.put(load_tensors(directory / "weights.safetensors", device))
        # read to the CPU: the moments are moved to their parameters, and the step counts belong there
        self.optimizer.load_state_dict(load_state(directory / "optimizer.pt"))
        if (directory / "good.safetensors").exists():
            self.good = load_tensors(directory / "good.safetensors", device)
