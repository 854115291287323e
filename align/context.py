"""Whether prompts and responses fit the positions that a model was trained on, before weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image as PILImage

from align.config import BestOfSettings, GroupSettings, PpoSettings, is_hub_id
from align.diagnose import PpoError
from align.meta import read_config
from align.models.lmm import load_processor
from align.render import ImageInput, Renderer
from align.reward_model import RewardInfo, read_info
from align.template import times_read
from data.schema import Facts, Message, Prompt

#: kinds of rope scaling whose factor counts from ``max_position_embeddings``; other kinds have it in there
STRETCHED = ("linear", "dynamic")
#: prompts that are rendered together
AT_ONCE = 4096
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
        limit = window(config)
        if limit is None:
            continue
        renderer = Renderer(load_processor(model))
        times, name = 1, ""
        if reads is not None:
            times, name = times_read(reads.template), " with what the reward model reads behind it"
        room = limit - times * settings.generate.max_new_tokens
        beyond = _beyond(renderer, prompts, reads, room)
        if beyond is not None:
            at, length = beyond
            name = f"prompt {prompts[at].id!r}{name}"
            check_window(model.path, config, length, settings.generate.max_new_tokens, name, times)


def _beyond(
    renderer: Renderer, prompts: Sequence[Prompt], info: RewardInfo | None, room: int
) -> tuple[int, int] | None:
    """The place of the longest prompt and its tokens, if it is beyond ``room``; else None.

    With ``info``, of all that the reward model reads, but for the response. Of tens of thousands of prompts
    few could be so long by their bytes: those alone are tokenized.
    """
    more = renderer.image_length() - 1
    found: list[tuple[int, int]] = []
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        rows = _asked(part) if info is None else renderer.judged(_judged(part, info), info.template)
        images = [more * (image is not None) for _, image in rows]
        most = [n + image for n, image in zip(renderer.most_tokens(rows), images)]
        near = [i for i, n in enumerate(most) if n > room]
        lengths = renderer.prompt_lengths([rows[i] for i in near]) if near else []
        found += [(n + images[i], start + i) for i, n in zip(near, lengths) if n + images[i] > room]
    if not found:
        return None
    # the first of equals
    length, at = max(found, key=lambda one: (one[0], -one[1]))
    return at, length


def _asked(prompts: Sequence[Prompt]) -> list[tuple[Sequence[Message], ImageInput]]:
    return [([Message(role="user", content=p.question)], p.image and _PICTURE) for p in prompts]


def _judged(
    prompts: Sequence[Prompt], info: RewardInfo
) -> list[tuple[Sequence[Message], str, str | None, ImageInput]]:
    return [
        (messages, "", info.facts_of(p.id, _longest(p.facts, info), 0), image)
        for p, (messages, image) in zip(prompts, _asked(prompts))
    ]


def _longest(facts: Facts, info: RewardInfo) -> Facts:
    """Of each kind the longest entries that may be shown together."""
    kept: dict[str, list[str]] = {}
    for kind, most in info.max_facts.items():
        if kind != "answer":
            kept[kind] = sorted(getattr(facts, kind), key=len, reverse=True)[:most]
    return facts.model_copy(update=kept)
