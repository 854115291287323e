"""DPO by TRL on our pairs: our tokens, the base as reference, learning, and exact resuming."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file

from align import preference
from align.checkpoint import CheckpointError, RunDir
from align.config import DpoSettings, LoraSettings, ModelSettings
from align.models.lmm import Lmm, add_adapters, load
from align.models.tiny import build_tiny_llava
from align.pairs import wilson
from align.preference import PairCollator, Pairs, PairTrainer, last_turn, log_ratios, read_pairs, run
from align.render import IGNORE, Renderer
from align.sft_trainer import ByLength
from data.jsonl import DataError, write_records
from data.schema import Image, Message, Preference, Response

COLOURS = ("red", "green", "blue", "yellow")
CHOSEN, REJECTED = "There is a red apple.", "A cat sits beside a lamp on the table."


def asked(i: int) -> list[Message]:
    """A question of one turn; of three with a system's word first; or one that holds special tokens."""
    if i == 1:
        said = ["Say what you see.", "What is this?", "An image.", "Of what?"]
        roles = ("system", "user", "assistant", "user")
        return [Message(role=role, content=text) for role, text in zip(roles, said)]
    text = "What </s> is <image> it?" if i == 2 else "What is in the image?" + " Describe it." * (i % 3)
    return [Message(role="user", content=text)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, four pictures (not square), and twelve preferences, two of them without a picture."""
    root = tmp_path_factory.mktemp("world")
    build_tiny_llava(root / "base")
    (root / "images").mkdir()
    for colour in COLOURS:
        PilImage.new("RGB", (32, 40), colour).save(root / "images" / f"{colour}.png")
    records = [
        Preference(
            id=f"p{i}",
            image=Image(id=COLOURS[i % 4], path=f"{COLOURS[i % 4]}.png") if i % 5 else None,
            messages=asked(i),
            responses=[Response(text=REJECTED), Response(text=CHOSEN)],
            choices={"overall": 1},
        )
        for i in range(12)
    ]
    write_records(root / "pairs.jsonl", records)
    return root


def settings(world: Path, output: Path, **changes: Any) -> DpoSettings:
    values: dict[str, Any] = {
        "output": str(output),
        "model": {"path": str(world / "base"), "device": "cpu"},
        "data": {"path": str(world / "pairs.jsonl"), "images": str(world / "images")},
        "holdout": 3,
        "lora": {"r": 4},
        "optim": {"lr": 5e-3, "warmup_steps": 1},
        "epochs": 3,
        "batch_size": 3,
        "log_every": 2,
        "save_every": 4,
        "report_to": [],
    }
    return DpoSettings(**(values | changes))


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    assert run(settings(world, output)) == output / "policy"
    return output


@pytest.fixture(scope="module")
def lmm(world: Path) -> Lmm:
    return load(ModelSettings(path=str(world / "base"), device="cpu"))


def collator(lmm: Lmm, world: Path, **changes: Any) -> PairCollator:
    """Over the training pairs."""
    renderer, own = Renderer(lmm.processor), settings(world, world / "unused", **changes)
    return PairCollator(renderer, Pairs(read_pairs(own)[0], renderer, own))


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


# --- the tokens ---


def test_the_last_turn_alone_is_learned():
    """Of a first answer (3, 4), a question, and a last answer (7, 8, 9), in front of padding."""
    no = IGNORE
    labels = torch.tensor([[no, no, 3, 4, no, no, 7, 8, 9, no], [5, 6, no, no, no, no, no, no, no, no]])
    assert last_turn(labels).tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]


def test_a_pair_has_the_tokens_that_sft_and_sampling_have(lmm: Lmm, world: Path):
    collate = collator(lmm, world, holdout=0)
    renderer = collate.renderer
    batch = collate([{"row": i} for i in range(12)])
    assert batch["input_ids"].shape == batch["completion_mask"].shape == batch["attention_mask"].shape
    for row in range(24):
        said = CHOSEN if row < 12 else REJECTED
        example, picture = collate.pairs.chosen[row % 12]
        alone = preference.conversation(collate.pairs.pairs[row % 12], said)
        whole = renderer.train_batch([alone], [picture])["input_ids"][0].tolist()
        prompt = renderer.prompt_batch([(example.messages[:-1], picture)])["input_ids"][0].tolist()
        real = batch["attention_mask"][row].bool()
        ids, mask = batch["input_ids"][row][real].tolist(), batch["completion_mask"][row][real].tolist()
        assert ids == whole and ids[: len(prompt)] == prompt
        assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
        assert renderer.decode(ids[len(prompt) :]) == said and ids[-1] == renderer.end_token_id


def test_for_plain_questions_trl_would_make_the_same_tokens(lmm: Lmm, world: Path):
    """Its own collator as the reference, on the pairs that it renders as we do."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    collate = collator(lmm, world, holdout=0)
    plain = [3, 4, 6, 7]
    rows = []
    for i in plain:
        example, picture = collate.pairs.chosen[i]
        rows.append(
            {
                "images": collate.renderer.whole([picture]),
                "prompt": [{"role": "user", "content": example.messages[0].content}],
                "chosen": [{"role": "assistant", "content": CHOSEN}],
                "rejected": [{"role": "assistant", "content": REJECTED}],
            }
        )
    theirs = DataCollatorForVisionPreference(lmm.processor)(rows)
    ours = collate([{"row": i} for i in plain])
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    for key in ("attention_mask", "completion_mask", "pixel_values"):
        assert torch.equal(ours[key], theirs[key])
    real = ours["attention_mask"].bool()
    assert torch.equal(ours["input_ids"][real], theirs["input_ids"][real])


def test_pairs_that_are_too_long_are_left_out(lmm: Lmm, world: Path):
    longest = max(collator(lmm, world, holdout=0).pairs.lengths)
    fewer = collator(lmm, world, holdout=0, max_length=longest - 1).pairs
    assert 0 < len(fewer.pairs) < 12 and max(fewer.lengths) < longest
    assert (
        [e.id for e in fewer.chosen.examples] == [e.id for e in fewer.rejected] == [p.id for p in fewer.pairs]
    )
    with pytest.raises(DataError, match=r"all 12 pairs are longer than 8 tokens .* raise it"):
        collator(lmm, world, holdout=0, max_length=8)


# --- the run ---


def test_it_starts_at_the_reference_with_the_log_probabilities_of_the_model(
    world: Path, trained: Path, tmp_path: Path, lmm: Lmm
):
    """The first update's figures, against the base model's own forward passes over single unpadded rows."""
    run(settings(world, tmp_path / "run", max_steps=1, log_every=1, save_every=0))
    first = metrics(tmp_path / "run")[0]
    assert (first["rewards/margins"], first["rewards/chosen"]) == (0, 0)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    collate = collator(lmm, world)
    order = list(ByLength(collate.pairs.lengths, 3, seed=0))[:3]
    for name, rejected in (("logps/chosen", False), ("logps/rejected", True)):
        sums = []
        for i in order:
            batch = collate([{"row": i}])
            batch.pop("pixel_values", None)
            row = int(rejected)
            real = batch["attention_mask"][row].bool()
            ids, mask = batch["input_ids"][row][real][None], batch["completion_mask"][row][real]
            picture = collate.pairs.chosen[i][1]
            pixels = {} if picture is None else {"pixel_values": collate.renderer.pixel_values([picture])}
            with torch.no_grad():
                logits = lmm.model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits
            said = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            sums.append(float(said[mask[1:].bool()].sum()))
        assert first[name] == pytest.approx(sum(sums) / 3, abs=1e-3)


def test_it_raises_the_margin_of_its_pairs(world: Path, trained: Path, lmm: Lmm):
    rows = metrics(trained)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9, 9]
    assert rows[-2]["loss"] < 0.5 * math.log(2) and rows[-2]["rewards/accuracies"] == 1
    assert {"loss", "lr", "grad_norm", "epoch", "rewards/margins", "logps/chosen"} <= rows[0].keys()
    held = rows[-1]
    assert (held["heldout/accuracy"], held["heldout/n"]) == (1, 4) and held["heldout/margin"] > 0.5
    # pairs of one picture count once where all are right
    pictures = len({pair.cluster for pair in read_pairs(settings(world, trained))[1]})
    low, high = wilson(pictures, pictures)
    assert pictures < 4 and (held["heldout/low"], held["heldout/high"]) == pytest.approx((low, high))
    assert json.loads((trained / "result.json").read_text())["heldout/margin"] == held["heldout/margin"]


def test_the_saved_policy_is_the_trained_one(world: Path, trained: Path):
    """Put on a fresh base it has the margins that the run measured; the layout is the one that PPO writes."""
    fresh = load(ModelSettings(path=str(world / "base"), device="cpu"))
    fresh.model = add_adapters(fresh.model, LoraSettings(r=4), ["default"])
    renderer, own = Renderer(fresh.processor), settings(world, trained)
    held = PairCollator(renderer, Pairs(read_pairs(own)[1], renderer, own))
    assert all(float(ratio.abs().max()) == 0 for ratio in log_ratios(fresh, held, 2))
    fresh.model.load_adapter(str(trained / "policy"), "saved")
    fresh.model.set_adapter("saved")
    chosen, rejected = log_ratios(fresh, held, 2)
    measured = metrics(trained)[-1]["heldout/margin"]
    assert 0.1 * float((chosen - rejected).mean()) == pytest.approx(measured, abs=1e-5)
    names = {"adapter_config.json", "adapter_model.safetensors", "policy.json", "README.md"}
    assert {path.name for path in (trained / "policy").iterdir()} == names
    assert all(".default" not in key for key in load_file(trained / "policy/adapter_model.safetensors"))
    assert load(ModelSettings(path=str(world / "base"), adapter=str(trained / "policy"))).model is not None


def test_kept_features_change_nothing(world: Path, trained: Path, tmp_path: Path):
    run(settings(world, tmp_path / "run", cache_features=True))
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(trained), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_kill_and_resume_is_bit_identical(
    world: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed in the sixth update, two after a checkpoint, and again behind the last one's checkpoint."""
    output = tmp_path / "run"
    real, calls = PairTrainer.training_step, []

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PairTrainer, "training_step", dies)
        run(settings(world, output))
    torch.manual_seed(999)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "done", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        run(settings(world, output, resume=True))
    run(settings(world, output, resume=True))
    assert metrics(output) == metrics(trained)
    weights = Path("policy/adapter_model.safetensors")
    assert (output / weights).read_bytes() == (trained / weights).read_bytes()


def test_heldout_pictures_are_below_their_own_root(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same file names as in training, with other pictures in them."""
    (tmp_path / "images").mkdir()
    for colour, other in zip(COLOURS, COLOURS[1:] + COLOURS[:1]):
        PilImage.new("RGB", (32, 40), other).save(tmp_path / "images" / f"{colour}.png")
    held = {"path": str(world / "pairs.jsonl"), "images": str(tmp_path / "images")}
    shown, measure = [], preference.heldout

    def watched(lmm: Lmm, collate: PairCollator, own: DpoSettings) -> dict[str, float]:
        shown.extend(picture for _, picture in collate.pairs.chosen)
        return measure(lmm, collate, own)

    monkeypatch.setattr(preference, "heldout", watched)
    run(settings(world, tmp_path / "run", holdout=0, max_steps=1, save_every=0, eval_data=held))
    expected = [
        PilImage.new("RGB", (1, 1), COLOURS[(i + 1) % 4]).getpixel((0, 0)) if i % 5 else None
        for i in range(12)
    ]
    assert [picture and picture.getpixel((9, 9)) for picture in shown] == expected


def test_a_dry_run_loads_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preference, "load", lambda *_: pytest.fail("a dry run loaded weights"))
    run(settings(world, tmp_path / "run", dry_run=True))
    assert not (tmp_path / "run").exists()


def test_pairs_beyond_the_context_are_refused_ahead_of_any_weights(
    world: Path, tmp_path: Path, lmm: Lmm, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preference, "load", lambda *_: pytest.fail("weights were loaded"))
    pairs = collator(lmm, world, holdout=0).pairs
    longest = max(pairs.lengths)
    name = pairs.pairs[pairs.lengths.index(longest)].id
    shutil.copytree(world / "base", tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["text_config"]["max_position_embeddings"] = longest - 1
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    short = {"model": {"path": str(tmp_path / "base"), "device": "cpu"}, "holdout": 0}
    rule = rf"pair '{name}' takes {longest} tokens .* is {longest - 1}; set it to {longest - 1}: longer pairs"
    with pytest.raises(DataError, match=rule):
        run(settings(world, tmp_path / "run", **short))
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_are_refused(world: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="label_smoothing is read by loss_type robust alone"):
        settings(world, tmp_path, label_smoothing=0.1)
    with pytest.raises(ValueError, match="eval_data is what is held out, and holdout 3 would take more"):
        settings(world, tmp_path, eval_data={"path": "held.jsonl"})


def test_a_quantized_base_learns_in_full_precision(world: Path, tmp_path: Path):
    """TRL rounds such a base's adapter to bfloat16; and 4-bit layers that have answered must still learn."""
    build_tiny_llava(tmp_path / "base", hidden_size=64)
    model = {"path": str(tmp_path / "base"), "device": "cpu", "bits": 4}
    run(settings(world, tmp_path / "run", model=model, cache_features=True, save_every=0))
    assert metrics(tmp_path / "run")[-1]["heldout/margin"] > 0.5
    saved = load_file(tmp_path / "run/policy/adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    # not one of them rounded
    assert not all(torch.equal(t, t.bfloat16().float()) for t in saved.values())


def test_it_does_not_go_on_with_other_pairs(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, text = tmp_path / "pairs.jsonl", (world / "pairs.jsonl").read_text()
    data = {"path": str(file), "images": str(world / "images")}

    def goes_on(text: str) -> None:
        file.write_text(text)
        run(settings(world, tmp_path / "run", data=data, resume=True))

    def loaded(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preference, "load", loaded)
    with pytest.raises(KeyboardInterrupt):
        goes_on(text)
    turned = text.replace('"overall": 1', '"overall": 0')
    said = text.replace("red apple", "red pear")
    shown = text.replace('"blue.png"', '"green.png"')
    for other in (turned, said, shown, "\n".join(text.splitlines()[::-1]) + "\n"):
        assert other != text
        with pytest.raises(CheckpointError, match="run: was made with other records to learn from; other he"):
            goes_on(other)
    # what DPO does not read
    facts = text.replace('"choices":', '"facts": {"captions": ["A cat."]}, "choices":')
    assert facts != text
    with pytest.raises(KeyboardInterrupt):
        goes_on(facts)
