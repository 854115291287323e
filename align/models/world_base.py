"""The small pretrained base that ships with the project, and how it is made (``make world-base``).

1 a tokenizer over the world's language; 2 a CLIP encoder, trained contrastively (``align.contrastive``);
3 a projector and a causal language model over the frozen encoder: text-only reading, then captions of
pictures and balanced questions about them as well. It has seen no full description, no conversation
and no preference.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pil
from safetensors.torch import load_model, save_model
from transformers import LlamaConfig

from align.contrastive import Clip, ClipRun, render, train
from align.models.lmm import build_llava, save
from align.models.tiny import train_tokenizer
from align.models.vision import OpenClipVisionConfig, OpenClipVisionModel
from align.render import Renderer
from data.jsonl import read_json, write_json
from data.schema import Example
from data.world import language as lang
from data.world import reading
from data.world.scene import Scene, sample_scene

VISION = {"layers": 4, "width": 128, "head_width": 32, "patch_size": 16, "image_size": 96}
VOCABULARY = 720


@dataclass(frozen=True)
class BaseRun:
    clip: ClipRun = field(default_factory=ClipRun)
    #: text alone: steps and lessons a step of ``reading.lookup``, then of ``reading.glance``
    lookup_steps: int = 450
    lookups: int = 24
    glance_steps: int = 450
    glances: int = 12
    #: then pictures and all lessons
    steps: int = 1350
    captions: int = 8
    matches: int = 16
    looks: int = 4
    checks: int = 6
    questions: int = 4
    verifies: int = 8
    #: weight of every word of the lessons beside their answers
    words: float = 0.1
    #: bfloat16 autocast: with eager attention 1.5 times as fast on processors that have it
    bf16: bool = True
    lr: float = 1.0e-3
    scenes: int = 12000
    seed: int = 9000

    @property
    def first_steps(self) -> int:
        return self.lookup_steps + self.glance_steps


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


def answers_only(labels: torch.Tensor, longest: int = 3) -> torch.Tensor:
    """Keep the labels of short answers (runs of at most ``longest`` tokens): a lesson in reading trains
    what is concluded, not the possibly false description that is read."""
    kept = labels.clone()
    for row in kept:
        learned = [*(row != -100).int().tolist(), 0]
        start = None
        for i, on in enumerate(learned):
            if on and start is None:
                start = i
            elif not on and start is not None:
                if i - start > longest:
                    row[start:i] = -100
                start = None
    return kept


def train_language(
    model: Any, processor: Any, run: BaseRun, report: Callable[[dict[str, float]], None]
) -> None:
    """Projector and language model over the frozen tower.

    Token means are added: captions of pictures and answers about them, answers of the text lessons, and
    every word of their text; five captions of one scene repeat each other, and predicting them teaches
    to look up.
    """
    torch.manual_seed(run.seed)
    rng = random.Random(run.seed + 1)
    renderer = Renderer(processor)
    scenes, pixels = render(run.seed + 1, 0, run.scenes, run.clip.difficulty)
    model.model.vision_tower.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run.lr, weight_decay=0.01, betas=(0.9, 0.98))
    model.train()
    # at these sizes eager attention is the faster of the two in bfloat16
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager" if run.bf16 else attention)
    for step in range(run.first_steps + run.steps):
        for group in optimizer.param_groups:
            group["lr"] = run.lr * rate(step, run)
        losses: dict[str, torch.Tensor] = {}
        with torch.autocast("cpu", torch.bfloat16, enabled=run.bf16):
            # each kind has a mean of its own: one verdict weighs nothing among a questionnaire's answers
            for make, count in texts_of(step, run):
                lessons = [make(unseen(rng, run), rng) for _ in range(count)]
                losses[make.__name__] = reading_loss(model, renderer, lessons, run.words)
            for make, count in pictures_of(step, run):
                rows = [rng.randrange(len(scenes)) for _ in range(count)]
                shown = [make(scenes[i], rng) for i in rows]
                seen = renderer.train_batch(shown, [Pil.fromarray(pixels[i]) for i in rows])
                if make is reading.checking:
                    seen["labels"] = answers_only(seen["labels"])
                losses[make.__name__] = model(**seen).loss
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 250 == 249 or step + 1 == run.first_steps + run.steps:
            figures = {f"{name} loss": loss.item() for name, loss in losses.items()}
            report({"step": step + 1.0} | figures | reading_accuracy(model, renderer))
    model.set_attn_implementation(attention)
    model.eval()


Lesson = Callable[[Scene, random.Random], Example]


def texts_of(step: int, run: BaseRun) -> list[tuple[Lesson, int]]:
    """The kinds of lessons without a picture at ``step``, and how many of each."""
    if step < run.lookup_steps:
        return [(reading.lookup, run.lookups)]
    if step < run.first_steps:
        return [(reading.glance, run.glances)]
    return [(reading.questions, run.questions), (reading.verify, run.verifies)]


def pictures_of(step: int, run: BaseRun) -> list[tuple[Lesson, int]]:
    """The kinds of lessons with a picture at ``step`` and how many of each; none while it learns to read."""
    if step < run.first_steps:
        return []
    return [
        (reading.captioning, run.captions),
        (reading.matching, run.matches),
        (reading.looking, run.looks),
        (reading.checking, run.checks),
    ]


def rate(step: int, run: BaseRun) -> float:
    """Share of the peak learning rate: 30 steps up, level to a third of phase two, then a half cosine."""
    if step < 30:
        return (step + 1) / 30
    level = run.first_steps + run.steps // 3
    done = max(0, step - level) / max(1, run.first_steps + run.steps - level)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def unseen(rng: random.Random, run: BaseRun) -> Scene:
    """A random scene of the stream that lessons are written about."""
    return sample_scene(run.seed + 2, rng.randrange(10**6))


def reading_loss(model: Any, renderer: Renderer, lessons: list[Example], words: float) -> torch.Tensor:
    """Loss of the lessons' answers plus ``words`` times that of every word of their text."""
    batch = renderer.train_batch(lessons, None)
    answers = answers_only(batch.pop("labels"))
    every_word = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    logits = model(**batch).logits.float()
    return next_token_loss(logits, answers) + words * next_token_loss(logits, every_word)


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of (B, T, V) logits against the labels (B, T) one position on; -100 is ignored."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def reading_accuracy(model: Any, renderer: Renderer, n: int = 128) -> dict[str, float]:
    """Share of right first answer tokens on held-out lessons, for each kind of reading."""
    rng = random.Random(7)
    scenes = [sample_scene(77, i) for i in range(n)]
    return {
        make.__name__: first_token_accuracy(model, renderer, [make(s, rng) for s in scenes], None)
        for make in (reading.lookup, reading.glance, reading.questions, reading.verify)
    }


def seeing_accuracy(model: Any, renderer: Renderer, run: BaseRun, n: int = 500) -> dict[str, float]:
    """The same of lessons with held-out pictures, all difficulties mixed."""
    rng = random.Random(8)
    scenes, pixels = render(run.seed + 1, 500_000, n, run.clip.difficulty)
    pictures = [Pil.fromarray(p) for p in pixels]
    return {
        make.__name__: first_token_accuracy(model, renderer, [make(s, rng) for s in scenes], pictures)
        for make in (reading.matching, reading.checking)
    }


@torch.no_grad()
def first_token_accuracy(
    model: Any, renderer: Renderer, lessons: list[Example], pictures: list[Pil.Image] | None, size: int = 128
) -> float:
    right, total = 0, 0
    for k in range(0, len(lessons), size):
        batch = renderer.train_batch(lessons[k : k + size], pictures and pictures[k : k + size])
        labels = answers_only(batch.pop("labels"))
        best = model(**batch).logits[:, :-1].argmax(-1)
        first = (labels[:, 1:] != -100) & (labels[:, :-1] == -100)
        right += int((best[first] == labels[:, 1:][first]).sum())
        total += int(first.sum())
    return right / total


def _tower_file(output: Path) -> Path:
    return output.parent / f".{output.name}-tower.safetensors"


def _train_or_read_tower(
    clip: Clip, run: BaseRun, output: Path, report: Callable[[dict[str, float]], None]
) -> dict[str, float]:
    """Train the encoder; an interrupted build of the same settings finds it and goes on after it."""
    path = _tower_file(output)
    note = path.with_suffix(".json")
    settings = json.loads(json.dumps(asdict(run.clip)))
    if path.exists() and note.exists() and (kept := read_json(note))["settings"] == settings:
        load_model(clip.vision, path)
        return kept["figures"]
    start = time.monotonic()
    figures = train(clip, run.clip, report)
    figures["minutes"] = round((time.monotonic() - start) / 60, 1)
    # the note goes last: a tower without one is not used
    note.unlink(missing_ok=True)
    save_model(clip.vision, str(path))
    write_json(note, {"settings": settings, "figures": figures})
    return figures


def new_clip(tokenizer: Any) -> Clip:
    """The world's towers with fresh weights."""
    tower = OpenClipVisionModel(OpenClipVisionConfig(dict(VISION), embed_dim=128))
    return Clip(tower, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], VOCABULARY)


def build_base(output: Path, run: BaseRun, report: Callable[[dict[str, float]], None]) -> dict[str, Any]:
    """Make the base and write it with its card (``card.json``); returns the card."""
    torch.manual_seed(run.seed)
    tokenizer = tokenizer_for_world()
    clip = new_clip(tokenizer)
    tower = clip.vision
    vision = _train_or_read_tower(clip, run, output, report)
    language = time.monotonic()
    text_config = language_model(VOCABULARY, tokenizer)
    model, processor = build_llava(tower, text_config, tokenizer, image_size=96, feature_layer=-1)
    train_language(model, processor, run, report)
    renderer = Renderer(processor)
    figures = reading_accuracy(model, renderer, 500)
    seeing = seeing_accuracy(model, renderer, run)
    save(model, processor, output)
    for suffix in (".safetensors", ".json"):
        _tower_file(output).with_suffix(suffix).unlink()
    card = {
        "vision": vision,
        "reading": figures,
        "seeing": seeing,
        "run": asdict(run),
        "parameters": sum(p.numel() for p in model.parameters()),
        "language_minutes": round((time.monotonic() - language) / 60, 1),
        "torch": torch.__version__,
    }
    write_json(output / "card.json", card)
    return card
