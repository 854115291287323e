"""PPO for a multimodal model: settings, load, then each step rollout, reward, advantage, update.

Maximises r(image, prompt, response) − β·KL(π ‖ π_init) (thesis, eq. 9.2). Unlike the reference code, on
purpose: the score is added at the last real token, loss means are over real tokens only, and the gradients of
policy and value are clipped each on its own, so that a value error cannot shrink the policy's step.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor

from align.actors import LEARNERS, POLICY, VALUE, Actors, Sampled, Training
from align.began import belongings, check_goes_on
from align.cards import policy_card
from align.checkpoint import RunDir, checkpoint_step, progress
from align.config import PpoSettings
from align.context import check_context
from align.diagnose import PpoError as PpoError
from align.diagnose import check_drawn, check_finite, check_fresh
from align.generate import Item, rollout_tokens
from align.models.lmm import check_model
from align.models.memory import peak_memory
from align.pictures import encode_pictures, open_pictures
from align.ppo_checks import check, check_processes, check_same_step
from align.ppo_checks import read_prompts as read_prompts
from align.ppo_metrics import LOSSES, drawn_gap, rollout_metrics
from align.render import ImageInput
from align.reward_model import ScoreItem, check_reward
from align.rewards import symbolic, total
from align.rl import (
    Rollout,
    gae,
    kl_penalty,
    policy_loss,
    shaped_rewards,
    value_loss,
    whiten,
)
from align.rollout_log import append_rollouts, truncate_rollouts
from align.schedule import lr_factor, permutation, step_seed, stream
from align.user_rewards import find_functions, user_parts
from data.jsonl import Rejects, write_json
from data.schema import Message, Prompt

log = logging.getLogger(__name__)

#: is told of a run directory that has something new
Watch: TypeAlias = Callable[[Path], None]


def run(settings: PpoSettings, watch: Watch | None = None) -> Path:
    """Train a policy, and return the folder of its adapter (``<output>/policy``).

    ``watch`` is called with the run directory after every step, in the main process.

    Rollouts, mini-batches and facts follow from (seed, step, process, number of processes): a run that was
    killed at any time and resumed gives the same metrics (but for ``rate/*`` and ``eps``) and weights, bit
    for bit where the arithmetic is deterministic. Each process draws its share of the prompts and its own
    mini-batches of them; a gradient step is over those of all processes.

    ``metrics.jsonl`` has a line for every step, ``rollouts.jsonl`` some responses of each, ``result.json``
    says how it ended, ``rejects.jsonl`` what was left out of the prompts.

    Raises:
        DataError: unreadable prompts, or prompts without the facts that the reward model reads.
        RewardError: no reward model at ``reward_model``.
        ModelError: the checkpoint, or the reward model's base, is no multimodal model.
        PpoError: settings that do not fit, texts longer than a model's context, a policy unlike its reference
            at the start, or values not finite.
        CheckpointError: a run to resume that began with other prompts (their facts and pictures included),
            processes, another reward model, base or code of the rewards.
        RewardPartError: a reward of one's own that is not there.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    check(settings)
    rejects = Rejects()
    prompts = read_prompts(settings, rejects)
    check_model(settings.model)
    check_reward(settings.reward_model)
    check_context(settings, prompts)
    if settings.dry_run:
        return Path(settings.output)
    # without a GPU accelerate would start no process group unless it is told of the CPU
    on_cpu = settings.model.device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="no", cpu=on_cpu)
    check_processes(settings, accelerator)
    main = accelerator.is_main_process
    if main:
        directory = RunDir.create(settings.output, settings, "ppo")
    accelerator.wait_for_everyone()
    if not main:
        directory = RunDir(Path(settings.output), settings)
    with directory:
        if not directory.is_done:
            if main:
                rejects.write(directory.path / "rejects.jsonl")
            Ppo(settings, prompts, accelerator, directory).train(watch)
        accelerator.wait_for_everyone()
    return directory.path / "policy"


def prompt_pictures(prompts: Sequence[Prompt], root: str | None) -> list[ImageInput]:
    """The prompts' pictures; the DataError for one that cannot be read names its prompt."""
    return open_pictures([p.image for p in prompts], root, [p.id for p in prompts])


class Ppo:
    """One run: its models, optimizer, prompts and directory."""

    def __init__(
        self, settings: PpoSettings, prompts: list[Prompt], accelerator: Accelerator, directory: RunDir
    ) -> None:
        self.settings, self.prompts = settings, prompts
        self.accelerator, self.directory = accelerator, directory
        belongs = belongings(settings, prompts, accelerator.num_processes)
        if settings.resume:
            # ahead of the models, which may take minutes
            check_goes_on(directory, belongs)
        torch.manual_seed(settings.seed)
        if settings.model.device == "auto" and (accelerator.num_processes > 1 or settings.shard_base):
            placed = settings.model.model_copy(update={"device": str(accelerator.device)})
            settings = settings.model_copy(update={"model": placed})
        self.actors = Actors.load(settings)
        #: of one forward pass without gradients
        self.rows_at_once = settings.micro_batch or settings.minibatch // accelerator.num_processes
        self.functions = find_functions(settings.user_rewards)
        self.rates = {POLICY: settings.optim.lr, VALUE: settings.value_lr or settings.optim.lr}
        groups = [
            {"params": [p for _, p in self.actors.named_parameters(name)], "lr": self.rates[name]}
            for name in LEARNERS
        ]
        optim = settings.optim
        optimizer = torch.optim.AdamW(groups, betas=optim.betas, weight_decay=optim.weight_decay)
        self.training = Training(self.actors, optimizer, {}, belongs)
        self.actors.share_start()

    def train(self, watch: Watch | None = None) -> None:
        """All steps, from the newest checkpoint when resuming; ends with the saved policy and DONE."""
        s, directory = self.settings, self.directory
        start = self.resume() if s.resume else 0
        stopped = None
        for step in progress(range(start, s.steps), "ppo"):
            began = time.perf_counter()
            prompts, sampled, rollout = self.roll_out(step)
            metrics = rollout_metrics(rollout, s, self.sum) | self.check_sampler(sampled, rollout)
            rolled = time.perf_counter()
            stopped = self.watch_kl(step, metrics["objective/kl"])
            if stopped is None:
                metrics |= self.update(step, sampled, rollout)
                # not kept through the next rollout
                self.training.optimizer.zero_grad(set_to_none=True)
            ended = time.perf_counter()
            if self.accelerator.is_main_process:
                tokens = metrics["response/length"] * s.rollouts
                directory.log(
                    step + 1,
                    **metrics,
                    **{
                        "rate/tokens_per_s": tokens / (ended - began),
                        "rate/rollout_s": rolled - began,
                        "rate/update_s": ended - rolled,
                        "rate/peak_memory_gb": peak_memory(self.actors.lmm.device),
                        "eps": s.rollouts / (ended - began),
                    },
                )
                append_rollouts(
                    directory.path / "rollouts.jsonl",
                    step + 1,
                    prompts,
                    rollout,
                    s.dump_rollouts,
                    self.actors.renderer.decode,
                    functools.partial(self.facts_shown, step),
                )
                if watch is not None:
                    watch(directory.path)
            if stopped is not None:
                break
            self.keep(step + 1)
        if self.accelerator.is_main_process:
            done = s.steps if stopped is None else step - 1
            self.actors.save_policy(directory.path / "policy", policy_card(s, done, stopped), s)
            write_json(directory.path / "result.json", {"steps": done, "stopped": stopped})
            directory.done()

    # --- rollout, reward, advantage ---

    def roll_out(self, step: int) -> tuple[list[Prompt], Sampled, Rollout]:
        """Sample this process's share of the step's responses and judge them."""
        s, rank, world = self.settings, self.accelerator.process_index, self.accelerator.num_processes
        picked = stream(len(self.prompts), s.seed, step * s.rollouts, (step + 1) * s.rollouts)[rank::world]
        prompts = [self.prompts[i] for i in picked]
        actors = self.actors
        pictures = prompt_pictures(prompts, s.data.images)
        encoded = encode_pictures(actors.lmm, actors.renderer, pictures)
        asked = [[Message(role="user", content=p.question)] for p in prompts]
        items: list[Item] = list(zip(asked, encoded))
        actors.use(POLICY)
        seed = step_seed(s.seed, "rollout", step, rank)
        made = rollout_tokens(
            actors.lmm, actors.renderer, items, s.generate, seed=seed, with_logprobs=step == 0
        )
        sampled = Sampled(made, items, actors.renderer, even=s.shard_base)
        judged = actors.judge_tokens(sampled, self.rows_at_once)
        logprobs, reference, values = judged.logprobs, judged.ref_logprobs, judged.values
        if step == 0:
            check_fresh(logprobs, reference)
        scores, parts = self.score(step, prompts, pictures, sampled)
        rewards = total(scores, parts, s.reward_scale)
        mask = made.response_mask
        kl = kl_penalty(logprobs, reference, mask, s.kl_form)
        advantages, returns = gae(shaped_rewards(rewards, kl, mask, s.kl_coef), values, mask, s.gamma, s.lam)
        if s.whiten_advantages:
            advantages = whiten(advantages, mask, self.sum)
        rollout = Rollout(
            response_ids=made.response_ids,
            mask=mask,
            complete=made.complete,
            logprobs=logprobs,
            entropy=judged.entropy,
            ref_logprobs=reference,
            values=values,
            scores=scores,
            parts=parts,
            rewards=rewards,
            kl=kl,
            advantages=advantages,
            returns=returns,
        )
        return prompts, sampled, rollout

    def check_sampler(self, sampled: Sampled, rollout: Rollout) -> dict[str, float]:
        """The first step's ``sampling/logprob_gap``; PpoError or a warning where it is large."""
        if sampled.generated.logprobs is None:
            return {}
        gap, first = drawn_gap(sampled.generated.logprobs, rollout.logprobs, rollout.mask, self.sum)
        check_drawn(gap, first, self.settings.model)
        return {"sampling/logprob_gap": gap}

    def facts_seed(self, step: int) -> str:
        """What decides the order in which the reward model reads a prompt's facts."""
        return f"{self.settings.seed}/{step}"

    def facts_shown(self, step: int, prompt: Prompt) -> str | None:
        """The facts as the reward model read them with this prompt's response."""
        return self.actors.reward.facts_of(prompt.id, prompt.facts, self.facts_seed(step))

    def score(
        self, step: int, prompts: Sequence[Prompt], pictures: Sequence[ImageInput], sampled: Sampled
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward model's scores (B,) and the symbolic rewards by name, each (B,)."""
        s, reward, made = self.settings, self.actors.reward, sampled.generated
        lengths = made.response_mask.sum(-1).tolist()
        rows = zip(made.response_ids.tolist(), lengths)
        texts = [self.actors.renderer.decode(row[:n]) for row, n in rows]
        seen = [image for _, image in sampled.items]
        if s.reward_images:
            pictures = prompt_pictures(prompts, s.reward_images)
        if s.reward_images or not self.actors.one_tower:
            seen = encode_pictures(reward.lmm, reward.renderer, pictures)
        answers = [
            ScoreItem(p.id, messages, text, p.facts, image)
            for p, (messages, _), text, image in zip(prompts, sampled.items, texts, seen)
        ]
        scores = reward.score(answers, seed=self.facts_seed(step), batch_size=self.rows_at_once)
        scores = scores.to(made.response_mask.device)
        limit, complete = s.generate.max_new_tokens, made.complete.tolist()
        parts = symbolic(prompts, texts, lengths, complete, s.symbolic, limit)
        parts |= user_parts(self.functions, s.user_rewards, prompts, texts)
        return scores, {name: part.to(scores) for name, part in parts.items()}

    def watch_kl(self, step: int, kl: float) -> str | None:
        """Why to stop, or None. Keeps the policy of the newest step within ``max_kl``, and puts it back."""
        s = self.settings
        if not s.max_kl:
            return None
        if kl <= s.max_kl:
            self.training.good = self.actors.weights([POLICY])
            return None
        self.actors.put(self.training.good, [POLICY])
        kept = f"the policy after {step - 1} steps is kept"
        text = f"after {step} steps the KL is {kl:.2f}, above max_kl {s.max_kl}; {kept}"
        log.warning("%s", text)
        return text

    # --- update ---

    def update(self, step: int, sampled: Sampled, rollout: Rollout) -> dict[str, float]:
        """``epochs`` passes of gradient steps over the rollouts; returns the step's mean metrics."""
        s, world = self.settings, self.accelerator.num_processes
        factor = lr_factor(step, s.steps, s.optim.warmup_steps, s.optim.schedule)
        for name, group in zip(LEARNERS, self.training.optimizer.param_groups):
            group["lr"] = self.rates[name] * factor
        size = s.minibatch // world
        found = []
        for epoch in range(s.epochs):
            order = permutation(
                len(rollout), s.seed, "minibatch", step, epoch, self.accelerator.process_index
            )
            for start in range(0, len(order), size):
                with self.actors.checkpointed():
                    found.append(self.gradient_step(step, order[start : start + size], sampled, rollout))
        means = {name: sum(f[name] for f in found) / len(found) for name in found[0]}
        return means | {"lr": self.rates[POLICY] * factor, "lr/value": self.rates[VALUE] * factor}

    def gradient_step(
        self, step: int, rows: Sequence[int], sampled: Sampled, rollout: Rollout
    ) -> dict[str, float]:
        """One optimizer step on a mini-batch, in micro-batches whose losses add up exactly."""
        s, actors, optimizer = self.settings, self.actors, self.training.optimizer
        index = torch.tensor(rows, device=rollout.mask.device)
        tokens = self.sum(rollout.mask[index].sum().float())
        sums = torch.zeros(5, device=tokens.device)
        optimizer.zero_grad(set_to_none=True)
        for name in LEARNERS:
            # each part's backward pass comes ahead of the next switch: activations that are computed again
            # would be those of the wrong adapter
            actors.use(name)
            for part in sampled.split(rows, s.micro_batch or len(rows)):
                at = torch.tensor(part, device=rollout.mask.device)
                if name == POLICY:
                    new = actors.logprobs(sampled, part)
                    cut = at, slice(new.shape[1])
                    policy = policy_loss(
                        new, rollout.logprobs[cut], rollout.advantages[cut], rollout.mask[cut], s.clip
                    )
                    # sums, divided when all are there: a share of 1/tokens would vanish in 16 bits
                    policy.loss.backward()
                    sums[:3] += torch.stack([policy.loss.detach(), policy.clipped, policy.approx_kl])
                else:
                    new = actors.values(sampled, part)
                    cut = at, slice(new.shape[1])
                    value = value_loss(
                        new, rollout.values[cut], rollout.returns[cut], rollout.mask[cut], s.value_clip
                    )
                    (s.value_coef * value.loss).backward()
                    sums[3:] += torch.stack([value.loss.detach(), value.clipped])
        norms = {name: self.clip(name, tokens) for name in LEARNERS}
        means = (self.sum(sums) / tokens).tolist()
        metrics = dict(zip(LOSSES, means)) | {
            "policy/grad_norm": norms[POLICY],
            "val/grad_norm": norms[VALUE],
        }
        check_finite(step, metrics, self.rates[POLICY], self.rates[VALUE])
        optimizer.step()
        return metrics

    def clip(self, name: str, tokens: Tensor) -> float:
        """Make of the summed gradients means over ``tokens``, of all processes, and clip their norm.

        Returns the norm before.
        """
        parameters = [p for _, p in self.actors.named_parameters(name)]
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad = self.sum(p.grad).div_(tokens)
        return float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.optim.max_grad_norm))

    def sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the processes, of its shape; every process must call it with one shape."""
        return self.accelerator.reduce(x, "sum") if self.accelerator.num_processes > 1 else x

    # --- what is written ---

    def keep(self, done: int) -> None:
        """Save the policy of every ``keep_every``-th step, and a checkpoint of every ``save_every``-th."""
        s = self.settings
        if not self.accelerator.is_main_process:
            return
        if s.keep_every and done % s.keep_every == 0:
            self.actors.save_policy(self.directory.path / f"policy-{done}", policy_card(s, done, None), s)
        if s.save_every and done % s.save_every == 0 and done < s.steps:
            self.directory.save_checkpoint(done, self.training.save)

    def resume(self) -> int:
        """Go back to the newest checkpoint; returns the steps done."""
        folder = self.directory.latest_checkpoint()
        done = 0 if folder is None else checkpoint_step(folder)
        check_same_step(done, self.accelerator)
        if self.accelerator.is_main_process:
            self.directory.truncate_metrics(done)
            truncate_rollouts(self.directory.path / "rollouts.jsonl", done)
        if folder is not None:
            self.training.restore(folder)
        return done
