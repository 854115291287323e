"""How the shipped base's language model learns: to read from text alone, then to look at pictures.

``read`` trains on text in one thread; ``look`` trains the projector alone (``ground``), then everything
behind the frozen tower. The lessons themselves are ``data.world.reading``'s.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image as Pil
from torch.nn.functional import normalize

from align.contrastive import ClipRun, cell_patches, draw_all, normalise, render
from align.models.lmm import vision_features
from align.render import Renderer
from data.schema import Example
from data.world import reading
from data.world.scene import COLOURS, OBJECTS, Scene, jumble, sample_scene

Lesson = Callable[[Scene, random.Random], Example]
Kinds = list[tuple[Lesson, int]]
Gradients = tuple[torch.Tensor | None, ...]

WITH_PICTURES = (reading.captioning, reading.finding, reading.matching, reading.looking, reading.checking)
READING = (reading.lookup, reading.glance, reading.judge, reading.questions, reading.verify)


@dataclass(frozen=True)
class BaseRun:
    clip: ClipRun = field(default_factory=ClipRun)
    #: text alone, beside the encoder's training (:func:`read`): lessons a step of ``reading.lookup``, then
    #: of ``glance`` and of ``judge``, each until its accuracy is reached, at most so many steps
    lookups: int = 24
    lookup_accuracy: float = 0.90
    glances: int = 12
    glance_accuracy: float = 0.96
    judges: int = 24
    judge_accuracy: float = 0.96
    reading_steps: int = 1500
    #: then so many steps of ``judge``, ``questions`` and ``verify``, so many lessons of each
    studying_steps: int = 1400
    studied: tuple[int, int, int] = (8, 6, 8)
    #: then the projector alone (:func:`ground`)
    grounding_steps: int = 1200
    grounding_lr: float = 3.0e-3
    #: then pictures and all lessons
    steps: int = 1400
    captions: int = 8
    finds: int = 12
    matches: int = 8
    looks: int = 4
    checks: int = 4
    questions: int = 4
    verifies: int = 8
    #: weight of every word of the texts beside their answers: captions of one scene repeat each other,
    #: and predicting them teaches to look up as well
    words: float = 0.1
    #: bfloat16 autocast: with eager attention 1.5 times as fast on processors that have it
    bf16: bool = True
    lr: float = 1.0e-3
    scenes: int = 12000
    #: so many of them are drawn a second time with other things in their places
    jumbled: int = 6000
    seed: int = 9000


def read(
    model: Any, processor: Any, run: BaseRun, report: Callable[[dict[str, float]], None]
) -> dict[str, float]:
    """Train the language model on text alone, in one thread; returns the accuracies it ends with.

    To look up what a sentence tells comes first, by itself: the jump is sudden, at a step that depends on
    the seed, so an accuracy ends that phase and not a count. Short verdicts come before long ones: a verdict
    is one signal for a whole text.
    """
    torch.set_num_threads(1)
    renderer = Renderer(processor)
    rng = random.Random(run.seed + 1)
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=run.lr, weight_decay=0.01, betas=(0.9, 0.95))
    step = 0

    def update(*kinds: tuple[Lesson, int]) -> dict[str, float]:
        nonlocal step
        for group in optimizer.param_groups:
            group["lr"] = run.lr * min(1.0, (step + 1) / 30)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.bf16):
            losses = {
                make.__name__: reading_loss(
                    model, renderer, [make(unseen(rng, run), rng) for _ in range(n)], run.words
                )
                for make, n in kinds
            }
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        return {f"{name} loss": loss.item() for name, loss in losses.items()}

    model.train()
    with eager_attention(model, run.bf16):
        for lesson, count, goal in (
            (reading.lookup, run.lookups, run.lookup_accuracy),
            (reading.glance, run.glances, run.glance_accuracy),
            (reading.judge, run.judges, run.judge_accuracy),
        ):
            for trial in range(run.reading_steps):
                figures = update((lesson, count))
                if trial % 50 == 49:
                    found = reading_accuracy(model, renderer, (lesson,))
                    report({"reading step": step} | figures | found)
                    if found[lesson.__name__] >= goal:
                        break
        for trial in range(run.studying_steps):
            figures = update(*zip(READING[2:], run.studied, strict=True))
            if trial % 250 == 249:
                report({"reading step": step} | figures | reading_accuracy(model, renderer))
        return reading_accuracy(model, renderer)


def look(
    model: Any, processor: Any, run: BaseRun, report: Callable[[dict[str, float]], None]
) -> dict[str, float]:
    """Train the projector, then the language model with it, on pictures over the frozen tower.

    Returns what :func:`ground` measured.

    The token means of all kinds of lessons of a step are added up; one verdict would weigh nothing in a
    mean that it shares with a questionnaire's answers.
    """
    torch.manual_seed(run.seed)
    scenes, pixels = render(run.seed + 1, 0, run.scenes, run.clip.difficulty)
    jumbled = [jumble(scene) for scene in scenes[: run.jumbled]]
    shown = Shown(scenes, pixels, jumbled, draw_all(jumbled))
    model.model.vision_tower.requires_grad_(False)
    grounding = ground(model, processor, shown, run)
    report(grounding)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run.lr, weight_decay=0.01, betas=(0.9, 0.98))
    model.train()
    halves = [Half(model, processor, run, shown, run.seed + 1 + i) for i in range(2)]
    # a thread pool in every operation beside those two would spin between them
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(2) as pool, eager_attention(model, run.bf16):
        for step in range(run.steps):
            for group in optimizer.param_groups:
                group["lr"] = run.lr * min(rate(step / run.steps), (step + 1) / 30)
            (first, figures), (second, others) = pool.map(
                lambda half, part: half(part), halves, lessons_with_pictures(run)
            )
            for parameter, *both in zip(parameters, first, second, strict=True):
                known = [g for g in both if g is not None]
                parameter.grad = torch.stack(known).sum(0) if known else None
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if step % 250 == 249 or step + 1 == run.steps:
                report({"step": step + 1} | figures | others | reading_accuracy(model, halves[0].renderer))
    torch.set_num_threads(threads)
    model.eval()
    return grounding


@contextmanager
def eager_attention(model: Any, on: bool) -> Iterator[None]:
    """Eager attention for a while: at these sizes the faster of the two in bfloat16."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager" if on else usual)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@dataclass(frozen=True)
class Shown:
    """The scenes with their pictures (n, S, S, 3) uint8, and the jumbled ones with theirs."""

    scenes: list[Scene]
    pixels: np.ndarray
    jumbled: list[Scene]
    jumbled_pixels: np.ndarray


class Half:
    """One of two threads, each with half of a step's lessons.

    With models this small two threads with one core each are twice as fast as one with two.
    """

    def __init__(self, model: Any, processor: Any, run: BaseRun, shown: Shown, seed: int) -> None:
        self.model, self.run, self.shown = model, run, shown
        # a fast tokenizer is not to be shared by threads
        self.renderer = Renderer(copy.deepcopy(processor))
        self.rng = random.Random(seed)
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(self, kinds: Kinds) -> tuple[Gradients, dict[str, float]]:
        """Gradients of the summed losses, and each loss by its kind."""
        torch.set_num_threads(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.run.bf16):
            losses = {make.__name__: self.loss(make, count) for make, count in kinds}
        total = torch.stack(list(losses.values())).sum()
        gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
        return gradients, {f"{name} loss": loss.item() for name, loss in losses.items()}

    def loss(self, make: Lesson, count: int) -> torch.Tensor:
        if make not in WITH_PICTURES:
            lessons = [make(unseen(self.rng, self.run), self.rng) for _ in range(count)]
            return reading_loss(self.model, self.renderer, lessons, self.run.words)
        shown = self.shown
        scenes, pixels = (shown.scenes, shown.pixels)
        if make is reading.finding:
            scenes, pixels = (shown.jumbled, shown.jumbled_pixels)
        rows = [self.rng.randrange(len(scenes)) for _ in range(count)]
        lessons = [make(scenes[i], self.rng) for i in rows]
        batch = self.renderer.train_batch(lessons, [Pil.fromarray(pixels[i]) for i in rows])
        if make is reading.checking:
            batch["labels"] = answers_only(batch["labels"])
        return self.model(**batch).loss


def lessons_with_pictures(run: BaseRun) -> list[Kinds]:
    """The last phase's kinds of lessons and how many of each, in two parts of about the same cost."""
    return [
        [
            (reading.finding, run.finds),
            (reading.matching, run.matches),
            (reading.questions, run.questions),
        ],
        [
            (reading.captioning, run.captions),
            (reading.looking, run.looks),
            (reading.checking, run.checks),
            (reading.verify, run.verifies),
        ],
    ]


def ground(model: Any, processor: Any, shown: Shown, run: BaseRun) -> dict[str, float]:
    """Train the projector alone to put a patch near the words for what it shows: thing and colour.

    Two cross-entropies of cosines with the words' embeddings (temperature 1/16), over the patches where
    something stands; the scene tells what. A model that looks up words in a text then looks up things in a
    picture in the same way. Left to the answers alone, matching stopped near 0.78; from the same language
    model with its projector grounded it was 0.88 after a hundred steps.

    Returns:
        The share of held-out patches that are nearest to their thing's name, and to their colour.
    """
    vision = model.config.vision_config
    patches = cell_patches(vision.image_size, vision.patch_size)
    scenes = [*shown.scenes, *shown.jumbled]
    pixels = np.concatenate([shown.pixels, shown.jumbled_pixels])
    with torch.no_grad():
        grids = [vision_features(model, normalise(pixels[k : k + 256])) for k in range(0, len(scenes), 256)]
    side = vision.image_size // vision.patch_size
    grid = torch.cat(grids)[:, -side * side :]
    picture, patch, *truth = torch.tensor([
        (i, p, OBJECTS.index(group.name), COLOURS.index(group.colour))
        for i, scene in enumerate(scenes)
        for group in scene.groups
        for cell in group.cells
        for p in patches[cell]
    ]).unbind(1)  # fmt: skip
    features = grid[picture, patch]
    embeddings = model.get_input_embeddings().weight.detach()
    words = []
    for texts in (OBJECTS, COLOURS):
        ids = [processor.tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
        words.append(normalize(torch.stack([embeddings[row].mean(0) for row in ids]), dim=-1))
    length = embeddings.norm(dim=-1).mean()
    projector = model.model.multi_modal_projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=run.grounding_lr, weight_decay=0.01)
    learned = len(features) * 9 // 10
    for step in range(run.grounding_steps):
        for group in optimizer.param_groups:
            group["lr"] = run.grounding_lr * (1 - step / run.grounding_steps)
        rows = torch.randint(learned, (1024,))
        found = projector(features[rows])
        # as long as a word, so that it weighs like one in the residual stream
        loss = 0.1 * (found.norm(dim=-1) - length).pow(2).mean()
        for vectors, labels in zip(words, truth, strict=True):
            cosines = normalize(found, dim=-1) @ vectors.T
            loss = loss + torch.nn.functional.cross_entropy(16 * cosines, labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = projector(features[learned:])
    nearest = [(found @ vectors.T).argmax(-1) for vectors in words]
    right = [(n == labels[learned:]).float().mean().item() for n, labels in zip(nearest, truth, strict=True)]
    return {"patch names": right[0], "patch colours": right[1]}


def rate(done: float) -> float:
    """Share of the peak learning rate of the phase with pictures: level for a third, then a half cosine."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * max(0.0, done - 1 / 3) * 1.5))


def unseen(rng: random.Random, run: BaseRun) -> Scene:
    """A random scene of the stream that lessons are written about."""
    return sample_scene(run.seed + 2, rng.randrange(10**6))


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


def reading_accuracy(
    model: Any, renderer: Renderer, kinds: tuple[Lesson, ...] = READING, n: int = 128
) -> dict[str, float]:
    """Share of right first answer tokens on held-out lessons, for each kind of reading."""
    rng = random.Random(7)
    scenes = [sample_scene(77, i) for i in range(n)]
    return {
        make.__name__: first_token_accuracy(model, renderer, [make(s, rng) for s in scenes], None)
        for make in kinds
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
