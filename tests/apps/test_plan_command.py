"""``align ppo --plan``, and dry runs of the shipped recipes at LLaVA-1.5's true shapes, without weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from align.config import LoraSettings, ModelSettings, PpoSettings, RewardSettings, SftSettings, resolve
from align.meta import Judge, build_on_meta, held, size
from align.models.lmm import adapter_of
from align.models.tiny import build_tiny_llava
from align.reward_model import RewardInfo, RewardModel
from apps import cli, plan_command
from apps.shipped import RECIPES

#: width, feed-forward width, layers, heads; and all parameters in billions
SHAPES = {"7b": (4096, 11008, 32, 32, 7.06), "13b": (5120, 13824, 40, 40, 13.35)}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LLaVA-1.5's configurations: CLIP ViT-L/14 at 336 px, a two-layer projector, Vicuna. No weights."""
    folders = {}
    for name, (width, feed, layers, heads, _) in SHAPES.items():
        vision = {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            "projection_dim": 768,
        }  # fmt: skip
        text = {
            "model_type": "llama", "hidden_size": width, "intermediate_size": feed,
            "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 32064,
            "max_position_embeddings": 4096,
        }  # fmt: skip
        config = {
            "model_type": "llava", "image_token_index": 32000, "image_seq_length": 576,
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
            "projector_hidden_act": "gelu", "vision_config": vision, "text_config": text,
        }  # fmt: skip
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "config.json").write_text(json.dumps(config))
    return folders


def numbers(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def lora_numbers(name: str, rank: int = 64) -> int:
    """Of one adapter on all projections: rank · (inputs + outputs) each."""
    width, feed, layers, _, _ = SHAPES[name]
    return layers * rank * (4 * (width + width) + 3 * (width + feed))


@pytest.mark.parametrize("name", ["7b", "13b"])
@pytest.mark.parametrize("stage", ["sft", "sft_plus", "reward", "reward_fact"])
def test_recipes_ahead_of_ppo_build(llava: dict[str, Path], name: str, stage: str) -> None:
    kind = SftSettings if stage.startswith("sft") else RewardSettings
    settings = resolve(kind, RECIPES / f"llava15_{name}/{stage}.yaml", [f"model.path={llava[name]}"])
    build = build_on_meta(settings)
    assert {p.device.type for p in build.model.parameters()} == {"meta"}
    head = SHAPES[name][0] + 1 if kind is RewardSettings else 0
    assert numbers(build.learned()) == lora_numbers(name) + head
    if settings.model.bits is None:
        whole = numbers(build.model.parameters()) - lora_numbers(name)
        assert whole / 1e9 == pytest.approx(SHAPES[name][4], rel=0.01)


@pytest.mark.parametrize(
    ("name", "recipe", "judged_by"),
    [("7b", "ppo", "13b"), ("7b", "ppo_8gpus", "7b"), ("13b", "ppo", "13b"), ("13b", "ppo_2nodes", "13b")],
)
def test_ppo_recipes_build(llava: dict[str, Path], name: str, recipe: str, judged_by: str) -> None:
    """Policy, value and reward, heads and the optimizer's groups, before the reward model is trained."""
    settings = resolve(PpoSettings, RECIPES / f"llava15_{name}/{recipe}.yaml", [f"model.path={llava[name]}"])
    judge, source = plan_command.find_judge(settings, base=str(llava[judged_by]))
    assert f"not trained yet; as the shipped recipe llava15_{judged_by}/reward_fact trains it" in source
    build = build_on_meta(settings, judge)
    assert (build.reward is None) == (name == judged_by)
    width = SHAPES[name][0] + 1
    assert [numbers(group["params"]) for group in build.groups] == [
        lora_numbers(name),
        lora_numbers(name) + width,
    ]
    judged = build.model if build.reward is None else build.reward
    reward = [p for n, p in judged.named_parameters() if adapter_of(n) == "reward"]
    assert numbers(reward) == lora_numbers(judged_by) and not any(p.requires_grad for p in reward)
    assert {n: h.linear.in_features for n, h in build.heads.items()} == {
        "value": SHAPES[name][0],
        "reward": SHAPES[judged_by][0],
    }


@pytest.mark.parametrize(("name", "times"), [("7b", 1.136), ("13b", 1.113)])
def test_four_roles_on_one_bf16_base(llava: dict[str, Path], name: str, times: float) -> None:
    """PEFT keeps adapters in float32 on a bfloat16 base; the roles stay below 1.15 of the base's bytes."""
    model = ModelSettings(path=str(llava[name]), dtype="bfloat16")
    settings = PpoSettings(output="x", model=model, reward_model="x", data={"path": "x"})
    build = build_on_meta(settings, Judge(model, settings.lora))
    adapters = [p for n, p in build.model.named_parameters() if adapter_of(n) is not None]
    assert {p.element_size() for p in adapters} == {4} and build.reward is None
    heads = [p for head in build.heads.values() for p in head.parameters()]
    base = size(held(build.model)) - size(adapters)
    assert base == pytest.approx(2 * SHAPES[name][4] * 1e9, rel=0.01)
    ratio = (base + size([*adapters, *heads])) / base
    assert ratio == pytest.approx(times, abs=0.001) and ratio <= 1.15


def test_plan_of_the_7b_recipe(llava: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Before any training was done, and without data."""
    arguments = ["ppo", "llava15_7b/ppo", f"model.path={llava['7b']}", "--plan"]
    arguments += ["--reward-base", str(llava["13b"]), "--memory", "80"]
    settings = resolve(PpoSettings, RECIPES / "llava15_7b/ppo.yaml")
    status = cli.main(arguments)
    text = capsys.readouterr().out
    tokens = 128 + 576 + settings.generate.max_new_tokens
    assert f"128 tokens of text + 576 of the picture + {tokens - 704} of the response = {tokens}" in text
    figures = dict(re.findall(r"^ *(\S.*?) {2,}~? *(\d+\.\d\d)", text, re.MULTILINE))
    assert float(figures["base: bfloat16"]) == pytest.approx(7.063e9 * 2 / 2**30, abs=0.01)
    cache = 2 * 32 * settings.generate.batch_size * tokens * 4096 * 2
    assert float(figures["keys and values"]) == pytest.approx(cache / 2**30, abs=0.01)
    assert all(name in figures for name in ("policy: adapter", "update: policy", "scoring: reward model"))
    peak = max(float(v) for k, v in figures.items() if re.match("rollout|scoring|update", k))
    assert f"{peak:.2f}" in text.split("peak, in ")[1]
    assert "four roles on one base" not in text  # the thesis's reward model is a larger one
    assert status == 0 and peak < 79 and "fits into 80 GB" in text


@pytest.mark.parametrize(
    ("recipe", "base", "processes"),
    [("llava15_13b/ppo", "13b", 1), ("llava15_7b/ppo_8gpus", "7b", 8), ("llava15_13b/ppo_2nodes", "13b", 16)],
)
def test_the_recipes_fit_the_gpus_that_they_are_for(
    llava: dict[str, Path], capsys: pytest.CaptureFixture[str], recipe: str, base: str, processes: int
) -> None:
    arguments = ["ppo", recipe, f"model.path={llava[base]}", "--plan", "--memory", "80"]
    status = cli.main([*arguments, "--reward-base", str(llava[base]), "--processes", str(processes)])
    text = capsys.readouterr().out
    assert status == 0 and "fits into 80 GB" in text


# --- the command ---


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("tiny") / "base")


def command(tiny: Path, *more: str) -> list[str]:
    given = [f"model.path={tiny}", "output=out", "data.path=none.jsonl", "micro_batch=1"]
    given += ["generate.max_new_tokens=16", "generate.batch_size=1"]
    return ["ppo", *given, "--plan", "--prompt-tokens", "30", *more]


def test_it_says_whether_it_fits(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = "reward_model=runs/none"
    assert cli.main(command(tiny, at, "--memory", "2")) == 0
    text = capsys.readouterr().out
    assert "none at runs/none yet; assumed on the policy's base, with an adapter like the policy's" in text
    assert "fits into 2 GB, with 1 GB left free" in text and "peak by the number of GPUs: 1: 0." in text
    assert cli.main(command(tiny, at, "--memory", "1.0000001")) == 1
    text = capsys.readouterr().out
    assert "one change:" in text and "no change of these settings makes it fit" in text
    assert cli.main(command(tiny, at, "--processes", "3")) == 0
    text = capsys.readouterr().out
    assert re.search(r"four roles on one base: \d\.\d\d times its bytes", text)
    assert "on each of 3 GPUs" in text and re.search(r"1: .* 2: .* 3: .* 4: .* 8: ", text)


def test_a_base_that_is_not_trained_yet(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(tiny, "reward_model=runs/none", "model.path=./runs/none/model")) == 2
    said = capsys.readouterr().err
    assert "no such directory" in said and "base that it will be trained from: model.path=DIR" in said


def test_the_reward_model_is_found(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = "runs/llava15_13b/reward_fact"
    model = ModelSettings(path=str(tiny), device="cpu")
    settings = PpoSettings(output="x", model=model, reward_model=named, data={"path": "x"})
    judge, _ = plan_command.find_judge(settings, base=str(tiny))
    assert judge.adapter == LoraSettings(r=64) and judge.model.bits == 4
    RewardModel.start(RewardInfo(model=model), LoraSettings(r=2)).save(Path(named) / "reward", "")
    judge, source = plan_command.find_judge(settings)
    assert judge.adapter == Path(named) / "reward" and source == f"as in {named}, on {tiny}"
    judge, source = plan_command.find_judge(settings, "world/reward", str(tiny))
    assert source == f"as world/reward trains it, on {tiny}"
    assert judge.adapter == resolve(RewardSettings, RECIPES / "world/reward.yaml").lora
    # its template repeats the response
    assert judge.times_read == 2


def test_mistakes_stop_with_the_mend(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = ["reward_model=runs/llava15_13b/reward_fact"]
    for arguments, words in (
        (command(tiny, *far), r"llava-1\.5-13b-hf: its config\.json cannot be had .*\(--reward-base DIR\)"),
        (command(tiny, *far, "--reward-recipe", "no/such"), "no/such: no such recipe"),
        (command(tiny, *far, "--reward-base", "/none"), "/none: no such directory"),
        (command(tiny, "reward_model=x", "generate.max_new_tokens=500"), "max_new_tokens to at most 478"),
        (["ppo", "llava15_7b/ppo", "model.path=./gone", "--plan"], r"\./gone: no such directory"),
    ):
        assert cli.main(arguments) == 2
        err = capsys.readouterr().err
        assert re.search(words, err) and err.count("\n") == 1 and "Traceback" not in err
    with pytest.raises(SystemExit):
        cli.main(command(tiny, *far, "--memory", "0"))
    assert "is not a number above 0" in capsys.readouterr().err
