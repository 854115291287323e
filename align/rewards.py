"""Rewards that need no model: correctness, length and completeness (thesis, 9.2 and appendix H), and the sum.

Each is a named part, logged on its own; the response's reward is the scaled score of the reward model plus
all parts. The KL penalty is per token and lives in ``align.rl``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from align.config import SymbolicSettings
from data.schema import Prompt

#: an option letter standing alone; "A" ahead of a lower-case word is an article, but not in "A or B"
_LETTER = re.compile(r"(?<![\w'])(?:A(?!\s+(?!or\b|and\b)[a-z])|[B-D])(?![\w'])")
#: words that follow an option "a", but no article
_NOT_A_NOUN = r"(?:is|because|since|as|for)\b"
#: "the answer is b", "option (c)"; here too an "a" ahead of a word is an article, and an "A" behind a colon,
#: where a sentence may start
_NAMED = re.compile(
    r"\b(?i:answer|option|choice)(?i:\s+is)?[\s:(\"']*"
    rf"([B-Db-d]|(?<!: )A|[Aa](?! +(?!{_NOT_A_NOUN})[A-Za-z]))\b(?!\s+or\b)"
)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class RewardPartError(ValueError):
    """A reward that cannot be added up; the text names the part."""


def stated_option(text: str) -> str | None:
    """The one option letter (A to D) that ``text`` commits to, or None; naming several commits to none.

    >>> stated_option("The answer is B."), stated_option("A or C"), stated_option("A dog.")
    ('B', None, None)
    """
    letters = set(_LETTER.findall(text)) | {letter.upper() for letter in _NAMED.findall(text)}
    return letters.pop() if len(letters) == 1 else None


def stated_yes_no(text: str) -> str | None:
    """ "yes" or "no" if the first sentence starts with it or holds just one of the two words, else None."""
    sentence = re.split(r"[.!?\n]", text.strip(), maxsplit=1)[0]
    words = [word.lower() for word in _YES_NO.findall(sentence)]
    if not words:
        return None
    leads = re.match(r"\W*(?:yes|no)\b", sentence, re.IGNORECASE) is not None
    return words[0] if leads or len(set(words)) == 1 else None


def correctness(prompt: Prompt, text: str, settings: SymbolicSettings) -> float:
    """Multiple choice: ``correct_choice`` for the right option, else 0. Yes/no: plus if right, minus if not.

    An answer that cannot be read is wrong; a "general" prompt has no known answer and gets 0.
    """
    kind = prompt.answer_type
    if kind == "general":
        return 0.0
    if kind in ("yes", "no"):
        size = settings.correct_yes if kind == "yes" else settings.correct_no
        return size if stated_yes_no(text) == kind else -size
    return settings.correct_choice if stated_option(text) == kind else 0.0


def symbolic(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    tokens: Sequence[int],
    complete: Sequence[bool],
    settings: SymbolicSettings,
    max_tokens: int,
) -> dict[str, Tensor]:
    """The symbolic parts of B responses by name, each (B,) float32.

    ``tokens`` counts a response's tokens (its end token included), ``max_tokens`` is the longest response
    allowed: length = coefficient of the prompt's length class × tokens / max_tokens. ``complete`` is false
    for a response without an end token.

    Raises:
        ValueError: ``max_tokens`` is not positive, or the sequences differ in length.
    """
    if max_tokens < 1:
        raise ValueError(
            f"max_tokens is {max_tokens}; the length reward divides by it, give a positive number"
        )
    rows = list(zip(prompts, texts, tokens, complete, strict=True))
    parts = {
        "correctness": [correctness(p, text, settings) for p, text, _, _ in rows],
        "length": [settings.length.get(p.length_class, 0.0) * n / max_tokens for p, _, n, _ in rows],
        "incomplete": [0.0 if done else settings.incomplete for _, _, _, done in rows],
    }
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in parts.items()}


def total(scores: Tensor, parts: Mapping[str, Tensor], scale: float = 1.0) -> Tensor:
    """``scale`` × scores plus every part, (B,).

    ``scale`` stands for the reference code's factor 10 on unwhitened rewards. Raises RewardPartError for a
    part of another shape, or with a value that is not finite.
    """
    result = scale * scores
    for name, part in {"score": result, **parts}.items():
        if part.shape != scores.shape:
            raise RewardPartError(
                f"reward part {name!r} has shape {tuple(part.shape)}, scores {tuple(scores.shape)}"
            )
        if not bool(torch.isfinite(part).all()):
            rows = (~torch.isfinite(part)).nonzero().flatten().tolist()
            raise RewardPartError(
                f"reward part {name!r} is not finite in rows {rows}; mend its source before training"
            )
    for part in parts.values():
        result = result + part.to(result)
    return result
