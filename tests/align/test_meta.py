"""align.meta: models without weights are those that a stage really loads, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from align.actors import LEARNERS, Actors
from align.config import LoraSettings, ModelSettings, PpoSettings, RewardSettings, SampleSettings, SftSettings
from align.meta import Judge, base_on_meta, build_on_meta, held, read_config, size
from align.models.lmm import ModelError, load
from align.models.tiny import build_tiny_llava
from align.reward_model import RewardError, RewardInfo, RewardModel
from align.sft import parameter_groups, prepare

DATA = {"path": "unread"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and another, wide enough for 4 bits."""
    root = tmp_path_factory.mktemp("bases")
    build_tiny_llava(root / "base", hidden_size=64)
    build_tiny_llava(root / "other", "vit", hidden_size=128)
    return root


def ppo(bases: Path, reward: Path, **model: Any) -> PpoSettings:
    chosen = {"path": str(bases / "base"), "device": "cpu"} | model
    return PpoSettings(output="x", model=chosen, reward_model=str(reward), data=DATA, lora={"r": 8})


def real_bytes(module: nn.Module) -> int:
    """All memory that hangs on a module, found by looking at everything that its parts have."""
    found: dict[int, int] = {}

    def look(value: Any, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        if isinstance(value, dict) and depth < 6:
            for inner in list(value.values()):
                look(inner, depth + 1)
        elif not isinstance(value, nn.Module) and hasattr(value, "__dict__") and depth < 6:
            look(vars(value), depth + 1)

    for part in module.modules():
        own = {k: v for k, v in vars(part).items() if k != "_modules" and not k.startswith("_forward")}
        look(own)
    return sum(found.values())


@pytest.mark.parametrize(
    ("bits", "dtype"), [(None, "float32"), (None, "bfloat16"), (8, "bfloat16"), (4, "bfloat16")]
)
@pytest.mark.parametrize("judge", ["base", "other"])
def test_the_four_models_are_those_that_are_loaded(
    bases: Path, tmp_path: Path, bits: int | None, dtype: str, judge: str
) -> None:
    info = RewardInfo(model=ModelSettings(path=str(bases / judge), dtype=dtype, bits=bits, device="cpu"))
    # of another size than the policy's adapter
    RewardModel.start(info, LoraSettings(r=4, targets=["q_proj", "up_proj"])).save(tmp_path / "reward", "")
    settings = ppo(bases, tmp_path / "reward", dtype=dtype, bits=bits)
    real, build = Actors.load(settings), build_on_meta(settings)

    def described(model: nn.Module) -> dict[str, tuple[Any, ...]]:
        return {n: (tuple(p.shape), p.dtype, p.requires_grad) for n, p in model.named_parameters()}

    assert described(build.model) == described(real.lmm.model)
    assert {p.device.type for p in build.model.parameters()} == {"meta"}
    assert size(held(build.model)) == real_bytes(real.lmm.model)
    if judge == "other":
        assert described(build.reward) == described(real.reward.lmm.model)
        assert size(held(build.reward)) == real_bytes(real.reward.lmm.model)
    else:
        assert build.reward is None and real.reward.lmm is real.lmm
    for name, head in (("value", real.value_head), ("reward", real.reward.head)):
        assert described(build.heads[name]) == described(head)
    for group, name in zip(build.groups, LEARNERS):
        assert [p.shape for p in group["params"]] == [p.shape for _, p in real.named_parameters(name)]


def test_a_reward_model_that_is_not_there_yet(bases: Path, tmp_path: Path) -> None:
    settings = ppo(bases, tmp_path / "none")
    with pytest.raises(RewardError, match=r"none: no reward\.json"):
        build_on_meta(settings)
    lora = LoraSettings(r=4)
    build = build_on_meta(settings, Judge(ModelSettings(path=str(bases / "other")), lora))
    assert build.reward is not None
    ranks = {p.shape[0] for n, p in build.reward.named_parameters() if "lora_A.reward" in n}
    assert ranks == {4} and not any(p.requires_grad for p in build.reward.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"r": 4}, "train_parts": ["language"]},
        {"lora": {"r": 4}, "train_parts": ["projector", "language"]},
        {"train_parts": ["projector"]},
        {"train_parts": ["projector", "language"], "optim": {"weight_decay": 0.1}},
    ],
)
def test_sft_learns_what_it_really_learns(bases: Path, changes: dict[str, Any]) -> None:
    model = {"path": str(bases / "base"), "device": "cpu"}
    settings = SftSettings(output="x", model=model, data=DATA, **changes)
    lmm = load(settings.model, trainable=settings.lora is None and "language" in settings.train_parts)
    prepare(lmm, settings)
    real = parameter_groups(lmm.model, settings)
    build = build_on_meta(settings)
    assert [[tuple(p.shape) for p in g["params"]] for g in build.groups] == [
        [tuple(p.shape) for p in g["params"]] for g in real
    ]
    assert [g["weight_decay"] for g in build.groups] == [g["weight_decay"] for g in real]
    torch.optim.AdamW(build.groups)


def test_reward_learns_what_it_really_learns(bases: Path) -> None:
    model = {"path": str(bases / "base"), "device": "cpu"}
    settings = RewardSettings(output="x", model=model, data=DATA, lora={"r": 4})
    real = RewardModel.start(RewardInfo(model=settings.model), settings.lora)
    build = build_on_meta(settings)
    assert [p.shape for p in build.learned()] == [p.shape for p in real.parameters()]
    assert size(held(build.model)) == real_bytes(real.lmm.model)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_other_towers(tmp_path: Path, tower: Any) -> None:
    path = build_tiny_llava(tmp_path / tower, tower)
    settings = ModelSettings(path=str(path), device="cpu")
    assert size(held(base_on_meta(settings))) == real_bytes(load(settings).model)


def test_config_json_is_enough(bases: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((bases / "base" / "config.json").read_text())
    settings = ModelSettings(path=str(tmp_path))
    assert size(held(base_on_meta(settings))) == size(held(base_on_meta(ppo(bases, tmp_path).model)))


def test_what_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^/nowhere: no such directory; give a checkpoint's directory"):
        read_config(ModelSettings(path="/nowhere"))
    with pytest.raises(ModelError, match=r"config\.json is missing; give"):
        read_config(ModelSettings(path=str(tmp_path)))
    # offline, as all tests are
    with pytest.raises(ModelError, match=r"^owner/name: .*or give a directory that holds its config\.json"):
        read_config(ModelSettings(path="owner/name"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"not a valid JSON file\); restore the file"):
        read_config(ModelSettings(path=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="cannot be built as an image-text-to-text model"):
        base_on_meta(ModelSettings(path=str(tmp_path)))
    sampling = SampleSettings(output="x", model={"path": "x"}, data=DATA)
    with pytest.raises(TypeError, match="SampleSettings trains nothing"):
        build_on_meta(sampling)
