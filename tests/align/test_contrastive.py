"""The contrastive encoder at toy size: what is compared with what, and that training learns."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from align import contrastive
from align.contrastive import Clip, ClipRun, normalise, probe, region_accuracy, regions, render, train
from align.models.vision import OPENAI_MEAN, OPENAI_STD, OpenClipVisionConfig, OpenClipVisionModel
from data.world import language as lang
from data.world.draw import draw_scene
from data.world.scene import Group, Scene, sample_scene

SHAPE = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 96}


def encode(text: str) -> list[int]:
    """Letters and spaces as ids: a tokenizer of 30."""
    return [1 + "abcdefghijklmnopqrstuvwxyz ".find(c) for c in text.lower()]


@pytest.fixture
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(OpenClipVisionModel(OpenClipVisionConfig(dict(SHAPE), embed_dim=16)), encode, 30)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Serial(ProcessPoolExecutor):
        def map(self, fn: Any, *values: Any, **_: Any) -> Any:
            return map(fn, *values)

    monkeypatch.setattr(contrastive, "ProcessPoolExecutor", Serial)


def test_rendered_pixels_are_the_scenes(clip: Clip) -> None:
    scenes, pixels = render(5, 10, 3, (0.2, 0.9))
    assert pixels.shape == (3, 96, 96, 3) and pixels.dtype == np.uint8
    assert [s.id for s in scenes] == [sample_scene(5, 10 + i).id for i in range(3)]
    assert all(0.2 <= s.difficulty <= 0.9 for s in scenes) and len({s.difficulty for s in scenes}) == 3
    assert np.array_equal(pixels[1], np.asarray(draw_scene(scenes[1])))


def test_normalise_is_clips() -> None:
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    pixels[0, 1, 0] = (255, 0, 51)
    expected = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), OPENAI_MEAN, OPENAI_STD)]
    assert normalise(pixels)[0, :, 1, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_cells_cover_the_patches_once(clip: Clip) -> None:
    """96 px in 16 px patches: 6 a row, 2 x 2 a cell; cell 5 (right, middle row) by hand."""
    assert clip.cells.shape == (9, 4)
    assert sorted(clip.cells.flatten().tolist()) == list(range(36))
    assert clip.cells[5].tolist() == [16, 17, 22, 23]


def test_a_region_sees_its_own_cell_only(clip: Clip) -> None:
    grid = torch.zeros(2, 37, 32)
    grid[1, 1 + 16] = 1.0
    with torch.no_grad():
        found = clip.embed_regions(grid, [1, 1, 0], [5, 4, 5])
    assert torch.allclose(found.norm(dim=1), torch.ones(3))
    assert not torch.allclose(found[0], found[1])
    assert torch.allclose(found[1], found[2])


def test_padding_does_not_change_a_text(clip: Clip) -> None:
    clip.eval()
    with torch.no_grad():
        alone = clip.embed_texts(["a cat"])
        beside = clip.embed_texts(["a cat", "a much longer text about two blue benches"])
    assert torch.allclose(alone[0], beside[0], atol=1e-6)
    assert torch.allclose(beside.norm(dim=1), torch.ones(2))


def test_texts_are_cut_at_the_context(clip: Clip) -> None:
    long = "a cat " * 60
    with torch.no_grad():
        assert torch.allclose(clip.embed_texts([long]), clip.embed_texts([long + "and more"]))


def test_regions_hold_every_phrase_once_at_a_true_place() -> None:
    scenes = [
        Scene("a", "rest", "bedroom", (Group("cat", "red", (0, 3)),), 0, (8, "ZOO")),
        Scene("b", "rest", "bedroom", (Group("cat", "red", (5,)), Group("cup", "blue", (7,))), 0),
    ]
    seen = set()
    for i in range(40):
        phrases, rows, cells = regions(scenes, random.Random(i))
        assert phrases == ["a red cat", "a board says ZOO", "a blue cup"]
        assert (rows[1], cells[1]) == (0, 8) and (rows[2], cells[2]) == (1, 7)
        seen.add((rows[0], cells[0]))
    assert seen == {(0, 0), (0, 3), (1, 5)}


def test_region_accuracy_of_a_perfect_and_a_blind_encoder(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [sample_scene(3, i) for i in range(4)]
    pixels = np.zeros((4, 96, 96, 3), np.uint8)
    labels = [lang.phrase(n, c) for n in contrastive.OBJECTS for c in contrastive.COLOURS]
    monkeypatch.setattr(Clip, "embed_texts", lambda self, texts: torch.eye(len(texts)))

    def perfect(self: Clip, grid: torch.Tensor, rows: list[int], cells: list[int]) -> torch.Tensor:
        truth = {
            (r, c): lang.phrase(g.name, g.colour)
            for r, s in enumerate(scenes)
            for g in s.groups
            for c in g.cells
        }
        return torch.eye(len(labels))[[labels.index(truth[r, c]) for r, c in zip(rows, cells)]]

    monkeypatch.setattr(Clip, "embed_regions", perfect)
    assert region_accuracy(clip, scenes, pixels) == {"name": 1.0, "colour": 1.0}
    # always "red backpack", the first label
    monkeypatch.setattr(
        Clip, "embed_regions", lambda self, g, rows, cells: torch.eye(len(labels))[[0] * len(rows)]
    )
    all_groups = [g for s in scenes for g in s.groups for _ in g.cells]
    red = sum(g.colour == "red" for g in all_groups) / len(all_groups)
    assert region_accuracy(clip, scenes, pixels)["colour"] == pytest.approx(red)


def test_a_probe_reads_names_that_stand_in_the_grid_and_no_others(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    width = len(contrastive.OBJECTS)

    def grids(scenes: list[Scene], told: bool) -> torch.Tensor:
        noise = torch.randn(len(scenes), 1 + clip.cells.numel(), width)
        for row, scene in enumerate(scenes):
            for group in scene.groups:
                for cell in group.cells:
                    at = 1 + clip.cells[cell]
                    noise[row, at, contrastive.OBJECTS.index(group.name)] += 20.0 * told
        return noise

    parts = [[sample_scene(6, i) for i in range(n, n + 120)] for n in (0, 120)]
    pixels = np.zeros((120, 8, 8, 3), np.uint8)
    found = {}
    for told in (True, False):
        made = iter([grids(part, told) for part in parts])
        monkeypatch.setattr(Clip, "grid", lambda self, pixels, made=made: next(made))
        found[told] = probe(clip, *[(part, pixels) for part in parts])
    assert found[True] > 0.95
    assert found[False] < 0.2


def test_training_lowers_the_loss_and_repeats(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    real = contrastive.render
    # the thousand held-out pictures are more than a toy needs
    monkeypatch.setattr(
        contrastive, "render", lambda seed, start, n, span: real(seed, start, min(n, 32), span)
    )
    start = {k: v.clone() for k, v in clip.state_dict().items()}
    losses: list[float] = []
    train(clip, ClipRun(images=32, epochs=6, batch=16, lr=3e-3), lambda f: losses.append(f["loss"]))
    assert len(losses) == 6 and losses[-1] < 0.9 * losses[0]
    clip.load_state_dict(start)
    again: list[float] = []
    train(clip, ClipRun(images=32, epochs=6, batch=16, lr=3e-3), lambda f: again.append(f["loss"]))
    assert again == losses
