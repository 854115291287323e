"""Scenes: determinism, the rules of the grid, and the skew that tempts a model."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from data.world.scene import (
    CATEGORIES,
    CELLS,
    COLOURS,
    ENVIRONMENTS,
    OBJECTS,
    PARTNERS,
    THEMES,
    TYPICAL,
    WORDS,
    Scene,
    sample_scene,
)

N = 2000


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(11, i) for i in range(N)]


def test_twelve_categories_of_three_objects_each() -> None:
    assert len(CATEGORIES) == 12
    assert all(len(set(names)) == 3 for names in CATEGORIES.values())
    assert len(set(OBJECTS)) == len(OBJECTS) == 36


def test_tables_name_known_objects_only() -> None:
    for environment, names in THEMES.values():
        assert environment in ENVIRONMENTS
        assert set(names) <= set(OBJECTS)
    assert set(PARTNERS) | set(PARTNERS.values()) <= set(OBJECTS)
    assert set(TYPICAL) <= set(OBJECTS) and set(TYPICAL.values()) <= set(COLOURS)


def test_equal_arguments_give_equal_scenes(scenes: list[Scene]) -> None:
    assert [sample_scene(11, i) for i in range(50)] == scenes[:50]
    assert len({s.id for s in scenes}) == N
    assert sample_scene(12, 0).groups != scenes[0].groups or sample_scene(12, 1).groups != scenes[1].groups


def test_difficulty_does_not_change_what_is_there(scenes: list[Scene]) -> None:
    hard = sample_scene(11, 7, 0.9)
    assert (hard.groups, hard.text, hard.seed) == (scenes[7].groups, scenes[7].text, scenes[7].seed)
    assert hard.difficulty == 0.9


@pytest.mark.parametrize("difficulty", [-0.1, 1.1, math.nan])
def test_difficulty_is_a_share(difficulty: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        sample_scene(0, 0, difficulty)


def test_every_scene_keeps_the_rules_of_the_grid(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert 2 <= len(scene.groups) <= 4
        assert len(set(scene.objects)) == len(scene.objects)
        taken = [c for g in scene.groups for c in g.cells] + ([scene.text[0]] if scene.text else [])
        assert len(set(taken)) == len(taken)
        assert all(0 <= c < len(CELLS) for c in taken)
        assert all(1 <= g.count <= 3 and list(g.cells) == sorted(g.cells) for g in scene.groups)
        # reading order
        assert [g.cells[0] for g in scene.groups] == sorted(g.cells[0] for g in scene.groups)
        assert scene.text is None or scene.text[1] in WORDS


def test_everything_occurs(scenes: list[Scene]) -> None:
    assert {n for s in scenes for n in s.objects} == set(OBJECTS)
    assert {g.colour for s in scenes for g in s.groups} == set(COLOURS)
    assert {s.environment for s in scenes} == set(ENVIRONMENTS)
    assert {g.count for s in scenes for g in s.groups} == {1, 2, 3}
    boards = sum(s.text is not None for s in scenes) / N
    assert abs(boards - 0.25) < 4 * math.sqrt(0.25 * 0.75 / N)


def test_partners_come_together_far_more_often_than_by_chance(scenes: list[Scene]) -> None:
    """P(partner | its tempter) against P(partner): at least threefold for every pair."""
    count = Counter(n for s in scenes for n in s.objects)
    for tempter, partner in PARTNERS.items():
        both = sum(tempter in s.objects and partner in s.objects for s in scenes)
        assert both / count[tempter] > 3 * count[partner] / N, (tempter, partner)


def test_json_round_trip(scenes: list[Scene]) -> None:
    for scene in scenes[:100]:
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
