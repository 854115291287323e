"""open_clip vision encoders (ViT and ResNet) as the vision tower of a Hugging Face model.

Importing this module registers ``open_clip_vision`` with ``AutoConfig`` and ``AutoModel``, so a
LLaVA checkpoint whose ``vision_config.model_type`` is ``open_clip_vision`` saves and loads like any other.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class OpenClipVisionConfig(PretrainedConfig):
    """Shape of an open_clip vision encoder.

    ``vision_cfg`` is open_clip's own dictionary (``width``, ``layers``, ``patch_size``, ``image_size``,
    ``head_width``, ...): ``layers`` an int makes a ViT, a list of four a ResNet. ``hidden_size`` (channels of
    the last grid), ``image_size``, ``patch_size`` (pixels per grid cell) and ``num_hidden_layers`` follow
    from it.
    """

    model_type = "open_clip_vision"

    def __init__(
        self,
        vision_cfg: dict[str, Any] | None = None,
        embed_dim: int = 512,
        quick_gelu: bool = False,
        freeze_batch_norm: bool = True,
        image_mean: tuple[float, ...] = OPENAI_MEAN,
        image_std: tuple[float, ...] = OPENAI_STD,
        **kwargs: Any,
    ) -> None:
        self.vision_cfg = _checked(
            vision_cfg or {"layers": 12, "width": 768, "patch_size": 32, "image_size": 224}
        )
        self.embed_dim = embed_dim
        self.quick_gelu = quick_gelu
        #: ResNets only: use the running statistics as constants (a frozen or fine-tuned CLIP tower)
        self.freeze_batch_norm = freeze_batch_norm
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        layers, width = self.vision_cfg["layers"], self.vision_cfg["width"]
        self.is_resnet = isinstance(layers, list)
        self.hidden_size = width * 32 if self.is_resnet else width
        self.num_hidden_layers = len(layers) if self.is_resnet else layers
        self.image_size = self.vision_cfg["image_size"]
        self.patch_size = 32 if self.is_resnet else self.vision_cfg["patch_size"]
        for derived in ("is_resnet", "hidden_size", "num_hidden_layers", "image_size", "patch_size"):
            kwargs.pop(derived, None)
        super().__init__(**kwargs)

    @property
    def has_cls(self) -> bool:
        """True when the first token of every hidden state is a class token, not a grid cell."""
        return not self.is_resnet


def _checked(vision_cfg: dict[str, Any]) -> dict[str, Any]:
    cfg = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224, **vision_cfg}
    if cfg.get("timm_model_name"):
        raise ValueError(
            "vision_cfg.timm_model_name: timm towers are not supported; choose an open_clip ViT or ResNet"
        )
    if isinstance(cfg["layers"], tuple):
        cfg["layers"] = list(cfg["layers"])
    for key in ("image_size", "patch_size"):
        if isinstance(cfg[key], (list, tuple)):
            if len(set(cfg[key])) != 1:
                raise ValueError(f"vision_cfg.{key} is {cfg[key]}; the tower needs a square one")
            cfg[key] = cfg[key][0]
    # dropping patches would leave fewer features than image tokens
    cfg["patch_dropout"] = 0.0
    cell = 32 if isinstance(cfg["layers"], list) else cfg["patch_size"]
    if cfg["image_size"] % cell:
        raise ValueError(f"vision_cfg.image_size {cfg['image_size']} must be a multiple of {cell}")
    return cfg


class OpenClipVisionModel(PreTrainedModel):
    """An open_clip image encoder that returns every layer's features.

    ``visual`` is open_clip's module with its own parameter names, so open_clip weights load unchanged.
    """

    config_class = OpenClipVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _no_split_modules = ["ResidualAttentionBlock", "Bottleneck"]

    def __init__(self, config: OpenClipVisionConfig) -> None:
        super().__init__(config)
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
        from open_clip.utils import freeze_batch_norm_2d

        self.visual = _build_vision_tower(
            config.embed_dim, CLIPVisionCfg(**config.vision_cfg), config.quick_gelu
        )
        if config.is_resnet and config.freeze_batch_norm:
            self.visual = freeze_batch_norm_2d(self.visual)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: open_clip's constructors have initialised their modules."""

    def get_input_embeddings(self) -> nn.Module:
        return self.visual.conv1

    def forward(
        self, pixel_values: Tensor, return_dict: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """Encode (B, 3, S, S) normalised pixels.

        Returns ``hidden_states``, always complete: for a ViT the embeddings and each block's output,
        (B, 1 + cells, width) with the class token first; for a ResNet the stem's and each stage's grid,
        (B, cells_i, channels_i). ``last_hidden_state`` is the last of them, before any final norm.
        """
        x = pixel_values.to(self.visual.conv1.weight.dtype)
        states = self._resnet(x) if self.config.is_resnet else self._vit(x)
        output = BaseModelOutputWithPooling(last_hidden_state=states[-1], hidden_states=tuple(states))
        return output.to_tuple() if return_dict is False else output

    def _vit(self, x: Tensor) -> list[Tensor]:
        states = [self.visual._embeds(x)]
        transformer = self.visual.transformer
        sequence_first = not getattr(transformer, "batch_first", True)
        for block in transformer.resblocks:
            h = states[-1]
            states.append(block(h.transpose(0, 1)).transpose(0, 1) if sequence_first else block(h))
        return states

    def _resnet(self, x: Tensor) -> list[Tensor]:
        v = self.visual
        states = []
        for stage in (v.stem, v.layer1, v.layer2, v.layer3, v.layer4):
            x = stage(x)
            states.append(x.flatten(2).transpose(1, 2))
        return states


def from_open_clip(
    model_name: str,
    pretrained: str | None = None,
    *,
    image_size: int | None = None,
    freeze_batch_norm: bool = True,
) -> OpenClipVisionModel:
    """Build the vision tower of an open_clip model, e.g. ``("ViT-L-14-336", "openai")`` or ``("RN50",
    None)``.

    ``pretrained`` is an open_clip tag or a weights file; None gives random weights. ``image_size`` resamples
    the position embeddings (the thesis runs a 224 px tower at 256 and 336 px). Raises ValueError for an
    unknown name.
    """
    import open_clip

    cfg = open_clip.get_model_config(model_name)
    if cfg is None:
        raise ValueError(f"open_clip knows no model {model_name!r}; see open_clip.list_models()")
    vision_cfg = dict(cfg["vision_cfg"])
    if image_size is not None:
        vision_cfg["image_size"] = image_size
    common = {"embed_dim": cfg["embed_dim"], "freeze_batch_norm": freeze_batch_norm}
    if pretrained is None:
        config = OpenClipVisionConfig(vision_cfg, quick_gelu=bool(cfg.get("quick_gelu")), **common)
        return OpenClipVisionModel(config)
    clip = open_clip.create_model(model_name, pretrained=pretrained, force_image_size=image_size)
    visual = clip.visual
    quick_gelu = any(isinstance(m, open_clip.transformer.QuickGELU) for m in visual.modules())
    preprocess = getattr(visual, "preprocess_cfg", {})
    config = OpenClipVisionConfig(
        vision_cfg,
        quick_gelu=quick_gelu,
        image_mean=preprocess.get("mean", OPENAI_MEAN),
        image_std=preprocess.get("std", OPENAI_STD),
        **common,
    )
    model = OpenClipVisionModel(config)
    load_visual(model, visual.state_dict())
    return model


def load_visual(model: OpenClipVisionModel, state: dict[str, Tensor]) -> None:
    """Copy an open_clip ``visual`` state dict into the tower; RuntimeError names any key that differs."""
    if model.config.is_resnet and model.config.freeze_batch_norm:
        # a frozen batch norm keeps no count of the batches it saw
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    with torch.no_grad():
        model.visual.load_state_dict(state)


class KeptTower(nn.Module):
    """Stands in for a frozen vision tower: what it is given as pixels are the tower's features (B, N, D)."""

    def __init__(self, tower: Any, drops_first: bool) -> None:
        super().__init__()
        self.config = tower.config
        self._drops_first = drops_first
        self._states = tower.config.num_hidden_layers + 1

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """(B, N, D) kept features as every hidden state; (B, 1 + N, D), the first zero, if it is dropped."""
        x = nn.functional.pad(pixel_values, (0, 0, 1, 0)) if self._drops_first else pixel_values
        return BaseModelOutputWithPooling(last_hidden_state=x, hidden_states=(x,) * self._states)


# a second import under another name must not fail: registration is what matters
with contextlib.suppress(ValueError):
    AutoConfig.register(OpenClipVisionConfig.model_type, OpenClipVisionConfig)
AutoModel.register(OpenClipVisionConfig, OpenClipVisionModel, exist_ok=True)
