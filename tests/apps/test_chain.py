"""The chain's graph, the labels it splits, the folder it claims; and all of its steps once on a tiny base."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align import config
from align.config import EvalSettings, PpoSettings, RewardSettings, RunSettings, SampleSettings, SftSettings
from apps import demo
from apps.chain import (
    QUICK,
    Chain,
    ChainError,
    Scale,
    alone_in,
    chain,
    make_labels,
    run_stage,
    scale_of,
)
from apps.scheduler import Progress, Step, check_graph
from apps.siblings import siblings
from apps.stages import STAGES
from apps.studies import rlhf
from data.folders import claim
from data.jsonl import DataError, read_json, read_records, write_records, write_text
from data.schema import HALLUCINATION, Image, Message, Preference, Response
from data.world.build import WorldRates, WorldSizes, build, read_scenes
from data.world.scene import OBJECTS

RECIPES = Path(demo.__file__).parent / "recipes"
MICRO = replace(
    QUICK,
    sft=16,
    human=8,
    pairs=24,
    prompts=12,
    describe=6,
    pope_images=3,
    heldout=4,
    test=6,
    ppo_steps=1,
    rollouts=8,
    batch=8,
)


def resolved(step: Step) -> RunSettings:
    """The settings that the step's worker will run with."""
    values = [f"{k}={json.dumps(v)}" for k, v in step.arguments["overrides"].items()]
    settings = getattr(config, STAGES[step.arguments["stage"]].settings)
    return config.resolve(settings, RECIPES / f"{step.arguments['recipe']}.yaml", values)


def stages(root: Path, **more: Any) -> dict[str, RunSettings]:
    steps = chain(root, 7, MICRO, **more)
    return {step.name: resolved(step) for step in steps if step.run is run_stage}


# --- the graph ---


def test_every_step_is_there_once_and_can_be_reached(tmp_path: Path) -> None:
    steps = chain(tmp_path, 0, Scale())
    check_graph(steps)
    assert [step.name for step in steps] == [
        "data", "sft_plus", "sft", "eval_sft", "samples", "eval_sft_plus", "labels",
        "reward", "reward_report", "ppo", "eval_ppo",
        "reward_fact", "reward_fact_report", "ppo_fact", "eval_ppo_fact",
    ]  # fmt: skip
    markers = [step.marker for step in steps]
    assert None not in markers and len(set(markers)) == len(steps)
    assert {"eval_" + step.name for step in steps} & {step.name for step in steps} == set(
        demo.MODELS.values()
    )


def test_each_stage_reads_what_the_one_before_wrote(tmp_path: Path) -> None:
    found = stages(tmp_path)
    at = {name: Path(settings.output) for name, settings in found.items()}
    assert at == {name: tmp_path / name for name in found}
    assert {settings.seed for settings in found.values()} == {7}
    sft, plus, samples = found["sft"], found["sft_plus"], found["samples"]
    assert isinstance(sft, SftSettings) and isinstance(plus, SftSettings)
    assert isinstance(samples, SampleSettings)
    assert plus.data.path == [sft.data.path, str(tmp_path / "data/human.jsonl")]
    assert sft.model == plus.model
    trained = str(at["sft_plus"] / "model")
    assert samples.model.path == trained
    for name in ("", "_fact"):
        reward, ppo, judged = found[f"reward{name}"], found[f"ppo{name}"], found[f"eval_ppo{name}"]
        assert isinstance(reward, RewardSettings) and isinstance(ppo, PpoSettings)
        assert isinstance(judged, EvalSettings)
        assert reward.model.path == ppo.model.path == judged.model.path == trained
        assert reward.data.path == str(tmp_path / "labels/train.jsonl")
        assert reward.eval_data is not None and reward.eval_data.path == str(
            tmp_path / "labels/heldout.jsonl"
        )
        assert ppo.reward_model == str(at[f"reward{name}"])
        assert (ppo.steps, ppo.rollouts, ppo.minibatch) == (1, 8, 4)
        assert judged.model.adapter == str(at[f"ppo{name}"] / "policy")
    for name in ("eval_sft", "eval_sft_plus", "eval_ppo"):
        judged = found[name]
        assert isinstance(judged, EvalSettings)
        assert len(judged.benchmarks) == 5 and judged.world == str(tmp_path / "data")
        assert all(path.startswith(str(tmp_path / "data/eval")) for path in judged.benchmarks.values())


def test_the_arms_differ_in_the_facts_alone(tmp_path: Path) -> None:
    found = {name: settings.model_dump() for name, settings in stages(tmp_path).items()}
    plain, facts = found["reward"], found["reward_fact"]
    assert {key for key in plain if plain[key] != facts[key]} == {"facts", "output"}
    assert (plain["facts"], facts["facts"]) == ([], ["captions"])
    plain, facts = found["ppo"], found["ppo_fact"]
    assert {key for key in plain if plain[key] != facts[key]} == {"reward_model", "output"}


def test_another_base_replaces_the_start_only(tmp_path: Path) -> None:
    shipped, other = stages(tmp_path), stages(tmp_path, base="elsewhere")
    assert {name for name in shipped if shipped[name] != other[name]} == {"sft", "sft_plus"}
    sft = other["sft"]
    assert isinstance(sft, SftSettings) and sft.model.path == "elsewhere"


def test_a_stage_runs_with_its_recipe_and_may_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunSettings] = []
    fake = SimpleNamespace(run=seen.append)
    monkeypatch.setitem(__import__("sys").modules, "align.sample", fake)
    step = next(step for step in chain(tmp_path, 3, MICRO) if step.name == "samples")
    step.run(**step.arguments)
    assert seen == [resolved(step).model_copy(update={"resume": True})]


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON's escapes of 🙂 are two half characters to YAML."""
    seen: list[RunSettings] = []
    monkeypatch.setitem(__import__("sys").modules, "align.sample", SimpleNamespace(run=seen.append))
    root = tmp_path / "Studie 🙂 'é'"
    step = next(step for step in chain(root, 3, MICRO) if step.name == "samples")
    step.run(**step.arguments)
    assert seen[0].output == str(root / "samples")


# --- the folder ---


def test_a_folder_belongs_to_one_seed_and_size(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    _, wanted = scale_of(True, seed=1)
    claim(folder, "demo.json", wanted)
    claim(folder, "demo.json", wanted)
    with pytest.raises(
        DataError,
        match=r"other settings, or to another version \(seed: 1 there, 2 now\); choose another folder",
    ):
        claim(folder, "demo.json", wanted | {"seed": 2})
    with pytest.raises(DataError, match=r"sft: 240 there, 3800 now"):
        claim(folder, "demo.json", scale_of(False, seed=1)[1])
    assert read_json(folder / "demo.json") == wanted


def test_a_folder_of_other_recipes_rates_or_weights_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    claim(folder, "demo.json", scale_of(True, seed=1)[1])
    monkeypatch.setattr(WorldRates, "__str__", lambda self: "other rates")
    with pytest.raises(DataError, match=r"version \(shipped: "):
        claim(folder, "demo.json", scale_of(True, seed=1)[1])


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"not empty, and without demo.json not a folder to continue in"):
        claim(tmp_path, "demo.json", {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        claim(tmp_path / "file", "demo.json", {"seed": 0})


# --- labels ---


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and 40 sampled pairs: the first response true, the second with something false."""
    root = tmp_path_factory.mktemp("labels")
    sizes = WorldSizes(sft=1, human=1, pairs=40, prompts=1, describe=1, pope_images=1)
    build(root / "data", sizes, WorldRates(), seed=0, workers=1)
    pairs = []
    for scene in read_scenes(root / "data").values():
        absent = next(name for name in OBJECTS if name not in scene.objects)
        true = " ".join(f"A {name}." for name in scene.objects)
        pairs.append(
            Preference(
                id=scene.id,
                image=Image(id=scene.id, path=f"images/{scene.id}.png"),
                messages=[Message(role="user", content="What is there?")],
                responses=[Response(text=true), Response(text=f"{true} A {absent}.")],
                choices={},
            )
        )
    write_records(root / "samples/samples.jsonl", pairs[:40])
    return root


def test_labels_are_split_without_overlap_and_clean_where_they_measure(sampled: Path) -> None:
    make_labels(str(sampled), seed=5, heldout=10, test=12)
    parts = {
        name: [
            r
            for r in read_records(sampled / f"labels/{name}.jsonl", "preference")
            if isinstance(r, Preference)
        ]
        for name in ("train", "heldout", "test_noisy", "test_clean")
    }
    ids = {name: [r.id for r in records] for name, records in parts.items()}
    assert {name: len(found) for name, found in ids.items()} == {
        "train": 18, "heldout": 10, "test_noisy": 12, "test_clean": 12
    }  # fmt: skip
    assert ids["test_noisy"] == ids["test_clean"]
    assert len({*ids["train"], *ids["heldout"], *ids["test_noisy"]}) == 40
    assert all(record.choices[HALLUCINATION] == 0 for record in parts["test_clean"])
    noisy = [r.preferred for name in ("train", "heldout", "test_noisy") for r in parts[name]]
    assert 0 < sum(choice == 1 for choice in noisy) < 20
    assert (sampled / "labels/DONE").exists()


def test_no_sampled_pair_is_lost_on_the_way_to_its_label(sampled: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(sampled / "data")
    lines = (sampled / "samples/samples.jsonl").read_text().splitlines()
    # four copies under other names: one bad line among them is less than 1 %
    copies = [line.replace('"id": "', f'"id": "{k}-', 1) for k in range(4) for line in lines]
    write_text(tmp_path / "samples/samples.jsonl", "\n".join([*copies, "{oops"]))
    with pytest.raises(DataError, match=r"samples\.jsonl:161: not valid JSON"):
        make_labels(str(tmp_path), seed=5, heldout=10, test=12)
    assert not (tmp_path / "labels").exists()


def test_too_few_pairs_say_so(sampled: Path) -> None:
    with pytest.raises(ChainError, match=r"samples.jsonl: only 40 prompts drew two.*39 are held out"):
        make_labels(str(sampled), seed=5, heldout=20, test=19)


# --- all of it ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Step]]:
    """The whole chain and the study's comparison, step by step in this process, from a random tiny base."""
    from align.models.tiny import build_tiny_llava
    from apps.scheduler import silence_third_parties

    silence_third_parties()
    folder = tmp_path_factory.mktemp("micro")
    base = build_tiny_llava(folder / "base", corpus=words(), seed=1)
    root = folder / "seed-3"
    steps = chain(root, 3, MICRO, base=str(base)) + siblings(Chain(root, 3, MICRO, base=str(base)))
    for step in [*steps, Step("compare", rlhf.compare_all, {"root": str(root)})]:
        step.run(**step.arguments)
    return root, steps


def words() -> list[str]:
    """Text of the world, so that the tokenizer has its words and texts are short."""
    from data.world.build import synthetic_example
    from data.world.scene import sample_scene

    scenes = [sample_scene(0, i, 0.5) for i in range(40)]
    turns = [synthetic_example(scene, WorldRates()).messages for scene in scenes]
    random.Random(0).shuffle(turns)
    return [message.content for messages in turns for message in messages]


def test_every_step_leaves_its_mark(finished: tuple[Path, list[Step]]) -> None:
    root, steps = finished
    assert [step.name for step in steps if not step.is_done] == []
    said = [json.loads(line) for line in (root / "eval_sft/t0.7/responses.jsonl").read_text().splitlines()]
    assert {row["benchmark"] for row in said} == {"describe"} and len(said) == MICRO.describe


def test_the_page_and_the_study_read_a_finished_chain(finished: tuple[Path, list[Step]]) -> None:
    root, steps = finished
    state = Progress(steps, done={step.name for step in steps}, ended=True)
    page = demo.build_page(root, state, 61.0)
    titles = [section.title for section in page.sections]
    assert [t for t in titles if t] == [
        "Yes/no questions and open questions", "Free descriptions", "What each stage changed",
        "Reward models on held-out pairs", "SFT: training loss", *demo.CURVES.values(),
        "What the models say (temperature 0.7)",
    ]  # fmt: skip
    assert page.status is not None and (page.status.text, page.status.running) == ("finished", False)
    assert len(demo.summary(root).splitlines()) == 2 + len(demo.MODELS)
    seed = rlhf.read_seed(root, 3)
    assert seed is not None
    assert {name: len(found) for name, found in seed.benchmarks.items()} == {
        "SFT": 4, "SFT+": 4, "RLHF": 4, "Fact-RLHF": 4, "DPO": 4, "GRPO": 4, "best of 4": 1
    }  # fmt: skip
    assert len({json.dumps(found, sort_keys=True) for found in seed.benchmarks.values()}) == 7
    rlhf.drop_pictures(str(root))
    assert not (root / "data/images").exists() and not list(root.glob("*/trainer"))
    assert rlhf.read_seed(root, 3) == seed
    assert len(rlhf.tables([seed])) == 3


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        with pytest.raises(ChainError, match="another process is at work"), alone_in(tmp_path):
            pass
    with alone_in(tmp_path):
        pass
