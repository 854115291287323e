"""Whether prompts and responses fit the positions that a model was trained on, before weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image as PILImage

from align.config import BestOfSettings, GroupSettings, PpoSettings, is_hub_id
from align.diagnose import PpoError
from align.meta import read_config
from align.models.lmm import load_processor
from align.render import Renderer
from align.reward_model import RewardInfo, read_info
from align.template import times_read
from data.schema import Facts, Message, Prompt

#: kinds of rope scaling whose factor counts from ``max_position_embeddings``; other kinds have it in there
STRETCHED = ("linear", "dynamic")
#: stands for a picture where only its place counts
_PICTURE = PILImage.new("RGB", (1, 1))


def window(config: Any) -> int | None:
    """Tokens of a model's context, or None where its configuration gives no limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if limit and rope.get("rope_type", rope.get("type")) in STRETCHED:
        limit = int(limit * rope.get("factor", 1))
    return limit


def check_window(
    path: str, config: Any, asked: int, response: int, name: str = "a prompt", times: int = 1
) -> None:
    """Raise PpoError unless ``asked`` tokens, its picture's among them, and ``times`` a ``response`` fit."""
    limit = window(config)
    if limit is None or asked + times * response <= limit:
        return
    left = (limit - asked) // times
    mend = f"set generate.max_new_tokens to at most {left}" if left > 0 else "leave such prompts out"
    read = f", which is read {times} times" if times > 1 else ""
    raise PpoError(
        f"{path}: its context is {limit} tokens, and {name} takes {asked} (with its picture) and a response "
        f"up to {response} (generate.max_new_tokens){read}; {mend}, or take a model of a longer context"
    )


def check_context(settings: PpoSettings | GroupSettings | BestOfSettings, prompts: Sequence[Prompt]) -> None:
    """The longest prompt with a response of ``generate.max_new_tokens`` must fit policy and reward model.

    Beyond its positions a model answers with nonsense, and the run learns from it. Reads configuration and
    tokenizer, no weights; pictures of other models than LLaVA count as one token. A dry run does not look up
    Hub ids.

    Raises:
        PpoError: names the prompt, its tokens and the mend. ModelError: a processor that cannot be had.
    """
    info = read_info(settings.reward_model)
    for model, reads in ((settings.model, None), (info.model, info)):
        if not prompts or (settings.dry_run and is_hub_id(model.path)):
            continue
        config = read_config(model)
        renderer = Renderer(load_processor(model))
        lengths = _asked(renderer, prompts) if reads is None else _judged(renderer, prompts, reads)
        longest = max(range(len(prompts)), key=lambda i: lengths[i])
        times = 1 if reads is None else times_read(reads.template)
        name = f"prompt {prompts[longest].id!r}"
        if reads is not None:
            name += " with what the reward model reads behind it"
        check_window(model.path, config, lengths[longest], settings.generate.max_new_tokens, name, times)


def _asked(renderer: Renderer, prompts: Sequence[Prompt]) -> list[int]:
    """Tokens of each prompt with its picture and the generation prompt."""
    asked = [([Message(role="user", content=p.question)], p.image and _PICTURE) for p in prompts]
    more = renderer.image_length() - 1
    lengths = renderer.prompt_lengths(asked)
    return [n + more * (picture is not None) for n, (_, picture) in zip(lengths, asked)]


def _judged(renderer: Renderer, prompts: Sequence[Prompt], info: RewardInfo) -> list[int]:
    """The same with all that the reward model reads, but for the response."""
    rows = [
        (
            [Message(role="user", content=p.question)],
            "",
            info.facts_of(p.id, _longest(p.facts, info), 0),
            p.image is not None,
        )
        for p in prompts
    ]
    return renderer.reward_lengths(rows, info.template)


def _longest(facts: Facts, info: RewardInfo) -> Facts:
    """Of each kind the longest entries that may be shown together."""
    kept: dict[str, list[str]] = {}
    for kind, most in info.max_facts.items():
        if kind != "answer":
            kept[kind] = sorted(getattr(facts, kind), key=len, reverse=True)[:most]
    return facts.model_copy(update=kept)
