"""PPO at LLaVA-1.5-7B's shape on a GPU, with random weights: memory by phase beside what ``--plan`` said,
tokens a second, and a step against four models that pad all rows.

    python -m tests.bench.bench_7b memory --bits 4      a base in NF4; without --bits in bfloat16
    python -m tests.bench.bench_7b race

Each run is a process of its own, so that one's memory is not another's. ``--tiny`` tries it out anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

import align.ppo
from align.actors import Actors
from align.config import ModelSettings, PpoSettings
from align.meta import Judge
from align.models.lmm import Lmm, build_llava, save
from align.plan import Planner
from align.ppo import Ppo
from data.world.build import WorldRates, WorldSizes, build
from tests.bench.bench_ppo_reference import FourModels, save_reward, settings_of, start
from tests.bench.conftest import Shape, end_row, set_end

GB = 2**30
#: mean over longest of the thesis's responses
THESIS = 150 / 896


@dataclass(frozen=True)
class Size:
    """Of a LLaVA, and of the step that it makes."""

    width: int
    feed: int
    layers: int
    tower_width: int
    tower_layers: int
    pixels: int
    vocabulary: int
    step: Shape


SIZES = {
    "7b": Size(4096, 11008, 32, 1024, 24, 336, 32064, Shape(336, 14, 64, 32, 16, 8, 896, 32)),
    "tiny": Size(64, 172, 2, 64, 2, 28, 400, Shape(28, 14, 4, 8, 4, 2, 48, 4)),
}


def words(count: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``count`` words: a response is read again in as many tokens as it was written in."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "Yes", "No"]
    known += [f"w{k}" for k in range(count - len(known))]
    core = Tokenizer(models.WordLevel({word: k for k, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left",
    )  # fmt: skip


def make_base(folder: Path, size: Size, device: str) -> Path:
    """Write the checkpoint, in bfloat16."""
    if (folder / "config.json").exists():
        return folder
    tower = CLIPVisionConfig(
        hidden_size=size.tower_width, intermediate_size=4 * size.tower_width,
        num_hidden_layers=size.tower_layers, num_attention_heads=size.tower_width // 64,
        image_size=size.pixels, patch_size=14, projection_dim=768,
    )  # fmt: skip
    heads = max(1, size.width // 128)
    text = LlamaConfig(
        hidden_size=size.width, intermediate_size=size.feed, num_hidden_layers=size.layers,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=size.vocabulary,
        max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            tokenizer = words(size.vocabulary - 64)
            model, processor = build_llava(tower, text, tokenizer, image_size=size.pixels)
    finally:
        torch.set_default_dtype(before)
    return save(model, processor, folder)


@dataclass
class Meter:
    """Seconds, tokens and the most memory of each phase."""

    device: torch.device
    found: dict[str, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        yield
        self._wait()
        took = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        seconds, most = self.found.get(name, [0.0, 0.0])
        self.found[name] = [seconds + took, max(most, peak)]
        say(f"  {name} ended after {took:.2f} s, peak {peak / GB:.2f} GB")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def watch(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def watched(*args: Any, **more: Any) -> Any:
            with self.phase(name):
                return work(*args, **more)

        return watched


def say(text: str) -> None:
    print(text, flush=True)


def memory(settings: PpoSettings, accelerator: Accelerator, world: Path, steps: int) -> None:
    """Steps whose responses all take the most tokens, and the plan's figures for them."""
    plan = Planner(Judge.read(settings.reward_model), prompt=32, judged=96).plan(settings)
    ours = start(settings, accelerator)
    lmm = ours.actors.lmm
    set_end([lmm], end_row(lmm, world, 1.0, settings.generate.max_new_tokens))
    meter = Meter(lmm.device)
    watch(meter, ours)
    say(f"planned: {plan.held / GB:.2f} GB held,")
    for phase in plan.phases:
        say(f"  {phase.name}: {(plan.held + phase.bytes) / GB:.2f} GB")
    if lmm.device.type == "cuda":
        planned = sum(part.bytes for part in plan.roles) / GB
        say(f"weights: {torch.cuda.memory_allocated() / GB:.2f} GB; planned {planned:.2f}")
    for step in range(steps):
        meter.found.clear()
        _, sampled, rollout = ours.roll_out(step)
        with meter.phase("update"):
            ours.update(step, sampled, rollout)
        tokens, lengths = int(rollout.mask.sum()), rollout.mask.sum(1).float()
        whole = tokens + int(sampled.generated.prompt_mask.sum())
        mean = float(lengths.mean())
        say(f"step {step + 1}: {len(lengths)} responses of {mean:.0f} tokens, {whole} with their prompts")
        for name, (seconds, peak) in meter.found.items():
            rate = tokens / seconds
            say(f"  {name:10} {seconds:7.2f} s  {rate:9.1f} response tokens/s  peak {peak / GB:6.2f} GB")
        whole_step = sum(seconds for seconds, _ in meter.found.values())
        say(f"  {'whole':10} {whole_step:7.2f} s  {tokens / whole_step:9.1f} response tokens/s")


def watch(meter: Meter, ours: Ppo) -> None:
    """Measure the phases of the rollout."""
    align.ppo.rollout_tokens = meter.watch("sample", align.ppo.rollout_tokens)  # type: ignore[assignment]
    actors: Actors = ours.actors
    actors.judge_tokens = meter.watch("judge", actors.judge_tokens)  # type: ignore[method-assign]
    actors.reward.score = meter.watch("score", actors.reward.score)  # type: ignore[method-assign]


def race(settings: PpoSettings, accelerator: Accelerator, world: Path) -> None:
    """A step of ours and one of four models on the same responses, which are of the thesis's lengths."""
    ours = start(settings, accelerator)
    lmm = ours.actors.lmm
    row = end_row(lmm, world, THESIS, settings.generate.max_new_tokens)
    set_end([lmm], row)
    weights = {name: tensor.cpu() for name, tensor in ours.actors.weights().items()}
    meter = Meter(lmm.device)
    watch(meter, ours)
    for _ in range(2):
        # the second is measured: kernels are chosen in the first
        ours.actors.put({name: tensor.to(lmm.device) for name, tensor in weights.items()})
        ours.training.optimizer.state.clear()
        meter.found.clear()
        _, sampled, rollout = ours.roll_out(0)
        with meter.phase("update"):
            ours.update(0, sampled, rollout)
    lengths = sorted(rollout.mask.sum(1).tolist())
    mean, longest = sum(lengths) / len(lengths), settings.generate.max_new_tokens
    say(f"responses of {mean:.0f} tokens of {longest}: {lengths}")
    mine, prompts, responses = dict(meter.found), ours.prompts, rollout.response_ids
    logprobs, mask = rollout.logprobs.cpu(), rollout.mask.cpu()
    del ours, lmm, sampled, rollout
    gc.collect()
    if meter.device.type == "cuda":
        torch.cuda.empty_cache()
    four = FourModels(settings, prompts, weights)
    set_end([Lmm(model, four.reward.lmm.processor) for model in four.models], row)
    meter.found.clear()
    four.generate = meter.watch("sample", four.generate)  # type: ignore[method-assign]
    four.restart(weights)
    with meter.phase("rollout"):
        four.roll_out(responses)
    with meter.phase("update"):
        four.update()
    apart = ((four.old.cpu()[:, : mask.shape[1]] - logprobs) * mask).abs().sum() / mask.sum()
    say(f"log-probabilities of the same responses differ by {apart:.4f} on average")
    theirs = dict(meter.found)
    sampling = theirs["sample"][0]
    table = {
        "sample": (mine["sample"][0], sampling),
        "judge and score": (mine["judge"][0] + mine["score"][0], theirs["rollout"][0] - sampling),
        "update": (mine["update"][0], theirs["update"][0]),
    }
    table["whole"] = tuple(sum(column) for column in zip(*table.values()))  # type: ignore[assignment]
    for name, (one, other) in table.items():
        say(f"  {name:16} ours {one:7.2f} s, four models {other:7.2f} s: {one / other:.2f}")
    peaks = [max(peak for _, peak in found.values()) / GB for found in (mine, theirs)]
    say(f"  peak: ours {peaks[0]:.1f} GB, four models {peaks[1]:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["memory", "race"])
    parser.add_argument("--bits", type=int, choices=[4, 8])
    parser.add_argument("--steps", type=int, default=1, help="of memory")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_7b"))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = "tiny" if args.tiny else "7b"
    if device == "cpu" and not args.tiny:
        sys.exit("a model of 7B parameters needs a GPU; --tiny tries this out")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    size, folder = SIZES[name], args.folder / name
    world = folder / "world"
    build(
        world,
        WorldSizes(sft=1, human=1, pairs=1, prompts=64, describe=1, pope_images=2),
        WorldRates(),
        seed=0,
        workers=1,
    )
    began = time.perf_counter()
    base = make_base(folder / "base", size, device)
    model = ModelSettings(path=str(base), device=device, dtype="bfloat16", bits=args.bits)
    if not (folder / "reward").exists():
        save_reward(folder / "reward", model.model_copy(update={"bits": None}), size.step.rank)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    say(f"built in {time.perf_counter() - began:.0f} s; {card}, torch {torch.__version__}")
    gc.collect()
    shutil.rmtree(folder / "run", ignore_errors=True)
    more: dict[str, Any] = {"gradient_checkpointing": True, "optim": {"lr": 3e-5}}
    step = size.step
    if args.what == "race":
        # four models leave no room for the keys and values of 32 rows
        step = Shape(**{**vars(step), "batch_size": step.batch_size // 2})
    settings = settings_of(world, folder, model, step, **more)
    accelerator = Accelerator(cpu=device == "cpu")
    if args.what == "memory":
        memory(settings, accelerator, world, args.steps)
    else:
        race(settings, accelerator, world)


if __name__ == "__main__":
    main()
