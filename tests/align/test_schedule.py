from __future__ import annotations

import pytest

from align.schedule import lr_factor, permutation, step_seed, stream


def test_step_seed_is_stable_and_fits_torch():
    # fixed: a change would silently break the resuming of older runs
    assert step_seed(0, "step", 1) == 2111436579075594638
    assert len({step_seed(0, "step", i) for i in range(1000)}) == 1000
    assert all(0 <= step_seed(i) < 2**63 for i in range(100))


def test_stream_passes_over_everything_before_it_repeats():
    whole = stream(7, 3, 0, 21)
    assert [sorted(whole[a : a + 7]) for a in (0, 7, 14)] == [list(range(7))] * 3
    assert whole[:7] != whole[7:14] != whole[14:]
    assert stream(7, 4, 0, 7) != whole[:7]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 9), (6, 7), (7, 7), (7, 14), (3, 21)])
def test_stream_is_a_window_of_one_sequence(start: int, stop: int):
    assert stream(7, 3, start, stop) == stream(7, 3, 0, 21)[start:stop]


def test_stream_of_nothing():
    with pytest.raises(ValueError, match="at least one"):
        stream(0, 0, 0, 1)


def test_permutation_depends_on_the_seed_only():
    assert sorted(permutation(50, 1, "a")) == list(range(50))
    assert permutation(50, 1, "a") == permutation(50, 1, "a") != permutation(50, 1, "b")


def test_lr_factor_by_hand():
    warm = [lr_factor(s, 9, 4, "linear") for s in range(9)]
    assert warm == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert [lr_factor(s, 4, 0, "cosine") for s in range(4)] == pytest.approx(
        [1, 0.853553, 0.5, 0.146447], abs=1e-6
    )
    assert [lr_factor(s, 5, 2, "constant") for s in range(5)] == [0.5, 1, 1, 1, 1]
