"""align.plan: what a PPO run is said to need is what it takes, and what is said to fit fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, DynamicCache

from align.actors import LEARNERS, Actors
from align.config import LoraSettings, ModelSettings, PpoSettings, resolve
from align.decode import Read, decode, forward, read, sampler
from align.diagnose import PpoError
from align.footprint import LiveBytes, peak_of
from align.meta import Judge, build_on_meta, held
from align.models.lmm import add_adapters, load, unwrap, vision_features
from align.models.tiny import build_tiny_llava
from align.passes import Phase, cache_bytes, total
from align.plan import RESERVE, Plan, Planner, single_changes, way_to_fit
from align.reward_model import RewardInfo, RewardModel
from tests.align.test_footprint import real_peak


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    build_tiny_llava(root / "base", hidden_size=64)
    build_tiny_llava(root / "other", "vit", hidden_size=128)
    info = RewardInfo(model=ModelSettings(path=str(root / "base"), device="cpu"))
    RewardModel.start(info, LoraSettings(r=4)).save(root / "reward", "")
    return root


def settings(world: Path, **changes: Any) -> PpoSettings:
    values: dict[str, Any] = {
        "output": "x",
        "model": {"path": str(world / "base"), "device": "cpu"},
        "reward_model": str(world / "reward"),
        "data": {"path": "unread"},
        "lora": {"r": 8},
        "generate": {"max_new_tokens": 40, "batch_size": 8},
        "rollouts": 32,
        "minibatch": 16,
        "micro_batch": 4,
    }
    return PpoSettings(**(values | changes))


def planner(world: Path, **more: Any) -> Planner:
    return Planner(Judge.read(world / "reward"), prompt=20, judged=30, **more)


def phase(plan: Plan, name: str) -> Phase:
    return next(phase for phase in plan.phases if phase.name == name)


def part(parts: Any, name: str) -> int:
    (found,) = [part.bytes for part in parts if part.name == name]
    return found


# --- what is always held ---


def test_roles_are_those_of_the_loaded_models(world: Path) -> None:
    chosen = settings(world)
    plan, actors = planner(world).plan(chosen), Actors.load(chosen)
    named = dict(actors.lmm.model.named_parameters())
    adapters = {name: {n: p for n, p in named.items() if f".{name}." in n} for name in (*LEARNERS, "reward")}
    for name, more in (("policy", 0), ("value", 65 * 4), ("reward", 65 * 4)):
        expected = sum(p.nbytes for p in adapters[name].values()) + more
        (found,) = [p.bytes for p in plan.roles if p.name.startswith(f"{name}: adapter")]
        assert found == expected
    buffers = sum(b.nbytes for b in actors.lmm.model.buffers())
    base = sum(p.nbytes for n, p in named.items() if ".lora_" not in n)
    assert part(plan.roles, "base: float32") == base + buffers


def test_training_keeps_what_adamw_keeps(world: Path) -> None:
    chosen = settings(world, max_kl=1.0)
    plan, actors = planner(world).plan(chosen), Actors.load(chosen)
    learned = [p for name in LEARNERS for _, p in actors.named_parameters(name)]
    for parameter in learned:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(learned)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert part(plan.training, "AdamW's two moments") == sum(t.nbytes for t in moments)
    # they are let go of when the update ends
    gradients = sum(p.grad.nbytes for p in learned if p.grad is not None)
    found = {p.name: [one.bytes for one in p.parts if one.name == "gradients"] for p in plan.phases}
    assert found == {name: [gradients] if name.startswith("update") else [] for name in found}
    good = sum(t.nbytes for t in actors.weights(["policy"]).values())
    assert part(plan.training, "the newest policy within max_kl") == good
    assert plan.held == total(plan.roles) + total(plan.training)


def test_a_reward_model_of_another_base(world: Path) -> None:
    judge = Judge(ModelSettings(path=str(world / "other"), dtype="bfloat16"), LoraSettings(r=2))
    plan = replace(planner(world), judge=judge).plan(settings(world))
    model = load(judge.model.model_copy(update={"device": "cpu"})).model
    whole = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert part(plan.roles, "reward: a base of its own") == whole
    seen = phase(plan, "scoring: reward model").parts
    # 32 rollouts, four cells, the tower's 32 channels, 2 bytes
    assert part(seen, "pictures: features of the reward model's tower") == 32 * 4 * 32 * 2


# --- the phases ---


def test_keys_and_values_are_those_of_a_real_cache(world: Path) -> None:
    chosen = settings(world)
    base = unwrap(load(chosen.model).model)
    plan = planner(world).plan(chosen)
    assert (plan.lengths.image, plan.lengths.asked, plan.lengths.row) == (4, 24, 64)
    state = read(base, torch.zeros(8, 24, 64), torch.ones(8, 24, dtype=torch.long))
    for _ in range(40):
        mask = torch.cat([state.mask, state.mask.new_ones(8, 1)], dim=1)
        state = forward(base, state.cache, torch.zeros(8, 1, 64), mask)
    assert isinstance(state.cache, DynamicCache)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in state.cache.layers)
    assert part(phase(plan, "rollout: write responses").parts, "keys and values") == real
    text = AutoConfig.from_pretrained(world / "base").text_config
    # 2 layers x 8 rows x 64 tokens x 2 key-value heads x 16 channels x 4 bytes, keys and values
    assert cache_bytes(text, 8, 64, 4) == real == 2 * 2 * 8 * 64 * 2 * 16 * 4


def test_reading_and_writing_take_what_a_real_policy_takes(world: Path) -> None:
    chosen = settings(world)
    plan = planner(world).plan(chosen)
    model = add_adapters(load(chosen.model).model, chosen.lora, ["policy"])
    base, asked = unwrap(model), plan.lengths.asked

    @torch.no_grad()
    def reading() -> Read:
        return read(base, torch.zeros(8, asked, 64), torch.ones(8, asked, dtype=torch.long))

    reading()
    found = phase(plan, "rollout: read prompts").parts
    assert part(found, "the pass over 8 rows") == pytest.approx(real_peak(reading), rel=0.08)
    with LiveBytes(held(model)) as live:
        state = reading()
        live.peak = live.now
        decode(base, state, sampler(1.0), [], [], 40)
    written = phase(plan, "rollout: write responses").parts
    said = total([p for p in written if not p.name.startswith("pictures")])
    assert said == pytest.approx(live.peak, rel=0.06)


def test_kept_features_are_those_of_the_rollouts(world: Path) -> None:
    chosen = settings(world)
    base = load(chosen.model).model
    tower = vision_features(base, torch.zeros(2, 3, 32, 32))
    projected = base.model.multi_modal_projector(tower)
    plan = planner(world).plan(chosen)
    kept = phase(plan, "update: policy").parts
    assert part(kept, "pictures: the tower's features") == 16 * tower.nbytes
    assert part(kept, "pictures: projected features") == 16 * projected.nbytes


def test_adamw_takes_a_group_of_parameters_again(world: Path) -> None:
    chosen = settings(world)
    build = build_on_meta(chosen)
    for parameter in build.learned():
        parameter.grad = torch.empty_like(parameter)
    optimizer = torch.optim.AdamW(build.groups, foreach=True)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values()]
    present = [*build.learned(), *moments, *(p.grad for p in build.learned() if p.grad is not None)]
    parts = phase(planner(world).plan(chosen), "update: optimizer step").parts
    assert part(parts, "AdamW's temporaries") == pytest.approx(peak_of(optimizer.step, present), rel=0.01)


def test_each_setting_moves_its_own_phase(world: Path) -> None:
    one = planner(world)
    plan = one.plan(settings(world))

    def moved(**changes: Any) -> set[str]:
        other = one.plan(settings(world, **changes))
        pairs = zip(plan.phases, other.phases, strict=True)
        assert all(b.bytes <= a.bytes for a, b in pairs)
        return {a.name for a, b in zip(plan.phases, other.phases) if b.bytes < a.bytes}

    scoring = {"scoring: policy and reference", "scoring: values", "scoring: reward model"}
    update = {"update: policy", "update: value"}
    writing = {"rollout: read prompts", "rollout: write responses"}
    assert moved(micro_batch=2) == scoring | update
    assert moved(gradient_checkpointing=True) == update
    assert moved(generate={"max_new_tokens": 40, "batch_size": 4}) == writing
    # keys and values are made for 64 tokens at once, which hold either
    assert moved(generate={"max_new_tokens": 20, "batch_size": 8}) == scoring | update | {
        "update: optimizer step"
    }


def test_more_processes_share_the_rollouts_and_if_asked_the_base(world: Path) -> None:
    one = planner(world)
    two_gpus = replace(one, processes=2)
    plan, two = one.plan(settings(world)), two_gpus.plan(settings(world))
    assert two.held == plan.held
    name = "pictures: the tower's features"
    assert part(plan.phases[0].parts, name) == 2 * part(two.phases[0].parts, name)
    shared = two_gpus.plan(settings(world, shard_base=True))
    model = load(settings(world).model).model
    layers = [p for layer in model.get_decoder().layers for p in layer.parameters()]
    # every matrix and norm of the layers has an even number of rows
    expected = part(plan.roles, "base: float32") - sum(p.nbytes for p in layers) // 2
    assert part(shared.roles, "base: float32, split by 2") == expected
    whole = part(shared.roles, "two layers of it, gathered")
    assert whole == sum(p.nbytes for p in layers)  # the model has two
    assert "each process holds the whole base in the computer's own memory" in shared.notes[0]
    # a quantized reward model keeps its base whole
    other = ModelSettings(path=str(world / "other"), dtype="bfloat16")
    for bits, split in ((None, True), (4, False)):
        judge = Judge(other.model_copy(update={"bits": bits}), LoraSettings(r=2))
        roles = Planner(judge, processes=2, prompt=20, judged=30).plan(settings(world, shard_base=True)).roles
        assert any(p.name == "reward: a base of its own, split by 2" for p in roles) == split


# --- what would fit ---


def test_what_is_said_to_fit_fits_and_no_milder_change_does(world: Path) -> None:
    one, chosen = planner(world), settings(world)
    before = one.plan(chosen)
    assert before.peak.name.startswith("update") and before.fits(before.bytes + RESERVE)
    smaller = one.plan(settings(world, micro_batch=2)).bytes
    memory = smaller + RESERVE
    assert not before.fits(memory)
    changes = {c.arguments[0]: c.plan for c in single_changes(one, chosen, memory)}
    assert changes["micro_batch=2"].bytes == smaller and changes["micro_batch=2"].fits(memory)
    # other phases than the update's do not make the peak
    assert {"gradient_checkpointing=true", "micro_batch=2", "model.bits=4"} >= changes.keys()
    way = way_to_fit(one, chosen, memory)
    assert way is not None and way.arguments == ("gradient_checkpointing=true",) and way.plan.fits(memory)


def test_several_changes_together(world: Path) -> None:
    one = planner(world)
    written = {"max_new_tokens": 40, "batch_size": 32}
    chosen = settings(world, generate=written)
    small = {"gradient_checkpointing": True, "generate": written | {"batch_size": 2}}
    memory = one.plan(settings(world, **small)).bytes + RESERVE
    assert not any(change.plan.fits(memory) for change in single_changes(one, chosen, memory))
    way = way_to_fit(one, chosen, memory)
    assert way is not None and way.plan.fits(memory)
    assert {a.split("=")[0] for a in way.arguments} >= {"gradient_checkpointing", "generate.batch_size"}
    assert not any(a.startswith("model.bits") for a in way.arguments)
    assert way_to_fit(one, chosen, RESERVE) is None


def test_a_split_base_is_not_quantized_too(world: Path, tmp_path: Path) -> None:
    """Of more layers than are gathered at a time."""
    config = AutoConfig.from_pretrained(world / "base")
    config.text_config.num_hidden_layers = 6
    config.text_config.layer_types = None
    config.save_pretrained(tmp_path)
    smallest = {"micro_batch": 1, "generate": {"max_new_tokens": 40, "batch_size": 1}}
    chosen = settings(world, model={"path": str(tmp_path)}, lora={"r": 1}, **smallest)
    two = Planner(Judge(chosen.model, chosen.lora), processes=2, prompt=20, judged=30)
    least = chosen.model_copy(update={"gradient_checkpointing": True, "shard_base": True})
    way = way_to_fit(two, chosen, two.plan(least).bytes + RESERVE)
    assert way is not None and "shard_base=true" in way.arguments
    # the settings are those of a run that starts
    base = ["output=x", f"model.path={tmp_path}", "reward_model=x", "data.path=x"]
    assert resolve(PpoSettings, None, [*base, *way.arguments]).model.bits is None


def test_rows_longer_than_the_context(world: Path) -> None:
    too_long = settings(world, generate={"max_new_tokens": 500})
    words = r"context is 512 tokens, and a prompt takes 24 .*up to 500 .*max_new_tokens to at most 488"
    with pytest.raises(PpoError, match=words):
        planner(world).plan(too_long)


def test_a_response_that_the_template_repeats(world: Path, tmp_path: Path) -> None:
    """It is in the plan's pass, and must fit the context, on a shared base too."""
    info = RewardInfo(
        model=ModelSettings(path=str(world / "base"), device="cpu"), template="{response}, {response}?"
    )
    RewardModel.start(info, LoraSettings(r=4)).save(tmp_path / "reward", "")
    judge = Judge.read(tmp_path / "reward")
    assert (judge.times_read, Judge.read(world / "reward").times_read) == (3, 1)
    once = replace(planner(world), judge=Judge.read(world / "reward"))
    plan = replace(once, judge=judge).plan(settings(world))
    same = replace(once, judged=30 + 2 * 40).plan(settings(world))
    assert plan.lengths.judged == 110
    for name in ("scoring: reward model", "scoring: values"):
        assert phase(plan, name).bytes == phase(same, name).bytes
    assert phase(plan, "scoring: reward model").bytes > phase(once.plan(settings(world)), name).bytes
    # 20 and 4 of the prompt, 30 of the question: 512 - 54 = 458 for three times the response
    fits, beyond = ({"max_new_tokens": n, "batch_size": 8} for n in (152, 153))
    replace(once, judge=judge).plan(settings(world, generate=fits))
    words = r"what the reward model reads behind it takes 54 .*which is read 3 times; .* at most 152,"
    with pytest.raises(PpoError, match=words):
        replace(once, judge=judge).plan(settings(world, generate=beyond))
    once.plan(settings(world, generate=beyond))


def test_notes(world: Path) -> None:
    one = planner(world)
    bits = {"path": str(world / "base"), "device": "cpu", "bits": 8, "adapter": "owner/sft"}
    said = one.plan(settings(world, model=bits, gradient_checkpointing=True)).notes
    assert "the whole base in float32, 0.0 GiB" in said[0] and "8-bit layers keep their inputs" in said[1]
    assert one.plan(settings(world)).notes == ()
