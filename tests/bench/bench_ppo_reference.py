"""A whole step of PPO against the scheme that it replaces, which is written out here: four models in memory,
all rows padded to the longest that may come, the vision tower inside of every pass, one pass after the other.

Both start at the same weights, work on the same prompts and responses, and must end at the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from align.actors import LEARNERS, POLICY, VALUE
from align.checkpoint import RunDir
from align.config import LoraSettings, ModelSettings, PpoSettings
from align.generate import decoding
from align.models.lmm import adapter_of, add_adapters, load, move, position_ids, unwrap
from align.models.memory import checkpointed
from align.ppo import Ppo, prompt_pictures, read_prompts
from align.reward_model import RewardInfo, RewardModel, attach, find_reward, load_head
from align.rewards import symbolic, total
from align.rl import gae, kl_penalty, policy_loss, shaped_rewards, value_loss, whiten
from align.schedule import lr_factor, permutation, stream
from data.schema import Message, Prompt
from tests.bench.conftest import Shape, build_base, end_after
from tests.bench.measure import peak_bytes, show, side_by_side

#: as the other benchmarks here: the tower is as large as the language model
WORLD = Shape(
    pixels=96, patch=16, rank=32, rollouts=32, minibatch=16, micro_batch=8, max_new_tokens=48, batch_size=32
)  # fmt: skip
#: a quarter of LLaVA-1.5-7B's lengths in the thesis (576 image tokens, at most 896 of response), and its
#: proportions of the tower's and the adapters' parameters to the language model's
LLAVA = Shape(
    pixels=168, patch=14, rank=2, rollouts=16, minibatch=8, micro_batch=4, max_new_tokens=224, batch_size=4,
    tower={"layers": 2, "width": 40, "head_width": 20},
)  # fmt: skip
#: of the reward model, short as the rest: our own takes 118 tokens of this vocabulary
TEMPLATE = "{facts}\nIs the answer correct?"
#: of the norm of what the reference scheme judged
JUDGED = 1e-5
#: of the norm of its change of the weights: Adam steps as far where a gradient is all but rounding, and a
#: ratio may come to lie on the other side of a clip
CHANGED = 1e-2


class Forced(LogitsProcessor):
    """Leaves each row one token to draw: that of ``responses`` (B, R), a column a call."""

    def __init__(self, responses: Tensor) -> None:
        self.responses, self.step = responses, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        token = self.responses[:, self.step : self.step + 1]
        self.step += 1
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)


class FourModels:
    """PPO with four models, each with weights of its own, without any of our savings.

    What does not belong to the scheme is done as well as in ours: one preprocessing of the pictures, batches
    of one size, logits of the response's positions alone, gradients of the adapters alone.
    """

    def __init__(self, settings: PpoSettings, prompts: list[Prompt], weights: dict[str, Tensor]) -> None:
        """``weights``: what policy and value model start from, by our names."""
        self.settings, self.prompts = settings, prompts
        s = self.settings
        folder = find_reward(s.reward_model)
        self.policy = add_adapters(load(s.model).model, s.lora, [POLICY])
        self.reference = load(s.model).model
        value = load(s.model)
        attach(value, folder, VALUE, trainable=True)
        self.value, self.value_head = value.model, load_head(folder, value)
        self.reward = RewardModel.load(folder)
        self.renderer = self.reward.renderer
        self.models = self.policy, self.reference, self.value, self.reward.lmm.model
        for model in self.models:
            model.eval()
        self.restart(weights)

    def named_parameters(self, name: str) -> list[tuple[str, torch.nn.Parameter]]:
        model = self.policy if name == POLICY else self.value
        named = [(n, p) for n, p in model.named_parameters() if adapter_of(n) == name]
        head = [(f"value_head.{n}", p) for n, p in self.value_head.named_parameters()]
        return named + head if name == VALUE else named

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for name in LEARNERS for n, p in self.named_parameters(name)}

    def restart(self, weights: dict[str, Tensor]) -> None:
        """The step's start: these weights and a new optimizer."""
        optim, groups = self.settings.optim, []
        for name in LEARNERS:
            for key, parameter in self.named_parameters(name):
                parameter.data.copy_(weights[key])
            groups.append([p for _, p in self.named_parameters(name)])
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": optim.lr} for group in groups], betas=optim.betas, weight_decay=0.0
        )

    # --- rollout ---

    def roll_out(self, responses: Tensor) -> None:
        """Sample (``responses`` (B, R) is what comes), judge the samples, and keep all in ``self``."""
        s = self.settings
        prompts = [self.prompts[i] for i in stream(len(self.prompts), s.seed, 0, s.rollouts)]
        pictures = prompt_pictures(prompts, s.data.images)
        self.pixels = self.renderer.pixel_values(pictures)  # type: ignore[arg-type]
        asked = [[Message(role="user", content=p.question)] for p in prompts]
        device = self.reward.lmm.device
        self.prompt = move(self.renderer.prompt_batch(list(zip(asked, self.pixels))), device)
        self.pixels = self.pixels.to(device)
        self.generate(responses)
        chunks = torch.arange(s.rollouts).split(s.micro_batch or s.minibatch)
        with torch.no_grad():
            self.old = torch.cat([self.logprobs(self.policy, rows) for rows in chunks])
            reference = torch.cat([self.logprobs(self.reference, rows) for rows in chunks])
            self.old_values = torch.cat([self.values(rows) for rows in chunks])
            lengths = self.seen.sum(-1).tolist()
            texts = [self.renderer.decode(row[:n]) for row, n in zip(self.responses.tolist(), lengths)]
            self.scores = self.score(prompts, asked, texts, chunks)
        complete = (self.responses == self.renderer.end_token_id).any(-1).tolist()
        parts = symbolic(prompts, texts, lengths, complete, s.symbolic, s.generate.max_new_tokens)
        parts = {name: part.to(self.scores) for name, part in parts.items()}
        kl = kl_penalty(self.old, reference, self.seen, s.kl_form)
        rewards = shaped_rewards(total(self.scores, parts, s.reward_scale), kl, self.seen, s.kl_coef)
        advantages, self.returns = gae(rewards, self.old_values, self.seen, s.gamma, s.lam)
        self.advantages = whiten(advantages, self.seen)

    @torch.no_grad()
    def generate(self, responses: Tensor) -> None:
        """Sampled responses (B, max_new_tokens), right padded, and which of their tokens are real."""
        s, pad = self.settings.generate, self.renderer.pad_id
        config = decoding(s, [self.renderer.end_token_id], pad)
        prompt, found = self.prompt, []
        for rows in torch.arange(len(responses)).split(s.batch_size):
            out = self.policy.generate(
                input_ids=prompt["input_ids"][rows], attention_mask=prompt["attention_mask"][rows],
                pixel_values=self.pixels[rows], generation_config=config,
                logits_processor=LogitsProcessorList([Forced(responses[rows])]),
            )[:, prompt["input_ids"].shape[1] :]  # fmt: skip
            found.append(torch.nn.functional.pad(out, (0, s.max_new_tokens - out.shape[1]), value=pad))
        self.responses = torch.cat(found)
        ended = (self.responses == self.renderer.end_token_id).long()
        self.seen = (ended.cumsum(-1) - ended == 0).long()

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Prompts and responses of some rows, as wide as the widest that may come."""
        prompt = self.prompt
        ids = torch.cat([prompt["input_ids"][rows], self.responses[rows]], dim=1)
        mask = torch.cat([prompt["attention_mask"][rows], self.seen[rows]], dim=1)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": position_ids(mask),
            "pixel_values": self.pixels[rows],
        }

    def logprobs(self, model: Any, rows: Tensor) -> Tensor:
        """(b, R) log-probabilities of the responses."""
        width = self.responses.shape[1]
        logits = model(**self.inputs(rows), logits_to_keep=width + 1, use_cache=False).logits[:, :-1].float()
        chosen = torch.log_softmax(logits / self.settings.generate.temperature, -1)
        return chosen.gather(-1, self.responses[rows].unsqueeze(-1)).squeeze(-1)

    def values(self, rows: Tensor) -> Tensor:
        """(b, R) values ahead of each response token."""
        hidden = unwrap(self.value).model(**self.inputs(rows), use_cache=False).last_hidden_state
        return self.value_head(hidden[:, -self.responses.shape[1] - 1 : -1])

    def score(self, prompts: Sequence[Any], asked: Any, texts: list[str], chunks: Any) -> Tensor:
        """(B,) scores of the reward model."""
        reward, s = self.reward, self.settings
        facts = [reward.facts_of(p.id, p.facts, f"{s.seed}/0") for p in prompts]
        rows = list(zip(asked, texts, facts, self.pixels))
        batch = move(reward.renderer.reward_batch(rows, reward.info.template), reward.lmm.device)
        empty = reward.renderer.reward_lengths(
            [(*row[:1], "", row[2], True) for row in rows], reward.info.template
        )
        missing = max(empty) + s.generate.max_new_tokens - batch["input_ids"].shape[1]
        ids, mask = (
            torch.nn.functional.pad(batch[key], (max(missing, 0), 0), value=fill)
            for key, fill in (("input_ids", reward.renderer.pad_id), ("attention_mask", 0))
        )
        found = []
        for at in chunks:
            hidden = unwrap(reward.lmm.model).model(
                input_ids=ids[at], attention_mask=mask[at], position_ids=position_ids(mask[at]),
                pixel_values=self.pixels[at], use_cache=False,
            ).last_hidden_state  # fmt: skip
            found.append(reward.head(hidden[:, -1]))
        return torch.cat(found)

    # --- update ---

    def update(self) -> None:
        """Two passes over the rollouts, in the order of ours."""
        s = self.settings
        factor = lr_factor(0, s.steps, s.optim.warmup_steps, s.optim.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = s.optim.lr * factor
        for epoch in range(s.epochs):
            order = torch.tensor(permutation(s.rollouts, s.seed, "minibatch", 0, epoch, 0))
            for rows in order.split(s.minibatch):
                self.gradient_step(rows)

    def gradient_step(self, rows: Tensor) -> None:
        s, tokens = self.settings, self.seen[rows].sum().float()
        self.optimizer.zero_grad(set_to_none=True)
        for at in rows.split(s.micro_batch or len(rows)):
            with checkpointed(self.policy, s.gradient_checkpointing):
                new = self.logprobs(self.policy, at)
                loss = policy_loss(new, self.old[at], self.advantages[at], self.seen[at], s.clip).loss
                (loss / tokens).backward()
        for at in rows.split(s.micro_batch or len(rows)):
            with checkpointed(self.value, s.gradient_checkpointing):
                new = self.values(at)
                old, returns = self.old_values[at], self.returns[at]
                loss = value_loss(new, old, returns, self.seen[at], s.value_clip).loss
                (s.value_coef * loss / tokens).backward()
        for name in LEARNERS:
            parameters = [p for _, p in self.named_parameters(name)]
            torch.nn.utils.clip_grad_norm_(parameters, s.optim.max_grad_norm)
        self.optimizer.step()


def build(world: Path, folder: Path, shape: Shape, mean_share: float) -> Ppo:
    """Ours, on a base whose responses take ``mean_share`` of the longest on average."""
    base = build_base(world, folder / "base", shape.pixels, shape.patch, shape.tower)
    end_after(base, world, mean_share, shape.max_new_tokens)
    model = ModelSettings(path=str(base), device="cpu")
    save_reward(folder / "reward", model, shape.rank)
    return start(settings_of(world, folder, model, shape), Accelerator(cpu=True))


def save_reward(folder: Path, model: ModelSettings, rank: int) -> None:
    """A reward model that reads captions, with random weights in its adapter."""
    torch.manual_seed(1)
    info = RewardInfo(model=model, facts=["captions"], max_facts={"captions": 2}, template=TEMPLATE)
    reward = RewardModel.start(info, LoraSettings(r=rank), ("Yes", "No"), 1.0)
    for name, parameter in reward.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.02)
    reward.save(folder, "a card")


def settings_of(world: Path, folder: Path, model: ModelSettings, shape: Shape, **more: Any) -> PpoSettings:
    """A step with two passes, against the reward model in ``folder``; ``more`` settings."""
    return PpoSettings.model_validate({
        "output": str(folder / "run"),
        "model": model.model_dump(),
        "reward_model": str(folder / "reward"),
        "data": {"path": str(world / "prompts.jsonl"), "images": str(world)},
        "lora": {"r": shape.rank},
        "generate": {"max_new_tokens": shape.max_new_tokens, "batch_size": shape.batch_size},
        "rollouts": shape.rollouts,
        "minibatch": shape.minibatch,
        "micro_batch": shape.micro_batch,
        "epochs": 2,
        "optim": {"lr": 1e-3},
        "report_to": [],
        **more,
    })  # fmt: skip


def start(settings: PpoSettings, accelerator: Accelerator) -> Ppo:
    directory = RunDir.create(settings.output, settings, "ppo")
    return Ppo(settings, read_prompts(settings), accelerator, directory)


class Race:
    """Steps of both schemes from one start."""

    def __init__(self, ours: Ppo) -> None:
        self.ours, self.start = ours, ours.actors.weights()
        self.reference = FourModels(ours.settings, ours.prompts, self.start)
        self.seconds: dict[str, float] = {}

    def step_of_ours(self) -> float:
        ours = self.ours
        ours.actors.put(self.start)
        ours.training.optimizer.state.clear()
        began = time.process_time()
        _, self.sampled, self.rollout = ours.roll_out(0)
        self.seconds["ours, rollout"] = time.process_time() - began
        ours.update(0, self.sampled, self.rollout)
        self.seconds["ours, update"] = time.process_time() - began - self.seconds["ours, rollout"]
        return 1

    def step_of_four(self) -> float:
        self.reference.restart(self.start)
        began = time.process_time()
        self.reference.roll_out(self.rollout.response_ids)
        self.seconds["four models, rollout"] = time.process_time() - began
        self.reference.update()
        whole = time.process_time() - began
        self.seconds["four models, update"] = whole - self.seconds["four models, rollout"]
        return 1

    def check(self) -> tuple[float, float]:
        """The errors of (what was judged, the weights), each a norm of differences by the norm of the whole.

        AssertionError unless both did the same work.
        """
        rollout, four, errors = self.rollout, self.reference, []
        width = rollout.mask.shape[1]
        assert torch.equal(rollout.response_ids, four.responses[:, :width])
        assert torch.equal(rollout.mask, four.seen[:, :width]) and not four.seen[:, width:].any()
        for mine, theirs in (
            (rollout.logprobs, four.old),
            (rollout.values, four.old_values),
            (rollout.scores, four.scores),
            (rollout.advantages, four.advantages),
        ):
            theirs = theirs[:, :width] * rollout.mask if theirs.ndim == 2 else theirs
            errors.append(float((mine - theirs).norm() / theirs.norm()))
        assert max(errors) < JUDGED, errors
        mine, theirs = self.ours.actors.weights(), four.weights()
        assert mine.keys() == theirs.keys()
        moved = sum(float((theirs[key] - self.start[key]).square().sum()) for key in mine) ** 0.5
        apart = sum(float((theirs[key] - mine[key]).square().sum()) for key in mine) ** 0.5
        assert moved > 0 and apart < CHANGED * moved, (apart, moved)
        return max(errors), apart / moved

    def memory(self) -> None:
        """Print bytes of weights, and of all tensors at the peak of a step."""
        actors, four = self.ours.actors, self.reference
        weights = {
            "ours": held(actors.lmm.model, actors.reward.lmm.model, actors.value_head, actors.reward.head),
            "four models": held(*four.models, four.value_head, four.reward.head),
        }
        base = sum(p.nbytes for n, p in actors.lmm.model.named_parameters() if adapter_of(n) is None)
        for name, step in (("ours", self.step_of_ours), ("four models", self.step_of_four)):
            peak = weights[name] + peak_bytes(step)
            weighs = f"{weights[name] / 2**20:.1f} MiB, {weights[name] / base:.2f} times the base's"
            print(f"  {name}: weights {weighs}; {peak / 2**20:.0f} MiB of tensors at the peak")


def held(*modules: torch.nn.Module) -> int:
    """Bytes of all their parameters, one that several hold counted once."""
    return sum(p.nbytes for p in {id(p): p for m in modules for p in m.parameters()}.values())


def race(both: Race, title: str, repeats: int = 5) -> float:
    """Print how both schemes do; returns our time by that of the four models."""
    ways = {"ours": both.step_of_ours, "four models, all padded": both.step_of_four}
    rates = side_by_side(ways, repeats)
    errors, s = both.check(), both.ours.settings
    lengths = both.rollout.mask.sum(1)
    show(f"PPO, {title}", "steps/s", rates)
    prompt = float(both.sampled.generated.prompt_mask.sum(1).float().mean())
    print(f"  {s.rollouts} rollouts, {s.generate.batch_size} at once; prompts of about {prompt:.0f} tokens,")
    mean, longest = float(lengths.float().mean()), s.generate.max_new_tokens
    print(f"  responses of {mean:.1f} of at most {longest}: {sorted(lengths.tolist())}")
    print(f"  errors: {errors[0]:.1e} of what was judged, {errors[1]:.1e} of the change of the weights")
    print("  last round: " + ", ".join(f"{name} {took:.2f} s" for name, took in both.seconds.items()))
    share = rates["four models, all padded"] / rates["ours"]
    print(f"  ours takes {share:.2f} of the time")
    return share


def test_lengths_of_the_thesis(world: Path, tmp_path: Path) -> None:
    """Responses take 150 of 896 tokens on average, a sixth of what the four models are padded to."""
    both = Race(build(world, tmp_path, LLAVA, 1 / 6))
    share = race(both, "lengths and proportions of LLaVA-1.5-7B")
    both.memory()
    assert share <= 0.5


def test_medium_lengths(world: Path, tmp_path: Path) -> None:
    race(Race(build(world, tmp_path, WORLD, 0.45)), "large tower, responses of 45 % of the longest")


def test_all_of_full_length(world: Path, tmp_path: Path) -> None:
    """No response is padded in either."""
    race(Race(build(world, tmp_path, WORLD, 1.0)), "large tower, all responses of full length")
