"""A tiny model learns to prefer one word; what it learned survives saving, killing and resuming."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file

import align.reward_model
from align.checkpoint import CheckpointError
from align.config import ModelSettings, RewardSettings
from align.launch import LaunchError
from align.models.lmm import Lmm, load_processor
from align.models.tiny import build_tiny_llava
from align.pictures import open_pictures
from align.render import Renderer, RenderError
from align.reward import (
    RewardError,
    RewardModel,
    pair_items,
    pair_loss,
    pair_pictures,
    read_pairs,
    report_pairs,
    run,
    train_step,
)
from align.reward_model import RewardInfo, ScoreItem, read_info, same_base
from align.schedule import lr_factor
from data.jsonl import DataError, read_records, write_records
from data.schema import Facts, Image, Message, Preference, Response

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, one-colour images, and preferences for answers that name a cat over a dog."""
    root = tmp_path_factory.mktemp("world")
    build_tiny_llava(root / "base")
    (root / "images").mkdir()
    for colour in COLOURS:
        PilImage.new("RGB", (32, 32), colour).save(root / "images" / f"{colour}.png")
    records = []
    for i in range(48):
        colour = COLOURS[i % 4]
        # each pair's picture is its own: pairs of one picture are held out together, and tell less
        (root / "images" / f"{colour}-{i}.png").write_bytes((root / "images" / f"{colour}.png").read_bytes())
        texts = [f"A cat and {i} cups.", f"A dog and {i} cups."]
        best = i % 2
        records.append(
            Preference(
                id=f"p{i}",
                image=Image(id=f"{colour}-{i % 12}", path=f"{colour}-{i}.png"),
                messages=[Message(role="user", content="What is in the image?")],
                responses=[Response(text=t) for t in (texts if best == 0 else texts[::-1])],
                choices={"hallucination": best},
                facts=Facts(captions=[f"There is a {colour} chair.", "A cat sits.", "The table is red."]),
            )
        )
    write_records(root / "preferences.jsonl", records)
    return root


def settings(world: Path, output: Path, **changes: Any) -> RewardSettings:
    values: dict[str, Any] = {
        "output": str(output),
        "model": {"path": str(world / "base")},
        "data": {"path": str(world / "preferences.jsonl"), "images": str(world / "images")},
        "holdout": 12,
        "facts": ["captions"],
        "optim": {"lr": 1e-2, "warmup_steps": 1},
        "lora": {"r": 4},
        "epochs": 3,
        "batch_size": 8,
        "eval_every": 4,
        "save_every": 3,
        "log_every": 1,
        "report_to": [],
    }
    return RewardSettings(**(values | changes))


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    assert run(settings(world, output)) == output / "reward"
    return output


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_pair_loss_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2 + 0.1 * 0.75
    assert pair_loss(chosen, rejected, 0.1).item() == pytest.approx(expected)
    assert pair_loss(-chosen, -rejected, 0.1).item() == pytest.approx(
        (math.log1p(math.exp(1)) + math.log1p(math.exp(-2))) / 2 + 0.1 * 0.75
    )


def test_it_learns_the_preference(trained: Path):
    info = read_info(trained)
    assert info.heldout is not None
    assert info.heldout["n"] == 12
    assert info.heldout["accuracy"] == 1.0
    losses = [line["loss"] for line in metrics(trained) if "loss" in line]
    # a head of zeros scores everything 0: the first loss is log 2
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.2
    assert [line["step"] for line in metrics(trained) if "eval/accuracy" in line] == [4, 8, 12, 14]


def test_learning_rates_follow_the_schedule(trained: Path):
    rates = [line["lr"] for line in metrics(trained) if "lr" in line]
    assert rates == pytest.approx([1e-2 * lr_factor(step, 14, 1, "cosine") for step in range(14)])


def test_gradients_are_clipped(world: Path, tmp_path: Path):
    s = settings(world, tmp_path, optim={"lr": 1e-3, "max_grad_norm": 1e-3})
    model = RewardModel.start(RewardInfo(model=s.model, facts=["captions"]), s.lora, ("Yes", "No"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = train_step(model, optimizer, read_pairs(s)[0][:8], 0, 1, s)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert found["grad_norm"] > 1e-2 and float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_facts_are_shuffled_anew_at_each_step_and_alike_within_a_pair(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown: dict[tuple[str, str], list[str | None]] = {}
    real = RewardModel.facts_of

    def facts_of(self: RewardModel, name: str, facts: Facts, seed: int | str) -> str | None:
        text = real(self, name, facts, seed)
        shown.setdefault((name, str(seed)), []).append(text)
        return text

    monkeypatch.setattr(RewardModel, "facts_of", facts_of)
    run(settings(world, tmp_path / "run", holdout=0, epochs=4, batch_size=48, eval_every=99))
    steps = {seed for _, seed in shown if seed.startswith("0/")}
    assert len(steps) == 4
    training = {key: texts for key, texts in shown.items() if key[1] in steps}
    assert all(len(texts) == 2 and texts[0] == texts[1] for texts in training.values())
    by_pair = [{texts[0] for (name, _), texts in training.items() if name == f"p{i}"} for i in range(48)]
    # four draws of six orders: all alike once in 216 times
    assert sum(len(texts) > 1 for texts in by_pair) > 40
    for step in steps:
        texts = [t[0] for (_, seed), t in training.items() if seed == step]
        assert len({text.split("\n").index("A cat sits.") for text in texts if text}) == 3


def test_card_states_accuracy_and_interval_beside_the_labelers_agreement(trained: Path):
    card = (trained / "reward" / "README.md").read_text()
    assert "**100.0%** of 12 pairs (95 % interval 75.8% to 100.0%)" in card
    assert "agree with each other on 69 %" in card
    assert "63 to 67 % is normal" in card
    assert "Correlation of score and length" in card


def test_reloaded_scores_are_equal(world: Path, trained: Path):
    pairs = read_pairs(settings(world, trained))[1]
    items = pair_items(pairs, open_pictures([p.image for p in pairs], world / "images"))
    scores = RewardModel.load(trained).score(items)
    assert torch.equal(scores, RewardModel.load(trained / "reward").score(items))
    chosen, rejected = scores.chunk(2)
    assert bool((chosen > rejected).all())


def test_scores_do_not_depend_on_batching(world: Path, trained: Path):
    model = RewardModel.load(trained)
    pairs = read_pairs(settings(world, trained))[1]
    items = pair_items(pairs, open_pictures([p.image for p in pairs], world / "images"))
    torch.testing.assert_close(model.score(items, batch_size=3), model.score(items), atol=1e-5, rtol=1e-5)


def test_the_same_pairs_labelled_otherwise_are_not_scored_again(
    world: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    model = RewardModel.load(trained)
    pairs = read_pairs(settings(world, trained))[1]
    images = str(world / "images")
    swapped = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in pairs[::2]]
    alone = [report_pairs(model, some, images, seed=3, batch_size=2) for some in (pairs, swapped)]
    asked: list[int] = []
    inner = RewardModel.score

    def score(self: RewardModel, items: list[ScoreItem], **options: Any) -> torch.Tensor:
        asked.append(len(items))
        return inner(self, items, **options)

    monkeypatch.setattr(RewardModel, "score", score)
    known: dict[tuple[str, str], float] = {}
    for some, expected in zip((pairs, swapped), alone, strict=True):
        found = report_pairs(model, some, images, seed=3, batch_size=2, known=known)
        assert asdict(found) == pytest.approx(asdict(expected), abs=1e-5, nan_ok=True)
    assert sum(asked) == 2 * len(pairs)


def test_the_adapter_joins_a_base_that_is_there(world: Path, trained: Path):
    from align.models.lmm import adapters_off, hidden_states, load, move

    base = ModelSettings(path=str(world / "base"))
    lmm = load(base)
    model = RewardModel.load(trained, lmm, base=base)
    assert model.lmm is lmm
    item = ScoreItem("x", [Message(role="user", content="What?")], "A cat.", Facts(captions=["A cat."]))
    torch.testing.assert_close(model.score([item]), RewardModel.load(trained).score([item]))
    # under adapters_off the base is as it was
    batch = move(model.renderer.prompt_batch([(item.messages, None)]), lmm.device)
    with torch.no_grad(), adapters_off(lmm.model):
        off = hidden_states(lmm.model, batch)
    with torch.no_grad():
        assert torch.equal(off, hidden_states(load(base).model, batch))
    other = RewardModel.load(trained, lmm, base=base.model_copy(update={"adapter": "elsewhere"}))
    assert other.lmm is not lmm


def test_shared_weights_choose_neither_code_nor_device(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """``reward.json`` comes with the weights; how its base runs is for the one who loads it to say."""
    shared = Path(shutil.copytree(trained / "reward", tmp_path / "shared"))
    file = shared / "reward.json"
    content = json.loads(file.read_text())
    assert content["model"].keys() == {"path", "adapter", "dtype", "bits"}
    content["model"] |= {"trust_remote_code": True, "device": "meta", "attention": "flash_attention_2"}
    file.write_text(json.dumps(content))

    asked: list[ModelSettings] = []
    real = align.reward_model.load
    monkeypatch.setattr("align.reward_model.load", lambda model: (asked.append(model), real(model))[1])
    RewardModel.load(shared)
    mine = ModelSettings(path="elsewhere", attention="eager", device="cpu", trust_remote_code=True)
    lmm = Lmm(None, None)
    RewardModel.load(shared, lmm, base=mine)
    path = content["model"]["path"]
    assert asked[0] == ModelSettings(path=path)
    assert asked[1] == ModelSettings(path=path, attention="eager", device="cpu", trust_remote_code=True)


def test_a_shared_template_with_a_typo_is_refused(trained: Path, tmp_path: Path):
    shared = Path(shutil.copytree(trained / "reward", tmp_path / "shared"))
    text = (shared / "reward.json").read_text()
    (shared / "reward.json").write_text(text.replace("{facts}", "{fact}"))
    with pytest.raises(
        RewardError, match=r"reward\.json: template: .*names \{fact\}.*did you mean \{facts\}\?"
    ):
        read_info(shared)


def test_a_failed_save_leaves_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = RewardModel.load(trained)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    # while the adapter is written, and after it
    for owner, name in ((model.lmm.model, "save_pretrained"), (align.reward_model, "write_text")):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
            patch.setattr(owner, name, fail)
            model.save(tmp_path / "reward", "a card")
    assert not list(tmp_path.iterdir())


def test_same_base_reads_paths_as_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert same_base(ModelSettings(path="base"), ModelSettings(path=str(tmp_path / "base"), bits=4))
    assert not same_base(ModelSettings(path="base"), ModelSettings(path="base", adapter="a"))


def test_facts_are_read_and_their_order_is_seeded(trained: Path):
    model = RewardModel.load(trained)
    ask = [Message(role="user", content="What?")]
    with_facts = [ScoreItem("x", ask, "A cat.", Facts(captions=[c, "A lamp.", "Two cups."])) for c in COLOURS]
    assert len(set(model.score(with_facts).tolist())) == 4
    orders = {model.facts_of("x", with_facts[0].facts, seed) for seed in range(20)}
    assert len(orders) == 6
    assert torch.equal(model.score(with_facts, seed=5), model.score(with_facts, seed=5))


def test_missing_facts_stop_before_any_model_is_loaded(world: Path, trained: Path, tmp_path: Path):
    bare = Preference(
        id="bare",
        messages=[Message(role="user", content="What?")],
        responses=[Response(text="x"), Response(text="y")],
        choices={"overall": 0},
    )
    write_records(tmp_path / "bare.jsonl", [bare])
    broken = settings(
        world, tmp_path / "run", data={"path": str(tmp_path / "bare.jsonl")}, model={"path": "/nowhere"}
    )
    with pytest.raises(DataError, match=r"bare\.jsonl: facts: .*1 records have none: bare; add them"):
        run(broken)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="1 records have none: x"):
        RewardModel.load(trained).score([ScoreItem("x", bare.messages, "y", Facts(answer="A"))])


def test_kill_and_resume_is_bit_identical(
    world: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import align.reward as stage

    whole = stage.train_step
    calls = []

    def dies(*args: Any) -> dict[str, float]:
        found = whole(*args)
        calls.append(args)
        if len(calls) == 8:  # its weights are changed, its metrics not yet written; last checkpoint: 6
            raise KeyboardInterrupt
        return found

    output = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "train_step", dies)
        run(settings(world, output))
    assert not (output / "reward").exists()
    run(settings(world, output, resume=True))
    assert metrics(output) == metrics(trained)
    for name in ("adapter_model.safetensors", "head.safetensors", "README.md", "reward.json"):
        assert (output / "reward" / name).read_bytes() == (trained / "reward" / name).read_bytes()
    # a finished run that is resumed has nothing to do
    assert run(settings(world, output, resume=True)) == output / "reward"


def test_the_best_weights_are_kept(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import align.reward as stage

    real = stage.evaluate
    seen = []

    def flattered(*args: Any) -> Any:
        found = real(*args)
        seen.append({n: p.detach().clone() for n, p in args[0].named_parameters()})
        accuracy = [0.5, 0.9, 0.7][len(seen) - 1]
        return type(found)(**{**found.__dict__, "accuracy": accuracy})

    monkeypatch.setattr(stage, "evaluate", flattered)
    run(settings(world, tmp_path / "run", epochs=2, eval_every=4))
    kept = dict(RewardModel.load(tmp_path / "run").named_parameters())
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())
    assert read_info(tmp_path / "run").heldout["accuracy"] == 0.9


def test_accumulating_equals_one_large_batch(world: Path, tmp_path: Path):
    one = settings(world, tmp_path / "one", batch_size=16, max_steps=2, centre=0.0, holdout=0)
    two = settings(world, tmp_path / "two", batch_size=4, grad_accum=4, max_steps=2, centre=0.0, holdout=0)
    run(one)
    run(two)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two")):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_activations_computed_again_train_the_same_model(world: Path, tmp_path: Path):
    for name, again in (("kept", False), ("again", True)):
        run(settings(world, tmp_path / name, max_steps=3, gradient_checkpointing=again))
    kept, again_ = (
        load_file(tmp_path / name / "reward/adapter_model.safetensors") for name in ("kept", "again")
    )
    assert kept.keys() == again_.keys()
    for key, weight in kept.items():
        torch.testing.assert_close(again_[key], weight, atol=1e-5, rtol=0)


def test_head_starts_along_two_words(world: Path):
    from align.config import LoraSettings
    from align.reward_model import RewardInfo

    info = RewardInfo(model=ModelSettings(path=str(world / "base")))
    model = RewardModel.start(info, LoraSettings(r=4), ("Yes", "No"), 0.5)
    base = model.lmm.model.get_base_model()
    ids = [model.lmm.tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in ("Yes", "No")]
    first, second = next((a, b) for a, b in zip(*ids) if a != b)
    rows = base.get_output_embeddings().weight
    torch.testing.assert_close(model.head.linear.weight[0], 0.5 * (rows[first] - rows[second]))
    with pytest.raises(RewardError, match="does not tell them apart"):
        RewardModel.start(info, LoraSettings(r=4), ("Yes", "Yes"))


def test_dry_run_computes_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("align.reward.RewardModel.start", lambda *_: pytest.fail("a dry run loaded weights"))
    run(settings(world, tmp_path / "run", dry_run=True))
    assert not (tmp_path / "run").exists()


def test_texts_too_long_to_score_are_named_before_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("align.reward.RewardModel.start", lambda *_: pytest.fail("weights were loaded"))
    records = [r for r in read_records(world / "preferences.jsonl") if isinstance(r, Preference)]
    renderer, picture = (
        Renderer(load_processor(settings(world, tmp_path).model)),
        PilImage.new("RGB", (32, 32)),
    )
    rendered = [
        renderer.reward_batch([(r.messages, x.text, None, picture)]) for r in records for x in r.responses
    ]
    most = max(batch["input_ids"].shape[1] for batch in rendered)
    long = [
        r.model_copy(
            update={"id": f"long{i}", "responses": [Response(text="A cat. " * (40 + i)), r.responses[1]]}
        )
        for i, r in enumerate(records[:7])
    ]
    write_records(tmp_path / "pairs.jsonl", [*records, *long])
    data = {"path": str(tmp_path / "pairs.jsonl"), "images": str(world / "images")}
    told = rf"^7 pairs exceed max_length {most} tokens \(long6: \d+, long5: .* and 2 more\), and a text"
    for dry in (True, False):
        with pytest.raises(RenderError, match=told):
            run(settings(world, tmp_path / "run", data=data, facts=[], max_length=most, dry_run=dry))
    # without them all fit, to the token
    run(settings(world, tmp_path / "run", facts=[], max_length=most, dry_run=True))
    with pytest.raises(RenderError, match=rf"pairs exceed max_length {most - 1} tokens"):
        run(settings(world, tmp_path / "run", facts=[], max_length=most - 1, dry_run=True))
    # and facts count
    with pytest.raises(RenderError, match=r"^48 pairs exceed"):
        run(settings(world, tmp_path / "run", max_length=most, dry_run=True))
    assert not (tmp_path / "run").exists()


def test_no_reward_model_there(tmp_path: Path):
    with pytest.raises(RewardError, match=r"no reward\.json in it"):
        RewardModel.load(tmp_path)


def test_bad_records_are_kept_aside(world: Path, tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text((world / "preferences.jsonl").read_text() + "{oops\n")
    (tmp_path / "held.jsonl").write_text("[]\n" + (world / "preferences.jsonl").read_text())
    data, held_out = (
        {"path": str(tmp_path / name), "images": str(world / "images"), "max_bad": 0.1}
        for name in ("pairs.jsonl", "held.jsonl")
    )
    s = settings(world, tmp_path / "run", data=data, eval_data=held_out, max_steps=1, dry_run=True)
    run(s)
    assert not (tmp_path / "run").exists()
    run(s.model_copy(update={"dry_run": False}))
    rejects = [json.loads(line) for line in (tmp_path / "run/rejects.jsonl").read_text().splitlines()]
    assert [(Path(r["file"]).name, r["line"]) for r in rejects] == [("pairs.jsonl", 49), ("held.jsonl", 1)]


def test_a_picture_that_cannot_be_decoded_names_its_pair(world: Path, tmp_path: Path):
    pairs = read_pairs(settings(world, tmp_path))[0][:3]
    for pair in pairs[:2]:
        assert pair.image is not None
        PilImage.new("RGB", (32, 32)).save(tmp_path / str(pair.image.path))
    whole = (world / "images/red.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    broken = replace(pairs[2], image=Image(id="c", path="cut.png"))
    with pytest.raises(DataError, match=rf"'cut\.png' cannot be decoded \(.*\), in record '{broken.id}'"):
        pair_pictures([*pairs[:2], broken], str(tmp_path))


def test_one_process_only(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match=r"reward runs in one process, and WORLD_SIZE is 2"):
        run(settings(world, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_it_does_not_go_on_with_other_records(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model starts from weights of a folder; the records are those of a file."""
    file, text = tmp_path / "preferences.jsonl", (world / "preferences.jsonl").read_text()
    shutil.copytree(world / "base", tmp_path / "base")
    data = {"path": str(file), "images": str(world / "images")}

    def goes_on(text: str) -> None:
        file.write_text(text)
        model = {"path": str(tmp_path / "base")}
        run(settings(world, tmp_path / "run", data=data, model=model, resume=True))

    def started(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RewardModel, "start", started)
    with pytest.raises(KeyboardInterrupt):
        goes_on(text)
    one, held = (next(p.id for p in pairs) for pairs in read_pairs(settings(world, tmp_path, data=data))[:2])

    def changed(name: str, old: str, new: str) -> str:
        lines = text.splitlines(keepends=True)
        (at,) = (i for i, line in enumerate(lines) if f'"id": "{name}"' in line)
        assert old in lines[at]
        return "".join([*lines[:at], lines[at].replace(old, new), *lines[at + 1 :]])

    for old, new in (("A cat sits.", "A dog sits."), ("cups", "pots"), ("What is in", "What is on")):
        with pytest.raises(CheckpointError, match="was made with other records to learn from, so"):
            goes_on(changed(one, old, new))
        with pytest.raises(CheckpointError, match="was made with other held-out records, so"):
            goes_on(changed(held, old, new))
    # facts of a kind that it does not read
    with pytest.raises(KeyboardInterrupt):
        goes_on(changed(one, '"captions":', '"objects": ["cat"], "captions":'))
    weights = tmp_path / "base/model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="was made with other model weights, so"):
        goes_on(text)
