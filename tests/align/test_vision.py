"""open_clip towers: the same numbers as open_clip's own forward, kept through save and load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from align.models.vision import OpenClipVisionConfig, OpenClipVisionModel, from_open_clip, load_visual

VIT = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
RESNET = {"layers": [1, 1, 2, 1], "width": 16, "head_width": 16, "image_size": 64}


def _tower(cfg: dict[str, Any], **kwargs: Any) -> OpenClipVisionModel:
    torch.manual_seed(0)
    return OpenClipVisionModel(OpenClipVisionConfig(cfg, embed_dim=24, **kwargs)).eval()


def test_vit_states_are_open_clips() -> None:
    tower = _tower(VIT)
    x = torch.randn(2, 3, 32, 32)
    out = tower(x)
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 17, 32)] * 4
    assert tower.config.has_cls
    # open_clip's own route from pixels to intermediates and to the pooled embedding
    ours = out.hidden_states[1:]
    theirs = tower.visual.forward_intermediates(x, output_fmt="NLC", output_extra_tokens=True)
    for a, grid, cls in zip(
        ours, theirs["image_intermediates"], theirs["image_intermediates_prefix"], strict=True
    ):
        assert torch.allclose(a, torch.cat([cls, grid], 1), atol=1e-6)
    pooled = tower.visual.ln_post(out.last_hidden_state[:, 0]) @ tower.visual.proj
    assert torch.allclose(pooled, tower.visual(x), atol=1e-5)


def test_resnet_grid_is_open_clips() -> None:
    tower = _tower(RESNET)
    x = torch.randn(2, 3, 64, 64)
    states = tower(x).hidden_states
    assert [tuple(h.shape) for h in states] == [
        (2, 256, 16), (2, 256, 64), (2, 64, 128), (2, 16, 256), (2, 4, 512),
    ]  # fmt: skip
    assert tower.config.hidden_size == 512 and not tower.config.has_cls
    grid = states[-1].transpose(1, 2).unflatten(2, (2, 2))
    assert torch.allclose(tower.visual.attnpool(grid), tower.visual(x), atol=1e-5)


@pytest.mark.parametrize("cfg", [VIT, RESNET], ids=["vit", "resnet"])
def test_round_trip(cfg: dict[str, Any], tmp_path: Path) -> None:
    tower = _tower(cfg)
    tower.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is OpenClipVisionModel
    x = torch.randn(1, 3, cfg["image_size"], cfg["image_size"])
    assert torch.equal(again(x).last_hidden_state, tower(x).last_hidden_state)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.vision_cfg == tower.config.vision_cfg and config.hidden_size == tower.config.hidden_size
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    out = half(x).last_hidden_state
    assert out.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(out.float().flatten(), tower(x)[0].flatten(), dim=0) > 0.99


def test_batch_norm_is_frozen_unless_asked() -> None:
    frozen, free = _tower(RESNET), _tower(RESNET, freeze_batch_norm=False)
    x = torch.randn(4, 3, 64, 64)
    for tower, changes in ((frozen, False), (free, True)):
        before = tower.visual.bn1.running_mean.clone()
        tower.train()(x)
        assert torch.equal(before, tower.visual.bn1.running_mean) != changes
    load_visual(frozen, free.visual.state_dict())
    assert torch.allclose(frozen.eval()(x)[0], free.eval()(x)[0], atol=1e-5)


@pytest.fixture
def tiny_clip(tmp_path: Path) -> str:
    """Name of a tiny architecture made known to open_clip: a CLIP with QuickGELU at 32 px."""
    import open_clip

    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": text}
    (tmp_path / "tiny-test-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    return "tiny-test-vit"


def test_from_open_clip_takes_the_named_architecture(tiny_clip: str) -> None:
    tower = from_open_clip(tiny_clip)
    assert tower.config.image_size == 32 and tower.config.quick_gelu
    assert from_open_clip(tiny_clip, image_size=64).config.image_size == 64


def test_from_open_clip_loads_weights(tiny_clip: str, tmp_path: Path) -> None:
    """A file of open_clip weights gives open_clip's own features, at its size and at a resampled one."""
    import open_clip

    torch.manual_seed(1)
    clip = open_clip.create_model(tiny_clip)
    file = tmp_path / "weights.pt"
    torch.save(clip.state_dict(), file)
    for size in (32, 64):
        tower = from_open_clip(tiny_clip, str(file), image_size=size).eval()
        reference = open_clip.create_model(tiny_clip, pretrained=str(file), force_image_size=size).eval()
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            pooled = tower.visual.ln_post(tower(x).last_hidden_state[:, 0]) @ tower.visual.proj
            assert torch.allclose(pooled, reference.visual(x), atol=1e-5)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"timm_model_name": "resnet50"}, "timm"),
        ({"image_size": 50, "patch_size": 16}, "multiple of 16"),
        ({"layers": [1, 1, 1, 1], "image_size": 48}, "multiple of 32"),
        ({"image_size": [32, 64]}, "square"),
    ],
)
def test_bad_configs_are_named(cfg: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OpenClipVisionConfig(cfg)


def test_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="no model 'ViT-Z-1'"):
        from_open_clip("ViT-Z-1")
