"""The whole chain on the built-in world as a graph of steps: what the demo and the studies run.

Every step is one stage of the CLI with a shipped recipe and a few overrides, in its own run directory. A
step that has finished is never run again, and a stage that was killed goes on from its newest checkpoint,
so an interrupted chain is continued by starting it again. ``apps.scheduler`` runs the graph.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apps.scheduler import Step
from apps.stages import STAGES
from data.processes import sole_writer

POPE_SPLITS = ("random", "popular", "adversarial")


class ChainError(ValueError):
    """A chain that cannot start or go on; the text says why and how to mend it."""


@dataclass(frozen=True)
class Scale:
    """Sizes of one chain (records, pictures, PPO steps); the default is the demo's."""

    sft: int = 3800
    text: int = 530
    human: int = 3300
    pairs: int = 2600
    prompts: int = 2400
    describe: int = 800
    pope_images: int = 200
    heldout: int = 300
    test: int = 400
    ppo_steps: int = 24
    rollouts: int = 96
    batch: int = 24


QUICK = Scale(
    sft=240,
    text=24,
    human=160,
    pairs=160,
    prompts=64,
    describe=40,
    pope_images=20,
    heldout=24,
    test=40,
    ppo_steps=2,
    rollouts=16,
)


#: a seed of a study: smaller than the demo, for eight of them to take an hour and a half at most
STUDY = Scale(
    sft=3200,
    text=450,
    human=2800,
    pairs=2300,
    prompts=2016,
    describe=700,
    pope_images=120,
    heldout=250,
    test=300,
    ppo_steps=21,
)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second demo or study out of ``folder`` while the block runs. Raises ChainError."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(folder))
        except BlockingIOError:
            raise ChainError(
                f"{folder}: another process is at work in it; wait for it, or choose another output"
            ) from None
        yield


class Chain:
    """Builds the steps of one chain under ``root``."""

    def __init__(self, root: Path, seed: int, scale: Scale, base: str | None = None) -> None:
        self.root, self.seed, self.scale = root, seed, scale
        self.base: dict[str, Any] = {} if base is None else {"model.path": base}
        self.plus = {"model.path": self.at("sft_plus/model")}
        self.pictures = {"data.images": self.at("data")}

    def at(self, name: str) -> str:
        return str(self.root / name)

    def stage(self, name: str, stage: str, recipe: str, need: str, overrides: Mapping[str, Any]) -> Step:
        values = {"output": self.at(name), "seed": self.seed, **overrides}
        arguments = {"stage": stage, "recipe": recipe, "overrides": values}
        return Step(name, run_stage, arguments, (need,), self.root / name / "DONE")

    def evaluate(self, model: Mapping[str, str], need: str) -> Step:
        files = {f"pope_{split}": f"data/eval/pope_{split}.jsonl" for split in POPE_SPLITS}
        files |= {"mmhal": "data/eval/mmhal.json", "describe": "data/eval/describe.jsonl"}
        where = {f"benchmarks.{name}": self.at(file) for name, file in files.items()}
        where |= {"images": self.at("data"), "world": self.at("data")}
        return self.stage(f"eval_{need}", "eval", "world/eval", need, where | dict(model))

    def start(self) -> list[Step]:
        """From data to labelled pairs of responses."""
        own, scale = {"root": str(self.root), "seed": self.seed}, self.scale
        sizes = {
            k: getattr(scale, k)
            for k in ("sft", "text", "human", "pairs", "prompts", "describe", "pope_images")
        }
        machine, human = self.at("data/sft.jsonl"), self.at("data/human.jsonl")
        learn = self.base | self.pictures | {"batch_size": scale.batch}
        plus = learn | {"data.path": [machine, human]}
        asked = self.plus | self.pictures | {"data.path": self.at("data/pairs.jsonl")}
        held = {"heldout": scale.heldout, "test": scale.test}
        return [
            Step("data", make_data, own | {"sizes": sizes}, (), self.root / "data/DONE"),
            self.stage("sft_plus", "sft", "world/sft_plus", "data", plus),
            self.stage("sft", "sft", "world/sft", "data", learn | {"data.path": machine}),
            self.evaluate({"model.path": self.at("sft/model")}, "sft"),
            self.stage("samples", "sample", "world/sample", "sft_plus", asked),
            self.evaluate(self.plus, "sft_plus"),
            Step("labels", make_labels, own | held, ("samples",), self.root / "labels/DONE"),
        ]

    def arm(self, name: str) -> list[Step]:
        """A reward model, its report, PPO against it, and the policy's evaluation."""
        reward = name.replace("ppo", "reward")
        own, rollouts = {"root": str(self.root), "seed": self.seed}, self.scale.rollouts
        labels = self.plus | self.pictures | {
            "data.path": self.at("labels/train.jsonl"),
            "eval_data.path": self.at("labels/heldout.jsonl"),
            "eval_data.images": self.at("data"),
        }  # fmt: skip
        prompts = self.plus | self.pictures | {
            "data.path": self.at("data/prompts.jsonl"),
            "reward_model": self.at(reward),
            "steps": self.scale.ppo_steps,
            "rollouts": rollouts,
            "minibatch": rollouts // 2,
        }  # fmt: skip
        report = f"{reward}_report"
        measured = self.root / report / "results.json"
        return [
            self.stage(reward, "reward", f"world/{reward}", "labels", labels),
            Step(report, report_reward, own | {"reward": reward}, (reward,), measured),
            self.stage(name, "ppo", f"world/{name}", reward, prompts),
            self.evaluate(self.plus | {"model.adapter": self.at(f"{name}/policy")}, name),
        ]


def chain(
    root: Path,
    seed: int,
    scale: Scale,
    *,
    arms: Sequence[str] = ("ppo", "ppo_fact"),
    base: str | None = None,
) -> list[Step]:
    """The steps from data to evaluated models under ``root``, in the order in which they are best started.

    ``base``: the checkpoint that both SFT runs start from, when it is not the one that the recipes name.
    """
    built = Chain(root, seed, scale, base)
    return [*built.start(), *(step for arm in arms for step in built.arm(arm))]


def scale_of(quick: bool, full: Scale = Scale(), **settings: Any) -> tuple[Scale, dict[str, Any]]:
    """The sizes of a quick or a full run, and what its output folder is claimed for."""
    scale = QUICK if quick else full
    return scale, {**settings, **asdict(scale), "shipped": shipped()}


def shipped() -> str:
    """A fingerprint of what decides a chain's figures beside its sizes and seed.

    Recipes, the data's rates, the labelers and the base's weights: a folder that was begun under others is
    not continued, so that no table mixes the two.
    """
    from align.config import WORLD_BASE
    from data.world.annotators import Labeler
    from data.world.build import WorldRates

    files = [
        *sorted((Path(__file__).parent / "recipes/world").glob("*.yaml")),
        WORLD_BASE / "model.safetensors",
    ]
    digest = hashlib.sha256(f"{WorldRates()} {Labeler()}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


# --- what a worker runs ---


def run_stage(stage: str, recipe: str, overrides: dict[str, Any]) -> None:
    """One stage with a shipped recipe; goes on in a run directory that was left unfinished."""
    import importlib
    import json

    from align import config

    settings = getattr(config, STAGES[stage].settings)
    # text as it is: YAML reads the escapes of a character beyond the BMP as two halves of it
    values = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in overrides.items()] + ["resume=true"]
    file = Path(__file__).parent / "recipes" / f"{recipe}.yaml"
    importlib.import_module(STAGES[stage].module).run(config.resolve(settings, file, values))


def make_data(root: str, seed: int, sizes: dict[str, int]) -> None:
    """Draw the world of this seed into ``data/``."""
    from data.world.build import WorldRates, WorldSizes, build

    build(Path(root) / "data", WorldSizes(**sizes), WorldRates(), seed=seed)


def make_labels(root: str, seed: int, heldout: int, test: int) -> None:
    """Noisy choices to train on and to stop by; for the test pairs noisy and clean ones.

    Raises:
        ChainError: too few sampled pairs differ for anything to be left to train on.
    """
    from apps.world_commands import annotate
    from data.jsonl import read_records, write_records
    from data.schema import Preference
    from data.world.build import read_scenes

    source, folder = Path(root) / "samples/samples.jsonl", Path(root) / "labels"
    scenes = read_scenes(Path(root) / "data")
    records = read_records(source, "preference", strict=True)
    pairs = [record for record in records if isinstance(record, Preference)]
    if len(pairs) < heldout + test + 2:
        raise ChainError(
            f"{source}: only {len(pairs)} prompts drew two different responses, and {heldout + test} are "
            "held out, so nothing is left to train on; sample more prompts, or at a higher temperature"
        )
    noisy = annotate(pairs, scenes, seed=seed)
    tested = pairs[heldout : heldout + test]
    write_records(folder / "test_clean.jsonl", annotate(tested, scenes, seed=seed, clean=True))
    write_records(folder / "test_noisy.jsonl", noisy[heldout : heldout + test])
    write_records(folder / "heldout.jsonl", noisy[:heldout])
    write_records(folder / "train.jsonl", noisy[heldout + test :])
    (folder / "DONE").touch()


def report_reward(root: str, seed: int, reward: str, images: str | None = None) -> None:
    """Measure a reward model on the test pairs: ``apps.gates.measure``."""
    from apps.gates import measure

    measure(Path(root), reward, seed, images)
