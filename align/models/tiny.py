"""A tiny, random LLaVA checkpoint built locally: for tests, documentation and dry runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from align.models.lmm import build_llava, save
from align.models.vision import OpenClipVisionConfig

Tower = Literal["clip", "vit", "resnet"]

CORPUS = [
    "What is in the image? There is a red apple on the table.",
    "Is there a dog in the image? Yes. No. A cat sits beside a blue chair.",
    "Describe the picture in detail. Two green cups stand to the left of a lamp.",
    "How many people are there? Three people are walking in the street.",
]


def train_tokenizer(corpus: list[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (encodes any text) with pad, begin, end and image tokens, padding left."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<pad>", "<s>", "</s>", "<image>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def vision_config(tower: Tower, image_size: int = 32) -> PretrainedConfig:
    """A vision config a few thousand weights large: Hugging Face CLIP, open_clip ViT or open_clip ResNet."""
    if tower == "clip":
        return CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=16,
        )
    if tower == "vit":
        shape: dict[str, Any] = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    elif tower == "resnet":
        shape = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
        image_size = max(image_size, 64)
    else:
        raise ValueError(f"tower is {tower!r}; choose clip, vit or resnet")
    return OpenClipVisionConfig({**shape, "image_size": image_size}, embed_dim=16)


def build_tiny_llava(
    directory: str | Path,
    tower: Tower = "clip",
    corpus: list[str] | None = None,
    *,
    image_size: int = 32,
    hidden_size: int = 48,
    seed: int = 0,
) -> Path:
    """Write a random LLaVA checkpoint (model, tokenizer, processor, chat template) to ``directory``.

    Vision and language widths differ on purpose. Equal arguments give equal weights; the caller's random
    state is left alone. A ResNet tower uses at least 64 px.
    """
    tokenizer = train_tokenizer(corpus or CORPUS)
    vision = vision_config(tower, image_size)
    text = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = build_llava(
            vision,
            text,
            tokenizer,
            image_size=vision.image_size,
            feature_layer=-1 if tower == "resnet" else -2,
        )
    return save(model, processor, directory)
