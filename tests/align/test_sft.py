"""align.sft on a tiny model: learns what it should, resumes exactly, saves what it learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from align import sft
from align.config import LoraSettings, ModelSettings, OptimSettings, SftSettings
from align.models.lmm import ModelError, hidden_states, image_features, load
from align.render import Renderer


def _settings(model: Path, data: Path, output: Path, **changes: Any) -> SftSettings:
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
    assert a.keys() == b.keys()
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-5


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
