"""Our reward models as reward functions of TRL's trainers (GRPO, RLOO), ours or anybody's.

In a script of your own, with a dataset that has a column "id" beside "prompt" and "images"::

    from align.reward_function import make_reward_function

    reward = make_reward_function("runs/reward_fact", records="prompts.jsonl", own_base=False)
    trainer = GRPOTrainer(model, [reward], arguments, dataset, processing_class=processor, peft_config=lora)
    # the reward model's adapter goes on the policy's base, so that no weights are loaded twice
    reward.share(trainer.model, processor)
    trainer.train()

or by its name, e.g. ``trl grpo --reward_funcs align.reward_function.fact_reward``: see :func:`fact_reward`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from PIL import Image as PILImage
from pydantic import ValidationError

from align.config import ModelSettings, SymbolicSettings, UserReward
from align.generate import inference
from align.lending import check_whole, leave_out
from align.models.lmm import Lmm, use_adapter
from align.pairs import check_facts
from align.pictures import encode_pictures, open_pictures
from align.render import ImageInput
from align.reward_model import ADAPTER, RewardError, RewardModel, ScoreItem, find_reward, read_info, same_base
from align.rewards import symbolic
from align.schedule import step_seed
from align.user_rewards import find_functions, user_parts
from data.jsonl import DataError, read_records
from data.schema import Facts, Message, Prompt

#: what names :func:`fact_reward`'s reward model, prompts and image root
VARIABLES = ("ALIGN_REWARD_MODEL", "ALIGN_REWARD_RECORDS", "ALIGN_REWARD_IMAGES")


def make_reward_function(
    reward_model: str | Path,
    *,
    records: str | Path | Sequence[Prompt] | None = None,
    images: str | None = None,
    own_base: bool = True,
    base: ModelSettings | None = None,
    name: str = "fact_reward",
    seed: int | str = 0,
    batch_size: int = 64,
) -> RewardFunction:
    """A callable with the signature of TRL's reward functions that returns one score a completion.

    Args:
        reward_model: a finished run directory of ``align reward``, or its folder "reward".
        records: prompts of our schema (a file of ``align data``, or records): questions and facts are looked
            up by the dataset's column "id". Without them the conversation is the trainer's prompt, and facts
            come from a column "facts" (``data.schema.Facts`` as a mapping or as JSON).
        images: image root of ``records``: their pictures are then scored in place of the dataset's.
        own_base: load the reward model's base now. False waits for :meth:`RewardFunction.share`.
        base: how its base is run (device, attention, trust in remote code); the path and the precision are
            the reward model's own.
        name: what TRL's log calls it.
        seed: which of many facts are shown, and their order; all completions of one prompt see the same text.
        batch_size: completions scored at once.

    Raises:
        RewardError: no reward model there, or images without records.
        DataError: unreadable records, or some without the facts it reads.
    """
    return RewardFunction(
        reward_model, by_id(records), images, own_base=own_base, base=base, name=name, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip


def fact_reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """A reward function that a command line can name: ``align.reward_function.fact_reward``.

    ``ALIGN_REWARD_MODEL`` names the reward model, ``ALIGN_REWARD_RECORDS`` (a file) and
    ``ALIGN_REWARD_IMAGES`` what ``make_reward_function`` calls records and images; both may be unset. The
    base is its own.

    Returns one score a completion. Raises RewardError where the first is not set, and what
    :class:`RewardFunction` raises.
    """
    model, records, images = (os.environ.get(key) for key in VARIABLES)
    return _named(model, records, images)(prompts, completions, **columns)


@functools.lru_cache(maxsize=1)
def _named(model: str | None, records: str | None, images: str | None) -> RewardFunction:
    if not model:
        raise RewardError(f"{VARIABLES[0]} is not set; set it to a finished run directory of align reward")
    return make_reward_function(model, records=records, images=images)


def by_id(records: str | Path | Sequence[Prompt] | None) -> dict[str, Prompt] | None:
    """The prompts by their ids; a path is read. Raises DataError for one that cannot be, or an id twice."""
    if records is None:
        return None
    if isinstance(records, (str, Path)):
        rows = read_records(records, "prompt", strict=True)
        records = [record for record in rows if isinstance(record, Prompt)]
    found = {record.id: record for record in records}
    if len(found) < len(records):
        twice = next(r.id for r in records if found[r.id] is not r)
        raise DataError(f"two prompts have the id {twice!r}", key="id", mend="give every prompt its own")
    return found


class RewardFunction:
    """A frozen reward model that scores what a trainer sampled; made by :func:`make_reward_function`."""

    def __init__(
        self,
        reward_model: str | Path,
        records: Mapping[str, Prompt] | None,
        images: str | None,
        *,
        own_base: bool,
        base: ModelSettings | None,
        name: str,
        seed: int | str,
        batch_size: int,
    ) -> None:
        if images is not None and records is None:
            raise RewardError(
                f"images ({images}) is the image root of records, and there are none; give records (or "
                f"{VARIABLES[1]}), or leave images out and have the pictures in the dataset"
            )
        self.folder = find_reward(reward_model)
        self.info = read_info(self.folder)
        self.records, self.images = records, images
        self.seed, self.batch_size, self.base = seed, batch_size, base
        #: what TRL's log calls it
        self.__name__ = name
        if records is not None:
            check_facts(records.values(), self.info.facts)
        self.model = _frozen(RewardModel.load(self.folder, base=base)) if own_base else None

    def share(self, policy: Any, processor: Any, base: ModelSettings | None = None) -> None:
        """Put the reward model's adapter on the policy's base, frozen: call it before ``trainer.train()``.

        ``policy`` is the trainer's model, with a LoRA adapter; ``base`` says what its base was loaded from
        where it does not itself (an adapter merged into it). What learns and what is active stays as it is,
        and so do checkpoints: what the trainer saves leaves the reward model out, and a run that is resumed
        shares anew.

        Raises:
            RewardError: the policy has no adapter (its base would move under the reward model), its base is
                another, or its weights are split over processes.
        """
        if not isinstance(policy, PeftModel):
            raise RewardError(
                "the policy is trained in full, so its base will move; give the trainer a peft_config, or "
                "let the reward function load its own base (own_base=True)"
            )
        theirs = base or ModelSettings(path=str(policy.get_base_model().name_or_path))
        if not same_base(self.info.model, theirs):
            raise RewardError(
                f"{self.folder}: was trained on {self.info.model.path} and the policy's base is "
                f"{theirs.path}; leave share out (own_base=True)"
            )
        check_whole(policy, self.folder)
        lmm = Lmm(policy, processor, theirs.path)
        # PEFT puts the whole model in evaluation mode when an adapter joins it
        with inference(policy):
            model = RewardModel.load(self.folder, lmm, base=theirs, name=_free_name(policy))
        self.model = _frozen(model)
        leave_out(policy, model.name)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float]:
        """One score a completion.

        ``columns`` are the dataset's: "id" where records were given, "facts", "images" or "image" (without
        these two a picture may be a part of its prompt). Prompts and completions are conversations as TRL
        passes them, or plain text (the prompt then is a question).

        Raises:
            RewardError: no weights yet, or weights that the trainer has split over processes; an id that no
                record has, no column "id", facts that are none, a record's picture that is not in the row.
            DataError: a prompt without the facts that the reward model reads.
        """
        if self.model is None:
            raise RewardError("the reward function has no weights yet; call share(trainer.model, processor)")
        check_whole(self.model.lmm.model, self.folder)
        if self.info.facts and self.records is None and "facts" not in columns:
            raise RewardError(
                f"the reward model reads facts ({', '.join(self.info.facts)}) and the dataset has no column "
                "'facts'; add it, or give records and a column 'id'"
            )
        items = self.items(prompts, completions, columns)
        check_facts(items, self.info.facts)
        step = getattr(columns.get("trainer_state"), "global_step", 0)
        with self._active() as model:
            pictures = encode_pictures(model.lmm, model.renderer, [item.image for item in items])
            for item, picture in zip(items, pictures, strict=True):
                item.image = picture
            scores = model.score(items, seed=f"{self.seed}/{step}", batch_size=self.batch_size)
        return scores.tolist()

    def items(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[ScoreItem]:
        """What is scored, in the completions' order."""
        said = [text_of(completion) for completion in completions]
        if self.records is not None:
            known = joined(self.records, columns)
            asked = [[Message(role="user", content=p.question)] for p in known]
            names, facts = [p.id for p in known], [p.facts for p in known]
        else:
            asked = [messages_of(prompt) for prompt in prompts]
            facts = [facts_of(given) for given in columns.get("facts", [None] * len(asked))]
            names = columns.get("id") or [_name(ask, fact) for ask, fact in zip(asked, facts, strict=True)]
        if self.records is not None and self.images is not None:
            pictures = open_pictures([p.image for p in known], self.images, names)
        else:
            pictures = pictures_of(columns, prompts)
        if self.records is not None:
            for record, picture in zip(known, pictures, strict=True):
                if record.image is not None and picture is None:
                    raise RewardError(
                        f"the record {record.id!r} has a picture and the dataset's row has none; add a "
                        "column 'images', or give images=ROOT"
                    )
        return [ScoreItem(*row) for row in zip(names, asked, said, facts, pictures, strict=True)]

    @contextlib.contextmanager
    def _active(self) -> Iterator[RewardModel]:
        """The reward model in evaluation mode; afterwards the policy is active and training as before."""
        assert self.model is not None
        model = self.model.lmm.model
        before = model.active_adapter
        with inference(model):
            try:
                yield self.model
            finally:
                use_adapter(model, before)


def _frozen(model: RewardModel) -> RewardModel:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _free_name(policy: PeftModel) -> str:
    """A name that no adapter of the policy has: another reward function may share its base too."""
    names = itertools.chain([ADAPTER], (f"{ADAPTER}_{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in policy.peft_config)


def _name(asked: Sequence[Message], facts: Facts) -> str:
    """A name for a prompt that has none, equal for all of its completions."""
    return str(step_seed(*(message.content for message in asked), facts.model_dump_json()))


# --- what a trainer passes ---


def joined(records: Mapping[str, Prompt], columns: Mapping[str, Any]) -> list[Prompt]:
    """The record of each row, by its id. Raises RewardError without ids, or for one that no record has."""
    ids = columns.get("id")
    if ids is None:
        raise RewardError(
            f"the dataset has no column 'id' to look the records up by (it has {sorted(columns)}); add the "
            "records' ids to its rows"
        )
    unknown = [name for name in ids if name not in records]
    if unknown:
        raise RewardError(
            f"no record has the id {unknown[0]!r}; give the records that the dataset was made of"
        )
    return [records[name] for name in ids]


def text_of(completion: Any) -> str:
    """A completion's text: the last message of a conversation, or the text itself, without outer spaces."""
    if isinstance(completion, str):
        return completion.strip()
    return _content(completion[-1]["content"]).strip()


def messages_of(prompt: Any) -> list[Message]:
    """A prompt's conversation; pictures in it are left out, :func:`pictures_of` has them."""
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    return [Message(role=turn["role"], content=_content(turn["content"])) for turn in prompt]


def _content(content: Any) -> str:
    """The text of a message, whole or in parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def facts_of(given: Any) -> Facts:
    """Facts of a column's value: a mapping (missing kinds may be None), its JSON, or none at all."""
    try:
        values = json.loads(given) if isinstance(given, str) else given
        if values is None or isinstance(values, Facts):
            return values or Facts()
        return Facts.model_validate({key: value for key, value in dict(values).items() if value is not None})
    except (ValidationError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RewardError(
            f"a row's facts are none ({reason}); give a mapping with captions, rationales, answer, objects, "
            "knowledge, or its JSON"
        ) from None


def pictures_of(columns: Mapping[str, Any], prompts: Sequence[Any]) -> list[ImageInput]:
    """Each row's picture, of a column "images" (lists of at most one) or "image", or without such a column of
    its prompt's image parts; None where there is none. Raises RewardError for several, or one not decoded.
    """
    rows = columns.get("images", columns.get("image"))
    found = []
    for row in rows if rows is not None else [_shown(prompt) for prompt in prompts]:
        row = row if isinstance(row, (list, tuple)) else [row] if row is not None else []
        if len(row) > 1 or not all(isinstance(picture, PILImage.Image) for picture in row):
            raise RewardError("a prompt has one picture, decoded (PIL), or none; change the dataset's images")
        found.append(row[0] if row else None)
    return found


def _shown(prompt: Any) -> list[Any]:
    """What a prompt's image parts hold."""
    turns = [] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    parts = [part for content in turns if not isinstance(content, str) for part in content]
    return [part.get("image") for part in parts if part.get("type") == "image"]


# --- rewards that need no reward model ---


def make_user_functions(
    records: str | Path | Sequence[Prompt], settings: Mapping[str, UserReward]
) -> list[Callable[..., list[float]]]:
    """A recipe's ``user_rewards`` (``align.user_rewards``) as reward functions, by their names and weighted.

    Raises:
        RewardPartError: a function that is not there; when it is called, one that gives no finite number.
    """
    known, functions = by_id(records) or {}, find_functions(settings)

    def named(name: str) -> Callable[..., list[float]]:
        def function(prompts: Any, completions: Any, **columns: Any) -> list[float]:
            texts = [text_of(completion) for completion in completions]
            one = {name: functions[name]}
            return user_parts(one, settings, joined(known, columns), texts)[name].tolist()

        function.__name__ = name
        return function

    return [named(name) for name in functions]


def make_symbolic_functions(
    records: str | Path | Sequence[Prompt],
    settings: SymbolicSettings,
    end_ids: Sequence[int],
    max_tokens: int,
) -> list[Callable[..., list[float]]]:
    """PPO's symbolic rewards (``align.rewards``) as reward functions, each by its name.

    A completion without one of ``end_ids`` at its end is incomplete; its length counts against
    ``max_tokens``.
    The dataset's column "id" names the record that says what is right and how long an answer should be.
    """
    known = by_id(records) or {}

    def parts(completions: Sequence[Any], ids: Sequence[Sequence[int]], columns: Any) -> dict[str, Any]:
        texts = [text_of(completion) for completion in completions]
        complete = [len(row) > 0 and int(row[-1]) in end_ids for row in ids]
        return symbolic(joined(known, columns), texts, [len(r) for r in ids], complete, settings, max_tokens)

    def named(name: str) -> Callable[..., list[float]]:
        def function(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
            return parts(completions, completion_ids, columns)[name].tolist()

        function.__name__ = name
        return function

    return [named(name) for name in symbolic([], [], [], [], settings, max_tokens)]
