"""Best-of-n: several responses to each prompt, judged as PPO judges them, the best kept.

The answers of a policy without training one, and data: the best response to each prompt as a conversation to
fine-tune on (RAFT, Dong et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.began import belongings, check_began
from align.checkpoint import CheckpointError, RunDir, progress
from align.config import BestOfSettings
from align.context import check_context
from align.generate import Item, sample
from align.launch import one_process
from align.lending import lend_tower
from align.models.lmm import Lmm, adapters_off, check_model
from align.models.lmm import load as load_lmm
from align.pairs import check_facts
from align.pictures import encode_pictures, open_pictures
from align.render import Renderer
from align.reward_model import RewardModel, ScoreItem, check_reward, find_reward, read_info
from align.rewards import symbolic, total
from align.schedule import step_seed
from align.user_rewards import find_functions, user_parts
from data.jsonl import DataError, Rejects, read_rows, write_json, write_records, write_rows
from data.load import load
from data.schema import Example, Message, Prompt, Response


def run(settings: BestOfSettings) -> Path:
    """Answer and score; an interrupted run goes on and ends with the same files. Returns the run directory.

    samples.jsonl    every response of each prompt with its score and rewards, and which is the best
    answers.jsonl    the best one under its prompt's id, for ``align eval score --answers``
    examples.jsonl   the best complete one as a conversation, for ``align sft``; none where all are cut off
    result.json      the expected best reward of 1 … n samples, and how far best-of-n may be from the model

    The reward is the score, with ``symbolic`` or ``user_rewards`` plus these, as PPO adds them.

    Raises:
        DataError: unreadable prompts or pictures, or prompts without the facts that the reward model reads.
        RewardError: no reward model at ``reward_model``. ModelError: a checkpoint is no multimodal model.
        CheckpointError: the output is another run's, or it began with other prompts, weights or code.
        PpoError: a prompt with its response is longer than a model's context. RewardPartError: a user's
            function is not there, or says what is no reward.
        LaunchError: this is one of several processes.
    """
    one_process("best-of")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rejects = Rejects()
    prompts = read_prompts(settings, rejects)
    find_functions(settings.user_rewards)
    check_model(settings.model)
    check_reward(settings.reward_model)
    check_context(settings, prompts)
    if settings.dry_run:
        return Path(settings.output)
    with RunDir.create(settings.output, settings, "best-of") as run_dir:
        if run_dir.is_done:
            return run_dir.path
        check_began(run_dir, belongings(settings, prompts))
        rejects.write(run_dir.path / "rejects.jsonl")
        if settings.resume:
            run_dir.truncate_metrics(-1)
        parts = judged_parts(settings, prompts, run_dir.path / "parts")
        rows = [row for part in parts for row in rows_of(part)]
        found = figures([[reward_of(s) for s in row["samples"]] for row in rows])
        pairs = zip(prompts, rows, strict=True)
        examples = [example for pair in pairs if (example := example_of(*pair)) is not None]
        found |= {"examples": len(examples), "none_complete": len(rows) - len(examples)}
        rewards = mean_rewards(rows, settings.reward_scale)
        if rewards:
            found["rewards_of_best"] = rewards
        write_rows(run_dir.path / "samples.jsonl", rows)
        write_rows(run_dir.path / "answers.jsonl", [answer_of(row) for row in rows])
        write_records(run_dir.path / "examples.jsonl", examples)
        write_json(run_dir.path / "result.json", found)
        curve = {f"best_of/{k}": v for k, v in enumerate(found["expected_best"], 1)}
        run_dir.log(len(rows), **curve, **{f"reward/{name}": v for name, v in rewards.items()})
        run_dir.done()
    return run_dir.path


def read_prompts(settings: BestOfSettings, rejects: Rejects | None = None) -> list[Prompt]:
    """The prompts, with the facts that the reward model reads. Raises DataError."""
    data = settings.data
    records = load(want="prompt", **data.model_dump(), rejects=rejects)
    prompts = [record for record in records if isinstance(record, Prompt)]
    source = data.path if isinstance(data.path, str) else ", ".join(data.path)
    check_facts(prompts, read_info(settings.reward_model).facts, source)
    return prompts


class Judge:
    """The model that answers, as it was loaded, and the reward model, on the same base if it is its own."""

    def __init__(self, settings: BestOfSettings) -> None:
        self.settings = settings
        self.lmm: Lmm = load_lmm(settings.model)
        self.renderer = Renderer(self.lmm.processor)
        self.functions = find_functions(settings.user_rewards)
        self.reward = RewardModel.load(find_reward(settings.reward_model), self.lmm, base=settings.model)
        self.one_tower = lend_tower(self.lmm, self.reward.lmm)

    def rows(self, prompts: Sequence[Prompt], seed: int) -> Iterator[dict[str, Any]]:
        """A row a prompt: its samples with their rewards, and which is the best (the first of equals)."""
        s, n = self.settings, self.settings.n
        ids = [p.id for p in prompts]
        pictures = open_pictures([p.image for p in prompts], s.data.images, ids)
        encoded = encode_pictures(self.lmm, self.renderer, pictures)
        asked = [[Message(role="user", content=p.question)] for p in prompts]
        items: list[Item] = list(zip(asked, encoded, strict=True))
        with adapters_off(self.lmm.model):
            counted = sample(self.lmm, self.renderer, items, s.generate, seed=seed, num_return=n)
        if s.reward_images:
            pictures = open_pictures([p.image for p in prompts], s.reward_images, ids)
        if s.reward_images or not self.one_tower:
            encoded = encode_pictures(self.reward.lmm, self.reward.renderer, pictures)
        said = [[response for response, _ in row] for row in counted]
        scored = [
            ScoreItem(p.id, ask, response.text, p.facts, image)
            for p, ask, image, responses in zip(prompts, asked, encoded, said, strict=True)
            for response in responses
        ]
        scores = self.reward.score(scored, seed=s.seed, batch_size=s.generate.batch_size)
        parts = self.parts(prompts, counted)
        rewards = total(scores, parts, s.reward_scale).tolist() if parts else None
        for i, (prompt, responses) in enumerate(zip(prompts, said, strict=True)):
            own = slice(i * n, (i + 1) * n)
            beside = {name: part[own].tolist() for name, part in parts.items()}
            yield row_of(prompt, responses, scores[own].tolist(), beside, rewards and rewards[own])

    def parts(
        self, prompts: Sequence[Prompt], counted: Sequence[Sequence[tuple[Response, int]]]
    ) -> dict[str, Tensor]:
        """The rewards beside the scores by name, each (B·n,); none where none is asked for."""
        s = self.settings
        asked = [prompt for prompt, row in zip(prompts, counted, strict=True) for _ in row]
        responses = [response for row in counted for response, _ in row]
        texts = [response.text for response in responses]
        found: dict[str, Tensor] = {}
        if s.symbolic is not None:
            tokens, complete = [n for row in counted for _, n in row], [r.complete for r in responses]
            found = symbolic(asked, texts, tokens, complete, s.symbolic, s.generate.max_new_tokens)
        return found | user_parts(self.functions, s.user_rewards, asked, texts)


def row_of(
    prompt: Prompt,
    responses: Sequence[Response],
    scores: Sequence[float],
    parts: Mapping[str, Sequence[float]] | None = None,
    rewards: Sequence[float] | None = None,
) -> dict[str, Any]:
    """A line of samples.jsonl; ``rewards`` are the scores with the ``parts``, by name, added."""
    samples: list[dict[str, Any]] = [
        {"text": response.text, "score": score, "complete": response.complete}
        for response, score in zip(responses, scores, strict=True)
    ]
    if parts and rewards:
        for i, one in enumerate(samples):
            one |= {"reward": rewards[i], "parts": {name: part[i] for name, part in parts.items()}}
    return {
        "id": prompt.id,
        "question": prompt.question,
        "image": prompt.image.id if prompt.image else None,
        "best": max(range(len(samples)), key=lambda i: reward_of(samples[i])),
        "samples": samples,
    }


def reward_of(one: Mapping[str, Any]) -> float:
    """What a sample is chosen by: its score, or with other rewards beside it the whole."""
    reward: float = one.get("reward", one["score"])
    return reward


def mean_rewards(rows: Sequence[dict[str, Any]], scale: float) -> dict[str, float]:
    """Over the best samples the mean of every reward, the score's as "model"; none for scores alone."""
    best = [row["samples"][row["best"]] for row in rows]
    if "parts" not in best[0]:
        return {}
    told = [{"model": scale * one["score"]} | one["parts"] for one in best]
    return {name: float(np.mean([one[name] for one in told])) for name in told[0]}


def answer_of(row: dict[str, Any]) -> dict[str, Any]:
    """A line of answers.jsonl."""
    best = row["samples"][row["best"]]
    whole = {"reward": best["reward"]} if "reward" in best else {}
    return {"id": row["id"], "response": best["text"], "score": best["score"]} | whole


def example_of(prompt: Prompt, row: dict[str, Any]) -> Example | None:
    """The prompt with its best complete response as a conversation to learn, None without a complete one.

    A response that ``max_new_tokens`` cut off would be learned with an end that the model did not give it.
    """
    complete = [one for one in row["samples"] if one["complete"]]
    if not complete:
        return None
    best = max(complete, key=reward_of)["text"]
    turns = [Message(role="user", content=prompt.question), Message(role="assistant", content=best)]
    return Example(
        id=prompt.id,
        image=prompt.image,
        messages=turns,
        facts=prompt.facts,
        source="best-of",
        split=prompt.split,
    )


def judged_parts(settings: BestOfSettings, prompts: list[Prompt], folder: Path) -> list[Path]:
    """One file of rows for each part of the prompts, in order; those that exist are kept.

    Raises CheckpointError for a file that answers other prompts.
    """
    size = max(1, 8 * settings.generate.batch_size // settings.n)
    files = {start: folder / f"{start:08d}.jsonl" for start in range(0, len(prompts), size)}
    missing = [start for start, file in files.items() if not file.exists()]
    for start, file in files.items():
        if start not in missing:
            check_part(file, prompts[start : start + size])
    if missing:
        judge = Judge(settings)
        with progress(missing, "best-of") as starts:
            for start in starts:
                seed = step_seed(settings.seed, "best-of", start)
                write_rows(files[start], list(judge.rows(prompts[start : start + size], seed)))
    return list(files.values())


def check_part(file: Path, prompts: Sequence[Prompt]) -> None:
    """Raise CheckpointError unless the part that an earlier start wrote answers these prompts, in order."""
    rows = [row for _, row in read_rows(file)]
    told = [(r.get("id"), r.get("question")) if not isinstance(r, DataError) else None for r in rows]
    for now, then in zip_longest([(p.id, p.question) for p in prompts], told):
        if now != then:
            raise CheckpointError(
                f"{file}: answers other prompts than the data now holds; choose another output, or give the "
                "data that the run was started with"
            )


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part. Raises DataError for a damaged line."""
    for _, row in read_rows(file):
        if isinstance(row, DataError):
            raise row
        yield row


# --- how good n is ---


def figures(scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What n samples a prompt say: for each k up to n the expected best score, and the bound on the KL.

    ``scores`` has a row of n for each prompt.
    """
    rows = np.asarray(scores, dtype=float)
    n = rows.shape[1]
    return {
        "prompts": len(rows),
        "n": n,
        "expected_best": [float(expected_best(rows, k).mean()) for k in range(1, n + 1)],
        "kl_bound": [kl_bound(k) for k in range(1, n + 1)],
    }


def expected_best(scores: Any, k: int) -> np.ndarray:
    """(...,) the expected highest of k among the n scores (..., n), over all subsets of size k.

    Unbiased for the best of k fresh samples: with scores in rising order, the i-th is the highest of
    C(i − 1, k − 1) of the C(n, k) subsets (Nakano et al. 2021, WebGPT, appendix I; Gao et al. 2022).

    Raises:
        ValueError: k is not between 1 and n.
    """
    ordered = np.sort(np.asarray(scores, dtype=float), axis=-1)
    n = ordered.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it must be between 1 and the {n} scores of each row")
    weights = np.array([math.comb(i, k - 1) / math.comb(n, k) for i in range(n)])
    return ordered @ weights


def kl_bound(n: int) -> float:
    """log n − (n − 1)/n, in nats: an upper bound of KL(best-of-n ‖ model).

    Stiennon et al. 2020, appendix G.3; that it is a bound: Beirami et al. 2024. It is close where no response
    is likely enough to be drawn twice.
    """
    return math.log(n) - (n - 1) / n
