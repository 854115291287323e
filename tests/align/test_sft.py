"""align.sft on a tiny model: learns what it should, resumes exactly, saves what it learned."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from align import sft
from align.checkpoint import CheckpointError
from align.config import LoraSettings, ModelSettings, OptimSettings, SftSettings
from align.launch import LaunchError
from align.models.lmm import ModelError, hidden_states, image_features, load
from align.render import Renderer, RenderError
from align.sft_trainer import ByLength
from data.jsonl import DataError, read_records, write_records
from data.schema import Example, Image, Message


def _settings(model: Path, data: Path, output: Path, /, **changes: Any) -> SftSettings:
    base: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": {"path": str(data / "sft.jsonl"), "images": str(data)},
        "output": str(output),
        "optim": {"lr": 3e-3, "schedule": "linear"},
        "batch_size": 4,
        "max_steps": 6,
        "log_every": 2,
        "save_every": 0,
        "report_to": [],
    }
    return SftSettings.model_validate(base | changes)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in load(ModelSettings(path=str(path))).model.named_parameters()}


def _metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_learns_and_saves_a_checkpoint(tiny_llava: Path, colour_data: Path, tmp_path: Path) -> None:
    out = sft.run(_settings(tiny_llava, colour_data, tmp_path / "run", max_steps=40))
    assert out == tmp_path / "run" / "model"
    losses = [m["loss"] for m in _metrics(tmp_path / "run") if "loss" in m]
    assert losses[-1] < 0.2 * losses[0]
    before, after = _weights(tiny_llava), _weights(out)
    changed = {sft.part_of(n) for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"projector", "language"}
    assert (tmp_path / "run" / "DONE").exists()
    assert load(ModelSettings(path=str(out))).processor.chat_template


def test_samples_with_nothing_left_to_learn_are_named_before_training(
    tiny_llava: Path, colour_data: Path, tmp_path: Path
) -> None:
    """They stand behind the first batch, which is rendered in any case."""
    examples = [e for e in read_records(colour_data / "sft.jsonl") if isinstance(e, Example)]
    renderer, picture = (
        Renderer(load(ModelSettings(path=str(tiny_llava))).processor),
        PILImage.new("RGB", (32, 32)),
    )
    most = renderer.train_batch(examples, [picture] * len(examples))["input_ids"].shape[1]
    ask = Message(role="user", content="What is in the image? " * 30)
    long = [
        Example(id=f"long{i}", messages=[ask, Message(role="assistant", content="A cup.")]) for i in (0, 1)
    ]
    write_records(tmp_path / "sft.jsonl", [*examples, *long])
    data = {"path": str(tmp_path / "sft.jsonl"), "images": str(colour_data)}
    told = r"^sample long0: .* no assistant token is left; .*\nsample long1: .* drop the sample$"
    for changes in ({"data": data, "dry_run": True}, {"data": data}, {"eval_data": data}):
        with pytest.raises(RenderError, match=told):
            sft.run(_settings(tiny_llava, colour_data, tmp_path / "run", max_length=most, **changes))
    sft.run(_settings(tiny_llava, colour_data, tmp_path / "run", max_length=most, dry_run=True))
    assert not (tmp_path / "run").exists()


def test_logged_loss_is_the_mean_over_labelled_tokens(
    tiny_llava: Path, colour_data: Path, tmp_path: Path
) -> None:
    """The first step's loss equals an independent one: log-softmax of a plain forward, all 12 samples."""
    settings = _settings(
        tiny_llava, colour_data, tmp_path / "run", batch_size=4, grad_accum=3, max_steps=1, log_every=1
    )
    sft.run(settings)
    lmm = load(settings.model)
    data = sft.Pictures(sft._read(settings.data), str(colour_data))
    batch = Renderer(lmm.processor).train_batch(*zip(*[data[i] for i in range(12)], strict=True))
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = lmm.model(**batch).logits.log_softmax(-1)
    picked = [-logits[b, t - 1, labels[b, t]] for b, t in (labels >= 0).nonzero().tolist()]
    assert _metrics(tmp_path / "run")[0]["loss"] == pytest.approx(float(torch.stack(picked).mean()), abs=1e-5)


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.1}])
def test_resume_is_exact(
    tiny_llava: Path,
    colour_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lora: dict[str, Any] | None,
) -> None:
    changes: dict[str, Any] = {"save_every": 3, "max_steps": 7, "lora": lora, "log_every": 2}
    whole = sft.run(_settings(tiny_llava, colour_data, tmp_path / "a", **changes))

    class Killed(Exception):
        pass

    calls = []

    def die(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        calls.append(state.global_step)
        if state.global_step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sft.RunCallback, "on_step_begin", die, raising=False)
        with pytest.raises(Killed):
            sft.run(_settings(tiny_llava, colour_data, tmp_path / "b", **changes))
    # a checkpoint cut short by the kill is passed over
    shutil.copytree(tmp_path / "b/trainer/checkpoint-3", tmp_path / "b/trainer/checkpoint-5")
    (tmp_path / "b/trainer/checkpoint-5/trainer_state.json").write_text("{")
    again = sft.run(_settings(tiny_llava, colour_data, tmp_path / "b", **changes, resume=True))
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (whole / name).read_bytes() == (again / name).read_bytes()
    assert _metrics(tmp_path / "a") == _metrics(tmp_path / "b")


@pytest.mark.parametrize("lost", ["_write", "evaluate"], ids=["saving", "last-evaluation"])
def test_a_run_killed_behind_its_last_step_takes_no_other(
    tiny_llava: Path, colour_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The last step's checkpoint is written; the kill comes ahead of the held-out loss or the weights."""
    held_out = {"path": str(colour_data / "sft.jsonl"), "images": str(colour_data)}
    # one epoch has three steps, so that the last one stands within an epoch
    changes: dict[str, Any] = {"save_every": 4, "max_steps": 4, "eval_data": held_out, "log_every": 1}
    whole = sft.run(_settings(tiny_llava, colour_data, tmp_path / "a", **changes))
    evaluations = [m["step"] for m in _metrics(tmp_path / "a") if "eval_loss" in m]
    assert evaluations == [3, 4]
    real, calls = getattr(sft, lost), []

    def dies(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if lost == "_write" or len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, lost, dies)
        sft.run(_settings(tiny_llava, colour_data, tmp_path / "b", **changes))
    assert (tmp_path / "b/trainer/checkpoint-4").is_dir() and not (tmp_path / "b/DONE").exists()
    again = sft.run(_settings(tiny_llava, colour_data, tmp_path / "b", **changes, resume=True))
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert _metrics(tmp_path / "a") == _metrics(tmp_path / "b")


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_run_that_is_not_finite_ends(
    tiny_llava: Path, colour_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    optim, named = {"lr": 1e-3, "schedule": "constant"}, r"step 1: the gradient's norm is inf"
    if broken == "loss":
        optim["lr"], named = 1e30, r"step 2: the loss is nan.*lower optim\.lr \(now 1e\+30\)"
    else:
        monkeypatch.setattr(sft.SftTrainer, "_clip_grad_norm", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(sft.SftError, match=named):
        sft.run(_settings(tiny_llava, colour_data, tmp_path / "r", optim=optim, max_steps=3, log_every=1))
    assert not (tmp_path / "r/DONE").exists() and not (tmp_path / "r/model").exists()


def test_lora_with_projector_reloads(tiny_llava: Path, colour_data: Path, tmp_path: Path) -> None:
    settings = _settings(tiny_llava, colour_data, tmp_path / "run", lora={"r": 4}, train_parts=["projector"])
    out = sft.run(settings)
    assert out.name == "adapter"
    merged = load(ModelSettings(path=str(tiny_llava), adapter=str(out)))
    base = load(ModelSettings(path=str(tiny_llava)))
    changed = {
        sft.part_of(n)
        for n, p in merged.model.named_parameters()
        if not torch.equal(p, base.model.state_dict()[n])
    }
    assert changed == {"projector", "language"}
    data = sft.Pictures(sft._read(settings.data), str(colour_data))
    collate = sft.Collator(Renderer(merged.processor), None)
    # what was saved is what was learned: the loss of the reloaded model goes on where training ended
    start = sft.evaluate(base.model, data, collate, 4, base.device)
    assert sft.evaluate(merged.model, data, collate, 4, base.device) < start - 0.05


def test_kept_features_train_the_same(tiny_llava_vit: Path, colour_data: Path, tmp_path: Path) -> None:
    plain = sft.run(_settings(tiny_llava_vit, colour_data, tmp_path / "a"))
    kept = sft.run(_settings(tiny_llava_vit, colour_data, tmp_path / "b", cache_features=True))
    a, b = _weights(plain), _weights(kept)
    start = _weights(tiny_llava_vit)
    assert a.keys() == b.keys()
    learned = [n for n in a if not torch.equal(a[n], start[n])]
    assert learned
    for n in learned:
        # by norms: where a gradient is about zero, Adam makes a step of what rounding left of it
        assert float((a[n] - b[n]).norm()) < 1e-4 * float((a[n] - start[n]).norm()), n


def test_kept_features_tell_pictures_of_one_id_apart(
    tiny_llava_vit: Path, colour_data: Path, tmp_path: Path
) -> None:
    """Foreign files with bytes may name every picture alike."""
    turns = [Message(role="user", content="What?"), Message(role="assistant", content="A table.")]
    examples = []
    for colour in ("red", "blue"):
        image = Image(id="image.png", data=(colour_data / f"{colour}.png").read_bytes())
        examples.append(Example(id=colour, image=image, messages=turns))
    lmm = load(ModelSettings(path=str(tiny_llava_vit)))
    renderer = Renderer(lmm.processor)
    data = sft.Pictures(examples, None)
    expected = [sft.grid_features(lmm, renderer, [data[i][1]])[0] for i in range(2)]
    assert not torch.allclose(*expected)
    sft.keep_features(lmm, renderer, [data])
    for i in range(2):
        torch.testing.assert_close(data[i][1], expected[i])


def test_features_of_several_layers_are_not_kept(
    tiny_llava_vit: Path, colour_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sft.load

    def several(*arguments: Any, **options: Any) -> Any:
        lmm = real(*arguments, **options)
        lmm.model.config.vision_feature_layer = [-2, -1]
        return lmm

    monkeypatch.setattr(sft, "load", several)
    monkeypatch.setattr(sft, "grid_features", lambda *_: pytest.fail("pictures were encoded"))
    for dry in (True, False):
        settings = _settings(tiny_llava_vit, colour_data, tmp_path / "r", cache_features=True, dry_run=dry)
        with pytest.raises(ModelError, match=r"vision_feature_layer is \[-2, -1\]; set cache_features"):
            sft.run(settings)


def test_bad_records_are_kept_aside(
    tiny_llava: Path, colour_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = tmp_path / "sft.jsonl"
    lines.write_text((colour_data / "sft.jsonl").read_text() + "{oops\n")
    data = {"path": str(lines), "images": str(colour_data), "max_bad": 0.1}
    changes: dict[str, Any] = {"data": data, "eval_data": data, "max_steps": 1}
    sft.run(_settings(tiny_llava, colour_data, tmp_path / "r", dry_run=True, **changes))
    assert not (tmp_path / "r").exists()
    assert f"1 of 13 records are bad and left out; the first: {lines}:13: not valid JSON" in caplog.text
    sft.run(_settings(tiny_llava, colour_data, tmp_path / "r", **changes))
    rejects = [json.loads(line) for line in (tmp_path / "r/rejects.jsonl").read_text().splitlines()]
    assert [(r["file"], r["line"], r["record"]) for r in rejects] == [(str(lines), 13, "{oops")] * 2


@pytest.mark.parametrize("cached", [False, True])
def test_a_picture_that_cannot_be_decoded_names_its_record(
    tiny_llava_vit: Path, colour_data: Path, tmp_path: Path, cached: bool
) -> None:
    """Damage behind the header is found when the picture is drawn."""
    whole = io.BytesIO()
    PILImage.effect_noise((32, 32), 50).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:-200])
    turns = [Message(role="user", content="What?"), Message(role="assistant", content="A table.")]
    examples = [Example(id="words", messages=turns)]
    examples.append(Example(id="e7", image=Image(id="cut", path="cut.png"), messages=turns))
    write_records(tmp_path / "sft.jsonl", examples)
    data = {"path": str(tmp_path / "sft.jsonl"), "images": str(tmp_path)}
    settings = _settings(tiny_llava_vit, colour_data, tmp_path / "r", data=data, batch_size=1)
    settings.cache_features = cached
    with pytest.raises(DataError, match=r"'cut\.png' cannot be decoded \(.*\), in record 'e7'; replace"):
        sft.run(settings)


def test_the_output_is_looked_at_before_the_model_is_loaded(
    tiny_llava: Path, colour_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sft.run(_settings(tiny_llava, colour_data, tmp_path / "done", max_steps=1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    monkeypatch.setattr(sft, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(sft, "load_records", lambda *_, **__: pytest.fail("data were read"))
    with pytest.raises(CheckpointError, match="not a run directory"):
        sft.run(_settings(tiny_llava, colour_data, tmp_path / "other"))
    with pytest.raises(CheckpointError, match="add --resume"):
        sft.run(_settings(tiny_llava, colour_data, tmp_path / "done", max_steps=1))
    again = sft.run(_settings(tiny_llava, colour_data, tmp_path / "done", max_steps=1, resume=True))
    assert again == first
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_one_process_only(
    tiny_llava: Path, colour_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match=r"sft runs in one process, and WORLD_SIZE is 2; start it without"):
        sft.run(_settings(tiny_llava, colour_data, tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_part_learning_rates(tiny_llava: Path, colour_data: Path, tmp_path: Path) -> None:
    settings = _settings(tiny_llava, colour_data, tmp_path)
    settings.optim = OptimSettings(lr=1e-4, part_lr={"projector": 1e-2}, weight_decay=0.1)
    lmm = load(settings.model)
    sft.prepare(lmm, settings)
    groups = sft.parameter_groups(lmm.model, settings)
    names = {id(p): n for n, p in lmm.model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (1e-2 if "projector" in name else 1e-4)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
            assert "vision_tower" not in name
    learning = [p for p in lmm.model.parameters() if p.requires_grad]
    assert sum(len(g["params"]) for g in groups) == len(learning)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        # 2 steps up from 0, then down to 0 after the last of 6
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447]),
        ("constant", [0, 0.5, 1, 1, 1, 1]),
    ],
)
def test_learning_rates_follow_the_schedule(
    tiny_llava: Path, colour_data: Path, tmp_path: Path, schedule: str, factors: list[float]
) -> None:
    optim = {"lr": 1e-3, "schedule": schedule, "warmup_steps": 2}
    sft.run(_settings(tiny_llava, colour_data, tmp_path / "r", optim=optim, log_every=1))
    assert [m["lr"] / 1e-3 for m in _metrics(tmp_path / "r")] == pytest.approx(factors, abs=1e-5)


def test_gradients_are_clipped_and_the_seed_decides_the_order(
    tiny_llava: Path, colour_data: Path, tmp_path: Path
) -> None:
    def losses(name: str, **changes: Any) -> list[float]:
        sft.run(_settings(tiny_llava, colour_data, tmp_path / name, log_every=1, max_steps=3, **changes))
        return [m["loss"] for m in _metrics(tmp_path / name)]

    plain = losses("plain")
    assert losses("seeded", seed=1)[0] != plain[0]
    # Adam's steps hardly depend on the gradients' size, unless they vanish beside its epsilon
    clipped = losses("clipped", optim={"lr": 3e-3, "schedule": "linear", "max_grad_norm": 1e-12})
    assert clipped[0] == plain[0] and clipped[2] != plain[2]
    still = losses("still", optim={"lr": 1e-12, "schedule": "linear"})
    assert clipped == pytest.approx(still, abs=1e-3)


def test_evaluation_does_not_depend_on_the_batch_size(
    tiny_llava: Path, colour_data: Path, tmp_path: Path
) -> None:
    lmm = load(ModelSettings(path=str(tiny_llava)))
    data = sft.Pictures(sft._read(_settings(tiny_llava, colour_data, tmp_path).data), str(colour_data))
    collate = sft.Collator(Renderer(lmm.processor), None)
    losses = [sft.evaluate(lmm.model, data, collate, size, lmm.device) for size in (1, 5, 12)]
    assert max(losses) - min(losses) < 1e-5


def test_eval_data_is_logged_each_epoch(tiny_llava: Path, colour_data: Path, tmp_path: Path) -> None:
    data = {"path": str(colour_data / "sft.jsonl"), "images": str(colour_data)}
    sft.run(_settings(tiny_llava, colour_data, tmp_path / "r", eval_data=data, epochs=2, max_steps=None))
    found = [(m["step"], m["eval_loss"]) for m in _metrics(tmp_path / "r") if "eval_loss" in m]
    assert [step for step, _ in found] == [3, 6]
    assert found[1][1] < found[0][1]


def test_dry_run_writes_nothing(tiny_llava: Path, colour_data: Path, tmp_path: Path) -> None:
    sft.run(_settings(tiny_llava, colour_data, tmp_path / "r", dry_run=True))
    assert not (tmp_path / "r").exists()


def test_bad_settings_are_named(tiny_llava: Path, colour_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing would learn"):
        sft.run(_settings(tiny_llava, colour_data, tmp_path / "r", train_parts=[]))
    with pytest.raises(ModelError, match="cache_features needs a frozen tower"):
        sft.run(
            _settings(tiny_llava, colour_data, tmp_path / "r", train_parts=["vision"], cache_features=True)
        )


def test_vision_learns_when_asked(tiny_llava_resnet: Path, colour_data: Path, tmp_path: Path) -> None:
    out = sft.run(
        _settings(tiny_llava_resnet, colour_data, tmp_path / "r", train_parts=["vision"], max_steps=2)
    )
    before, after = _weights(tiny_llava_resnet), _weights(out)
    assert {sft.part_of(n) for n in before if not torch.equal(before[n], after[n])} == {"vision"}


def test_lora_adapts_the_language_model_only(tiny_llava: Path, colour_data: Path, tmp_path: Path) -> None:
    settings = _settings(tiny_llava, colour_data, tmp_path, lora={"r": 4}, train_parts=[])
    settings.lora = LoraSettings(r=4)
    lmm = load(settings.model)
    sft.prepare(lmm, settings)
    assert {sft.part_of(n) for n, p in lmm.model.named_parameters() if p.requires_grad} == {"language"}
    batch = sft.Collator(Renderer(lmm.processor), None)(
        [sft.Pictures(sft._read(settings.data), str(colour_data))[0]]
    )
    states = hidden_states(lmm.model, batch, image_features(lmm.model, batch))
    states.sum().backward()
    assert all(p.grad is None for n, p in lmm.model.named_parameters() if "lora" not in n)


def test_batches_are_of_like_length_and_every_sample_comes_once() -> None:
    lengths = [n + k % 7 for k, n in enumerate(random.Random(1).choices(range(20, 200), k=203))]
    order = ByLength(lengths, 8, seed=3)
    first = list(order)
    assert sorted(first) == list(range(203)) and list(order) == first
    batches = [first[k : k + 8] for k in range(0, 203, 8)]
    assert [len(b) for b in batches[:-1]] == [8] * 25
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches[:-1]]
    # of 64 samples sorted, eight neighbours span about an eighth of the range
    assert sum(spread) / len(spread) < 180 / 4
    # batches are not in the order of their lengths
    sums = [sum(lengths[i] for i in b) for b in batches]
    assert sums != sorted(sums) and sums != sorted(sums, reverse=True)
    order.epoch = 1
    assert list(order) != first and sorted(order) == list(range(203))
    assert list(ByLength(lengths, 8, seed=4)) != first


def test_the_loss_is_the_model_s_own(any_tiny_llava: Path, colour_data: Path) -> None:
    """Head and softmax at the learned positions alone: transformers' loss and its gradient."""
    settings = _settings(any_tiny_llava, colour_data, Path("unused"))
    lmm = load(settings.model, trainable=True)
    data = sft.Pictures(sft._read(settings.data)[:4], str(colour_data))
    batch = sft.Collator(Renderer(lmm.processor), None)([data[i] for i in range(4)])
    theirs = lmm.model(**batch).loss
    theirs.backward()
    wanted = {n: p.grad.clone() for n, p in lmm.model.named_parameters() if p.grad is not None}
    lmm.model.zero_grad()
    summed, tokens = sft.loss_sum(lmm.model, batch)
    ours = summed / tokens
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    got = {n: p.grad for n, p in lmm.model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys() and len(got) > 10
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)


def test_it_does_not_go_on_with_other_conversations(
    tiny_llava: Path, colour_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, text = tmp_path / "sft.jsonl", (colour_data / "sft.jsonl").read_text()
    data = {"path": str(file), "images": str(colour_data)}

    def goes_on(text: str, **changes: Any) -> None:
        file.write_text(text)
        sft.run(_settings(tiny_llava, colour_data, tmp_path / "run", data=data, resume=True, **changes))

    def begins(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "train", begins)
        goes_on(text)
    monkeypatch.setattr(sft, "load", begins)
    for other in (text.replace("green table", "green chair"), text.split("\n", 1)[1]):
        with pytest.raises(CheckpointError, match="run: was made with other records to learn from, so"):
            goes_on(other)
    with pytest.raises(KeyboardInterrupt):
        goes_on(text)
