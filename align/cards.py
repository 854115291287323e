"""Model cards: the README.md saved beside an adapter, for whoever finds the folder without the run."""

from __future__ import annotations

import re
from collections import Counter

from align.config import ModelSettings, PpoSettings, RewardSettings
from align.pairs import Share, ceiling
from align.reward_model import RewardInfo

#: how often human labelers agree with each other (thesis, appendix H)
LABELERS = 0.69


def reward_card(
    info: RewardInfo,
    settings: RewardSettings,
    n: int,
    skipped: Counter[str],
    labelers: Share | None = None,
) -> str:
    """What a reward model reads, what it was trained on (``n`` pairs), how good it is, and what to expect.

    ``labelers``: how often the data's own annotators agree (``align.pairs.label_agreement``), if known.
    """
    lines = [
        "# Reward model",
        "",
        f"Base: {_base(info.model)}.",
        "",
        "## What it reads",
        "",
        "The image, the conversation with the response, then this turn, behind which the score is read. "
        f"{_places(info)} `reward.json` holds the same, tied to the head and the adapter by their hashes.",
        "",
        *_fenced(info.template),
        "",
        "## Training",
        "",
        f"Trained on {n} pairs by the question `{info.target}`, seed {settings.seed}; passed over: "
        f"{skipped['ties']} ties, {skipped['identical']} pairs of equal texts.",
        "",
        "## Agreement with held-out choices",
        "",
        *_agreement(info.heldout, labelers),
        "",
    ]
    return "\n".join(lines)


def _places(info: RewardInfo) -> str:
    again = "`{response}` is the response once more. " if "{response}" in info.template else ""
    if not info.facts:
        return f"{again}It reads no facts."
    most = info.max_facts
    kinds = ", ".join(f"{kind} (at most {most[kind]})" if kind in most else kind for kind in info.facts)
    return f"{again}`{{facts}}` stands for facts about the image, in random order: {kinds}."


def _fenced(text: str) -> list[str]:
    """Text as a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}text", text, fence]


def _agreement(found: dict[str, float | int | None] | None, labelers: Share | None) -> list[str]:
    if labelers is None:
        humans = (
            f"- Human labelers agree with each other on {100 * LABELERS:.0f} % of pairs "
            "(thesis, appendix H). No scores can be expected to agree with one labeler on more than "
            f"{100 * ceiling(LABELERS):.0f} %; 63 to 67 % is normal for a good reward model, 50 % is chance."
        )
    else:
        humans = (
            f"- Two annotators of these pairs agree on {_share(labelers.value)} (95 % interval "
            f"{_share(labelers.low)} to {_share(labelers.high)}, {labelers.n} pairs). "
            "No scores can then be expected to agree with one annotator on more than "
            f"{_share(ceiling(labelers.value))}; 50 % is chance."
        )
    if found is None:
        return ["No pairs were held out: how well it agrees with choices is unknown.", "", humans]
    lines = [
        f"**{_share(found['accuracy'])}** of {found['n']} pairs "
        f"(95 % interval {_share(found['low'])} to {_share(found['high'])}).",
        "This is the best of the evaluations during training, so slightly optimistic. "
        "The interval allows for pairs of one picture, which are not independent.",
        "",
        humans,
        f"- Pairs of equal length (within 2 tokens): {_share(found['equal_length_accuracy'])} "
        f"of {found['equal_length_n']}.",
        f'- "The shorter response is better", alone: {_share(found["shorter_accuracy"])}.',
        f"- Correlation of score and length: {_signed(found['length_correlation'])}.",
    ]
    if (found["low"] or 0) <= 0.5:
        lines += [
            "",
            "**Not told apart from chance: a failed training, or too few held-out pairs. Do not use it.**",
        ]
    return lines


def policy_card(settings: PpoSettings, steps: int, stopped: str | None) -> str:
    """What a PPO policy is, after ``steps`` steps; ``stopped`` says why the run ended early."""
    lines = [
        "# Policy",
        "",
        f"LoRA adapter trained with PPO for {steps} of {settings.steps} steps, seed {settings.seed}.",
        "",
        f"- Base: {_base(settings.model)}. The adapter needs exactly these weights under it.",
        f"- Reward model: `{settings.reward_model}`.",
        f"- KL coefficient {settings.kl_coef} ({settings.kl_form}), {settings.rollouts} rollouts a step.",
    ]
    if stopped is not None:
        lines += ["", f"**Stopped early: {stopped}**"]
    return "\n".join([*lines, ""])


def _base(model: ModelSettings) -> str:
    merged = f" with {', '.join(f'`{a}`' for a in model.adapters)} merged into it" if model.adapters else ""
    return f"`{model.path}`{merged}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.2f}"
