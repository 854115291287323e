"""PPO in two processes on the CPU (gloo): one model on both, and the update that one process would make.

``python -m tests.align.test_ppo_processes WORLD OUTPUT`` is what each of the two runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from align import decode
from align import ppo as stage
from align.actors import LEARNERS, POLICY, Actors, Sampled
from align.checkpoint import RunDir
from align.config import PpoSettings
from align.generate import Generated, Item, rollout_tokens
from align.models.lmm import adapter_of
from align.ppo import Ppo, read_prompts, run
from align.rl import Rollout
from align.schedule import permutation, stream
from data.jsonl import read_json, write_json
from data.schema import Message
from tests.align.test_ppo import metrics, settings, world  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
RANKS = (0, 1)
ALONE: Any = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)


def one_step(folder: Path, output: Path, **changes: Any) -> PpoSettings:
    return settings(folder, output, steps=1, save_every=0, keep_every=0, **changes)


#: two passes over the rollouts in two mini-batches each
PASSES: dict[str, Any] = {
    "epochs": 2,
    "minibatch": 6,
    "optim": {"lr": 0.1, "warmup_steps": 0},
}


def plain_steps(ppo: Ppo) -> None:
    """Steps along the gradient, as long as it is: Adam's would have one length, and noise a sign."""
    groups = [{"params": g["params"], "lr": g["lr"]} for g in ppo.training.optimizer.param_groups]
    ppo.training.optimizer = torch.optim.SGD(groups)


def begun(folder: Path, output: Path, **changes: Any) -> tuple[Ppo, Sampled, Rollout]:
    """A run at its first step with all of the step's rollouts, as a process alone draws them.

    Its update is one gradient step on all of them, if ``changes`` do not say otherwise.
    """
    s = one_step(folder, output, **({"epochs": 1, "minibatch": 12} | changes))
    ppo = Ppo(s, read_prompts(s), ALONE, RunDir(output, s))
    _, sampled, rollout = ppo.roll_out(0)
    return ppo, sampled, rollout


def gradients(ppo: Ppo) -> dict[str, torch.Tensor]:
    """Those of the newest gradient step, by parameter."""
    named = [pair for name in LEARNERS for pair in ppo.actors.named_parameters(name)]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def share(sampled: Sampled, rollout: Rollout, rows: Sequence[int]) -> tuple[Sampled, Rollout]:
    """Some rows of a step's rollouts."""
    index = torch.tensor(rows)
    kept = {}
    for field in dataclasses.fields(rollout):
        value = getattr(rollout, field.name)
        kept[field.name] = (
            {k: v[index] for k, v in value.items()} if isinstance(value, dict) else value[index]
        )
    made = sampled.generated
    pictured = [i for i, (_, image) in enumerate(sampled.items) if image is not None]
    assert made.features is not None
    features = made.features[[pictured.index(i) for i in rows if i in pictured]]
    own = (made.prompt_ids, made.prompt_mask, made.response_ids, made.response_mask, made.complete)
    part = Generated(*(x[index] for x in own), features)
    return Sampled(part, [sampled.items[i] for i in rows], sampled.renderer), Rollout(**kept)


def work(folder: Path, output: Path) -> None:
    """What each process does: a whole run of one step, then the update on its share of given rollouts."""
    train, roll_out = Ppo.train, Ppo.roll_out

    def seen(self: Ppo, step: int) -> Any:
        prompts, sampled, rollout = roll_out(self, step)
        if self.directory.path.name == "run":
            rank = self.accelerator.process_index
            write_json(output / f"ids-{rank}.json", [prompt.id for prompt in prompts])
            tensors = {
                name: getattr(rollout, name) for name in ("advantages", "mask", "scores", "values", "returns")
            }
            save_file(tensors, output / f"rollout-{rank}.safetensors")
        return prompts, sampled, rollout

    held: dict[str, int] = {}

    def watched(self: Ppo, *args: Any) -> None:
        train(self, *args)
        name = self.directory.path.name
        save_file(self.actors.weights(), output / f"{name}-{self.accelerator.process_index}.safetensors")
        base = [p for n, p in self.actors.lmm.model.named_parameters() if adapter_of(n) is None]
        held[name] = sum(getattr(p, "_local_tensor", p).numel() for p in base)

    stage.Ppo.train = watched  # type: ignore[method-assign]
    stage.Ppo.roll_out = seen  # type: ignore[method-assign]
    run(one_step(folder, output / "run"))
    run(one_step(folder, output / "split", shard_base=True))
    run(one_step(folder, output / "recomputed", shard_base=True, gradient_checkpointing=True))
    two: dict[str, Any] = {"steps": 2, "save_every": 1, "keep_every": 0}
    run(settings(folder, output / "whole", **two))
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Ppo, "roll_out", dies_in_the_second_step)
        run(settings(folder, output / "killed", **two))
    assert not (output / "killed/DONE").exists()
    torch.manual_seed(int(os.environ["RANK"]))
    run(settings(folder, output / "killed", resume=True, **two))
    write_json(output / f"held-{os.environ['RANK']}.json", held)
    write_json(output / f"lengths-{os.environ['RANK']}.json", unlike_lengths(folder, output / "unlike"))
    ppo, sampled, rollout = begun(folder, output / "update")
    ppo.accelerator = Accelerator(mixed_precision="no", cpu=True)
    rank, count = ppo.accelerator.process_index, ppo.accelerator.num_processes
    assert count == len(RANKS)
    found = ppo.update(0, *share(sampled, rollout, range(rank, len(rollout), count)))
    save_file(ppo.actors.weights(), output / f"update-{rank}.safetensors")
    save_file(gradients(ppo), output / f"gradients-{rank}.safetensors")
    write_json(output / f"update-{rank}.json", found)
    ppo, sampled, rollout = begun(folder, output / "passes", **PASSES)
    ppo.accelerator = Accelerator(mixed_precision="no", cpu=True)
    plain_steps(ppo)
    ppo.update(0, *share(sampled, rollout, range(rank, len(rollout), count)))
    save_file(ppo.actors.weights(), output / f"passes-{rank}.safetensors")
    torch.distributed.destroy_process_group()


def dies_in_the_second_step(ppo: Ppo, step: int, real: Any = Ppo.roll_out) -> Any:
    if step == 1:
        raise KeyboardInterrupt
    return real(ppo, step)


def unlike_lengths(folder: Path, output: Path) -> list[int]:
    """Lengths of responses where the first process's end at once and the second's never do."""
    s = one_step(folder, output, shard_base=True, model={"path": str(folder / "base"), "device": "cpu"})
    actors = Actors.load(s)
    renderer = actors.renderer
    letter = actors.lmm.tokenizer("a", add_special_tokens=False)["input_ids"][0]
    token = renderer.end_token_id if os.environ["RANK"] == "0" else letter
    items: list[Item] = [([Message(role="user", content="What is it?")], None)] * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "sampler", lambda *_: lambda logits: torch.full((len(logits),), token))
        made = rollout_tokens(actors.lmm, renderer, items, s.generate, seed=0)
    return made.response_mask.sum(1).tolist()


@pytest.fixture(scope="module")
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes left."""
    folder, output = request.getfixturevalue("world"), tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.align.test_ppo_processes", str(folder), str(output)]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for rank in RANKS:
        own = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return output


def test_both_processes_end_with_the_same_weights(output: Path) -> None:
    for name in ("run", "update"):
        one, other = (load_file(output / f"{name}-{rank}.safetensors") for rank in RANKS)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    learned = load_file(output / "run-0.safetensors")
    policy = {k.replace(f".{POLICY}", ""): v for k, v in learned.items() if f".{POLICY}." in k}
    saved = load_file(output / "run/policy/adapter_model.safetensors")
    assert saved.keys() == policy.keys()
    assert all(torch.equal(policy[key], saved[key]) for key in saved)
    (line,) = metrics(output / "run")
    assert line["step"] == 1 and line["objective/kl"] == 0


def test_the_update_is_that_of_one_process(
    request: pytest.FixtureRequest, output: Path, tmp_path: Path
) -> None:
    ppo, sampled, rollout = begun(request.getfixturevalue("world"), tmp_path)
    start = ppo.actors.weights()
    expected = ppo.update(0, sampled, rollout)
    alone, weights = gradients(ppo), ppo.actors.weights()
    for rank in RANKS:
        assert read_json(output / f"update-{rank}.json") == pytest.approx(expected, rel=1e-4, abs=1e-6)
        found = load_file(output / f"gradients-{rank}.safetensors")
        assert found.keys() >= alone.keys()
        for key, gradient in alone.items():
            torch.testing.assert_close(found[key], gradient, atol=1e-5, rtol=1e-3)
        after = load_file(output / f"update-{rank}.safetensors")
        for key, gradient in alone.items():
            # Adam's first step has one size: where the gradient is as good as nothing, noise has its sign
            clear = gradient.abs() > 1e-4
            torch.testing.assert_close(after[key][clear], weights[key][clear], atol=1e-4, rtol=0)
            assert bool(((weights[key] - start[key])[clear].abs() > 1e-3).all())
    assert sum(int((gradient.abs() > 1e-4).sum()) for gradient in alone.values()) > 100


def test_several_passes_are_those_of_one_process_over_all_mini_batches(
    request: pytest.FixtureRequest, output: Path, tmp_path: Path
) -> None:
    """Each process orders its own rollouts; a gradient step is over what all of them have at that place."""
    ppo, sampled, rollout = begun(request.getfixturevalue("world"), tmp_path, **PASSES)
    plain_steps(ppo)
    start = ppo.actors.weights()
    own = len(rollout) // 2
    for epoch in range(2):
        orders = [permutation(own, ppo.settings.seed, "minibatch", 0, epoch, rank) for rank in RANKS]
        for at in (0, 3):
            # a process's i-th rollout is number 2·i + rank of all
            rows = [2 * i + rank for rank in RANKS for i in orders[rank][at : at + 3]]
            ppo.gradient_step(0, rows, sampled, rollout)
    expected = ppo.actors.weights()
    for rank in RANKS:
        found = load_file(output / f"passes-{rank}.safetensors")
        for key, weight in expected.items():
            torch.testing.assert_close(found[key], weight, atol=1e-5, rtol=1e-4)
    assert max(float((expected[key] - start[key]).abs().max()) for key in start) > 1e-3


def test_processes_share_the_prompts_and_judge_them_as_one_batch(
    request: pytest.FixtureRequest, output: Path
) -> None:
    folder = request.getfixturevalue("world")
    s = one_step(folder, output)
    prompts = read_prompts(s)
    drawn = [prompts[i].id for i in stream(len(prompts), s.seed, 0, s.rollouts)]
    ids = [read_json(output / f"ids-{rank}.json") for rank in RANKS]
    assert [ids[0], ids[1]] == [drawn[0::2], drawn[1::2]]
    parts = [load_file(output / f"rollout-{rank}.safetensors") for rank in RANKS]

    def joint(name: str) -> torch.Tensor:
        return torch.cat([part[name][part["mask"] > 0] for part in parts])

    advantages = joint("advantages")
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages.var(correction=0)) == pytest.approx(1, abs=1e-4)
    # of one process's alone they are not
    assert abs(float(parts[0]["advantages"][parts[0]["mask"] > 0].mean())) > 1e-3
    (line,) = metrics(output / "run")
    scores = torch.cat([part["scores"] for part in parts])
    assert line["objective/scores"] == pytest.approx(float(scores.mean()), abs=1e-5)
    values, returns = joint("values"), joint("returns")
    explained = 1 - float((returns - values).var(correction=0) / returns.var(correction=0))
    assert line["val/explained_var"] == pytest.approx(explained, abs=1e-4)


def test_a_base_split_over_the_processes_gives_the_same_run(output: Path) -> None:
    """FSDP2; also with activations computed again."""
    for rank in RANKS:
        whole = load_file(output / f"run-{rank}.safetensors")
        for name in ("split", "recomputed"):
            found = load_file(output / f"{name}-{rank}.safetensors")
            assert found.keys() == whole.keys()
            for key in whole:
                torch.testing.assert_close(found[key], whole[key], atol=1e-5, rtol=0)
        held = read_json(output / f"held-{rank}.json")
        # the layers' halves; embeddings, head and tower are whole
        assert held["split"] < 0.95 * held["run"]
    (line,), (other,) = metrics(output / "run"), metrics(output / "split")
    same = [key for key in line if not key.startswith("rate/") and key != "eps"]
    assert [other[key] for key in same] == pytest.approx([line[key] for key in same], rel=1e-4, abs=1e-6)


def test_killed_and_resumed_both_end_where_they_would_have(output: Path) -> None:
    assert metrics(output / "killed") == metrics(output / "whole")
    assert [line["step"] for line in metrics(output / "killed")] == [1, 2]
    for rank in RANKS:
        whole, found = (load_file(output / f"{name}-{rank}.safetensors") for name in ("whole", "killed"))
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_a_process_waits_for_the_longest_response_of_another(output: Path) -> None:
    short, long = (read_json(output / f"lengths-{rank}.json") for rank in RANKS)
    assert short == [1, 1, 1] and len(set(long)) == 1 and long[0] > 1


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
