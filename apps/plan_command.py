"""``align ppo RECIPE --plan``: the memory of a run, printed before anything loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from apps import arguments as kinds
from apps.shipped import RECIPES, find_recipe

if TYPE_CHECKING:
    from align.config import PpoSettings, RewardSettings
    from align.meta import Judge
    from align.passes import Part
    from align.plan import Change, Plan, Planner

GB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the plan, beside those of the stage."""
    group = parser.add_argument_group(
        "plan", "Reads config.json of the models, no weights and no data. GB are 2^30 bytes."
    )
    group.add_argument(
        "--plan",
        action="store_true",
        help="print the memory of a GPU by role and phase, and what would make it fit; exit status 1 "
        "where it does not",
    )
    words = "a GPU's memory (default: that of the first GPU here)"
    group.add_argument("--memory", type=kinds.positive, metavar="GB", help=words)
    words = "GPUs, one process each (default: %(default)s)"
    group.add_argument("--processes", type=kinds.count, default=1, metavar="N", help=words)
    words = "the reward model's recipe, where it is not trained yet"
    group.add_argument("--reward-recipe", metavar="RECIPE.yaml", help=words)
    words = "the reward model's base, in place of what its run or recipe says"
    group.add_argument("--reward-base", metavar="DIR", help=words)
    words = "tokens of a prompt's text (default: %(default)s)"
    group.add_argument("--prompt-tokens", type=kinds.count, default=128, metavar="N", help=words)
    words = "tokens of a picture, where the model is no LLaVA"
    group.add_argument("--image-tokens", type=kinds.count, metavar="N", help=words)


def run(settings: PpoSettings, args: argparse.Namespace) -> int:
    """Print the plan; returns 1 where it does not fit the memory, else 0."""
    from align.plan import Planner

    judge, source = find_judge(settings, args.reward_recipe, args.reward_base)
    _check_configs(settings, judge)
    planner = Planner(judge, args.processes, prompt=args.prompt_tokens, image=args.image_tokens)
    plan = planner.plan(settings)
    print(f"reward model: {source}")
    print("\n".join(table(plan)))
    print(_by_processes(planner, settings))
    memory = args.memory * GB if args.memory else _memory_here()
    if memory is None:
        print("--memory GB says whether it fits, and what would make it fit")
        return 0
    print("\n".join(verdict(planner, settings, plan, int(memory))))
    return 0 if plan.fits(int(memory)) else 1


def find_judge(
    settings: PpoSettings, recipe: str | None = None, base: str | None = None
) -> tuple[Judge, str]:
    """The run's reward model, which may not exist yet, and where that is known from.

    In this order: the ``recipe``, the finished run at ``reward_model``, the shipped recipe whose output that
    is, and else the policy's own base with an adapter of its size. ``base`` replaces the base's path.

    Raises:
        ConfigError: no such recipe. RewardError: a reward model that is damaged.
    """
    from align.meta import Judge
    from align.template import REWARD_TEMPLATE, times_read

    named = None
    if recipe is not None:
        named, source = _recipe(recipe), f"as {recipe} trains it"
    elif (found := _shipped(settings.reward_model)) and not _is_there(settings.reward_model):
        named, source = _recipe(found), f"not trained yet; as the shipped recipe {found} trains it"
    if named is not None:
        judge = Judge(named.model, named.lora, times_read(named.template or REWARD_TEMPLATE))
    elif _is_there(settings.reward_model):
        judge, source = Judge.read(settings.reward_model), f"as in {settings.reward_model}"
    else:
        judge = Judge(settings.model, settings.lora)
        source = (
            f"none at {settings.reward_model} yet; assumed on the policy's base, with an adapter like the "
            "policy's (--reward-recipe says what it will be)"
        )
    if base is not None:
        judge = replace(judge, model=judge.model.model_copy(update={"path": base}))
    return judge, f"{source}, on {judge.model.path}"


def _check_configs(settings: PpoSettings, judge: Judge) -> None:
    """Ahead of building, which takes seconds. Raises ModelError."""
    from align.config import is_hub_id
    from align.meta import read_config
    from align.models.build import ModelError

    path = settings.model.path
    try:
        read_config(settings.model)
    except ModelError as error:
        # e.g. the run that the recipe starts from, which was not trained here
        if is_hub_id(path) or Path(path).is_dir():
            raise
        raise ModelError(f"{error}; or the base that it will be trained from: model.path=DIR") from error
    if judge.model.path != settings.model.path:
        try:
            read_config(judge.model)
        except ModelError as error:
            raise ModelError(f"{error} (--reward-base DIR)") from error


def _recipe(name: str) -> RewardSettings:
    from align.config import ConfigError, RewardSettings, resolve

    path = find_recipe(name)
    if path is None:
        raise ConfigError(f"--reward-recipe {name}: a recipe is a file or the name of a shipped one")
    return resolve(RewardSettings, path)


def _is_there(reward_model: str) -> bool:
    return any((Path(reward_model) / part / "reward.json").is_file() for part in ("", "reward"))


def _shipped(reward_model: str) -> str | None:
    """Name of the shipped recipe that writes to this place."""
    from align.config import load_recipe

    for path in sorted(RECIPES.rglob("reward*.yaml")):
        output = Path(load_recipe(path).get("output", ""))
        if Path(reward_model) in (output, output / "reward"):
            return str(path.relative_to(RECIPES).with_suffix(""))
    return None


def _memory_here() -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


# --- the text ---


def table(plan: Plan) -> list[str]:
    """The plan's figures in GB, one a line."""
    n = plan.lengths
    # the base and three adapters: nothing is split, and the reward model has no base of its own
    ratio = sum(part.bytes for part in plan.roles) / plan.roles[0].bytes if len(plan.roles) == 4 else None
    where = "the GPU" if plan.processes == 1 else f"each of {plan.processes} GPUs"
    kept = [part for part in plan.phases[-1].parts if all(part in p.parts for p in plan.phases[-4:])]
    lines = [
        f"longest row: {n.prompt} tokens of text + {n.image} of the picture + {n.response} of the response"
        f" = {n.row}; the reward model reads {n.judged} more",
        "",
        f"on {where}, in GB of 2^30 bytes",
        *_rows("weights", plan.roles),
        *([f"  (four roles on one base: {ratio:.2f} times its bytes)"] if ratio else []),
        *_rows("training, kept from step to step", plan.training),
        *_rows("kept through a step, were all its pictures different", kept),
        "",
        "the phases of a step, with all that is kept",
    ]
    for phase in plan.phases:
        lines.append(_line(f"  {phase.name}", plan.held + phase.bytes, about=True))
        own = [part for part in phase.parts if part not in kept]
        lines += [_line(f"    {part.name}", part.bytes, not part.exact) for part in own]
    lines += [
        "",
        _line(f"peak, in {plan.peak.name}", plan.bytes, about=True),
        "~ is the most that tensors take at once in that pass, run without values; the rest is exact",
        *plan.notes,
    ]
    return lines


def _rows(title: str, parts: Sequence[Part]) -> list[str]:
    whole = sum(part.bytes for part in parts)
    return [_line(title, whole), *(_line(f"  {part.name}", part.bytes, not part.exact) for part in parts)]


def _line(name: str, count: int, about: bool = False) -> str:
    return f"{name:<68} {'~' if about else ' '}{count / GB:8.2f}"


def _by_processes(planner: Planner, settings: PpoSettings) -> str:
    counts = sorted({1, 2, 4, 8, planner.processes})
    plans = [(n, replace(planner, processes=n).plan(settings)) for n in counts]
    return "peak by the number of GPUs: " + ", ".join(f"{n}: {plan.bytes / GB:.1f}" for n, plan in plans)


def verdict(planner: Planner, settings: PpoSettings, plan: Plan, memory: int) -> list[str]:
    """Whether ``plan`` fits ``memory`` bytes, and if not, what would."""
    from align.plan import RESERVE, single_changes, way_to_fit

    free = f"with {RESERVE / GB:.0f} GB left free for kernels and the allocator"
    if plan.fits(memory):
        return [f"fits into {memory / GB:.0f} GB, {free}"]
    lines = [f"does not fit into {memory / GB:.0f} GB, {free}", "", "one change:"]
    lines += [_change(change, memory) for change in single_changes(planner, settings, memory)]
    way = way_to_fit(planner, settings, memory)
    if way is None:
        return [*lines, "", "no change of these settings makes it fit; take a smaller base or a larger GPU"]
    return [*lines, "", "together:", _change(way, memory)]


def _change(change: Change, memory: int) -> str:
    fits = "fits" if change.plan.fits(memory) else f"not enough: the peak is in {change.plan.peak.name}"
    return f"{_line('  ' + ' '.join(change.arguments), change.plan.bytes, about=True)}  {fits}"
