"""The whole chain on the built-in world as a graph of steps: what the demo and the studies run.

Every step is one stage of the CLI with a shipped recipe and a few overrides, in its own run
directory. Steps run in worker processes with one torch thread each; a step that has finished is
never run again, so an interrupted chain goes on where it stood.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAGES = {
    "sft": ("align.sft", "SftSettings"),
    "sample": ("align.sample", "SampleSettings"),
    "reward": ("align.reward", "RewardSettings"),
    "ppo": ("align.ppo", "PpoSettings"),
    "eval": ("apps.evaluate", "EvalSettings"),
}


@dataclass(frozen=True)
class Scale:
    """Sizes of one chain; the default is the demo's."""

    sft: int = 8000
    human: int = 5000
    pairs: int = 4000
    prompts: int = 3000
    describe: int = 1000
    pope_images: int = 300
    heldout: int = 400
    test: int = 600
    ppo_steps: int = 30
    rollouts: int = 128
    batch: int = 24


QUICK = Scale(sft=240, human=160, pairs=160, prompts=64, describe=40, pope_images=20, heldout=24, test=40,
              ppo_steps=2, rollouts=16)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One node: ``run`` (a module-level function, so that a worker can import it) with its arguments."""

    name: str
    run: Callable[..., None]
    arguments: dict[str, Any]
    needs: tuple[str, ...] = ()


def chain(root: Path, seed: int, scale: Scale, *, arms: Sequence[str] = ("ppo", "ppo_fact")) -> list[Step]:
    """The steps from data to evaluated models under ``root``, in the order in which they are best started."""
    at = {"root": str(root), "seed": seed}
    generated = {"describe": scale.describe, "pope_images": scale.pope_images}
    sizes = {k: getattr(scale, k) for k in ("sft", "human", "pairs", "prompts")} | generated
    data = {"data.images": str(root / "data")}

    def step(name: str, stage: str, recipe: str, needs: tuple[str, ...], **overrides: Any) -> Step:
        values = {"output": str(root / name), "seed": seed, **overrides}
        return Step(name, run_stage, {"stage": stage, "recipe": recipe, "overrides": values}, needs)

    def evaluate(name: str, model: dict[str, str], needs: tuple[str, ...]) -> Step:
        files = {f"benchmarks.pope_{s}": root / f"data/eval/pope_{s}.jsonl" for s in ("random", "popular", "adversarial")}
        files |= {"benchmarks.mmhal": root / "data/eval/mmhal.json", "benchmarks.describe": root / "data/eval/describe.jsonl"}
        where = {k: str(v) for k, v in files.items()} | {"images": str(root / "data"), "world": str(root / "data")}
        return step(name, "eval", "world/eval", needs, **where, **model)

    plus = {"model.path": str(root / "sft_plus/model")}
    sft_data = str(root / "data/sft.jsonl")
    steps = [
        Step("data", make_data, at | {"sizes": sizes}),
        step("sft_plus", "sft", "world/sft_plus", ("data",), batch_size=scale.batch,
             **data | {"data.path": [sft_data, str(root / "data/human.jsonl")]}),
        step("sft", "sft", "world/sft", ("data",), batch_size=scale.batch, **data | {"data.path": sft_data}),
        evaluate("eval_sft", {"model.path": str(root / "sft/model")}, ("sft",)),
        step("samples", "sample", "world/sample", ("sft_plus",), **plus, **data | {"data.path": str(root / "data/pairs.jsonl")}),
        evaluate("eval_sft_plus", plus, ("sft_plus",)),
        Step("labels", make_labels, at | {"heldout": scale.heldout, "test": scale.test}, ("samples",)),
    ]  # fmt: skip
    for arm in arms:
        reward = arm.replace("ppo", "reward")
        labels = {"data.path": str(root / "labels/train.jsonl"), "eval_data.path": str(root / "labels/heldout.jsonl"),
                  "eval_data.images": str(root / "data")}  # fmt: skip
        steps += [
            step(reward, "reward", f"world/{reward}", ("labels",), **plus, **data, **labels),
            Step(f"{reward}_report", report_reward, at | {"reward": reward}, (reward,)),
            step(arm, "ppo", f"world/{arm}", (reward,), **plus, **data, reward_model=str(root / reward),
                 steps=scale.ppo_steps, rollouts=scale.rollouts, minibatch=scale.rollouts // 2,
                 **{"data.path": str(root / "data/prompts.jsonl")}),
            evaluate(f"eval_{arm}", plus | {"model.adapter": str(root / arm / "policy")}, (arm,)),
        ]  # fmt: skip
    return steps


# --- what a worker runs ---


def run_stage(stage: str, recipe: str, overrides: dict[str, Any]) -> None:
    """One stage with a shipped recipe; continues an interrupted run directory."""
    import importlib
    import json

    from align import config

    module, name = STAGES[stage]
    output = Path(overrides["output"])
    if (output / "DONE").exists():
        return
    values = [f"{k}={json.dumps(v)}" for k, v in overrides.items()]
    if output.exists():
        values.append("resume=true")
    recipes = Path(__file__).parent / "recipes"
    settings = config.resolve(getattr(config, name), recipes / f"{recipe}.yaml", values)
    importlib.import_module(module).run(settings)


def make_data(root: str, seed: int, sizes: dict[str, int]) -> None:
    from data.world.build import WorldRates, WorldSizes, build

    if not (Path(root) / "data/DONE").exists():
        build(Path(root) / "data", WorldSizes(**sizes), WorldRates(), seed=seed)
        (Path(root) / "data/DONE").touch()


def make_labels(root: str, seed: int, heldout: int, test: int) -> None:
    """Noisy choices to train on and to stop by; for the test pairs noisy and clean ones."""
    from apps.world_commands import annotate
    from data.jsonl import read_records, write_records
    from data.schema import Preference
    from data.world.build import read_scenes

    folder = Path(root) / "labels"
    scenes = read_scenes(Path(root) / "data")
    pairs = [r for r in read_records(Path(root) / "samples/samples.jsonl", "preference") if isinstance(r, Preference)]
    if len(pairs) < heldout + test + 2:
        raise ValueError(f"{len(pairs)} sampled pairs differ; {heldout + test} are held out, so nothing is left to train on")
    noisy = annotate(pairs, scenes, seed=seed)
    write_records(folder / "test_clean.jsonl", annotate(pairs[heldout : heldout + test], scenes, seed=seed, clean=True))
    write_records(folder / "test_noisy.jsonl", noisy[heldout : heldout + test])
    write_records(folder / "heldout.jsonl", noisy[:heldout])
    write_records(folder / "train.jsonl", noisy[heldout + test :])


def report_reward(root: str, seed: int, reward: str, images: str | None = None) -> None:
    from apps.gates import measure, read_report

    if read_report(Path(root), reward) is None:
        measure(Path(root), reward, seed, images)


# --- the scheduler ---


@dataclass
class Progress:
    """What a chain has done; handed to ``on_change`` whenever a step starts or ends, and now and then."""

    steps: Sequence[Step]
    running: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)


def _start_worker() -> None:
    # before torch loads: two workers with one thread each, or they fight over the cores
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def run_steps(
    steps: Sequence[Step],
    *,
    workers: int = 2,
    on_change: Callable[[Progress], None] | None = None,
    every: float = 5.0,
) -> None:
    """Run all steps, each after those that it needs, ``workers`` at a time.

    ``on_change`` also runs every ``every`` seconds, so that a page can follow the curves. The first
    failure stops the chain and is raised here.
    """
    state = Progress(steps)
    waiting = list(steps)
    futures: dict[Future[None], Step] = {}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        while waiting or futures:
            for step in [s for s in waiting if set(s.needs) <= state.done][: workers - len(futures)]:
                waiting.remove(step)
                futures[pool.submit(step.run, **step.arguments)] = step
                state.running.add(step.name)
            if on_change:
                on_change(state)
            ended, _ = wait(futures, timeout=every, return_when=FIRST_COMPLETED)
            for future in ended:
                step = futures.pop(future)
                state.running.discard(step.name)
                try:
                    future.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                state.done.add(step.name)
    if on_change:
        on_change(state)
