"""Rows in parts: every row once, the cheapest cuts, and equal counts where processes need them."""

from __future__ import annotations

import itertools
import random

import pytest

from align.parts import PASS, parts


def cost(lengths: list[int], found: list[list[int]]) -> int:
    return sum(PASS + len(part) * max(lengths[i] for i in part) for part in found)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_cuts_of_the_sorted_rows_cost_less(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [int(rng.expovariate(1 / 150)) + 20 for _ in range(9)]
    found = parts(lengths, 4)
    assert sorted(i for part in found for i in part) == list(range(9))
    assert max(map(len, found)) <= 4
    rows = sorted(range(9), key=lambda i: lengths[i])
    least = min(
        cost(lengths, [rows[a:b] for a, b in itertools.pairwise([0, *cuts, 9])])
        for n in range(9)
        for cuts in itertools.combinations(range(1, 9), n)
        if max(b - a for a, b in itertools.pairwise([0, *cuts, 9])) <= 4
    )
    assert cost(lengths, found) == least


def test_rows_of_one_length_fill_their_parts() -> None:
    assert [len(part) for part in parts([50] * 10, 4)] in ([2, 4, 4], [4, 4, 2], [4, 2, 4])


def test_a_long_row_goes_alone() -> None:
    assert parts([30, 900, 31, 29], 4) == [[3, 0, 2], [1]]


def test_even_parts_do_not_depend_on_the_lengths() -> None:
    for lengths in ([30, 900, 31, 29, 40], [7] * 5):
        assert [len(part) for part in parts(lengths, 2, even=True)] == [2, 2, 1]
