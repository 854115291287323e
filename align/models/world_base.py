"""The small pretrained base that ships with the project, and how it is made (``make world-base``).

1 a tokenizer over the world's language; 2 a CLIP encoder, trained contrastively (``align.contrastive``), and
beside it a causal language model that learns to read; 3 both together over a projector
(``align.models.world_lessons``). It has seen no full description, no conversation and no preference.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from transformers import LlamaConfig

from align.contrastive import Clip, train
from align.models.lmm import build_llava, save
from align.models.tiny import train_tokenizer
from align.models.vision import OpenClipVisionConfig, OpenClipVisionModel
from align.models.world_lessons import BaseRun, look, read, reading_accuracy, seeing_accuracy
from align.render import Renderer
from data.jsonl import read_json, write_json
from data.processes import end_with_parent
from data.world import language as lang
from data.world import reading
from data.world.scene import sample_scene

VISION = {"layers": 4, "width": 128, "head_width": 32, "patch_size": 16, "image_size": 96}
VOCABULARY = 720


def tokenizer_for_world() -> Any:
    scenes = [sample_scene(9000, i) for i in range(3000)]
    wording = [
        reading.question_about("", [reading.HEADER]),
        "Give a short caption.",
        *lang.DESCRIBE,
    ] * 50
    roles = ["USER: ASSISTANT: Yes No A B C D"] * 50
    tokenizer = train_tokenizer(lang.corpus(scenes) + wording + roles, VOCABULARY)
    return tokenizer


def language_model(vocab_size: int, tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        # 1/sqrt(width): at the usual 0.02, made for widths of thousands, attention starts flat here
        initializer_range=0.08,
    )


def _part_file(output: Path, part: str) -> Path:
    return output.parent / f".{output.name}-{part}.safetensors"


def train_or_find(
    part: torch.nn.Module, path: Path, settings: dict[str, Any], train: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Train ``part`` and keep it in ``path``; an interrupted build of the same settings finds it there."""
    note = path.with_suffix(".json")
    settings = json.loads(json.dumps(settings))
    if path.exists() and note.exists() and (kept := read_json(note))["settings"] == settings:
        load_model(part, path)
        return kept["figures"]
    start = time.monotonic()
    figures = train()
    figures["minutes"] = round((time.monotonic() - start) / 60, 1)
    # the note goes last: weights without one are not used
    note.unlink(missing_ok=True)
    save_model(part, str(path))
    write_json(note, {"settings": settings, "figures": figures})
    return figures


READING_SETTINGS = (
    "lookups", "lookup_accuracy", "glances", "glance_accuracy", "judges", "judge_accuracy", "reading_steps",
    "studying_steps", "studied", "words", "bf16", "lr", "seed",
)  # fmt: skip


def _train_or_find_reader(
    run: BaseRun, output: Path, report: Callable[[dict[str, float]], None]
) -> tuple[Any, Any, dict[str, float]]:
    """Model and processor with an untrained tower and a language model that can read; its figures."""
    torch.manual_seed(run.seed)
    tokenizer = tokenizer_for_world()
    text_config = language_model(VOCABULARY, tokenizer)
    tower = new_clip(tokenizer).vision
    model, processor = build_llava(tower, text_config, tokenizer, image_size=96, feature_layer=-1)
    part = torch.nn.ModuleDict({"language_model": model.model.language_model, "lm_head": model.lm_head})
    figures = train_or_find(
        part,
        _part_file(output, "reader"),
        {name: getattr(run, name) for name in READING_SETTINGS},
        lambda: read(model, processor, run, report),
    )
    return model, processor, figures


def _read_beside(run: BaseRun, output: Path, report: Callable[[dict[str, float]], None]) -> None:
    _train_or_find_reader(run, output, report)


def new_clip(tokenizer: Any) -> Clip:
    """The world's towers with fresh weights."""
    tower = OpenClipVisionModel(OpenClipVisionConfig(dict(VISION), embed_dim=128))
    return Clip(tower, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], VOCABULARY)


def build_base(output: Path, run: BaseRun, report: Callable[[dict[str, float]], None]) -> dict[str, Any]:
    """Make the base and write it with its card (``card.json``); returns the card.

    The encoder learns here while the language model learns to read in a process beside, one thread each.

    Args:
        report: called with figures while it goes, from both processes, so it has to be picklable.
    """
    start = time.monotonic()
    torch.manual_seed(run.seed)
    clip = new_clip(tokenizer_for_world())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=end_with_parent) as pool:
        beside = pool.submit(_read_beside, run, output, report)
        vision = train_or_find(
            clip.vision, _part_file(output, "tower"), asdict(run.clip), lambda: train(clip, run.clip, report)
        )
        beside.result()
    torch.set_num_threads(threads)
    model, processor, reader = _train_or_find_reader(run, output, report)
    model.model.vision_tower.load_state_dict(clip.vision.state_dict())
    grounding = look(model, processor, run, report)
    renderer = Renderer(processor)
    figures = reading_accuracy(model, renderer, n=500)
    seeing = seeing_accuracy(model, renderer, run)
    save(model, processor, output)
    for part in ("tower", "reader"):
        for suffix in (".safetensors", ".json"):
            _part_file(output, part).with_suffix(suffix).unlink()
    card = {
        "vision": vision,
        "reader": reader,
        "grounding": grounding,
        "reading": figures,
        "seeing": seeing,
        "run": asdict(run),
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "torch": torch.__version__,
    }
    write_json(output / "card.json", card)
    return card
