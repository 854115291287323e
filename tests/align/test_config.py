"""Recipes and arguments: what they mean, and what is said when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config import (
    ConfigError,
    DpoSettings,
    EvalSettings,
    GrpoSettings,
    ModelSettings,
    PpoSettings,
    RewardSettings,
    RlooSettings,
    SftSettings,
    is_hub_id,
    load_recipe,
    resolve,
)

SFT = """\
output: runs/sft
model:
  path: some/model
data:
  path: train.jsonl
optim:
  lr: 3e-5
lora:
  r: 8
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "sft.yaml"
    path.write_text(SFT)
    return path


def _error(*args: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(*args)  # type: ignore[arg-type]
    return str(caught.value)


def test_recipe_values_reach_the_settings(recipe: Path) -> None:
    settings = resolve(SftSettings, recipe)
    assert settings.optim.lr == pytest.approx(3e-5, rel=1e-12)
    assert settings.lora is not None and settings.lora.r == 8
    assert settings.lora.alpha == 16
    assert settings.eval_data is None


def test_exponent_without_a_point_is_a_number(recipe: Path) -> None:
    assert load_recipe(recipe)["optim"]["lr"] == 3e-5  # plain YAML 1.1 reads the text "3e-5"
    for text in ("1e3", "-2E-4", "1.5e+2", ".5e1"):
        recipe.write_text(f"x: {text}")
        assert load_recipe(recipe) == {"x": float(text)}


@pytest.mark.parametrize("text", ["e5", "1e", "a1e5", "1e5b"])
def test_words_that_look_like_exponents_stay_text(recipe: Path, text: str) -> None:
    recipe.write_text(f"x: {text}")
    assert load_recipe(recipe) == {"x": text}


def test_arguments_override_in_order(recipe: Path) -> None:
    settings = resolve(
        SftSettings,
        recipe,
        ["optim.lr=1e-4", "train_parts=[vision, projector]", "lora=null", "seed=1", "seed=2", "output=a=b"],
    )
    assert settings.optim.lr == 1e-4
    assert settings.train_parts == ["vision", "projector"]
    assert settings.lora is None
    assert settings.seed == 2
    assert settings.output == "a=b"


def test_argument_opens_a_missing_section(recipe: Path) -> None:
    settings = resolve(SftSettings, recipe, ["eval_data.path=[a.jsonl, b.jsonl]"])
    assert settings.eval_data is not None and settings.eval_data.path == ["a.jsonl", "b.jsonl"]


def test_settings_without_a_recipe() -> None:
    settings = resolve(EvalSettings, None, ["output=o", "model.path=m", "benchmarks={pope_random: p.jsonl}"])
    assert settings.benchmarks == {"pope_random": "p.jsonl"}


def test_a_partial_section_keeps_the_stage_defaults() -> None:
    """PPO's warm-up is a default of the stage, not of OptimSettings; naming the rate must not drop it."""
    base = ["output=o", "model.path=m", "data.path=d", "reward_model=r"]
    settings = resolve(PpoSettings, None, [*base, "optim.lr=1e-5", "symbolic.length.general=-1"])
    assert (settings.optim.lr, settings.optim.warmup_steps) == (1e-5, 5)
    assert settings.symbolic.length == {"general": -1.0, "detail": -40.0, "complex": 2.5}
    judged = resolve(
        EvalSettings, None, ["output=o", "model.path=m", "benchmarks={}", "generate.batch_size=3"]
    )
    assert (judged.generate.batch_size, judged.generate.max_new_tokens, judged.generate.temperature) == (
        3,
        128,
        0,
    )


def test_class_defaults_are_not_changed_by_a_run() -> None:
    base = ["output=o", "model.path=m", "data.path=d", "reward_model=r"]
    resolve(PpoSettings, None, [*base, "symbolic.length.general=-1"])
    assert resolve(PpoSettings, None, base).symbolic.length["general"] == -10.0
    resolve(SftSettings, None, [*base[:-1], "optim.part_lr={vision: 1.0}"])
    assert resolve(SftSettings, None, base[:-1]).optim.part_lr == {}


@pytest.mark.parametrize("stage", [PpoSettings, GrpoSettings, RlooSettings, DpoSettings, RewardSettings])
def test_settings_that_a_stage_would_not_read_are_refused(stage: Any) -> None:
    base = ["output=o", "model.path=m", "data.path=d"]
    base += ["reward_model=r"] if "reward_model" in stage.model_fields else []
    with pytest.raises(
        ConfigError, match=r"'optim': part_lr \{'projector': 0\.001\} is read by SFT alone.*lr"
    ):
        resolve(stage, None, [*base, "optim.part_lr={projector: 1e-3}"])
    if stage in (DpoSettings, RewardSettings):
        assert resolve(stage, None, [*base, "log_every=5"]).log_every == 5
        return
    with pytest.raises(
        ConfigError, match="'log_every': 5 is not read: every step is logged; set it to 1, or"
    ):
        resolve(stage, None, [*base, "log_every=5"])
    assert resolve(stage, None, [*base, "log_every=1"]).log_every == 1
    # what a run's own settings.yaml says of itself
    assert stage.model_validate(resolve(stage, None, base).model_dump(mode="json")).log_every == 10


def test_unknown_key_names_file_line_and_nearest(recipe: Path) -> None:
    recipe.write_text(SFT.replace("lr:", "lrr:"))
    assert (
        _error(SftSettings, recipe) == f"{recipe}:7: unknown key 'lrr' in section 'optim'; did you mean 'lr'?"
    )


def test_unknown_key_in_an_optional_section(recipe: Path) -> None:
    recipe.write_text(SFT + "  dropuot: 0.1\n")
    text = _error(SftSettings, recipe)
    assert text == f"{recipe}:10: unknown key 'dropuot' in section 'lora'; did you mean 'dropout'?"


def test_unknown_argument_names_the_argument(recipe: Path) -> None:
    text = _error(SftSettings, recipe, ["bach_size=3"])
    assert (
        text == "argument 'bach_size=3': unknown key 'bach_size' in the settings; did you mean 'batch_size'?"
    )


def test_unknown_key_far_from_all_lists_the_known(recipe: Path) -> None:
    text = _error(SftSettings, recipe, ["model.zzzz=3"])
    assert "known keys: adapter, attention, bits" in text


@pytest.mark.parametrize(
    ("limits", "part"), [("{capttions: 5}", "captions"), ("{captions: -1}", "-1"), ("{captions: 0}", "0")]
)
def test_limits_of_facts_are_checked(recipe: Path, limits: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        resolve(RewardSettings, recipe, [f"max_facts={limits}"])
    assert "max_facts" in str(caught.value)


@pytest.mark.parametrize(
    "template, told",
    [
        (
            "{fact} Good?",
            "'template': the template names {fact}, which nothing replaces; did you",
        ),
        ("{facts} {respones} Good?", "names {respones}, which nothing replaces; did you mean {response}?"),
        ("{ facts } Good?", "names { facts }, which nothing replaces; did you mean {facts}?"),
        ("{facts} {} Good?", "names {}, which nothing replaces; the places are {facts} and {response}"),
        ("Good?", "the model reads facts (captions), and the template has no place for them; put {facts}"),
    ],
)
def test_a_template_has_known_places_only(recipe: Path, template: str, told: str) -> None:
    recipe.write_text("output: x\nmodel: {path: m}\ndata: {path: d}\n")
    given = [f"template={json.dumps(template)}", "facts=[captions]"]
    text = _error(RewardSettings, recipe, given)
    assert text.startswith("argument 'template=") and told in text and text.count("\n") == 0


def test_a_template_may_have_braces_of_its_own_and_no_facts(recipe: Path) -> None:
    recipe.write_text("output: x\nmodel: {path: m}\ndata: {path: d}\n")
    for template in ("Good?", "{response} Good?", "{facts}{response}", '{facts} Give {"ok": 1}.'):
        found = resolve(RewardSettings, recipe, [f"template={json.dumps(template)}"])
        assert found.template == template


def test_wrong_type_and_broken_rule_are_named(recipe: Path) -> None:
    text = _error(SftSettings, recipe, ["batch_size=many", "optim.lr=-1"])
    first, second = sorted(text.splitlines())
    assert first.startswith("argument 'batch_size=many': 'batch_size': ") and "integer" in first
    assert first.endswith("got 'many'")
    assert second == "argument 'optim.lr=-1': 'optim.lr': input should be greater than 0, got -1"


def test_fault_in_the_file_is_not_blamed_on_an_argument(recipe: Path) -> None:
    recipe.write_text(SFT + "seed: x\n")
    assert _error(SftSettings, recipe, ["optim.lr=1e-3"]).startswith(f"{recipe}:10: 'seed'")


def test_both_members_of_a_union_are_named_once(recipe: Path) -> None:
    text = _error(SftSettings, recipe, ["data.path=7"])
    assert len(text.splitlines()) == 1
    assert text.startswith("argument 'data.path=7': 'data.path': must be text, got 7; quote it in YAML or ")
    assert "list" in text


def test_bare_yes_no_says_quote(recipe: Path) -> None:
    recipe.write_text(SFT.replace("lora:\n  r: 8\n", "head_init: [yes, no]\n"))
    assert "quote the word" in _error(RewardSettings, recipe)
    recipe.write_text(SFT.replace("lora:\n  r: 8\n", "head_init: ['yes', 'no']\n"))
    assert resolve(RewardSettings, recipe).head_init == ("yes", "no")


def test_missing_key_is_named(recipe: Path) -> None:
    recipe.write_text("output: o\ndata: {path: d}\nmodel: {dtype: float32}\n")
    assert _error(SftSettings, recipe) == (
        f"{recipe}:3: 'model.path' is required; add it to the recipe or give model.path=..."
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\na: 2\n", "'a' is given twice (line 2)"),
        ("m:\n  a: 1\n  b: 1\n  a: 2\n", "'a' is given twice (line 4)"),
        ("- a\n", "the top level must be"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_bad_files(recipe: Path, text: str, part: str) -> None:
    recipe.write_text(text)
    message = _error(SftSettings, recipe)
    assert message.startswith(str(recipe)) and part in message and "\n" not in message


def test_missing_file_and_binary_file(tmp_path: Path) -> None:
    assert "cannot read the recipe" in _error(SftSettings, tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in _error(SftSettings, tmp_path / "b.yaml")


@pytest.mark.parametrize("argument", ["seed", "=3", "optim.=3", "seed=[1", "output.x=1"])
def test_bad_arguments(recipe: Path, argument: str) -> None:
    assert _error(SftSettings, recipe, [argument]).startswith(f"argument {argument!r}: ")


@pytest.mark.parametrize(("adapter", "name"), [(None, "m"), ("a", "a"), (["a", "b"], "b"), ([], "m")])
def test_a_model_is_called_by_its_last_adapter(adapter: str | list[str] | None, name: str) -> None:
    assert ModelSettings(path="m", adapter=adapter).name == name


def test_a_hub_id_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("llava-hf/llava-1.5-7b-hf", "owner/name", "o_w.ner/n"):
        assert is_hub_id(name), name
    for name in ("runs/adapter", "name", "./name", "../name", "a/b/c", "/a/b", "owner/", "", "a b/c"):
        assert not is_hub_id(name), name
