"""The same checks on a GPU as on the CPU: PPO in 16, 8 and 4 bits, resuming, generation, GRPO and DPO.

Each check takes a device, so that the CPU's test runs its code where there is no GPU.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image as PilImage
from safetensors.torch import load_file
from torch import Tensor

from align import group_rl, preference
from align.actors import LEARNERS
from align.checkpoint import RunDir
from align.config import GenerateSettings, ModelSettings
from align.generate import generate, rollout_tokens
from align.models.lmm import Lmm, load
from align.ppo import Ppo, run
from align.render import Renderer
from data.schema import Message, Response
from tests.align import test_group_rl as grpo
from tests.align import test_preference as dpo
from tests.align.test_group_rl import world as grpo_world  # noqa: F401
from tests.align.test_ppo import COLOURS, lines, metrics, settings, world  # noqa: F401
from tests.align.test_ppo_memory import wide  # noqa: F401
from tests.align.test_preference import world as dpo_world  # noqa: F401

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
#: how the frozen base is held
BASES: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "bits": 8},
    {"dtype": "bfloat16", "bits": 4},
]


@pytest.fixture(autouse=True)
def _plain_float32_and_any_device() -> Iterator[None]:
    """Convolutions in whole float32, not TF32; and a run may be on another device than the one before."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.backends.cudnn.allow_tf32 = before
    AcceleratorState._reset_state(reset_partial_state=True)


# --- PPO ---


class Watched(Ppo):
    """Keeps what learns, ahead of the first step and after the last, and where the base is."""

    seen: list[dict[str, Tensor]]
    device: str

    def train(self, *args: Any) -> None:
        Watched.seen, Watched.device = [self.actors.weights()], self.actors.lmm.device.type
        super().train(*args)
        Watched.seen.append(self.actors.weights())


def check_ppo(folder: Path, output: Path, device: str, base: dict[str, Any]) -> None:
    """Two steps: finite, from the reference away, both adapters learn; and step 2 again from step 1's
    checkpoint."""
    model = {"path": str(folder / "base"), "device": device} | base
    changes: dict[str, Any] = {"model": model, "steps": 2, "save_every": 1, "keep_every": 0}
    whole, killed = settings(folder, output / "whole", **changes), output / "killed"
    real = RunDir.save_checkpoint

    def as_if_killed(self: RunDir, *args: Any, **kwargs: Any) -> Path:
        saved = real(self, *args, **kwargs)
        shutil.copytree(self.path, killed)
        return saved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.ppo.Ppo", Watched)
        patch.setattr(RunDir, "save_checkpoint", as_if_killed)
        run(whole)
    rows = lines(output / "whole" / "metrics.jsonl")
    assert Watched.device == device
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        # of little variance a share may not be known
        broken = [k for k, v in row.items() if k != "val/explained_var" and not math.isfinite(v)]
        assert not broken
        assert row["rate/peak_memory_gb"] > 0
        assert row["policy/grad_norm"] > 0 and row["val/grad_norm"] > 0
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-3)
    assert rows[0]["objective/kl_k3"] == pytest.approx(0, abs=1e-3)
    assert rows[1]["objective/kl_k3"] > 1e-5
    before, after = Watched.seen
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    for who in LEARNERS:
        found = [size for name, size in moved.items() if f"lora_B.{who}" in name]
        assert found and all(0 < size < 1 for size in found)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(999)
    run(settings(folder, killed, resume=True, **changes))
    again = metrics(killed)
    assert again[0] == metrics(output / "whole")[0]
    # the same responses; what they are scored and learned by may differ in the last bits
    for key, value in metrics(output / "whole")[1].items():
        assert again[1][key] == pytest.approx(value, rel=1e-2, abs=1e-3, nan_ok=True), key
    ours, theirs = (load_file(o / "policy/adapter_model.safetensors") for o in (killed, output / "whole"))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-3, rtol=1e-2)


@cuda
@pytest.mark.parametrize("base", BASES, ids=str)
def test_ppo(wide: Path, tmp_path: Path, base: dict[str, Any]) -> None:  # noqa: F811
    check_ppo(wide, tmp_path, "cuda", base)


def check_first_step(folder: Path, output: Path, device: str) -> None:
    """The first step's figures in float32 are the CPU's. Of hardly any choice, so that the draws agree."""
    found = []
    for name, where in (("cpu", "cpu"), ("there", device)):
        AcceleratorState._reset_state(reset_partial_state=True)
        s = settings(
            folder,
            output / name,
            model={"path": str(folder / "base"), "device": where},
            generate={"max_new_tokens": 12, "batch_size": 8, "top_p": 1e-6},
            steps=1,
            epochs=1,
            minibatch=12,
            save_every=0,
            keep_every=0,
        )
        run(s)
        (row,) = metrics(output / name)
        found.append({key: value for key, value in row.items() if not math.isnan(value)})
    on_cpu, there = found
    assert on_cpu.keys() == there.keys() and on_cpu["policy/grad_norm"] > 0
    for key, value in on_cpu.items():
        assert there[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


@cuda
def test_the_first_step_is_the_cpus(wide: Path, tmp_path: Path) -> None:  # noqa: F811
    check_first_step(wide, tmp_path, "cuda")


# --- generation ---


def check_generation(base: Path, device: str) -> None:
    """Greedy tokens and texts are the CPU's, and sampling leaves the device's random numbers alone."""
    pictures = [PilImage.new("RGB", (40, 32), colour) for colour in COLOURS]
    asked = ["What is in the image?", "A cat?", "Describe the picture in detail."]
    items = [([Message(role="user", content=text)], one) for one in pictures for text in asked]
    items += [([Message(role="user", content="What is it?")], None)]
    greedy = GenerateSettings(max_new_tokens=16, temperature=0, batch_size=5)
    found: list[tuple[list[list[int]], list[str]]] = []
    for where in ("cpu", device):
        lmm: Lmm = load(ModelSettings(path=str(base), device=where))
        assert lmm.device.type == where
        renderer = Renderer(lmm.processor)
        made = rollout_tokens(lmm, renderer, items, greedy, seed=0)
        # the prefix of each picture is read once here
        said = [r.text for r in generate(lmm, renderer, items, greedy, seed=0) if isinstance(r, Response)]
        assert len(said) == len(items)
        found.append((made.response_ids.tolist(), said))
    assert found[0] == found[1]
    torch.manual_seed(5)
    expected = torch.rand(4, device=device)
    torch.manual_seed(5)
    sampling = GenerateSettings(max_new_tokens=6, batch_size=5)
    first, second = (rollout_tokens(lmm, renderer, items, sampling, seed=1) for _ in range(2))
    assert torch.equal(first.response_ids, second.response_ids)
    assert torch.equal(torch.rand(4, device=device), expected)


@cuda
def test_generation_is_the_cpus(tiny_llava: Path) -> None:
    check_generation(tiny_llava, "cuda")


# --- TRL's methods ---


def check_grpo(folder: Path, output: Path, device: str) -> None:
    """One step, scored by a reward model that shares the base."""
    s = grpo.settings(
        folder, output, model={"path": str(folder / "base"), "device": device}, steps=1, save_every=0
    )
    group_rl.run(s)
    (row,) = grpo.metrics(output)
    assert all(math.isfinite(value) for value in row.values())
    assert row["objective/scores"] != 0 and row["policy/grad_norm"] > 0
    saved = load_file(output / "policy/adapter_model.safetensors")
    assert all(bool(v.any()) for k, v in saved.items() if "lora_B" in k)


def check_dpo(folder: Path, output: Path, device: str) -> None:
    """One update: it starts at its reference."""
    s = dpo.settings(
        folder,
        output,
        model={"path": str(folder / "base"), "device": device},
        max_steps=1,
        log_every=1,
        save_every=0,
    )
    preference.run(s)
    first = dpo.metrics(output)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-3) and first["grad_norm"] > 0
    saved = load_file(output / "policy/adapter_model.safetensors")
    assert all(bool(v.any()) for k, v in saved.items() if "lora_B" in k)


@cuda
def test_a_step_of_grpo(grpo_world: Path, tmp_path: Path) -> None:  # noqa: F811
    check_grpo(grpo_world, tmp_path / "run", "cuda")


@cuda
def test_an_update_of_dpo(dpo_world: Path, tmp_path: Path) -> None:  # noqa: F811
    check_dpo(dpo_world, tmp_path / "run", "cuda")


# --- the checks themselves ---


def test_the_checks_pass_on_the_cpu(
    wide: Path,  # noqa: F811
    tiny_llava: Path,
    grpo_world: Path,  # noqa: F811
    dpo_world: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    check_ppo(wide, tmp_path / "ppo", "cpu", BASES[1])
    check_first_step(wide, tmp_path / "first", "cpu")
    check_generation(tiny_llava, "cpu")
    check_grpo(grpo_world, tmp_path / "grpo", "cpu")
    check_dpo(dpo_world, tmp_path / "dpo", "cpu")
