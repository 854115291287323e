"""Rows of unlike length in parts that go through a model together, with little padding."""

from __future__ import annotations

from collections.abc import Sequence

#: what a pass costs besides its tokens, in tokens: with fewer, short and long rows would always part
PASS = 100


def parts(lengths: Sequence[int], size: int, *, even: bool = False) -> list[list[int]]:
    """Indices of the rows in parts of at most ``size``, the shortest rows first.

    The cuts between the sorted rows are those with the fewest tokens, padding included, and ``PASS`` for each
    part. ``even``: every part but the last has ``size`` rows, for processes that must take equally many.

    >>> parts([9, 400, 10, 390], 3), parts([9, 400, 10, 390], 3, even=True)
    ([[0, 2], [3, 1]], [[0, 2, 3], [1]])
    """
    rows = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    if even:
        return [rows[start : start + size] for start in range(0, len(rows), size)]
    cost, begin = [0], [0]
    for end in range(1, len(rows) + 1):
        longest = lengths[rows[end - 1]]
        ways = [(cost[at] + PASS + (end - at) * longest, at) for at in range(max(0, end - size), end)]
        least, at = min(ways)
        cost.append(least)
        begin.append(at)
    found: list[list[int]] = []
    end = len(rows)
    while end:
        found.append(rows[begin[end] : end])
        end = begin[end]
    return found[::-1]
