"""align.models.adapters on full and on quantized tiny models: what learns, and what a merge keeps."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor

from align.config import GenerateSettings, LoraSettings, ModelSettings
from align.generate import generate
from align.models.lmm import (
    Lmm,
    ModelError,
    adapters_off,
    add_adapters,
    hidden_states,
    load,
    quiet_peft,
    token_logprobs,
    use_adapter,
)
from align.models.quantized import keep_unpacked
from align.models.tiny import build_tiny_llava
from align.render import Renderer
from align.reward_model import attach
from data.schema import Message, Response
from tests.align.test_lmm import LORA, _batch, _noisy


@pytest.fixture
def lmm(tiny_llava: Path) -> Lmm:
    return load(ModelSettings(path=str(tiny_llava)))


def test_adapters_sit_in_the_language_model_only_and_start_as_identity(
    lmm: Lmm, pictures: list[PILImage.Image]
) -> None:
    batch = _batch(lmm, pictures)
    before = hidden_states(lmm.model, batch).detach()
    model = add_adapters(lmm.model, LORA, ["policy", "value"])
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    # 2 layers x 7 projections x (A, B) x 2 adapters
    assert len(learning) == 56 and all("language_model.layers" in n for n in learning)
    assert torch.equal(hidden_states(model, batch), before)
    _noisy(model)
    assert not torch.allclose(hidden_states(model, batch), before, atol=1e-2)
    with adapters_off(model):
        assert torch.equal(hidden_states(model, batch), before)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == learning
    with pytest.raises(ModelError, match=r"\['c_attn'\]"):
        add_adapters(copy.deepcopy(lmm.model), LoraSettings(targets=["c_attn"]), ["x"])


def _gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_joint_training_of_two_adapters_gives_separate_gradients(
    lmm: Lmm, pictures: list[PILImage.Image]
) -> None:
    """One backward through two adapters equals two backwards: PEFT's own switch would drop the first's."""
    batch = _batch(lmm, pictures)
    model = add_adapters(lmm.model, LORA, ["policy", "value"])
    _noisy(model)
    names = ["policy", "value"]

    def loss(name: str, scale: float) -> Tensor:
        use_adapter(model, name, trainable=names)
        return scale * hidden_states(model, batch)[..., :7].square().mean()

    loss("policy", 1.0).backward()
    first = {n: g for n, g in _gradients(model).items() if ".policy." in n}
    loss("value", 3.0).backward()
    separate = first | {n: g for n, g in _gradients(model).items() if ".value." in n}
    with adapters_off(model):
        hidden_states(model, batch)
    a = loss("policy", 1.0)
    b = loss("value", 3.0)
    with adapters_off(model), torch.no_grad():
        hidden_states(model, batch)
    (a + b).backward()
    joint = _gradients(model)
    assert joint.keys() == separate.keys() and len(joint) == 56
    assert all(torch.allclose(joint[n], separate[n], atol=1e-7) for n in joint)
    assert max(float(g.abs().max()) for n, g in joint.items() if ".policy." in n) > 1e-3


def test_use_adapter_sets_exactly_what_learns(lmm: Lmm) -> None:
    model = add_adapters(lmm.model, LORA, ["policy", "value", "reward"])

    def learning() -> set[str]:
        return {n.split(".lora_")[1].split(".")[1] for n, p in model.named_parameters() if p.requires_grad}

    use_adapter(model, "reward", trainable=["policy", "value"])
    assert model.active_adapter == "reward" and learning() == {"policy", "value"}
    use_adapter(model, "value")
    assert model.active_adapter == "value" and learning() == {"policy", "value"}


def test_adapter_is_merged_at_load(tiny_llava: Path, tmp_path: Path, pictures: list[PILImage.Image]) -> None:
    lmm = load(ModelSettings(path=str(tiny_llava)))
    model = add_adapters(lmm.model, LORA, ["default"])
    _noisy(model)
    batch = _batch(lmm, pictures)
    expected = hidden_states(model, batch).detach()
    model.save_pretrained(tmp_path / "adapter")
    merged = load(ModelSettings(path=str(tiny_llava), adapter=str(tmp_path / "adapter")))
    assert not any("lora" in n for n, _ in merged.model.named_parameters())
    assert torch.allclose(hidden_states(merged.model, batch), expected, atol=1e-4)


def test_a_user_does_not_read_what_peft_has_to_mend(tiny_llava: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        lmm = load(ModelSettings(path=str(tiny_llava)))
        add_adapters(lmm.model, LORA, ["default"]).save_pretrained(folder)
        load(ModelSettings(path=str(tiny_llava), adapter=folder))
        attach(load(ModelSettings(path=str(tiny_llava))), folder, "default")
        with pytest.raises(FutureWarning, match="another"), quiet_peft():
            warnings.warn("another", FutureWarning, stacklevel=1)


def test_adapters_merge_in_order(lmm: Lmm, pictures: list[PILImage.Image], tmp_path: Path) -> None:
    """A policy on an SFT adapter: the base with the first merged, then the second, as they were trained."""
    batch = _batch(lmm, pictures)
    model = lmm.model
    for name in ("sft", "policy"):
        wrapped = add_adapters(model, LORA, [name])
        _noisy(wrapped)
        wrapped.save_pretrained(tmp_path)
        model = wrapped.merge_and_unload()
    adapters = [str(tmp_path / name) for name in ("sft", "policy")]
    both = load(ModelSettings(path=str(lmm.path), adapter=adapters))
    assert torch.allclose(hidden_states(both.model, batch), hidden_states(model, batch), atol=1e-5)
    one = load(ModelSettings(path=str(lmm.path), adapter=adapters[1]))
    assert not torch.allclose(hidden_states(one.model, batch), hidden_states(model, batch), atol=1e-2)


def test_responses_are_signed_with_the_model_that_gave_them(lmm: Lmm, tmp_path: Path) -> None:
    wrapped = add_adapters(lmm.model, LORA, ["policy"])
    wrapped.save_pretrained(tmp_path)
    adapter = str(tmp_path / "policy")
    merged = load(ModelSettings(path=str(lmm.path), adapter=adapter))
    items = [([Message(role="user", content="What is it?")], None)]
    how = GenerateSettings(max_new_tokens=2, temperature=0.0)
    plain = load(ModelSettings(path=str(lmm.path)))
    for asked, name in ((plain, lmm.path), (merged, adapter)):
        (response,) = generate(asked, Renderer(asked.processor), items, how, seed=0)
        assert isinstance(response, Response) and response.model == asked.name == name
    assert merged.path == lmm.path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("wide") / "base", hidden_size=256)


# steps of Adam this small change each weight by less than a step of its quantization
@pytest.mark.parametrize(("bits", "lr"), [(8, 1e-4), (4, 3e-4)])
def test_a_merged_adapter_survives_quantization(
    wide: Path, tmp_path: Path, pictures: list[PILImage.Image], bits: int, lr: float
) -> None:
    """Merged into weights that are quantized already, what it learned would be rounded away."""
    lmm = load(ModelSettings(path=str(wide)))
    batch = _batch(lmm, pictures, "What is in the image?")
    torch.manual_seed(0)
    model = add_adapters(lmm.model, LORA, ["sft"])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    for _ in range(20):
        loss = -token_logprobs(model, batch, response_len=1)[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    adapted = token_logprobs(model, batch, response_len=4)[0].detach()
    with adapters_off(model):
        base = token_logprobs(model, batch, response_len=4)[0].detach()

    merged = load(ModelSettings(path=str(wide), adapter=str(tmp_path / "sft"), bits=bits, device="cpu"))
    kinds = {type(m).__name__ for n, m in merged.model.named_modules() if "language_model.layers" in n}
    assert ("Linear4bit" if bits == 4 else "Linear8bitLt") in kinds and "Linear" not in kinds
    assert not any(p.requires_grad for p in merged.model.parameters())
    found = token_logprobs(merged.model, batch, response_len=4)[0].detach()
    assert (found - adapted).norm() < 0.6 * (found - base).norm()
    assert (found - base)[0, -1] > 0.7 * (adapted - base)[0, -1] > 0.5
    # an adapter trained on it names its base, and generation ends where it did
    assert merged.model.name_or_path == str(wide) == merged.model.config.name_or_path
    assert merged.model.generation_config.eos_token_id == lmm.tokenizer.eos_token_id


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_base_still_trains_adapters_after_generation(
    tmp_path: Path, pictures: list[PILImage.Image], bits: int
) -> None:
    path = build_tiny_llava(tmp_path / "wide", "clip", hidden_size=64)
    full = load(ModelSettings(path=str(path)))
    small = load(ModelSettings(path=str(path), bits=bits, dtype="bfloat16", device="cpu"))
    kinds = {n: type(m).__name__ for n, m in small.model.named_modules() if "Linear" in type(m).__name__}
    quantized = {n for n, kind in kinds.items() if kind in ("Linear4bit", "Linear8bitLt")}
    assert len(quantized) == 14 and all("language_model.layers" in n for n in quantized)
    batch = _batch(full, pictures)
    exact = hidden_states(full.model, batch).detach()
    near = hidden_states(small.model, batch).detach().float()
    assert torch.nn.functional.cosine_similarity(near.flatten(), exact.flatten(), dim=0) > 0.9
    model = add_adapters(small.model, LORA, ["policy"])
    with torch.no_grad():
        hidden_states(model, batch)
    hidden_states(model, batch)[..., :7].float().square().mean().backward()
    for name, parameter in model.named_parameters():
        if "layers.0" in name and "lora_B" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    with pytest.raises(ModelError, match="quantized base cannot learn"):
        load(ModelSettings(path=str(path), bits=bits), trainable=True)


@pytest.mark.parametrize("merged", [False, True])
def test_a_4_bit_base_never_packs_itself_on_a_processor_that_could(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    """Where the processor has AVX512-BF16, layers ask to be packed; here whatever this one has."""
    bnb = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    assert bnb.nn.Linear4bit(64, 64).support_avx512bf16_for_cpu
    settings = ModelSettings(path=str(wide), bits=4, device="cpu")
    if merged:
        model = add_adapters(load(ModelSettings(path=str(wide))).model, LORA, ["sft"])
        model.save_pretrained(tmp_path)
        settings = settings.model_copy(update={"adapter": str(tmp_path / "sft")})
    layers = [m for m in load(settings).model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_keep_unpacked_touches_every_layer() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = torch.nn.Sequential(bnb.nn.Linear4bit(64, 64), torch.nn.Sequential(bnb.nn.Linear4bit(64, 64)))
    for layer in (model[0], model[1][0]):
        layer.support_avx512bf16_for_cpu = True
    keep_unpacked(model)
    assert not model[0].support_avx512bf16_for_cpu and not model[1][0].support_avx512bf16_for_cpu
