"""align.models.lmm: loading, features, log-probabilities and adapters on tiny LLaVA models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import LlamaConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from align.config import LoraSettings, ModelSettings
from align.models.lmm import (
    Lmm,
    ModelError,
    ScalarHead,
    add_adapters,
    build_llava,
    check_is_lmm,
    hidden_states,
    image_features,
    is_llava,
    load,
    position_ids,
    save,
    token_logprobs,
    vision_features,
)
from align.models.tiny import CORPUS, train_tokenizer, vision_config
from align.render import Renderer
from data.schema import Message

LORA = LoraSettings(r=4, alpha=8)


@pytest.fixture
def lmm(tiny_llava: Path) -> Lmm:
    return load(ModelSettings(path=str(tiny_llava)))


def _batch(lmm: Lmm, pictures: list[PILImage.Image], *questions: str) -> dict[str, Tensor]:
    questions = questions or ("What is in the image?", "Is there a dog?")
    items = [([Message(role="user", content=q)], pictures[i]) for i, q in enumerate(questions)]
    return Renderer(lmm.processor).prompt_batch(items)


def _noisy(model: torch.nn.Module) -> None:
    """Give fresh adapters weights that do something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


def test_save_and_load_keep_the_model(
    any_tiny_llava: Path, tmp_path: Path, pictures: list[PILImage.Image]
) -> None:
    first = load(ModelSettings(path=str(any_tiny_llava)))
    save(first.model, first.processor, tmp_path / "again")
    save(first.model, first.processor, tmp_path / "again")
    second = load(ModelSettings(path=str(tmp_path / "again")))
    a, b = _batch(first, pictures), _batch(second, pictures)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    with torch.no_grad():
        assert torch.equal(first.model(**a).logits, second.model(**b).logits)
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_a_failed_save_leaves_nothing(lmm: Lmm, tmp_path: Path) -> None:
    class Full:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save(lmm.model, Full(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_load_freezes_unless_trainable(tiny_llava: Path) -> None:
    settings = ModelSettings(path=str(tiny_llava), dtype="bfloat16")
    assert not any(p.requires_grad for p in load(settings).model.parameters())
    loaded = load(settings, trainable=True)
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert loaded.model.dtype == torch.bfloat16 and not loaded.model.training


def test_features_equal_transformers_own(any_tiny_llava: Path, pictures: list[PILImage.Image]) -> None:
    lmm = load(ModelSettings(path=str(any_tiny_llava)))
    batch = _batch(lmm, pictures)
    with torch.no_grad():
        theirs = torch.stack(list(lmm.model.get_image_features(batch["pixel_values"]).pooler_output))
        ours = image_features(lmm.model, batch)
        grid = vision_features(lmm.model, batch["pixel_values"])
        from_grid = image_features(lmm.model, {"vision_features": grid})
    assert torch.equal(ours, theirs) and torch.equal(from_grid, ours)
    assert image_features(lmm.model, {"input_ids": batch["input_ids"]}) is None


def test_feature_layer_is_a_setting(pictures: list[PILImage.Image]) -> None:
    tokenizer = train_tokenizer(CORPUS)
    text = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                       vocab_size=len(tokenizer))  # fmt: skip
    tower = vision_config("vit")
    for layer in (-1, -2):
        model, processor = build_llava(tower, text, tokenizer, image_size=32, feature_layer=layer)
        pixels = Renderer(processor).pixel_values(pictures[:1])
        states = model.model.vision_tower(pixels).hidden_states
        assert torch.equal(vision_features(model, pixels), states[layer][:, 1:])


def test_build_copies_a_ready_tower(tiny_llava_vit: Path) -> None:
    tower = load(ModelSettings(path=str(tiny_llava_vit))).model.model.vision_tower
    tokenizer = train_tokenizer(CORPUS)
    text = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                       vocab_size=len(tokenizer))  # fmt: skip
    model, _ = build_llava(tower, text, tokenizer, image_size=32)
    copied = model.model.vision_tower.state_dict()
    assert all(torch.equal(v, copied[k]) for k, v in tower.state_dict().items())
    with pytest.raises(ModelError, match="image_size 64"):
        build_llava(tower, text, tokenizer, image_size=64)
    text.vocab_size = 10
    with pytest.raises(ModelError, match="vocab_size 10"):
        build_llava(tower, text, tokenizer, image_size=32)


def test_images_are_seen_whole(tiny_llava: Path) -> None:
    """A picture's outer columns reach the pixels: nothing is cropped, however wide it is."""
    wide = PILImage.new("RGB", (96, 32), "black")
    wide.paste("white", (0, 0, 8, 32))
    renderer = Renderer(load(ModelSettings(path=str(tiny_llava))).processor)
    pixels = renderer.pixel_values([wide])
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, :, :, 0].min() > pixels[0, :, :, 16].max()


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "peft"])
def test_hidden_states_equal_a_plain_forward(
    any_tiny_llava: Path, pictures: list[PILImage.Image], wrapped: bool
) -> None:
    lmm = load(ModelSettings(path=str(any_tiny_llava)))
    batch = _batch(lmm, pictures)
    model: Any = lmm.model
    if wrapped:
        model = add_adapters(model, LORA, ["policy"])
        _noisy(model)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        # each row alone and unpadded, through the model's own forward
        for i in range(2):
            row = {k: v[i : i + 1] for k, v in batch.items()}
            row = {k: v[:, real[i]] if k != "pixel_values" else v for k, v in row.items()}
            reference = model(**row, output_hidden_states=True).hidden_states[-1][0]
            ours = hidden_states(model, batch)[i, real[i]]
            cached = hidden_states(model, batch, image_features(model, batch))[i, real[i]]
            assert (ours - reference).abs().max() < 1e-5
            assert (cached - reference).abs().max() < 1e-5


def test_left_padding_shifts_no_position(lmm: Lmm, pictures: list[PILImage.Image]) -> None:
    """Rotary positions are relative, so no state would show it: look at what the language model is given."""
    given: list[Tensor] = []
    lmm.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["position_ids"]), with_kwargs=True
    )
    batch = _batch(lmm, pictures)
    hidden_states(lmm.model, batch)
    for positions, mask in zip(given[0], batch["attention_mask"].bool(), strict=True):
        assert positions[mask].tolist() == list(range(int(mask.sum())))


def test_position_ids_count_from_the_first_token() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_entropy(lmm: Lmm, pictures: list[PILImage.Image], temperature: float) -> None:
    batch = _batch(lmm, pictures)
    with torch.no_grad():
        logits = lmm.model(**batch).logits[:, -5:-1] / temperature
        logp, entropy = token_logprobs(
            lmm.model, batch, response_len=4, temperature=temperature, with_entropy=True
        )
    reference = torch.distributions.Categorical(logits=logits)
    assert logp.shape == (2, 4) and entropy is not None
    assert torch.allclose(logp, reference.log_prob(batch["input_ids"][:, -4:]), atol=1e-5)
    assert torch.allclose(entropy, reference.entropy(), atol=1e-5)
    with pytest.raises(ValueError, match="temperature is 0"):
        token_logprobs(lmm.model, batch, response_len=4, temperature=0)


def test_cut_image_span_is_an_error(lmm: Lmm, pictures: list[PILImage.Image]) -> None:
    batch = _batch(lmm, pictures)
    at = int((batch["input_ids"][0] == lmm.model.config.image_token_index).nonzero()[0])
    batch["input_ids"][0, at] = 5
    with pytest.raises(ModelError, match="7 image tokens for 8 image features"):
        hidden_states(lmm.model, batch)


def test_scalar_head_is_float32_and_starts_at_zero() -> None:
    head = ScalarHead(8)
    hidden = torch.randn(2, 3, 8, dtype=torch.bfloat16)
    assert head(hidden).shape == (2, 3) and head(hidden).dtype == torch.float32
    assert not head(hidden).any()
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(1, 8))
    assert torch.equal(head(hidden), hidden[..., 0].float())


def test_other_models_take_all_processor_outputs() -> None:
    """A Qwen2-VL has no such feature path: its own forward computes positions from the image grid."""
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 64,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=60, vision_start_token_id=61, vision_end_token_id=62, video_token_id=63,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config).eval()
    batch = {
        "input_ids": torch.tensor([[61, 60, 62, 5, 6, 7, 8]]),
        "attention_mask": torch.ones(1, 7, dtype=torch.long),
        "pixel_values": torch.randn(4, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 0, 0, 0, 0, 0]]),
    }
    assert not is_llava(model) and image_features(model, batch) is None
    with torch.no_grad():
        logits = model(**batch).logits[:, -4:-1]
        logp, _ = token_logprobs(model, batch, response_len=3)
    expected = torch.distributions.Categorical(logits=logits).log_prob(batch["input_ids"][:, -3:])
    assert torch.allclose(logp, expected, atol=1e-5)
    wrapped = add_adapters(model, LORA, ["policy"])
    assert all("language_model" in n for n, p in wrapped.named_parameters() if p.requires_grad)
    assert torch.allclose(token_logprobs(wrapped, batch, response_len=3)[0], expected, atol=1e-5)


def test_checkpoints_that_are_none_are_named(tiny_llava: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(tiny_llava, tmp_path / name))

    check_is_lmm(str(tiny_llava))
    check_is_lmm("llava-hf/llava-1.5-7b-hf")
    with pytest.raises(ModelError, match="no such directory"):
        check_is_lmm(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="is a file"):
        check_is_lmm(str(tiny_llava / "config.json"))
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        check_is_lmm(str(tmp_path))
    text_only = broken("text")
    (text_only / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="'llama' takes no images"):
        check_is_lmm(str(text_only))
    (text_only / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        check_is_lmm(str(text_only))
    for pattern, words in (
        ("pro*", "processor"),
        ("tokenizer*", "tokenizer"),
        ("*.safetensors", "no weights"),
    ):
        folder = broken(words.replace(" ", "-"))
        for file in [*folder.glob(pattern), *folder.glob("preprocessor*" if pattern == "pro*" else pattern)]:
            file.unlink(missing_ok=True)
        with pytest.raises(ModelError, match=words):
            load(ModelSettings(path=str(folder)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model\.adapter"):
        check_is_lmm(str(adapter))
