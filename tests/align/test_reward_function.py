"""Our reward models as TRL's reward functions: joined by id, frozen, on a shared base, under its trainer."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image as PilImage
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from align import reward_function
from align.config import LoraSettings, ModelSettings, SymbolicSettings, UserReward
from align.models.lmm import add_adapters
from align.models.tiny import build_tiny_llava
from align.reward_function import (
    RewardFunction,
    fact_reward,
    make_reward_function,
    make_symbolic_functions,
    make_user_functions,
)
from align.reward_model import RewardError, RewardInfo, RewardModel, ScoreItem
from align.rewards import RewardPartError, symbolic
from data.jsonl import DataError, write_records
from data.schema import Facts, Image, Message, Prompt

COLOURS = ("red", "green", "blue", "yellow")
SAID = ["A red apple.", "A dog.", "No, a lamp is there.", "The answer is B."]


def picture(i: int) -> PilImage.Image:
    return PilImage.new("RGB", (32, 32), COLOURS[i % 4])


def prompt(i: int) -> Prompt:
    return Prompt(
        id=f"q{i}",
        image=Image(id=COLOURS[i % 4], path=f"{COLOURS[i % 4]}.png"),
        question="What is in the image?" + " Describe it." * (i % 3),
        facts=Facts(captions=["A cat.", f"{i} tables.", "A green cup."]),
        answer_type="no" if i == 2 else "B" if i == 3 else "general",
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a reward model with weights that do something and reads captions, pictures and four prompts."""
    root = tmp_path_factory.mktemp("world")
    build_tiny_llava(root / "base")
    info = RewardInfo(model=ModelSettings(path=str(root / "base"), device="cpu"), facts=["captions"])
    torch.manual_seed(1)
    reward = RewardModel.start(info, LoraSettings(r=4))
    for parameter in reward.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    reward.save(root / "runs/reward_fact", "a card")
    for i in range(4):
        picture(i).save(root / f"{COLOURS[i]}.png")
    write_records(root / "prompts.jsonl", [prompt(i) for i in range(4)])
    return root


@pytest.fixture(scope="module")
def expected(world: Path) -> list[float]:
    """The scores of ``SAID`` by the reward model alone."""
    items = [
        ScoreItem(p.id, [Message(role="user", content=p.question)], said, p.facts, picture(i))
        for i, (p, said) in enumerate(zip(map(prompt, range(4)), SAID))
    ]
    return RewardModel.load(world / "runs/reward_fact").score(items, seed="0/0").tolist()


@pytest.fixture(scope="module")
def own(world: Path) -> RewardFunction:
    return make_reward_function(world / "runs/reward_fact")


def columns(order: list[int]) -> dict[str, Any]:
    """What TRL passes of a dataset with our columns."""
    rows = [prompt(i) for i in order]
    return {
        "prompts": [[{"role": "user", "content": [{"type": "image", "image": picture(i)},
                     {"type": "text", "text": p.question}]}] for i, p in zip(order, rows)],
        "completions": [[{"role": "assistant", "content": f" {SAID[i]}"}] for i in order],
        "completion_ids": [[1]] * len(order),
        "images": [[picture(i)] for i in order],
        "id": [p.id for p in rows],
        "facts": [p.facts.model_dump() for p in rows],
        "trainer_state": SimpleNamespace(global_step=0),
    }  # fmt: skip


def policy(world: Path) -> tuple[Any, Any]:
    """A fresh base with a LoRA adapter that is not the identity, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(world / "base")
    torch.manual_seed(3)
    wrapped = add_adapters(model, LoraSettings(r=4), ["default"])
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
    return wrapped, AutoProcessor.from_pretrained(world / "base")


# --- the scores ---


def test_scores_are_the_reward_models_by_column_or_by_record(world: Path, own: RewardFunction, expected: Any):
    assert len(set(expected)) == 4
    assert own(**columns([0, 1, 2, 3])) == pytest.approx(expected, abs=1e-5)
    order = [2, 0, 3, 1, 2]
    mixed = [expected[i] for i in order]
    assert own(**columns(order)) == pytest.approx(mixed, abs=1e-5)
    joined = make_reward_function(
        world / "runs/reward_fact", records=world / "prompts.jsonl", images=str(world)
    )
    bare = {k: v for k, v in columns(order).items() if k not in ("facts", "images", "prompts")}
    assert joined(prompts=[""] * 5, **bare) == pytest.approx(mixed, abs=1e-5)
    told = columns([1]) | {"facts": [prompt(1).facts.model_dump_json()], "completions": [SAID[1]]}
    assert own(**told) == pytest.approx([expected[1]], abs=1e-5)


def test_completions_of_a_prompt_without_an_id_see_the_same_facts(own: RewardFunction):
    rows = {k: v for k, v in columns([0, 0, 1]).items() if k != "id"}
    names = [item.id for item in own.items(rows["prompts"], rows["completions"], rows)]
    assert names[0] == names[1] != names[2]


def test_a_picture_may_be_a_part_of_its_prompt(world: Path, own: RewardFunction, expected: Any):
    rows = {k: v for k, v in columns([0, 1, 2, 3]).items() if k != "images"}
    assert own(**rows) == pytest.approx(expected, abs=1e-5)
    blind = rows | {"prompts": [[{"role": "user", "content": prompt(i).question}] for i in range(4)]}
    assert own(**blind) != pytest.approx(expected, abs=1e-3)
    named = make_reward_function(world / "runs/reward_fact", records=world / "prompts.jsonl")
    assert named(**rows) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(
        RewardError, match=r"the record 'q0' has a picture and the dataset's row has none; .* images=ROOT"
    ):
        named(**blind)
    placed = [[{"role": "user", "content": [{"type": "image"}]}]]
    with pytest.raises(RewardError, match="one picture, decoded"):
        own(**{k: v[:1] if isinstance(v, list) else v for k, v in rows.items()} | {"prompts": placed})


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"facts": [{"captions": []}]}, DataError, r"reads facts \(captions\); 1 records have none: q1"),
        ({"facts": ["captions"]}, RewardError, "a row's facts are none"),
        ({"images": [["red.png"]]}, RewardError, r"one picture, decoded \(PIL\), or none"),
    ],
)
def test_rows_that_cannot_be_scored_are_told(own: RewardFunction, change: Any, error: Any, text: str):
    with pytest.raises(error, match=text):
        own(**columns([1]) | change)


def test_facts_need_a_column_or_records(own: RewardFunction):
    with pytest.raises(RewardError, match=r"reads facts \(captions\) and the dataset has no column 'facts'"):
        own(**{k: v for k, v in columns([1]).items() if k not in ("facts", "id")})


def test_records_must_be_found_by_id(world: Path):
    folder = world / "runs/reward_fact"
    joined = make_reward_function(folder, records=[prompt(0), prompt(1)])
    with pytest.raises(RewardError, match="no record has the id 'q2'"):
        joined(**columns([0, 2]))
    with pytest.raises(RewardError, match=r"no column 'id' to look the records up by .* add the"):
        joined(**{k: v for k, v in columns([0]).items() if k != "id"})
    with pytest.raises(DataError, match="two prompts have the id 'q1'"):
        make_reward_function(folder, records=[prompt(1), prompt(1)])
    with pytest.raises(DataError, match=r"reads facts \(captions\); 1 records have none: bare"):
        make_reward_function(folder, records=[Prompt(id="bare", question="What?")])


def test_an_image_root_needs_records(world: Path):
    with pytest.raises(RewardError, match=r"image root of records, and there are none; give records"):
        make_reward_function(world / "runs/reward_fact", images=str(world))


# --- sharing a base ---


def test_a_shared_base_scores_the_same_and_leaves_the_policy_alone(world: Path, expected: Any):
    model, processor = policy(world)
    model.train()
    shared = make_reward_function(world / "runs/reward_fact", own_base=False)
    with pytest.raises(RewardError, match=r"no weights yet; call share\(trainer.model, processor\)"):
        shared(**columns([0]))
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    base = sum(p.numel() for p in model.get_base_model().parameters() if p.ndim > 0)
    shared.share(model, processor)
    assert shared(**columns([0, 1, 2, 3])) == pytest.approx(expected, abs=1e-5)
    assert model.active_adapter == "default" and model.training and model.get_base_model().training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == learning
    assert torch.equal(model(input_ids=ids).logits, before)
    more = sum(p.numel() for n, p in model.named_parameters() if ".reward." in n)
    assert sum(p.numel() for p in model.get_base_model().parameters()) == base + more
    assert not any(p.requires_grad for p in shared.model.parameters())


def test_only_the_base_it_was_trained_on_can_be_shared(world: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RewardModel, "load", lambda *_, **__: pytest.fail("it loaded weights"))
    shared = make_reward_function(world / "runs/reward_fact", own_base=False)
    model, processor = policy(world)
    with pytest.raises(RewardError, match=r"was trained on .*base and the policy's base is elsewhere"):
        shared.share(model, processor, ModelSettings(path="elsewhere"))
    with pytest.raises(
        RewardError, match="trained in full, so its base will move; give the trainer a peft_config"
    ):
        shared.share(model.get_base_model(), processor)


def test_two_reward_models_share_one_base(world: Path, expected: Any):
    """PEFT writes an adapter of a name that is taken over the one that has it."""
    info = RewardInfo(model=ModelSettings(path=str(world / "base"), device="cpu"), facts=["captions"])
    torch.manual_seed(7)
    other = RewardModel.start(info, LoraSettings(r=4))
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    other.save(world / "runs/other", "a card")
    own = make_reward_function(world / "runs/other")(**columns([0, 1, 2, 3]))
    assert own != pytest.approx(expected, abs=1e-3)
    model, processor = policy(world)
    both = [make_reward_function(world / "runs" / name, own_base=False) for name in ("reward_fact", "other")]
    for function in both:
        function.share(model, processor)
    assert both[0](**columns([0, 1, 2, 3])) == pytest.approx(expected, abs=1e-5)
    assert both[1](**columns([0, 1, 2, 3])) == pytest.approx(own, abs=1e-5)


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("ZeRO-3", r"split over processes \(DeepSpeed ZeRO-3\), .*; set zero_stage to 2 or less"),
        ("FSDP", r"split over processes \(FSDP\), .*; let it load its own base \(own_base=True, without"),
        ("FSDP2", r"split over processes \(FSDP\), .*; let it load its own base \(own_base=True, without"),
    ],
)
def test_split_weights_are_refused(world: Path, way: str, text: str):
    """Ahead of training, and where the trainer splits them as it begins."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model, processor = policy(world)
    shared = make_reward_function(world / "runs/reward_fact", own_base=False)
    shared.share(model, processor)
    layers = model.get_base_model().get_decoder().layers
    if way == "ZeRO-3":
        layers[0].mlp.up_proj.base_layer.weight.ds_id = 3
    elif way == "FSDP":
        layers[0] = FullyShardedDataParallel(layers[0], device_id=torch.device("cpu"), use_orig_params=True)
    else:
        fully_shard(layers[0], mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(RewardError, match=rf"runs/reward_fact.*: .*{text}"):
        shared(**columns([0]))
    other = make_reward_function(world / "runs/reward_fact", own_base=False)
    with pytest.raises(RewardError, match=text):
        other.share(model, processor)


# --- TRL's own trainer ---


@pytest.mark.parametrize("way", ["the module's example", "by name"])
def test_trl_trains_with_it(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": [{"role": "user", "content": prompt(i).question}], "images": [picture(i)],
             "id": f"q{i}"} for i in range(4)]  # fmt: skip
    arguments = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_completion_length=6,
        max_steps=2, learning_rate=1e-2, beta=0.1, logging_steps=1, bf16=False, gradient_checkpointing=False,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    space: dict[str, Any] = {
        "model": AutoModelForImageTextToText.from_pretrained(world / "base"),
        "processor": AutoProcessor.from_pretrained(world / "base"),
        "arguments": arguments,
        "dataset": Dataset.from_list(rows),
        "lora": LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)"),
        "GRPOTrainer": GRPOTrainer,
    }
    monkeypatch.chdir(world)
    if way == "by name":
        monkeypatch.setenv("ALIGN_REWARD_MODEL", "runs/reward_fact")
        monkeypatch.setenv("ALIGN_REWARD_RECORDS", "prompts.jsonl")
        reward = fact_reward
        trainer = GRPOTrainer(
            space["model"], reward_funcs=fact_reward, args=arguments, train_dataset=space["dataset"],
            processing_class=space["processor"], peft_config=space["lora"],
        )  # fmt: skip
        trainer.train()
        held = reward_function._named("runs/reward_fact", "prompts.jsonl", None).model
    else:
        code = (reward_function.__doc__ or "").split("::\n\n")[1].split("\n\nor by its name")[0]
        exec(textwrap.dedent(code), space)
        trainer, reward = space["trainer"], space["reward"]
        held = reward.model
        assert held.lmm.model is trainer.model
    logged = [row for row in trainer.state.log_history if "rewards/fact_reward/mean" in row]
    assert len(logged) == 2 and all(row["rewards/fact_reward/std"] > 0 for row in logged)
    moved = {n: p for n, p in trainer.model.named_parameters() if "lora_B.default" in n}
    assert moved and any(bool((p != 0).any()) for p in moved.values())
    saved = RewardModel.load(world / "runs/reward_fact")
    assert all(torch.equal(a, b) for a, b in zip(held.parameters(), saved.parameters(), strict=True))


def stock(world: Path, output: Path, kind: str) -> tuple[Any, RewardFunction]:
    """TRL's own trainer with a reward model on the policy's base; all of its four steps are of one epoch."""
    import trl
    from datasets import Dataset

    rows = [{"prompt": [{"role": "user", "content": prompt(i).question}], "images": [picture(i)],
             "id": f"q{i}"} for i in range(4)]  # fmt: skip
    torch.manual_seed(0)
    reward = make_reward_function(world / "runs/reward_fact", records=world / "prompts.jsonl", own_base=False)
    trainer = getattr(trl, f"{kind}Trainer")(
        AutoModelForImageTextToText.from_pretrained(world / "base"),
        reward_funcs=[reward],
        args=getattr(trl, f"{kind}Config")(
            output_dir=str(output), per_device_train_batch_size=4, num_generations=2,
            max_completion_length=6, max_steps=4, learning_rate=1e-2, beta=0.1, logging_steps=1, bf16=False,
            gradient_checkpointing=False, use_cpu=True, report_to="none", save_steps=2, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows * 2),
        processing_class=AutoProcessor.from_pretrained(world / "base"),
        peft_config=LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)"),
    )  # fmt: skip
    reward.share(trainer.model, trainer.processing_class)
    return trainer, reward


def policy_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if ".default." in n}


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_trls_checkpoints_hold_the_policy_alone_and_are_gone_on_from(world: Path, tmp_path: Path, kind: str):
    """As if killed behind step 2's checkpoint, in a new trainer that shares its base anew."""
    whole, _ = stock(world, tmp_path, kind)
    whole.train()
    saved = tmp_path / "checkpoint-2"
    assert not [path.name for path in saved.iterdir() if path.is_dir()]
    keys = load_file(saved / "adapter_model.safetensors")
    assert keys and not any("reward" in key for key in keys)
    resumed, reward = stock(world, tmp_path / "again", kind)
    torch.manual_seed(999)
    resumed.train(resume_from_checkpoint=str(saved))
    assert resumed.model.active_adapter == "default"
    ours, theirs = policy_of(resumed), policy_of(whole)
    assert any(bool((p != 0).any()) for n, p in theirs.items() if "lora_B" in n)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)
    names = ("loss", "grad_norm", "reward", "rewards/fact_reward/mean", "kl")
    logged = [
        {row["step"]: [row[name] for name in names] for row in t.state.log_history if "loss" in row}
        for t in (whole, resumed)
    ]
    # the log up to the checkpoint is a part of it
    assert logged[0] == logged[1] and sorted(logged[0]) == [1, 2, 3, 4]
    assert reward.model is not None
    frozen = RewardModel.load(world / "runs/reward_fact")
    assert all(torch.equal(a, b) for a, b in zip(reward.model.parameters(), frozen.parameters(), strict=True))


def test_adapters_of_the_policys_own_are_saved_and_any_by_its_name(world: Path, tmp_path: Path):
    model, processor = policy(world)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    for _ in range(2):
        make_reward_function(world / "runs/reward_fact", own_base=False).share(model, processor)
    model.save_pretrained(tmp_path / "all")
    assert (tmp_path / "all/adapter_model.safetensors").exists()
    assert [path.name for path in (tmp_path / "all").iterdir() if path.is_dir()] == ["other"]
    model.save_pretrained(tmp_path / "one", selected_adapters=["reward_2"])
    assert (tmp_path / "one/reward_2/adapter_model.safetensors").exists()
    assert not (tmp_path / "one/adapter_model.safetensors").exists()


def test_by_name_it_says_what_is_not_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ALIGN_REWARD_MODEL", raising=False)
    with pytest.raises(
        RewardError, match="ALIGN_REWARD_MODEL is not set; set it to a finished run directory"
    ):
        fact_reward(**columns([0]))


# --- rewards that need no model ---


def test_symbolic_rewards_are_ppos_each_by_its_name():
    how = SymbolicSettings(length={"general": -3.0}, correct_no=1.5, correct_choice=2.5, incomplete=-4.0)
    functions = make_symbolic_functions([prompt(i) for i in range(4)], how, [2, 9], 10)
    order = [3, 2, 0]
    ids = [[5, 2], [5, 6, 7, 8], [9]]
    rows = columns(order) | {"completion_ids": ids}
    expected = symbolic(
        [prompt(i) for i in order], [SAID[i] for i in order], [2, 4, 1], [True, False, True], how, 10
    )
    assert {f.__name__: f(**rows) for f in functions} == {k: v.tolist() for k, v in expected.items()}
    assert expected["correctness"].tolist() == [2.5, 1.5, 0]
    assert expected["incomplete"].tolist() == [0, -4, 0]


def test_user_rewards_are_ppos_each_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "def count(prompts, responses, word='a'):\n    return [r.count(word) for r in responses]\n"
    (tmp_path / "my_words.py").write_text(
        code + "def none(prompts, responses):\n    return [None] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    how = {
        "dogs": UserReward(function="my_words:count", weight=-2.0, options={"word": "dog"}),
        "none": UserReward(function="my_words:none"),
    }
    dogs, none = make_user_functions([prompt(i) for i in range(4)], how)
    assert (dogs.__name__, dogs(**columns([1, 0]))) == ("dogs", [-2, 0])
    with pytest.raises(RewardPartError, match=r"user_rewards\.none: None for prompt 'q2'"):
        none(**columns([2]))
