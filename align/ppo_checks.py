"""What can be known to be wrong with a PPO run before it loads its models, and before it goes on."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator

from align.config import PpoSettings
from align.diagnose import PpoError
from align.pairs import check_facts
from align.reward_model import read_info
from align.user_rewards import find_functions
from data.images import check_image
from data.jsonl import DataError, Rejects
from data.load import load
from data.schema import Prompt

log = logging.getLogger(__name__)


def check(settings: PpoSettings) -> None:
    """Raise PpoError for settings that cannot work together, RewardPartError for a reward that is none."""
    if settings.generate.temperature <= 0:
        raise PpoError("generate.temperature is 0; PPO samples its rollouts, use 1.0")
    if settings.generate.top_p < 1:
        log.warning("generate.top_p < 1: responses are not samples of the policy, the KL is biased; use 1.0")
    if settings.rollouts % settings.minibatch:
        fitting = max(n for n in range(1, settings.minibatch + 1) if settings.rollouts % n == 0)
        raise PpoError(
            f"rollouts {settings.rollouts} is no multiple of minibatch {settings.minibatch}, so that some "
            f"gradient steps would be of fewer rollouts; set minibatch to {fitting}, or change rollouts"
        )
    if settings.lora.dropout:
        raise PpoError(
            f"lora.dropout is {settings.lora.dropout}; the ratio of new to old policy must compare one "
            "function, so PPO has no dropout: set it to 0"
        )
    find_functions(settings.user_rewards)


def check_processes(settings: PpoSettings, accelerator: Accelerator) -> None:
    """Raise PpoError for settings that do not fit the number of processes."""
    count = accelerator.num_processes
    if settings.shard_base and count < 2:
        raise PpoError(
            "shard_base splits the base over processes, and there is one; start two or more by torchrun, or "
            "drop it"
        )
    for name, value in (("rollouts", settings.rollouts), ("minibatch", settings.minibatch)):
        if value % count:
            raise PpoError(
                f"{name} {value} must be a multiple of the {count} processes; set it to "
                f"{max(1, round(value / count)) * count}"
            )
    if count > 1 and ":" in settings.model.device:
        raise PpoError(
            f"model.device {settings.model.device!r} would put all {count} processes on one device; "
            "set it to auto"
        )


def read_prompts(settings: PpoSettings, rejects: Rejects | None = None) -> list[Prompt]:
    """The prompts, with the facts that the reward model reads; no weights are loaded for this check.

    ``rejects`` gets the bad records. Raises DataError; also for a picture that ``reward_images`` lacks.
    """
    data = settings.data
    info = read_info(settings.reward_model)
    records = load(want="prompt", **data.model_dump(), rejects=rejects)
    prompts = [record for record in records if isinstance(record, Prompt)]
    check_facts(prompts, info.facts, data.path if isinstance(data.path, str) else ", ".join(data.path))
    for prompt in prompts if settings.reward_images else ():
        if prompt.image is None:
            continue
        try:
            check_image(prompt.image, settings.reward_images)
        except DataError as error:
            rule = f"{error.rule}, in record {prompt.id!r}"
            raise DataError(rule, key="reward_images", mend=error.mend) from error
    return prompts


def check_same_step(done: int, accelerator: Accelerator) -> None:
    """Raise PpoError unless all processes found the same checkpoint."""
    if accelerator.num_processes == 1:
        return
    found = accelerator.gather(torch.tensor([done], device=accelerator.device)).tolist()
    if len(set(found)) > 1:
        raise PpoError(
            f"the processes see checkpoints of different steps ({', '.join(map(str, found))}); output must "
            "be a directory that all machines share"
        )
