"""The prompts of all rounds: read once, dealt out at random, and kept with the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.config import RoundPrompts, RoundsSettings
from align.schedule import permutation
from apps.rounds.stages import folder_of
from data.errors import DataError
from data.jsonl import Rejects, write_records
from data.load import load
from data.schema import Prompt


def read_prompts(settings: RoundsSettings, rejects: Rejects) -> dict[str, list[Prompt]]:
    """The prompts by the name of their section ("prompts", "ppo_prompts"); ``rejects`` gets the bad ones.

    Raises DataError.
    """
    found = {}
    for name in ("prompts", "ppo_prompts"):
        data: RoundPrompts | None = getattr(settings, name)
        if data is not None:
            given = data.model_dump(exclude={"fresh", "per_round"})
            records = load(want="prompt", **given, rejects=rejects)
            found[name] = [record for record in records if isinstance(record, Prompt)]
    return found


def deal(settings: RoundsSettings, prompts: Mapping[str, Sequence[Prompt]]) -> list[dict[str, Any]]:
    """Write each round's prompts into its folder; returns how many, by round and section."""
    rounds: list[dict[str, Any]] = [{"round": number} for number in range(1, settings.rounds + 1)]
    for name, records in prompts.items():
        for entry, share in zip(rounds, shares(len(records), settings, name), strict=True):
            file = folder_of(settings, entry["round"]) / f"{name}.jsonl"
            entry[name] = write_records(file, (records[i] for i in share))
    return rounds


def shares(n: int, settings: RoundsSettings, name: str) -> list[list[int]]:
    """Positions among ``n`` prompts of those of each round, in the order of the file.

    Raises DataError for fewer prompts than the rounds ask for.
    """
    data: RoundPrompts = getattr(settings, name)
    size = data.per_round or (n // settings.rounds if data.fresh else n)
    wanted = size * settings.rounds if data.fresh else size
    if not size or wanted > n:
        each = f"{settings.rounds} rounds" + (f" of {data.per_round}" if data.per_round else "")
        rule = f"{n} prompts are too few for {each}"
        mend = "lower per_round or rounds, give more prompts, or the same to all rounds (fresh: false)"
        raise DataError(rule, key=name, mend=mend)
    order = permutation(n, settings.seed, "rounds", name)
    firsts = [number * size if data.fresh else 0 for number in range(settings.rounds)]
    return [sorted(order[first : first + size]) for first in firsts]
