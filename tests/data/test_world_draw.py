"""Drawings: all of them, apart from each other, in their cells, and as hard to see as asked."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from data.world.draw import SIDE, blur, contact_sheet, draw_scene
from data.world.pen import PALETTE
from data.world.scene import COLOURS, ENVIRONMENTS, OBJECTS, WORDS, Group, Scene, sample_scene
from data.world.shapes import SHAPES, SHEET, sprite


def scene_of(*groups: Group, difficulty: float = 0.0, environment: str = "park", **more: object) -> Scene:
    return Scene("s", "play", environment, groups, 5, difficulty=difficulty, **more)  # type: ignore[arg-type]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=float)


def cell(array: np.ndarray, index: int) -> np.ndarray:
    size = array.shape[0] // 3
    row, column = divmod(index, 3)
    return array[row * size : (row + 1) * size, column * size : (column + 1) * size]


def seen(name: str, colour: str, side: int = 30) -> np.ndarray:
    """The drawing on mid grey, at the size that it has in a picture."""
    sheet = Image.new("RGBA", (SHEET, SHEET), (190, 190, 190, 255))
    return pixels(Image.alpha_composite(sheet, sprite(name, colour)).resize((side, side)))


def test_every_object_has_a_drawing_and_every_colour_a_tone() -> None:
    assert set(SHAPES) == set(OBJECTS)
    assert tuple(PALETTE) == COLOURS


@pytest.mark.parametrize("name", OBJECTS)
def test_all_colours_of_an_object_are_drawn(name: str) -> None:
    for colour in COLOURS:
        art = np.asarray(sprite(name, colour), dtype=int)
        assert art.shape == (SHEET, SHEET, 4)
        opaque = art[..., 3] > 250
        assert opaque.mean() > 0.1
        near = np.abs(art[..., :3] - PALETTE[colour]).max(-1) < 12
        assert (near & opaque).sum() > 0.03 * opaque.sum(), colour
    for one, other in combinations(COLOURS, 2):
        assert np.abs(seen(name, one) - seen(name, other)).mean() > 1, (one, other)


@pytest.mark.parametrize("colour", COLOURS)
def test_no_two_objects_look_alike(colour: str) -> None:
    looks = {name: seen(name, colour) for name in OBJECTS}
    distance = {(a, b): np.abs(looks[a] - looks[b]).mean() for a, b in combinations(OBJECTS, 2)}
    nearest = min(distance, key=lambda pair: distance[pair])
    assert distance[nearest] > 10, (nearest, distance[nearest])


def test_equal_scenes_give_equal_pixels() -> None:
    for i in range(20):
        picture = draw_scene(sample_scene(3, i))
        assert picture.size == (SIDE, SIDE) and picture.mode == "RGB"
        assert picture.tobytes() == draw_scene(sample_scene(3, i)).tobytes()


def test_another_seed_moves_things_only() -> None:
    scene = sample_scene(3, 0, 0.0)
    assert draw_scene(scene).tobytes() != draw_scene(replace(scene, seed=scene.seed + 1)).tobytes()


def test_difficulty_zero_is_clean() -> None:
    for i in range(20):
        easy, hard = sample_scene(4, i, 0.0), sample_scene(4, i, 0.9)
        assert draw_scene(easy).tobytes() == draw_scene(hard, clean=True).tobytes()
        assert draw_scene(hard).tobytes() != draw_scene(easy).tobytes()


def test_noise_grows_with_difficulty() -> None:
    """Empty ground at difficulty d differs by noise of 30 d; clipping costs a little of it."""
    empty = pixels(draw_scene(scene_of(environment="street")))
    for d in (0.2, 0.8):
        noisy = pixels(draw_scene(scene_of(environment="street", difficulty=d)))
        assert (noisy - empty).std() == pytest.approx(30 * d, rel=0.12)


def test_hard_objects_are_fainter_and_smaller_on_average() -> None:
    """Mean change that the objects make to the ground, without the noise of the pixels."""
    changed = []
    for d in (0.0, 1.0):
        total = 0.0
        for seed in range(30):
            scene = replace(scene_of(Group("clock", "red", (4,)), difficulty=d), seed=seed)
            bare = replace(scene, groups=())
            total += (pixels(draw_scene(scene)) - pixels(draw_scene(bare))).__abs__().mean()
        changed.append(total)
    assert changed[1] < 0.75 * changed[0]


@pytest.mark.parametrize("where", range(9))
def test_an_object_stays_in_its_cell(where: int) -> None:
    ground = pixels(draw_scene(scene_of()))
    drawn = pixels(draw_scene(scene_of(Group("pizza", "purple", (where,)))))
    for index in range(9):
        change = np.abs(cell(drawn, index) - cell(ground, index)).mean()
        assert change > 5 if index == where else change == 0


def test_a_board_is_legible_and_words_differ() -> None:
    boards = {w: cell(pixels(draw_scene(scene_of(text=(4, w)))), 4) for w in WORDS}
    for one, other in combinations(WORDS, 2):
        assert np.abs(boards[one] - boards[other]).mean() > 2
    dark = [(board.max(-1) < 90).mean() for board in boards.values()]
    assert min(dark) > 0.05


def test_environments_look_different() -> None:
    grounds = [pixels(draw_scene(scene_of(environment=e))) for e in ENVIRONMENTS]
    assert all(np.abs(a - b).mean() > 5 for a, b in combinations(grounds, 2))


def test_any_side() -> None:
    scene = sample_scene(1, 1, 0.0)
    large = draw_scene(scene, 288)
    assert large.size == (288, 288)
    assert (
        np.abs(pixels(large.resize((SIDE, SIDE), Image.Resampling.BOX)) - pixels(draw_scene(scene))).mean()
        < 8
    )


def test_blur_of_nothing_changes_nothing() -> None:
    picture = draw_scene(sample_scene(1, 2))
    assert blur(picture, 0.0) is picture
    assert pixels(blur(picture, 2.0)).std() < pixels(picture).std()


def test_contact_sheet_shows_everything() -> None:
    sheet = contact_sheet(16)
    assert sheet.size == (2 * (84 + 16 * 8), 16 * 18)
