"""Load, save and run a large multimodal model, bare or wrapped with PEFT adapters.

A LLaVA model (transformers' own class, any vision tower) takes a fast path: image features are computed
once and scattered into the token embeddings. Any other image-text-to-text model gets all processor outputs.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from align.config import ModelSettings, is_hub_id
from align.folders import new_folder
from align.models.adapters import adapter_of as adapter_of
from align.models.adapters import adapters_off as adapters_off
from align.models.adapters import add_adapters as add_adapters
from align.models.adapters import check_adapter as check_adapter
from align.models.adapters import lora_config as lora_config
from align.models.adapters import quiet_peft as quiet_peft
from align.models.adapters import use_adapter as use_adapter
from align.models.build import CHAT_TEMPLATE as CHAT_TEMPLATE
from align.models.build import ModelError as ModelError
from align.models.build import build_llava as build_llava
from align.models.quantized import keep_unpacked, quantization, quantize

Batch = dict[str, Any]

#: entries of the largest matrix of logits that is kept whole, 256 MB in float32
LOGITS_AT_ONCE = 2**26

if not sys.stderr.isatty():
    disable_progress_bar()


@dataclass
class Lmm:
    """A model with its processor; ``path`` is where its base came from (None for one built in memory)."""

    model: Any
    processor: Any
    path: str | None = None
    #: what its responses are signed with: the last adapter merged into it, or ``path``
    name: str | None = None
    #: for weights that are split over processes, which must go through the layers equally often: whether any
    #: process still goes on, given whether this one does
    any_going: Callable[[bool], bool] | None = None

    @property
    def device(self) -> torch.device:
        return unwrap(self.model).get_input_embeddings().weight.device

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)


def save(model: Any, processor: Any, directory: str | Path) -> Path:
    """Write an ordinary Hugging Face checkpoint: complete or not at all. Replaces an older one."""
    with new_folder(directory) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return Path(directory)


def check_model(settings: ModelSettings) -> None:
    """Raise ModelError unless the checkpoint and its adapters are there and whole; loads no weights."""
    check_is_lmm(settings.path)
    for adapter in settings.adapters:
        check_adapter(adapter)


def check_is_lmm(path: str) -> None:
    """Raise ModelError unless ``path`` is a complete image-text-to-text checkpoint; Hub ids pass."""
    folder = Path(path)
    if not folder.exists():
        if is_hub_id(path):
            return
        raise ModelError(
            f"{path}: no such directory; give a checkpoint's directory or a Hub id like owner/name"
        )
    if not folder.is_dir():
        raise ModelError(f"{path}: is a file; give the directory of the checkpoint")
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise ModelError(f"{path}: is a PEFT adapter; set model.adapter to it and model.path to its base")
        raise ModelError(f"{path}: config.json is missing; give the directory of a Hugging Face checkpoint")
    try:
        config = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}/config.json: is not JSON ({error}); restore the file") from error
    kind = config.get("model_type")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not config.get("auto_map"):
        raise ModelError(
            f"{path}: model_type {kind!r} takes no images; an image-text-to-text checkpoint is needed"
        )
    if not any((folder / f).exists() for f in ("processor_config.json", "preprocessor_config.json")):
        raise ModelError(
            f"{path}: no processor_config.json or preprocessor_config.json; save the processor there too"
        )
    if not any(folder.glob("tokenizer*")):
        raise ModelError(f"{path}: no tokenizer files; save the processor there too")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise ModelError(f"{path}: no weights (*.safetensors); the copy is incomplete")


def load(settings: ModelSettings, *, trainable: bool = False) -> Lmm:
    """Load a checkpoint in the asked precision, merge ``settings.adapter`` into it, freeze it unless
    ``trainable``.

    8- and 4-bit (NF4) bases keep the vision tower, projector and head in ``dtype``. With ``bits`` and an
    adapter the whole model is first read and merged in ``dtype`` on the CPU (26 GB of RAM for 13B parameters
    at 16 bits), since an adapter merged into quantized weights is rounded away. Raises ModelError for a
    directory that is no multimodal checkpoint or no adapter, a Hub id that cannot be had, and for full
    training of a quantized base.
    """
    check_model(settings)
    if trainable and settings.bits:
        raise ModelError(
            f"model.bits {settings.bits}: a quantized base cannot learn in full; set lora or drop bits"
        )
    device = device_of(settings.device)
    dtype = getattr(torch, settings.dtype)
    options: Batch = {
        "dtype": dtype,
        "attn_implementation": settings.attention,
        "trust_remote_code": settings.trust_remote_code,
    }
    small: Batch = {}
    if settings.bits:
        small = {"quantization_config": quantization(settings.bits, dtype), "device_map": {"": device}}
    for adapter in settings.adapters:
        _fetch_config(adapter)
    with named_errors(settings.path, OSError):
        model = AutoModelForImageTextToText.from_pretrained(
            settings.path, **options, **({} if settings.adapters else small)
        )
    processor = load_processor(settings)
    if not settings.bits:
        model = model.to(device)
    for adapter in settings.adapters:
        model = _merged(model, adapter)
    if settings.bits:
        if settings.adapters:
            model = quantize(model, settings.path, options | small)
        keep_unpacked(model)
    model.requires_grad_(trainable)
    return Lmm(model.eval(), processor, settings.path, settings.name)


def load_processor(settings: ModelSettings) -> Any:
    """The processor of a checkpoint, without its weights. Raises ModelError for one that cannot be had."""
    with named_errors(settings.path, OSError):
        return AutoProcessor.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)


def _fetch_config(adapter: str) -> None:
    """Ahead of the base, which may take minutes: an adapter that cannot be had is told of at once."""
    from peft import PeftConfig

    # PEFT says ValueError of what it cannot fetch
    with named_errors(adapter, OSError, ValueError):
        PeftConfig.from_pretrained(adapter)


def _merged(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    with named_errors(adapter, OSError), quiet_peft():
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


@contextlib.contextmanager
def named_errors(path: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what the libraries say of a missing, unreachable or damaged checkpoint into a ModelError."""
    try:
        yield
    except errors as error:
        reason = " ".join(str(error).split())
        mend = "check the Hub id and the connection, or give a local directory"
        mend = mend if is_hub_id(path) else "restore its files"
        raise ModelError(f"{path}: cannot be loaded ({reason}); {mend}") from error


def device_of(name: str) -> str:
    """The device that ``name`` stands for: "auto" is a GPU where there is one.

    Of several processes of torchrun each takes its own, as accelerate places them.
    """
    if name != "auto":
        return name
    if not torch.cuda.is_available():
        return "cpu"
    rank = int(os.environ.get("LOCAL_RANK", "-1"))
    return "cuda" if rank < 0 else f"cuda:{rank % torch.cuda.device_count()}"


def unwrap(model: Any) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT (or distributed) wrapper; injected adapter layers stay active."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_llava(model: Any) -> bool:
    """True when features can be computed once and reused (Pixtral's pictures have no common size)."""
    base = unwrap(model)
    return (
        isinstance(base, LlavaForConditionalGeneration) and base.config.vision_config.model_type != "pixtral"
    )


def move(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with its tensors on ``device``."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def vision_features(model: Any, pixel_values: Tensor) -> Tensor:
    """(B, 3, S, S) pixels -> (B, N, D) grid features of the tower, ahead of the projector (LLaVA only)."""
    base = unwrap(model)
    config = base.config
    states = base.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    layers = config.vision_feature_layer
    picked = [states[i] for i in ([layers] if isinstance(layers, int) else layers)]
    if config.vision_feature_select_strategy == "default":
        picked = [state[:, 1:] for state in picked]
    return torch.cat(picked, dim=-1)


def image_features(model: Any, batch: Batch) -> Tensor | None:
    """Projected features (images, N, H), or None for a text-only batch or a model without this path.

    Uses ``batch["vision_features"]`` (cached grid features) when given, else ``batch["pixel_values"]``.
    """
    if not is_llava(model):
        return None
    grid = batch.get("vision_features")
    if grid is None:
        if batch.get("pixel_values") is None:
            return None
        grid = vision_features(model, batch["pixel_values"])
    projector = unwrap(model).model.multi_modal_projector
    return projector(grid.to(next(projector.parameters()).dtype))


def position_ids(attention_mask: Tensor) -> Tensor:
    """(B, T) positions counted from each row's first real token; padding gets 0."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def embed(model: Any, batch: Batch, features: Tensor | None) -> Tensor:
    """(B, T, H) token embeddings with the image features (in reading order) in the image tokens' places."""
    base = unwrap(model)
    embeds = base.get_input_embeddings()(batch["input_ids"])
    if features is None:
        return embeds
    mask = batch["input_ids"] == base.config.image_token_index
    wanted = features.shape[0] * features.shape[1]
    if int(mask.sum()) != wanted:
        raise ModelError(
            f"{int(mask.sum())} image tokens for {wanted} image features; do not cut the image's span"
        )
    return embeds.masked_scatter(mask.unsqueeze(-1), features.to(embeds.dtype))


def hidden_states(model: Any, batch: Batch, features: Tensor | None = None) -> Tensor:
    """Last hidden state (B, T, H) ahead of the language head, under the model's active adapter.

    ``features`` are ``image_features`` computed earlier; without them the batch's pixels are encoded.
    A LLaVA's positions are counted from the attention mask, so left and right padding give the same states;
    any other model gets the whole batch and counts its own positions.
    """
    base = unwrap(model)
    if not is_llava(model):
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "logits_to_keep")}
        return base.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
    if features is None:
        features = image_features(model, batch)
    mask = batch["attention_mask"]
    output = base.model.language_model(
        inputs_embeds=embed(model, batch, features),
        attention_mask=mask,
        position_ids=None if mask is None else position_ids(mask),
        use_cache=False,
    )
    return output.last_hidden_state


def token_logprobs(
    model: Any,
    batch: Batch,
    features: Tensor | None = None,
    *,
    response_len: int,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, R) of the last R = ``response_len`` tokens of each row, and their entropy (B, R).

    Both are of softmax(logits / ``temperature``), in float32. Values at padding are meaningless: mask them.
    """
    hidden = hidden_states(model, batch, features)[:, -response_len - 1 : -1]
    return logprobs_of(model, hidden, batch["input_ids"][:, -response_len:], temperature, with_entropy)


def logprobs_of(
    model: Any, hidden: Tensor, targets: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Score ``targets`` (B, R) from the hidden states (B, R, H) that predict them; see ``token_logprobs``.

    Of a large vocabulary and many positions the logits would take more memory than the model. Then rows are
    scored a few positions at a time, and with gradients each part is computed again in the backward pass.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need a positive one")
    rows = max(1, LOGITS_AT_ONCE // _vocabulary(model))
    if targets.numel() <= rows:
        return _score(model, hidden, targets, temperature, with_entropy)
    found = [
        checkpoint(_score, model, *part, temperature, with_entropy, use_reentrant=False)
        for part in zip(hidden.flatten(0, 1).split(rows), targets.flatten().split(rows))
    ]
    chosen = torch.cat([one for one, _ in found]).view_as(targets)
    return chosen, torch.cat([other for _, other in found]).view_as(targets) if with_entropy else None


def _vocabulary(model: Any) -> int:
    return unwrap(model).get_output_embeddings().weight.shape[0]


def _score(
    model: Any, hidden: Tensor, targets: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """(..., H) and (...) -> log-probabilities (...) and entropies (...)."""
    logits = next_logits(model, hidden)
    logits = logits / temperature
    norm = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - norm
    if not with_entropy:
        return chosen, None
    return chosen, norm - (torch.softmax(logits, -1) * logits).sum(-1)


def next_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits (..., V) in float32 of the tokens that follow hidden states (..., H)."""
    base = unwrap(model)
    logits = base.get_output_embeddings()(hidden).float()
    cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


class ScalarHead(nn.Module):
    """One float32 number from a hidden state: (..., H) -> (...). Starts at zero."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states of any dtype -> (...) float32."""
        return self.linear(hidden.float()).squeeze(-1)
