"""A reward model: a LoRA adapter and a scalar head on a frozen multimodal model, and what it reads.

On disk, one folder: the adapter in PEFT's layout, ``head.safetensors``, ``reward.json`` (the base, the
evaluation text, the facts it reads, and hashes that tie them to the head and the adapter) and a model card.
All that the score depends on is there, but the base.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor

from align.checkpoint import load_tensors, save_tensors
from align.config import FactKind, LoraSettings, ModelSettings
from align.folders import new_folder
from align.models.lmm import (
    Lmm,
    ScalarHead,
    adapter_of,
    add_adapters,
    check_model,
    hidden_states,
    load,
    move,
    quiet_peft,
    unwrap,
    use_adapter,
)
from align.pairs import check_facts
from align.parts import parts
from align.render import IGNORE, REWARD_TEMPLATE, ImageInput, Renderer, facts_text
from align.template import check_template
from data.jsonl import read_json, write_json, write_text
from data.schema import Example, Facts, Message

ADAPTER = "reward"
#: the adapter's weights in PEFT's layout
WEIGHTS = "adapter_model.safetensors"
#: what ``reward.json`` says of the base; how to run it, and whether to trust its code, is the loader's choice
BASE_KEYS = {"path", "adapter", "dtype", "bits"}


class RewardError(ValueError):
    """A reward model that cannot be trained, read or used; the text says why and how to mend it."""


class RewardInfo(BaseModel):
    """The content of ``reward.json``."""

    model_config = ConfigDict(extra="forbid")

    model: ModelSettings
    #: ahead of the template, which must have a place for them
    facts: list[FactKind] = []
    template: str = REWARD_TEMPLATE
    max_facts: dict[FactKind, Annotated[int, Field(ge=1)]] = {}
    target: str = "preferred"
    #: agreement with held-out choices (``align.pairs.PairReport``), None if none were held out
    heldout: dict[str, float | int | None] | None = None
    #: which pairs those were (``align.pairs.digest``); None in folders older than it
    heldout_sha256: str | None = None
    #: :func:`fingerprint` of the saved folder; None in folders older than it
    fingerprint: str | None = None
    #: sha256 of the adapter's weights; None in folders older than it
    adapter_sha256: str | None = None

    @field_validator("template")
    @classmethod
    def _places(cls, template: str, info: ValidationInfo) -> str:
        check_template(template, info.data.get("facts", ()))
        return template

    def facts_of(self, name: str, facts: Facts, seed: int | str) -> str | None:
        """The facts that this model reads as text, picked and ordered by ``seed`` and ``name``, or None."""
        if not self.facts:
            return None
        return facts_text(facts, self.facts, self.max_facts, random.Random(f"{seed}/{name}"))


@dataclass
class ScoreItem:
    """One response to score. ``image``: a picture, or its features on this model's base."""

    id: str
    messages: Sequence[Message]
    response: str
    facts: Facts
    image: ImageInput = None


def find_reward(path: str | Path) -> Path:
    """The reward folder of a run directory, or the folder itself.

    Raises:
        RewardError: neither.
    """
    for folder in (Path(path), Path(path) / "reward"):
        if (folder / "reward.json").is_file():
            return folder
    raise RewardError(f"{path}: no reward.json in it or in its folder 'reward'; give a finished reward run")


def check_reward(path: str | Path) -> None:
    """Raise RewardError unless a whole reward model is there, and ModelError unless its base is; loads no
    weights."""
    check_files(find_reward(path))
    check_model(read_info(path).model)


def check_files(folder: Path) -> None:
    """Raise RewardError for a folder that lacks a file of its weights."""
    for name in ("adapter_config.json", WEIGHTS, "head.safetensors"):
        if not (folder / name).is_file():
            raise RewardError(
                f"{folder}: {name} is missing, so the reward model is not whole (a copy that broke off?); "
                "copy the whole folder again, or train it (align reward)"
            )


def read_info(path: str | Path) -> RewardInfo:
    """``reward.json`` of a run directory or reward folder, without loading weights. Raises RewardError.

    Of its ``model`` only ``BASE_KEYS`` count: the file travels with shared weights, so it must not switch on
    remote code nor choose a device. A text, a head and an adapter that were not saved together are refused:
    their scores would mean nothing.
    """
    file = find_reward(path) / "reward.json"
    try:
        info = RewardInfo.model_validate(read_json(file))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise RewardError(f"{file}: {where}: {fault['msg']}; restore the file or train again") from None
    head = file.with_name("head.safetensors")
    if info.fingerprint is not None and head.is_file() and info.fingerprint != fingerprint(info, head):
        raise RewardError(
            f"{file}: its template, facts or max_facts are not those that the weights beside it were trained "
            "with; put the file back as it was (README.md beside it shows what the model reads), "
            "or train a reward model with the new text"
        )
    adapter = file.with_name(WEIGHTS)
    if info.adapter_sha256 is not None and adapter.is_file() and info.adapter_sha256 != sha256_of(adapter):
        raise RewardError(
            f"{adapter}: not the weights that {file.name} was saved beside (another run's, or a copy that "
            "broke off); copy the whole folder again"
        )
    info.model = ModelSettings(**info.model.model_dump(include=BASE_KEYS))
    return info


def fingerprint(info: RewardInfo, head: Path) -> str:
    """sha256 of the texts that a score depends on (template, facts, max_facts) and of the saved head's bytes.

    The head is in it so that another model's ``reward.json``, a whole one, does not pass either.
    """
    read = info.model_dump(mode="json", include={"template", "facts", "max_facts"})
    digest = hashlib.sha256(json.dumps(read, sort_keys=True).encode())
    digest.update(head.read_bytes())
    return digest.hexdigest()


def sha256_of(file: Path) -> str:
    """Of its bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def same_base(a: ModelSettings, b: ModelSettings) -> bool:
    """Whether both name the same weights: one path and one merged adapter, at any precision."""

    def weights(m: ModelSettings) -> tuple[Path | str | None, ...]:
        return tuple(Path(p).resolve() if p and Path(p).exists() else p for p in (m.path, *m.adapters))

    return weights(a) == weights(b)


class RewardModel:
    """Scores responses. ``lmm.model`` holds the adapter ``name``; other adapters may live beside it."""

    def __init__(self, lmm: Lmm, head: ScalarHead, info: RewardInfo, name: str = ADAPTER) -> None:
        self.lmm, self.head, self.info, self.name = lmm, head, info, name
        self.renderer = Renderer(lmm.processor)

    @classmethod
    def start(
        cls,
        info: RewardInfo,
        lora: LoraSettings,
        head_init: tuple[str, str] | None = None,
        head_init_scale: float = 0.1,
    ) -> RewardModel:
        """An untrained model on the base that ``info`` names; ``head_init``: :func:`word_direction`."""
        lmm = load(info.model)
        lmm.model = add_adapters(lmm.model, lora, [ADAPTER])
        model = cls(lmm, ScalarHead(_hidden_size(lmm)).to(lmm.device), info)
        if head_init is not None:
            direction = head_init_scale * word_direction(lmm, model.renderer, head_init)
            model.head.linear.weight.data.copy_(direction.unsqueeze(0))
        return model

    @classmethod
    def load(
        cls,
        path: str | Path,
        lmm: Lmm | None = None,
        *,
        base: ModelSettings | None = None,
        name: str = ADAPTER,
    ) -> RewardModel:
        """Read a saved reward model.

        With ``lmm`` (loaded from ``base``) whose weights are those it was trained on, its adapter joins that
        model under ``name``, frozen, and ``lmm.model`` becomes the PEFT model. Else it loads its own base, on
        the device, with the attention and the trust in remote code that ``base`` has, or the defaults.

        Raises:
            RewardError: no reward model there, or not a whole one. CheckpointError: its head is damaged.
        """
        folder = find_reward(path)
        check_files(folder)
        info = read_info(folder)
        if base is not None:
            chosen = base.model_dump(exclude=BASE_KEYS)
            info.model = info.model.model_copy(update=chosen)
        if lmm is None or not same_base(info.model, base or ModelSettings(path=lmm.path or "")):
            lmm = load(info.model)
        attach(lmm, folder, name)
        return cls(lmm, load_head(folder, lmm), info, name)

    def parameters(self) -> list[torch.nn.Parameter]:
        """What learns: the adapter's and the head's parameters, in a fixed order."""
        return [p for _, p in self.named_parameters()]

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The same with their names, as checkpoints have them: the adapter's own, and ``head.…``."""
        adapter = [(n, p) for n, p in self.lmm.model.named_parameters() if adapter_of(n) == self.name]
        return adapter + [(f"head.{n}", p) for n, p in self.head.named_parameters()]

    def activate(self, learns: bool = False) -> None:
        """Make the reward adapter the one that forward passes use."""
        use_adapter(self.lmm.model, self.name, trainable=[self.name] if learns else None)

    def forward(self, items: Sequence[ScoreItem], seed: int | str, max_length: int | None = None) -> Tensor:
        """Scores (B,) with gradients, under the active adapter.

        ``seed`` and an item's id decide the order of its facts: both responses of a pair see the same text.
        """
        rendered = [
            (item.messages, item.response, self.facts_of(item.id, item.facts, seed), item.image)
            for item in items
        ]
        names = [item.id for item in items]
        batch = self.renderer.reward_batch(rendered, self.info.template, max_length=max_length, names=names)
        # left padded: the last position is each row's last real token
        hidden = hidden_states(self.lmm.model, move(batch, self.lmm.device))[:, -1]
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden)

    def facts_of(self, name: str, facts: Facts, seed: int | str) -> str | None:
        """What the item ``name`` shows of ``facts``: :meth:`RewardInfo.facts_of`."""
        return self.info.facts_of(name, facts, seed)

    @torch.no_grad()
    def score(
        self,
        items: Sequence[ScoreItem],
        *,
        seed: int | str = 0,
        batch_size: int = 64,
        max_length: int | None = None,
    ) -> Tensor:
        """Scores (n,) on the CPU, in the items' order. Makes the reward adapter the active one.

        Equal items and ``seed`` give equal scores. Raises DataError for items without the facts needed.
        """
        check_facts(items, self.info.facts)
        if not items:
            return torch.empty(0)
        self.activate()
        shown = [
            (i.messages, i.response, self.facts_of(i.id, i.facts, seed), i.image is not None) for i in items
        ]
        lengths = self.renderer.reward_lengths(shown, self.info.template)
        scores = torch.empty(len(items))
        for rows in parts(lengths, batch_size, even=self.lmm.any_going is not None):
            scores[rows] = self.forward([items[i] for i in rows], seed, max_length).float().cpu()
        return scores

    def save(self, directory: str | Path, card: str) -> Path:
        """Write the folder, complete or not at all; ``card`` is the text of its README.md."""
        info = self.info.model_dump(mode="json")
        info["model"] = {key: info["model"][key] for key in sorted(BASE_KEYS)}
        with new_folder(directory) as folder:
            write_adapter(self.lmm.model, self.name, folder)
            save_tensors(folder / "head.safetensors", dict(self.head.named_parameters()))
            info["fingerprint"] = fingerprint(self.info, folder / "head.safetensors")
            info["adapter_sha256"] = sha256_of(folder / WEIGHTS)
            write_json(folder / "reward.json", info)
            write_text(folder / "README.md", card)
        return Path(directory)


def attach(lmm: Lmm, folder: str | Path, name: str, *, trainable: bool = False) -> None:
    """Add a saved adapter to ``lmm.model`` under ``name``; what is active and what learns stays as it was."""
    if not isinstance(lmm.model, PeftModel):
        with quiet_peft():
            lmm.model = PeftModel.from_pretrained(
                lmm.model, str(folder), adapter_name=name, is_trainable=trainable
            )
        return
    active = lmm.model.active_adapter
    learning = {n: p.requires_grad for n, p in lmm.model.named_parameters()}
    lmm.model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
    lmm.model.set_adapter(active)
    for key, parameter in lmm.model.named_parameters():
        parameter.requires_grad_(learning.get(key, trainable))


def load_head(folder: str | Path, lmm: Lmm) -> ScalarHead:
    """The saved scalar head, on the model's device. Raises RewardError when it is of another width."""
    head = ScalarHead(_hidden_size(lmm)).to(lmm.device)
    tensors = load_tensors(Path(folder) / "head.safetensors")
    found = tuple(tensors["linear.weight"].shape)
    if found != tuple(head.linear.weight.shape):
        wanted = tuple(head.linear.weight.shape)
        raise RewardError(
            f"{folder}: its head is {found}, the base needs {wanted}; it belongs to another base"
        )
    head.load_state_dict(tensors)
    return head


def write_adapter(model: Any, name: str, directory: Path) -> None:
    """Write one adapter in PEFT's layout to the empty folder ``directory`` itself, whatever its name."""
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=directory.parent) as parent:
        model.save_pretrained(parent, selected_adapters=[name], save_embedding_layers=False)
        (Path(parent) / name).rename(directory)


def word_direction(lmm: Lmm, renderer: Renderer, words: tuple[str, str]) -> Tensor:
    """(H,) difference of two words' rows in the language head, taken where the words differ as answers.

    A head that starts along yes − no asks the base model its own opinion, so that training starts from better
    than chance. Raises RewardError for words that the tokenizer writes alike.
    """
    ask = Message(role="user", content="?")
    turns = [[ask, Message(role="assistant", content=word)] for word in words]
    batch = renderer.train_batch([Example(id=w, messages=t) for w, t in zip(words, turns)])
    ids = [[x for x in row if x != IGNORE] for row in batch["labels"].tolist()]
    for first, second in zip(*ids):
        if first != second:
            rows = unwrap(lmm.model).get_output_embeddings().weight
            return (rows[first] - rows[second]).detach().float()
    raise RewardError(f"head_init {list(words)}: the tokenizer does not tell them apart; choose other words")


def _hidden_size(lmm: Lmm) -> int:
    return unwrap(lmm.model).config.get_text_config().hidden_size
