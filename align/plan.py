"""What ``align ppo`` needs of a GPU's memory, by role and phase, before anything loads; and what would fit.

Weights, adapters, gradients and optimizer state are exact: the models are built on the meta device
(``align.meta``). The passes run there too (``align.passes``), on rows as long as they can become: a phase's
figure is the peak of its tensors, an upper bound but for kernels' workspaces. Memory is in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from align.actors import LEARNERS, POLICY
from align.config import ModelSettings, PpoSettings
from align.context import check_window
from align.meta import Build, Judge, base_on_meta, held, ppo_on_meta, size
from align.models.lmm import adapter_of, is_llava, unwrap
from align.passes import Lengths, Part, Passes, Phase, grid, total
from align.reward_model import ADAPTER

#: left free: the CUDA context, workspaces of kernels, gaps in the allocator
RESERVE = 2**30


@dataclass(frozen=True)
class Plan:
    """The memory of one process, on a GPU of its own."""

    #: weights by role
    roles: tuple[Part, ...]
    #: what training adds to them and keeps from step to step
    training: tuple[Part, ...]
    phases: tuple[Phase, ...]
    lengths: Lengths
    processes: int
    notes: tuple[str, ...]

    @property
    def held(self) -> int:
        """Bytes that stay in every phase, optimizer state included."""
        return total(self.roles) + total(self.training)

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def bytes(self) -> int:
        """Most bytes at once."""
        return self.held + self.peak.bytes

    def fits(self, memory: int) -> bool:
        """Whether a GPU of ``memory`` bytes takes it, with ``RESERVE`` left free."""
        return self.bytes + RESERVE <= memory


@dataclass(frozen=True)
class Change:
    """Settings as ``key=value`` arguments, and the plan that they give."""

    arguments: tuple[str, ...]
    plan: Plan


@dataclass
class Planner:
    """Plans of one run under changing settings; what does not change is measured once."""

    judge: Judge
    processes: int = 1
    #: tokens of a prompt's text, and of the question and the facts that the reward model reads behind a
    #: response
    prompt: int = 128
    judged: int = 192
    #: tokens of a picture; None takes LLaVA's cells, or what another configuration says
    image: int | None = None
    _builds: dict[tuple[Any, ...], Build] = field(default_factory=dict)
    _peaks: dict[Any, int] = field(default_factory=dict)

    def plan(self, settings: PpoSettings) -> Plan:
        """The memory of one process.

        Raises:
            ModelError: a base whose configuration cannot be had. PpoError: rows longer than its context.
        """
        build = self._build(settings)
        lengths = self._lengths(settings, build)
        check_window(settings.model.path, unwrap(build.model).config, lengths.asked, lengths.response)
        check_window(
            self.judge.model.path,
            unwrap(build.reward or build.model).config,
            lengths.asked + self.judged,
            lengths.response,
            "a prompt with what the reward model reads behind it",
            self.judge.times_read,
        )
        return Plan(
            roles=tuple(self._roles(settings, build)),
            training=tuple(_training(build, settings)),
            phases=tuple(Passes(build, lengths, settings, self.processes, self._peaks).phases()),
            lengths=lengths,
            processes=self.processes,
            notes=tuple(self._notes(settings, build)),
        )

    def _build(self, settings: PpoSettings) -> Build:
        model = settings.model
        key = model.path, model.dtype, model.bits, model.attention, repr(settings.lora), repr(self.judge)
        if key not in self._builds:
            self._builds[key] = ppo_on_meta(settings, self.judge)
        return self._builds[key]

    def _lengths(self, settings: PpoSettings, build: Build) -> Lengths:
        image = self.image or _image_tokens(build.model) or 576
        response = settings.generate.max_new_tokens
        again = (self.judge.times_read - 1) * response
        return Lengths(self.prompt, image, response, self.judged + again)

    def _roles(self, settings: PpoSettings, build: Build) -> Iterator[Part]:
        """Weights by role."""
        shards = self.processes if settings.shard_base else 1
        yield from _bases(f"base: {_precision(settings.model)}", build.model, shards)
        for name in LEARNERS if build.reward is not None else (*LEARNERS, ADAPTER):
            yield _role(build.model, name, build)
        if build.reward is not None:
            # quantized weights are not split
            shards = 1 if self.judge.model.bits else shards
            yield from _bases("reward: a base of its own", build.reward, shards)
            yield _role(build.reward, ADAPTER, build)

    def _notes(self, settings: PpoSettings, build: Build) -> Iterator[str]:
        model = settings.model
        if model.bits and model.adapters:
            full = size(held(base_on_meta(model.model_copy(update={"bits": None}))))
            yield (
                f"while loading, the computer's own memory holds the whole base in {model.dtype}, "
                f"{full / 2**30:.1f} GiB, to merge its adapter ahead of the rounding"
            )
        if settings.shard_base:
            whole = size(held(base_on_meta(model)))
            yield (
                "while loading, each process holds the whole base in the computer's own memory, "
                f"{whole / 2**30:.1f} GiB, ahead of splitting it"
            )
        if model.bits == 8 and settings.gradient_checkpointing:
            yield "8-bit layers keep their inputs in spite of gradient checkpointing; 4-bit layers do not"
        if not is_llava(build.model):
            yield "pictures pass through this model's own code, whose memory is not in these figures"
            if not (self.image or _image_tokens(build.model)):
                yield "the configuration does not say how many tokens a picture takes; 576 are assumed"


def _image_tokens(model: Any) -> int | None:
    if is_llava(model):
        return grid(model)[0]
    config = unwrap(model).config
    return getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None)


# --- what is always held ---


def _bases(name: str, model: Any, shards: int) -> Iterator[Part]:
    """A base without its adapters; of ``shards`` processes each keeps its rows of every layer's weights.

    See ``align.models.memory.shard``. FSDP2 gathers the next layer while one is in use.
    """
    adapters = [p for key, p in model.named_parameters() if adapter_of(key) is not None]
    whole = size(held(model)) - size(adapters)
    if shards == 1:
        yield Part(name, whole)
        return
    layers = [
        [p for key, p in layer.named_parameters() if adapter_of(key) is None]
        for layer in unwrap(model).get_decoder().layers
    ]
    kept = sum(-(-len(p) // shards) * p[0].numel() * p.element_size() for layer in layers for p in layer)
    yield Part(f"{name}, split by {shards}", whole - sum(map(size, layers)) + kept)
    yield Part("two layers of it, gathered", 2 * max(map(size, layers)), exact=False)


def _role(model: Any, name: str, build: Build) -> Part:
    head = [*build.heads[name].parameters()] if name in build.heads else []
    return Part(f"{name}: {'adapter and head' if head else 'adapter'}", size([*_adapter(model, name), *head]))


def _precision(model: ModelSettings) -> str:
    if model.bits is None:
        return model.dtype
    kind = "NF4" if model.bits == 4 else "8 bits"
    return f"{kind}, tower, projector, embeddings and head {model.dtype}"


def _adapter(model: Any, name: str) -> list[Tensor]:
    return [p for key, p in model.named_parameters() if adapter_of(key) == name]


def _training(build: Build, settings: PpoSettings) -> Iterator[Part]:
    """AdamW keeps two moments, both like the parameters. Gradients are let go of when the update ends."""
    yield Part("AdamW's two moments", 2 * size(build.learned()))
    if settings.max_kl:
        yield Part("the newest policy within max_kl", size(_adapter(build.model, POLICY)))


# --- what would fit ---


def single_changes(planner: Planner, settings: PpoSettings, memory: int) -> list[Change]:
    """Each one change that lowers the peak: the mildest that fits ``memory`` bytes, else the farthest."""
    before = planner.plan(settings).bytes
    found = []
    for options in _options(settings, planner.processes):
        if options:
            argument, changed = _mildest(planner, options, memory)
            found.append(Change((argument,), planner.plan(changed)))
    return [change for change in found if change.plan.bytes < before]


def _mildest(
    planner: Planner, options: list[tuple[str, PpoSettings]], memory: int
) -> tuple[str, PpoSettings]:
    """The first option that fits, or the last of all; the further down the list, the less memory."""
    low, high = 0, len(options) - 1
    if not planner.plan(options[high][1]).fits(memory):
        return options[high]
    while low < high:
        middle = (low + high) // 2
        if planner.plan(options[middle][1]).fits(memory):
            high = middle
        else:
            low = middle + 1
    return options[high]


def _options(settings: PpoSettings, processes: int, without: str = "") -> list[list[tuple[str, PpoSettings]]]:
    """For each setting that saves memory, its values from mild to far; none for the setting ``without``."""
    found = [
        list(_switched(settings, "gradient_checkpointing")),
        [(f"micro_batch={n}", _micro(settings, n)) for n in _halves(_rows(settings, processes))],
        [(f"generate.batch_size={n}", _written(settings, n)) for n in _halves(settings.generate.batch_size)],
        list(_quantized(settings)),
        list(_switched(settings, "shard_base")) if processes > 1 and not settings.model.bits else [],
    ]
    return [[option for option in options if not option[0].startswith(f"{without}=")] for options in found]


def way_to_fit(planner: Planner, settings: PpoSettings, memory: int) -> Change | None:
    """Changes that together fit ``memory`` bytes, found step by step at the peak; None where all do not.

    First without fewer bits, which change what is computed; then without splitting, which they rule out.
    """
    ways = (_way(planner, settings, memory, without) for without in ("model.bits", "shard_base"))
    return next((way for way in ways if way is not None), None)


def _way(planner: Planner, settings: PpoSettings, memory: int, without: str) -> Change | None:
    farthest = settings
    for k in range(len(_options(settings, planner.processes))):
        options = _options(farthest, planner.processes, without)[k]
        farthest = options[-1][1] if options else farthest
    if not planner.plan(farthest).fits(memory):
        return None
    given: dict[str, str] = {}
    while True:
        plan = planner.plan(settings)
        if plan.fits(memory):
            return Change(tuple(given.values()), plan)
        step = _next_step(plan.peak.name, _options(settings, planner.processes, without))
        if step is None:
            return None
        argument, settings = step
        given[argument.split("=")[0]] = argument


def _next_step(peak: str, options: list[list[tuple[str, PpoSettings]]]) -> tuple[str, PpoSettings] | None:
    checkpointing, rows, written, bits, shard = options
    by_phase = {
        "rollout: read prompts": [written],
        "rollout: write responses": [written],
        "update: policy": [checkpointing, rows],
        "update: value": [checkpointing, rows],
    }
    first = by_phase.get(peak, [rows] if peak.startswith("scoring") else [])
    return next((found[0] for found in (*first, shard, bits) if found), None)


def _halves(n: int) -> list[int]:
    found = []
    while n > 1:
        n //= 2
        found.append(n)
    return found


def _rows(settings: PpoSettings, processes: int) -> int:
    return settings.micro_batch or -(-settings.minibatch // processes)


def _switched(
    settings: PpoSettings, key: Literal["gradient_checkpointing", "shard_base"]
) -> Iterator[tuple[str, PpoSettings]]:
    """The setting turned on, where it is off."""
    if not getattr(settings, key):
        yield f"{key}=true", settings.model_copy(update={key: True})


def _micro(settings: PpoSettings, n: int) -> PpoSettings:
    return settings.model_copy(update={"micro_batch": n})


def _written(settings: PpoSettings, n: int) -> PpoSettings:
    generate = settings.generate.model_copy(update={"batch_size": n})
    return settings.model_copy(update={"generate": generate})


def _quantized(settings: PpoSettings) -> Iterator[tuple[str, PpoSettings]]:
    for bits in (8, 4):
        # weights that are split must be whole numbers of bytes
        if bits < (settings.model.bits or 32) and not settings.shard_base:
            model = settings.model.model_copy(update={"bits": bits})
            yield f"model.bits={bits}", settings.model_copy(update={"model": model})
