"""What a saved reward model says of itself: text and weights belong together, and the card tells of both."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

import align.reward as stage
from align.cards import reward_card
from align.checkpoint import load_tensors, save_tensors
from align.config import LoraSettings, ModelSettings, PpoSettings, RewardSettings
from align.models.tiny import build_tiny_llava
from align.pairs import Pair, Share, by_length, label_agreement, pairs_of, wilson
from align.ppo import run as run_ppo
from align.render import REWARD_TEMPLATE
from align.reward_model import RewardError, RewardInfo, RewardModel, read_info
from data.jsonl import write_records
from data.schema import Facts, Image, Message, Preference, Prompt, Response

ASK = [Message(role="user", content="What is in the image?")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, pictures, and pairs in which a cat is preferred to a dog; two annotators on the first six."""
    root = tmp_path_factory.mktemp("base")
    build_tiny_llava(root / "base")
    for i in range(16):
        PilImage.new("RGB", (32, 32), (255, i, 0)).save(root / f"red-{i}.png")
    records = [
        Preference(
            id=f"p{i}",
            image=Image(id=f"red-{i}", path=f"red-{i}.png"),
            messages=ASK,
            responses=[Response(text=f"A cat and {i} cups."), Response(text=f"A dog and {i} cups.")],
            choices={"overall": choice},
            annotator=annotator,
            facts=Facts(captions=["A cat sits.", "A red chair."]),
        )
        for i in range(16)
        for annotator, choice in (("one", 0), *((("two", int(i < 2)),) if i < 6 else ()))
    ]
    write_records(root / "pairs.jsonl", records)
    write_records(root / "prompts.jsonl", [Prompt(id="q", question="What?", facts=Facts(captions=["A."]))])
    return root


def settings(base: Path, output: Path, **changes: Any) -> RewardSettings:
    values: dict[str, Any] = {
        "output": str(output), "model": {"path": str(base / "base")}, "facts": ["captions"], "holdout": 4,
        "data": {"path": str(base / "pairs.jsonl"), "images": str(base)}, "lora": {"r": 4},
        "optim": {"lr": 1e-2}, "batch_size": 8, "report_to": [],
    }  # fmt: skip
    return RewardSettings(**(values | changes))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage.run(settings(base, tmp_path_factory.mktemp("run"), template="{facts}\nSaid: {response}"))


def changed(trained: Path, folder: Path, **values: Any) -> Path:
    """A copy of the model whose ``reward.json`` has other values."""
    copy = Path(shutil.copytree(trained, folder))
    content = json.loads((copy / "reward.json").read_text())
    (copy / "reward.json").write_text(json.dumps(content | values))
    return copy


# --- text and weights ---


@pytest.mark.parametrize(
    "values",
    [{"template": "{facts}\nIs this right?"}, {"facts": []}, {"facts": ["rationales"]}, {"max_facts": {}}],
    ids=["template", "no facts", "other facts", "more facts"],
)
def test_a_text_that_was_changed_after_training_is_refused(
    trained: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    copy = changed(trained, tmp_path / "copy", **values)
    told = r"copy/reward\.json: its template, facts or max_facts are not those .*; put the file back"
    with pytest.raises(RewardError, match=told):
        read_info(copy)
    with pytest.raises(RewardError, match=told):
        RewardModel.load(copy)


def test_another_models_whole_file_is_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    other = stage.run(settings(base, tmp_path / "other", seed=1, template="{facts}\nGood: {response}?"))
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    shutil.copy(other / "reward.json", copy)
    with pytest.raises(RewardError, match=r"reward\.json: its template"):
        read_info(copy)


def test_another_runs_adapter_is_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    """A copy over an older folder that broke off: text and head are of one run, the adapter is of another."""
    other = stage.run(settings(base, tmp_path / "other", seed=1, template="{facts}\nSaid: {response}"))
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    shutil.copy(other / "adapter_model.safetensors", copy)
    told = r"copy/adapter_model\.safetensors: not the weights that reward\.json was saved beside .*; copy the"
    for read in (read_info, RewardModel.load):
        with pytest.raises(RewardError, match=told):
            read(copy)
    # without its weights a folder still says what it reads
    (copy / "adapter_model.safetensors").unlink()
    assert read_info(copy).template == "{facts}\nSaid: {response}"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "head.safetensors"])
def test_a_folder_that_is_not_whole_stops_before_any_weights(
    base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """PEFT would look for the missing file on the Hub, once the base is loaded."""
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    (copy / name).unlink()
    monkeypatch.setattr("align.reward_model.load", lambda *_: pytest.fail("a base was loaded"))
    values = {"output": str(tmp_path / "run"), "model": {"path": str(base / "base")}, "dry_run": True}
    values |= {"reward_model": str(copy), "data": {"path": str(base / "prompts.jsonl")}}
    told = rf"copy: {name} is missing, so the reward model is not whole .*; copy the whole folder again"
    for use in (lambda: run_ppo(PpoSettings.model_validate(values)), lambda: RewardModel.load(copy)):
        with pytest.raises(RewardError, match=told):
            use()


def test_what_no_score_depends_on_may_change(trained: Path, tmp_path: Path) -> None:
    model = json.loads((trained / "reward.json").read_text())["model"]
    read_info(changed(trained, tmp_path / "a", model=model | {"path": "elsewhere"}, target="overall"))
    # older folders have no fingerprint, or none of the adapter
    old = changed(trained, tmp_path / "b", fingerprint=None, template="{facts} Old?")
    assert read_info(old).template == "{facts} Old?"
    content = json.loads((trained / "reward.json").read_text())
    older = changed(trained, tmp_path / "c")
    late = ("adapter_sha256", "heldout_sha256")
    (older / "reward.json").write_text(json.dumps({k: v for k, v in content.items() if k not in late}))
    assert read_info(older).adapter_sha256 is None
    item = stage.ScoreItem("x", ASK, "A cat.", Facts(captions=["A cat."]))
    torch.testing.assert_close(*(RewardModel.load(folder).score([item]) for folder in (older, trained)))


def test_ppo_stops_before_it_loads_a_model(
    base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.ppo.Ppo", lambda *_: pytest.fail("a model was loaded"))
    copy = changed(trained, tmp_path / "copy", template="{facts}\nIs this right?")
    values = {"output": str(tmp_path / "run"), "model": {"path": "/nowhere"}, "reward_model": str(copy)}
    with pytest.raises(RewardError, match="train a reward model with the new text"):
        run_ppo(PpoSettings(**values, data={"path": str(base / "prompts.jsonl")}))
    assert not (tmp_path / "run").exists()


# --- rescored after saving ---


@pytest.mark.parametrize("part", ["head", "adapter", "template"])
def test_files_that_do_not_score_as_trained_are_found(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    real = RewardModel.save

    def save(self: RewardModel, directory: Path, card: str) -> Path:
        """As a save that forgets the head, the adapter or the template."""
        tensors = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
        template = self.info.template
        for name, parameter in self.named_parameters():
            if part == ("head" if name.startswith("head.") else "adapter"):
                torch.nn.init.zeros_(parameter)
        if part == "template":
            self.info.template = REWARD_TEMPLATE
        real(self, directory, card)
        self.info.template = template
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(tensors[name])
        return directory

    monkeypatch.setattr(RewardModel, "save", save)
    told = r"reward: rescored after saving, scores differ by .*; the files are not usable"
    with pytest.raises(RewardError, match=told):
        stage.run(settings(base, tmp_path / "run", template="{facts}\nSaid: {response}"))
    assert not (tmp_path / "run/DONE").exists()


def test_a_head_that_is_not_loaded_is_found(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.load_head

    def load_head(folder: Path, lmm: Any) -> Any:
        head = real(folder, lmm)
        torch.nn.init.zeros_(head.linear.weight)
        return head

    monkeypatch.setattr(stage, "load_head", load_head)
    with pytest.raises(RewardError, match="rescored after saving"):
        stage.run(settings(base, tmp_path / "run"))


def test_the_head_belongs_to_the_scores(trained: Path, tmp_path: Path) -> None:
    copy = changed(trained, tmp_path / "copy", fingerprint=None)
    tensors = load_tensors(copy / "head.safetensors")
    save_tensors(copy / "head.safetensors", {name: 2 * tensor for name, tensor in tensors.items()})
    model, doubled = RewardModel.load(trained), RewardModel.load(copy)
    item = stage.ScoreItem("x", ASK, "A cat.", Facts(captions=["A cat."]))
    score = model.score([item])
    assert float(score.abs()) > 1e-3
    # the head has no bias: twice the weights are twice the score
    torch.testing.assert_close(doubled.score([item]), 2 * score)


# --- the card ---


def test_the_card_shows_the_text_and_the_annotators_agreement(trained: Path) -> None:
    card = (trained / "README.md").read_text()
    assert "```text\n{facts}\nSaid: {response}\n```" in card
    assert "`{response}` is the response once more. `{facts}` stands for facts" in card
    assert "captions (at most 5)" in card
    # four of the six pairs with two annotators
    assert "Two annotators of these pairs agree on 66.7% (95 % interval 30.0% to 90.3%, 6 pairs)" in card
    # (1 + √⅓)/2
    assert (
        "No scores can then be expected to agree with one annotator on more than 78.9%; 50 % is chance."
        in card
    )
    assert "69 %" not in card


def test_the_card_of_a_plain_model() -> None:
    info = RewardInfo(model=ModelSettings(path="m"), template="Is ```this``` right?")
    told = RewardSettings(output="o", model=info.model, data={"path": "p"}, lora=LoraSettings())
    card = reward_card(info, told, 9, Counter())
    assert "\n````text\nIs ```this``` right?\n````\n" in card
    assert "It reads no facts." in card and "once more" not in card
    assert "unknown.\n\n- Human labelers agree with each other on 69 % of pairs" in card
    assert "agree with one labeler on more than 81 %; 63 to 67 % is normal" in card


# --- agreement ---


def pair(name: str, chosen: str, rejected: str) -> Pair:
    return Pair(name, tuple(ASK), chosen, rejected, Facts(), None)


def test_annotators_agreement_by_hand() -> None:
    pairs = [
        pair("a", "x", "y"), pair("a", "x", "y"),
        pair("b", "x", "y"), pair("b", "y", "x"),
        # three annotators: one of three comparisons agrees
        pair("c", "x", "y"), pair("c", "y", "x"), pair("c", "y", "x"),
        pair("d", "x", "y"), pair("a", "x", "z"),
    ]  # fmt: skip
    assert label_agreement(pairs) == Share.of(np.array([1, 0, 1 / 3]))
    assert label_agreement(pairs[-2:]) is None
    # one annotator's record that holds a text twice is one comparison
    doubled = Preference(
        id="e", messages=ASK, choices={"overall": 0}, responses=[Response(text=t) for t in "xyy"]
    )
    found, skipped = pairs_of([doubled], "preferred")
    assert len(found) == 1 and skipped["identical"] == 1 and label_agreement(found) is None


def test_annotators_of_one_picture_are_no_independent_ones() -> None:
    """Two pairs with two annotators each on every one of ten pictures, alike on both or on neither."""
    pairs = [
        replace(pair(f"{i}-{j}", "x", "y"), image=Image(id=f"{i}-{j}", path=f"{i}.png"))
        for i in range(10)
        for j in range(2)
    ]
    other = [replace(p, chosen="y", rejected="x") if int(p.id[0]) < 4 else p for p in pairs]
    found = label_agreement([*pairs, *other])
    assert found is not None and found.n == 20
    assert (found.value, found.low, found.high) == pytest.approx((0.6, *wilson(6, 10)))


def test_agreement_by_length_by_hand() -> None:
    found = by_length([1, 0, 2, 1, 5], [0, 1, 2, 3, 4], [5, 5, 9, 3, 30], [9, 8, 7, 4, 4])
    # shorter by 4 and 3: right, wrong; within two tokens: an equal score, wrong; longer by 26: right
    expected = {"all": (2.5, 5), "shorter": (1, 2), "equal": (0.5, 2), "longer": (1, 1)}
    for name, (right, n) in expected.items():
        share = found[name]
        assert (share.value, share.low, share.high, share.n) == pytest.approx(
            (right / n, *wilson(right, n), n)
        )
    assert found["shorter"].low == pytest.approx(0.0945, abs=1e-4)
    assert by_length([1], [0], [5], [5])["longer"].n == 0
