"""Contrastive training of a small CLIP encoder on the built-in world.

Two InfoNCE terms, both open_clip's own ``ClipLoss``: picture against description, and region (one
grid cell, the mean of its patches) against phrase. With the picture term alone the grid features
of a tower this small hardly tell what stands where; ``make world-base ARGS=--compare-terms`` measures it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.model import CLIPTextCfg, _build_text_tower
from torch import Tensor, nn

from align.models.vision import OPENAI_MEAN, OPENAI_STD, OpenClipVisionModel
from data.processes import end_with_parent
from data.world import language as lang
from data.world.draw import draw_scene
from data.world.scene import COLOURS, OBJECTS, Scene, sample_scene

CONTEXT = 64


#: an encoder for all difficulties: lowest and highest, drawn evenly a scene
Span = tuple[float, float]


def _scene(seed: int, index: int, span: Span) -> Scene:
    return sample_scene(seed, index, random.Random(f"difficulty/{seed}/{index}").uniform(*span))


def _pixels(scenes: list[Scene]) -> np.ndarray:
    return np.stack([np.asarray(draw_scene(scene)) for scene in scenes])


def scenes_of(seed: int, start: int, n: int, span: Span) -> list[Scene]:
    """Scenes ``start .. start + n`` of a stream, their difficulties drawn from ``span``."""
    return [_scene(seed, i, span) for i in range(start, start + n)]


def draw_all(scenes: list[Scene], workers: int = 2) -> np.ndarray:
    """The scenes' pixels (n, S, S, 3) uint8."""
    parts = [scenes[k : k + 200] for k in range(0, len(scenes), 200)]
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        return np.concatenate(list(pool.map(_pixels, parts)))


def render(seed: int, start: int, n: int, span: Span, workers: int = 2) -> tuple[list[Scene], np.ndarray]:
    """Scenes ``start .. start + n`` of a stream, and their pixels (n, S, S, 3) uint8."""
    scenes = scenes_of(seed, start, n, span)
    return scenes, draw_all(scenes, workers)


def normalise(pixels: np.ndarray) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float with CLIP's mean and standard deviation."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_MEAN, OPENAI_STD))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


def cell_patches(image_size: int, patch_size: int) -> list[list[int]]:
    """The patches (row by row) that each of a scene's nine cells covers."""
    side = image_size // patch_size
    step = side // 3
    return [
        [(step * (c // 3) + i) * side + step * (c % 3) + j for i in range(step) for j in range(step)]
        for c in range(9)
    ]


class Clip(nn.Module):
    """Vision tower + open_clip text tower + a region head, with one temperature for each term."""

    def __init__(
        self, vision: OpenClipVisionModel, encode: Callable[[str], list[int]], vocab_size: int
    ) -> None:
        super().__init__()
        config = vision.config
        self.vision = vision
        self.encode = encode
        self.end = vocab_size  # one id past the vocabulary: the highest, as open_clip's argmax pooling wants
        cfg = CLIPTextCfg(context_length=CONTEXT, vocab_size=vocab_size + 1, width=128, heads=4, layers=2)
        self.text = _build_text_tower(config.embed_dim, cfg)
        self.region = nn.Linear(config.hidden_size, config.embed_dim)
        self.scales = nn.Parameter(torch.full((2,), 2.659))
        cells = cell_patches(config.image_size, config.patch_size)
        self.register_buffer("cells", torch.tensor(cells), persistent=False)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """(n, embed_dim), unit length. Runs on the longest text's length, not on the full context."""
        rows = [[*self.encode(t)[: CONTEXT - 1], self.end] for t in texts]
        length = max(map(len, rows))
        ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
        t = self.text
        x = t.token_embedding(ids) + t.positional_embedding[:length]
        x = t.ln_final(t.transformer(x, attn_mask=t.attn_mask[:length, :length]))
        x = x[torch.arange(len(rows)), ids.argmax(1)] @ t.text_projection
        return F.normalize(x, dim=-1)

    def grid(self, pixels: Tensor) -> Tensor:
        """(B, 1 + cells, width) after the tower's final norm."""
        return self.vision.visual.ln_post(self.vision(pixels).last_hidden_state)

    def embed_regions(self, grid: Tensor, rows: list[int], cells: list[int]) -> Tensor:
        """Mean patch of scene cell ``cells[i]`` in picture ``rows[i]`` -> (n, embed_dim), unit length."""
        index = self.cells[torch.tensor(cells)]
        patches = grid[:, 1:][torch.tensor(rows).unsqueeze(1), index]
        return F.normalize(self.region(patches.mean(1)), dim=-1)


def regions(scenes: list[Scene], rng: random.Random) -> tuple[list[str], list[int], list[int]]:
    """One random region for each different phrase in the batch, so that no negative is a positive."""
    where: dict[str, list[tuple[int, int]]] = {}
    for row, scene in enumerate(scenes):
        for g in scene.groups:
            where.setdefault(lang.phrase(g.name, g.colour), []).extend((row, c) for c in g.cells)
        if scene.text:
            where.setdefault(f"a board says {scene.text[1]}", []).append((row, scene.text[0]))
    picks = [rng.choice(places) for places in where.values()]
    return list(where), [p[0] for p in picks], [p[1] for p in picks]


@dataclass(frozen=True)
class ClipRun:
    images: int = 16000
    epochs: int = 6
    batch: int = 128
    lr: float = 1.5e-3
    region_weight: float = 1.0
    difficulty: Span = (0.2, 0.9)
    seed: int = 9000


def train(clip: Clip, run: ClipRun, report: Callable[[dict[str, float]], None]) -> dict[str, float]:
    """Train in place; ``report`` gets the losses and the held-out accuracies after each epoch."""
    torch.manual_seed(run.seed)
    rng = random.Random(run.seed)
    scenes, pixels = render(run.seed, 0, run.images, run.difficulty)
    held, held_pixels = render(run.seed, 500_000, 1000, run.difficulty)
    parameters = list(clip.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=run.lr, weight_decay=0.05, betas=(0.9, 0.98))
    total = run.epochs * (run.images // run.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.lr, total_steps=total, pct_start=0.1)
    contrast = ClipLoss()
    figures: dict[str, float] = {}
    for epoch in range(run.epochs):
        order = rng.sample(range(run.images), run.images)
        for k in range(0, run.images - run.batch + 1, run.batch):
            rows = order[k : k + run.batch]
            batch = [scenes[i] for i in rows]
            grid = clip.grid(normalise(pixels[rows]))
            pictures = F.normalize(grid[:, 0] @ clip.vision.visual.proj, dim=-1)
            texts = clip.embed_texts([lang.describe(s, rng) for s in batch])
            loss = contrast(pictures, texts, clip.scales[0].exp())
            if run.region_weight:
                phrases, where, cells = regions(batch, rng)
                found = clip.embed_regions(grid, where, cells)
                loss = loss + run.region_weight * contrast(
                    found, clip.embed_texts(phrases), clip.scales[1].exp()
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        figures = {"epoch": epoch + 1.0, "loss": loss.item(), **region_accuracy(clip, held, held_pixels)}
        report(figures)
    return figures


def compare_terms(
    make: Callable[[], Clip], run: ClipRun, report: Callable[[dict[str, float]], None]
) -> dict[str, dict[str, float]]:
    """Train the same tower with both terms and with the picture term alone; :func:`probe` of each."""
    shown = render(run.seed + 3, 0, 2000, run.difficulty)
    held = render(run.seed + 3, 500_000, 1000, run.difficulty)
    found = {}
    for name, weight in (("picture + region", run.region_weight), ("picture alone", 0.0)):
        torch.manual_seed(run.seed)
        clip = make()
        untrained = probe(clip, shown, held)
        train(clip, replace(run, region_weight=weight), report)
        found[name] = {"untrained": untrained, "trained": probe(clip, shown, held)}
    return found


#: scenes with their pixels, as :func:`render` gives them
Rendered = tuple[list[Scene], np.ndarray]


@torch.no_grad()
def probe(clip: Clip, shown: Rendered, held: Rendered, ridge: float = 1.0) -> float:
    """Held-out accuracy of a linear probe (ridge regression, 36 names) on single frozen grid cells.

    Asks what a language model can read off the patches, whatever term shaped them.
    """

    def cells(part: Rendered) -> tuple[Tensor, Tensor]:
        scenes, pixels = part
        found, names = [], []
        for k in range(0, len(scenes), 250):
            grid = clip.grid(normalise(pixels[k : k + 250]))[:, 1:][:, clip.cells].mean(2)
            for row, scene in enumerate(scenes[k : k + 250]):
                for group in scene.groups:
                    found += [grid[row, c] for c in group.cells]
                    names += [OBJECTS.index(group.name)] * group.count
        return torch.stack(found), torch.tensor(names)

    x, y = cells(shown)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x = F.pad((x - mean) / std, (0, 1), value=1.0)
    weight = torch.linalg.solve(
        x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ F.one_hot(y, len(OBJECTS)).float()
    )
    x, y = cells(held)
    guess = (F.pad((x - mean) / std, (0, 1), value=1.0) @ weight).argmax(1)
    return (guess == y).float().mean().item()


@torch.no_grad()
def region_accuracy(clip: Clip, scenes: list[Scene], pixels: np.ndarray) -> dict[str, float]:
    """Zero-shot accuracy over the 36 x 8 phrases for each object instance: ``name`` and ``colour``."""
    labels = [(n, c) for n in OBJECTS for c in COLOURS]
    texts = clip.embed_texts([lang.phrase(n, c) for n, c in labels])
    right = {"name": 0, "colour": 0}
    total = 0
    for k in range(0, len(scenes), 250):
        grid = clip.grid(normalise(pixels[k : k + 250]))
        truth = [(r, c, g) for r, s in enumerate(scenes[k : k + 250]) for g in s.groups for c in g.cells]
        found = clip.embed_regions(grid, [t[0] for t in truth], [t[1] for t in truth])
        for best, (_, _, g) in zip((found @ texts.T).argmax(1).tolist(), truth, strict=True):
            right["name"] += labels[best][0] == g.name
            right["colour"] += labels[best][1] == g.colour
        total += len(truth)
    return {k: v / total for k, v in right.items()}
