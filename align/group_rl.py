"""GRPO and RLOO on our prompts and rewards: settings, prompts, model, TRL's trainer, save.

Both sample several responses a prompt and judge each against its group, without a value model (Shao et al.
2024; Ahmadian et al. 2024). The prompts come in PPO's order, a function of the seed alone. TRL renders them
itself; before the first step its tokens and pixels for the file's first prompts are compared with
``align.render``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from align.began import belongings, check_began
from align.checkpoint import RunDir
from align.config import GroupSettings, GrpoSettings, RlooSettings
from align.context import check_context
from align.generate import end_ids
from align.launch import one_process
from align.models.lmm import Lmm, ModelError, check_model, load, lora_config, unwrap
from align.pairs import check_facts
from align.pictures import PictureKey, open_pictures, picture_key
from align.render import Renderer
from align.reward_function import make_reward_function, make_symbolic_functions, make_user_functions
from align.reward_model import check_reward, read_info, same_base
from align.schedule import stream
from align.trl_stage import KeepsLearned, LogToRun, arguments, card_of, fit, save_policy, set_optimizer
from align.user_rewards import find_functions
from data.jsonl import DataError, Rejects, write_json
from data.load import load as load_records
from data.schema import Message, Prompt

#: what TRL calls the reward model's function
SCORE = "reward_model"
#: TRL's names -> ours, where both mean the same; the KL is a mean over tokens here (GRPO: k3, RLOO: k1)
NAMES = {
    "loss": "loss",
    "grad_norm": "policy/grad_norm",
    "learning_rate": "lr",
    "reward": "objective/rewards",
    f"rewards/{SCORE}/mean": "objective/scores",
    "frac_reward_zero_std": "objective/equal_groups",
    "kl": "objective/kl_per_token",
    "entropy": "objective/entropy_per_token",
    "completions/mean_length": "response/length",
    "completions/clipped_ratio": "response/incomplete",
    "clip_ratio/region_mean": "policy/clipfrac_avg",
    "step_time": "rate/optimizer_step_s",
}
#: prompts that are rendered both ways before the first step
CHECKED = 8


def run(settings: GroupSettings) -> Path:
    """Train a policy by the settings' method, and return the folder of its adapter (``<output>/policy``).

    A step is ``rollouts`` responses to ``rollouts / num_generations`` prompts, and a line of
    ``metrics.jsonl``.

    Raises:
        DataError: unreadable prompts, or prompts without the facts that the reward model reads.
        RewardError: no reward model at ``reward_model``. RewardPartError: a user's function is not there.
        ModelError: no multimodal model, or one whose processor renders prompts otherwise than
            ``align.render``. PpoError: a prompt with its response is longer than a model's context.
        TrainingError: a loss or gradient that is not finite. LaunchError: one of several processes.
        CheckpointError: a run to resume that began with other prompts, weights or code.
    """
    stage = "grpo" if isinstance(settings, GrpoSettings) else "rloo"
    one_process(stage)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    output = Path(settings.output) / "policy"
    if not settings.dry_run and RunDir.check(settings.output, settings, stage):
        return output
    rejects = Rejects()
    prompts = read_prompts(settings, rejects)
    find_functions(settings.user_rewards)
    check_model(settings.model)
    check_reward(settings.reward_model)
    check_context(settings, prompts)
    if settings.dry_run:
        return output
    with RunDir.create(settings.output, settings, stage) as run_dir:
        if run_dir.is_done:  # by another process meanwhile
            return output
        check_began(run_dir, belongings(settings, prompts))
        rejects.write(run_dir.path / "rejects.jsonl")
        set_seed(settings.seed)
        lmm = load(settings.model)
        renderer = Renderer(lmm.processor)
        trainer = build(lmm, renderer, settings, prompts, run_dir)
        check_rendering(trainer, renderer, prompts, settings)
        fit(trainer, settings, run_dir, updates_of(settings))
        write_json(run_dir.path / "result.json", {"steps": settings.steps})
        save_policy(trainer.model, output, card(settings, stage), settings.model)
        run_dir.done()
    return output


def read_prompts(settings: GroupSettings, rejects: Rejects | None = None) -> list[Prompt]:
    """The prompts, with the facts that the reward model reads. Raises DataError.

    TRL's trainers put a batch's pictures into its prompts in order: all prompts must have one, or none.
    """
    data = settings.data
    records = load_records(want="prompt", **data.model_dump(), rejects=rejects)
    prompts = [record for record in records if isinstance(record, Prompt)]
    source = data.path if isinstance(data.path, str) else ", ".join(data.path)
    check_facts(prompts, read_info(settings.reward_model).facts, source)
    bare = [prompt.id for prompt in prompts if prompt.image is None]
    if bare and len(bare) < len(prompts):
        rule = f"{len(bare)} of {len(prompts)} prompts have no image, e.g. {bare[0]!r}"
        mend = (
            "TRL's trainers take prompts all with an image or all without; split the file, or use align ppo"
        )
        raise DataError(rule, file=source, key="image", mend=mend)
    return prompts


def updates_of(settings: GroupSettings) -> int:
    """Optimizer steps in a step of the run."""
    return settings.num_iterations * settings.rollouts // settings.minibatch


def rows_of(prompts: Sequence[Prompt], renderer: Renderer, settings: GroupSettings) -> Dataset:
    """The whole run's prompts in PPO's order; a picture is opened with its row, once for its group.

    TRL draws a step's rows anew for each micro-batch: the pictures of the rows last drawn are kept.
    """
    groups = settings.rollouts // settings.num_generations
    order = stream(len(prompts), settings.seed, 0, settings.steps * groups)
    held: dict[PictureKey, PILImage.Image] = {}

    def pictures(asked: Sequence[Prompt]) -> list[PILImage.Image]:
        shown = {picture_key(p.image): p for p in asked if p.image is not None}
        for key in held.keys() - shown.keys():
            del held[key]
        new = {key: p for key, p in shown.items() if key not in held}
        opened = open_pictures(
            [p.image for p in new.values()], settings.data.images, [p.id for p in new.values()]
        )
        whole = renderer.whole([one for one in opened if isinstance(one, PILImage.Image)])
        held.update(zip(new, whole, strict=True))
        return [held[picture_key(p.image)] for p in asked if p.image is not None]

    def drawn(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        asked = [prompts[i] for i in batch["row"]]
        rows: dict[str, list[Any]] = {
            "id": [p.id for p in asked],
            "prompt": [[{"role": "user", "content": renderer.sanitize(p.question)}] for p in asked],
        }
        if prompts[0].image is not None:
            rows["images"] = [[one] for one in pictures(asked)]
        return rows

    return Dataset.from_dict({"row": order}).with_transform(drawn)


class GrpoTrainer(KeepsLearned, GRPOTrainer):
    """TRL's, with our checkpoints."""


class RlooTrainer(KeepsLearned, RLOOTrainer):
    """TRL's, with our checkpoints."""


def build(
    lmm: Lmm, renderer: Renderer, settings: GroupSettings, prompts: Sequence[Prompt], run_dir: RunDir
) -> GrpoTrainer | RlooTrainer:
    """The trainer with its rewards and optimizer; the policy's adapter is on ``lmm.model`` afterwards.

    A reward model of the same base joins it there, another keeps its own.
    """
    ends = end_ids(lmm, renderer)
    unwrap(lmm.model).generation_config.eos_token_id = ends
    shared = same_base(read_info(settings.reward_model).model, settings.model)
    score = make_reward_function(
        settings.reward_model, records=prompts, images=settings.reward_images, own_base=not shared,
        base=settings.model, name=SCORE, seed=settings.seed,
        batch_size=settings.micro_batch or settings.minibatch,
    )  # fmt: skip
    limit = settings.generate.max_new_tokens
    parts = make_symbolic_functions(prompts, settings.symbolic, ends, limit)
    parts += make_user_functions(prompts, settings.user_rewards)
    kind, args = method(settings, run_dir.path / "trainer", lmm.device, len(parts))
    trainer = kind(
        model=lmm.model,
        reward_funcs=[score, *parts],
        args=args,
        train_dataset=rows_of(prompts, renderer, settings),
        processing_class=lmm.processor,
        callbacks=[LogToRun(run_dir, name_of, updates_of(settings))],
        peft_config=lora_config(lmm.model, settings.lora),
    )
    lmm.model = trainer.model
    generate_in_parts(trainer.model, settings.generate.batch_size)
    set_optimizer(trainer, settings.optim, settings.steps, updates_of(settings))
    if shared:
        score.share(trainer.model, lmm.processor, settings.model)
    return trainer


def generate_in_parts(model: Any, size: int) -> None:
    """Have ``model.generate`` take ``size`` rows at a time: TRL samples all responses of a step at once.

    Where pictures and rows do not go one to one (pixels in patches) they stay together.
    """
    whole = model.generate

    def generate(**inputs: Any) -> Tensor:
        rows, n = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}, len(inputs["input_ids"])
        if n <= size or any(len(v) != n for v in rows.values()):
            return whole(**inputs)
        parts = [
            whole(**inputs | {k: v[start : start + size] for k, v in rows.items()})
            for start in range(0, n, size)
        ]
        width, pad = max(part.shape[1] for part in parts), inputs["generation_config"].pad_token_id
        return torch.cat([functional.pad(part, (0, width - part.shape[1]), value=pad) for part in parts])

    model.generate = generate


def method(
    settings: GroupSettings, folder: Path, device: torch.device, parts: int
) -> tuple[type[GrpoTrainer] | type[RlooTrainer], Any]:
    """The trainer's class and its settings, with ``parts`` rewards beside the score."""
    updates = updates_of(settings)
    micro = settings.micro_batch or settings.minibatch
    common = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.minibatch // micro,
        "steps_per_generation": settings.rollouts // micro,
        "max_steps": settings.steps * updates,
        "max_grad_norm": settings.optim.max_grad_norm,
        "logging_steps": updates,
        # TRL counts its generations anew when it resumes, so a checkpoint must end a step
        "save_steps": (settings.save_every or 500) * updates,
        "bf16": settings.bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "num_generations": settings.num_generations,
        "num_iterations": settings.num_iterations,
        "max_completion_length": settings.generate.max_new_tokens,
        "temperature": settings.generate.temperature,
        "top_p": settings.generate.top_p,
        "epsilon": settings.clip,
        "beta": settings.beta,
        "reward_weights": [settings.reward_scale, *[1.0] * parts],
        # our rows are in order already
        "shuffle_dataset": False,
    }
    if isinstance(settings, GrpoSettings):
        own = {k: getattr(settings, k) for k in ("loss_type", "scale_rewards")}
        return GrpoTrainer, arguments(GRPOConfig, settings, folder, device, **common, **own)
    assert isinstance(settings, RlooSettings)
    own = {"normalize_advantages": settings.normalize_advantages}
    return RlooTrainer, arguments(RLOOConfig, settings, folder, device, **common, **own)


def name_of(theirs: str) -> str | None:
    """Our name of a figure that TRL logs, None for one that is not kept."""
    if theirs.startswith("rewards/") and theirs.endswith("/mean"):
        part = theirs.split("/")[1]
        return NAMES.get(theirs, f"reward/{part}")
    return NAMES.get(theirs)


def check_rendering(
    trainer: Any, renderer: Renderer, prompts: Sequence[Prompt], settings: GroupSettings
) -> None:
    """Raise ModelError unless the processor's own rendering of some prompts is ours, tokens and pixels."""
    some = list(prompts[:CHECKED])
    asked = [[Message(role="user", content=p.question)] for p in some]
    pictures = open_pictures([p.image for p in some], settings.data.images, [p.id for p in some])
    ours = renderer.prompt_batch(list(zip(asked, pictures, strict=True)))
    conversations = []
    for prompt, picture in zip(some, pictures, strict=True):
        content: list[dict[str, Any]] = [{"type": "text", "text": renderer.sanitize(prompt.question)}]
        if picture is not None:
            content.insert(0, {"type": "image", "image": renderer.whole([picture])[0]})
        conversations.append([{"role": "user", "content": content}])
    theirs = trainer.processing_class.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt", processor_kwargs={"padding": True, "padding_side": "left"},
    )  # fmt: skip
    for key in ("input_ids", "pixel_values"):
        if key in ours and not torch.equal(ours[key], theirs[key].to(ours[key])):
            what = {"input_ids": "tokens", "pixel_values": "pixels"}[key]
            raise ModelError(
                f"{settings.model.path}: its processor gives a prompt other {what} than align.render, which "
                "SFT and evaluation use; train it with align ppo, or mend its chat template"
            )


def card(settings: GroupSettings, stage: str) -> str:
    """The policy's README.md."""
    lines = [
        f"- Reward model: `{settings.reward_model}`; seed {settings.seed}.",
        f"- {settings.steps} steps of {settings.rollouts} responses, {settings.num_generations} to a prompt, "
        f"{settings.num_iterations} passes; β {settings.beta}.",
    ]
    return card_of(stage.upper(), settings.model, lines)
