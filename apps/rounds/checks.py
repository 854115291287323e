"""What can be wrong with rounds, told before anything is computed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from align import ppo
from align.config import RoundsSettings
from align.models.lmm import check_model
from align.pairs import check_facts
from align.reward import read_preferences
from align.tracking import check_reports
from apps import evaluate
from apps.rounds.app_labels import check_store
from apps.rounds.prompts import shares
from apps.rounds.stages import eval_settings, ppo_settings
from data.errors import DataError
from data.schema import Prompt
from data.world.build import read_scenes


class RoundsError(ValueError):
    """Rounds that cannot begin or go on; the text says why and how to mend it."""


def check(settings: RoundsSettings, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Everything that the first round, or a later one, would stop at, as far as it can be known.

    Raises:
        DataError: prompts, worlds, stores, held-out pairs or benchmarks that do not do. ModelError: models
            that are not there. StoreError: a store that cannot be opened. PpoError, RoundsError,
            TrackingError: settings that do not fit each other, or here.
    """
    check_reports(settings.report_to)
    if settings.launch:
        program(settings.launch[0])
    for model in filter(None, (settings.model, settings.reward_base)):
        check_model(model)
    ppo.check(ppo_settings(settings, 1))
    for name, records in prompts.items():
        shares(len(records), settings, name)
        path = getattr(settings, name).path
        source = path if isinstance(path, str) else ", ".join(path)
        check_facts(records, settings.reward.facts, source)
    check_labels(settings, prompts["prompts"])
    if settings.eval is not None:
        measured = eval_settings(settings, 0).model_copy(update={"dry_run": True})
        evaluate.run(measured)


def check_labels(settings: RoundsSettings, prompts: Sequence[Prompt]) -> None:
    """That there will be something to choose between, somebody who can, and enough to hold out."""
    if settings.sample.generate.temperature == 0:
        raise RoundsError("sample.generate.temperature is 0: all responses would be the same; use 0.7")
    if settings.labels.world is not None:
        if settings.sample.responses != 2:
            raise RoundsError(
                f"sample.responses is {settings.sample.responses}, and simulated labelers compare two; set 2"
            )
        scenes = read_scenes(Path(settings.labels.world))
        foreign = [p.id for p in prompts if p.image is None or p.image.id not in scenes]
        if foreign:
            where = f"no scene of {settings.labels.world}"
            rule = f"{len(foreign)} prompts are of {where} (the first: {foreign[0]!r})"
            mend = "give the world folder that the pictures came from, or label by file"
            raise DataError(rule, key="labels.world", mend=mend)
    if settings.labels.store is not None:
        check_store(settings.labels.store, settings.prompts.images)
        if settings.sample.responses != 2:
            rule = f"sample.responses is {settings.sample.responses}, and the app compares two"
            raise RoundsError(f"{rule}; set 2, or label by file")
    if settings.reward.eval_data is not None:
        read_preferences(settings.reward.eval_data)
        return
    pairs = (settings.sample.responses - 1) * len(shares(len(prompts), settings, "prompts")[0])
    if 2 * settings.reward.holdout > pairs:
        raise RoundsError(
            f"reward.holdout {settings.reward.holdout} is more than half of the {pairs} pairs that a round "
            "can have; lower it, or raise prompts.per_round"
        )


def program(name: str) -> str:
    """The path of a program, also where it lies beside this interpreter. RoundsError where there is none."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside) if beside.is_file() else None)
    if found is None:
        raise RoundsError(f"launch: no program {name!r} is installed; give one, e.g. torchrun")
    return found
