from __future__ import annotations

import pytest

from evals.parse import pope_official, rating_official, rating_strict, ratings_found, yes_no_strict


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("No", "no"),
        ("no, there is a cat", "no"),
        ("There is not a dog here", "no"),
        ("No, there is none. Yes", "no"),
        ("Yes. No", "yes"),  # only the first sentence counts
        ("I see no, really", "no"),  # commas are dropped before words are compared
        ("NO", "yes"),
        ("No!", "yes"),
        ("\nNo", "yes"),  # split at blanks only
        ("There isn't one", "yes"),
        ("Nothing", "yes"),
        ("", "yes"),
        (".No", "yes"),
        ("no-one", "yes"),
    ],
)
def test_pope_official_keeps_the_quirks(text: str, want: str) -> None:
    assert pope_official(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("No!", "no"),
        ("no, there is not", "no"),
        ("Answer: yes", "yes"),
        ("The answer is no.", "no"),
        ("Sure, yes", "yes"),
        ("No. There is a cat, no dog.", "no"),
        ("**Yes**, it is", "yes"),
        ("", None),
        ("yes and no", None),
        ("Yes. No.", None),
        ("Yes there is no dog", None),
        ("There is a cat.", None),
        ("nothing", None),
        ("I know it is", None),
        ("yesterday", None),
    ],
)
def test_strict_says_none_where_the_text_does_not_answer(text: str, want: str | None) -> None:
    assert yes_no_strict(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Rating: 4", 4),
        ("all well. RATING: 0, since", 0),
        ("Rating: 10", 1),
        ("Rating:5", None),
        ("rating: 7", None),
        ("Rating: 2 ... Rating: 3", None),
        ("Rating: 2 ... Rating: 2", 2),
        ("", None),
    ],
)
def test_rating_official(text: str, want: int | None) -> None:
    assert rating_official(text) == want


def test_ratings_found_lists_all() -> None:
    assert ratings_found("Rating: 5, or rating: 1") == [1, 5]


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: 4", 4),
        ("fine\n\n**Rating: 4**\n", 4),
        ("Rating: 3/6", 3),
        ("It says Rating: 6.\nRating: 0.", 0),
        ("Rating: 4, I think", None),
        ("Rating: 4\nThank you", None),
        ("Rating: 10", None),
        ("Rating:5", 5),
        ("7", None),
        ("", None),
    ],
)
def test_the_strict_rating_is_the_last_line(text: str, rating: int | None) -> None:
    assert rating_strict(text) == rating
