"""Batched generation: texts for people and judges, token tensors for reinforcement learning."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from align import decode, prefix
from align.config import GenerateSettings
from align.models.lmm import Lmm, embed, image_features, is_llava, move, unwrap, vision_features
from align.render import ImageInput, Renderer
from data.schema import Message, Response

Item: TypeAlias = tuple[Sequence[Message], ImageInput]
#: of some items: prompt ids and mask (b, p), response ids and, if asked for, their log-probabilities
#: (b·num_return, r), image features
Part: TypeAlias = tuple[Tensor, Tensor, Tensor, "Tensor | None", "Tensor | None"]
#: wraps the iteration over batches, e.g. tqdm
Progress: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass
class Generated:
    """B sampled responses as tokens: prompts left padded to P, responses right padded to R."""

    #: (B, P)
    prompt_ids: Tensor
    #: (B, P), 1 at real tokens
    prompt_mask: Tensor
    #: (B, R), the pad id behind the end
    response_ids: Tensor
    #: (B, R), 1 at the response's tokens, its end token included
    response_mask: Tensor
    #: (B,) bool: the end token came
    complete: Tensor
    #: (images, N, H) projected features of the prompts' images in order; None for other models or text only
    features: Tensor | None
    #: (B, R) float32, of the tokens as they were drawn, top_p aside; 0 at padding. Only if asked for
    logprobs: Tensor | None = None


def join(prompt: dict[str, Any], responses: Generated) -> dict[str, Any]:
    """Append responses (B, R) to a prompt batch of the same rows; its other inputs are kept.

    Per-token inputs of foreign processors (token types) are continued with zeros, which stand for text.
    """
    width = prompt["input_ids"].shape
    tail = {"input_ids": responses.response_ids, "attention_mask": responses.response_mask}
    joined = {}
    for key, value in prompt.items():
        if key in tail:
            joined[key] = torch.cat([value, tail[key]], dim=1)
        elif value.shape == width:
            joined[key] = torch.cat([value, value.new_zeros(responses.response_ids.shape)], dim=1)
        else:
            joined[key] = value
    return joined


def generate(
    lmm: Lmm,
    renderer: Renderer,
    items: Sequence[Item],
    settings: GenerateSettings,
    *,
    seed: int,
    num_return: int = 1,
    progress: Progress | None = None,
) -> list[Response] | list[list[Response]]:
    """Answer every (messages, image) item; ``num_return`` > 1 gives that many samples an item, as a list.

    Temperature 0 is greedy; what the questions about one picture begin with is then read once for all of
    them (``align.prefix``). Batches are sorted by length and the order is restored. The same seed, items and
    settings give the same answers; torch's random state, the model's mode and the tokenizer are left as they
    were.
    """
    if num_return > 1 and settings.temperature == 0:
        raise ValueError(
            f"num_return {num_return} at temperature 0 gives equal answers; raise the temperature"
        )
    if settings.temperature == 0 and prefix.is_shared(lmm, items):
        return _shared(lmm, renderer, items, settings, progress)
    counted = sample(lmm, renderer, items, settings, seed=seed, num_return=num_return, progress=progress)
    answers = [[response for response, _ in said] for said in counted]
    return answers if num_return > 1 else [a[0] for a in answers]


def sample(
    lmm: Lmm,
    renderer: Renderer,
    items: Sequence[Item],
    settings: GenerateSettings,
    *,
    seed: int,
    num_return: int,
    progress: Progress | None = None,
) -> list[list[tuple[Response, int]]]:
    """``num_return`` answers to every item, each with its number of tokens, its end token included."""
    lengths = renderer.prompt_lengths(items)
    order = sorted(range(len(items)), key=lambda i: (-lengths[i], i))
    chunk = max(1, settings.batch_size // num_return)
    starts: Iterable[int] = range(0, len(order), chunk)
    answers: list[list[tuple[Response, int]]] = [[] for _ in items]
    for start in progress(starts) if progress else starts:
        rows = order[start : start + chunk]
        out = rollout_tokens(
            lmm, renderer, [items[i] for i in rows], settings, seed=seed + start, num_return=num_return
        )
        ids, mask = out.response_ids.tolist(), out.response_mask.sum(-1).tolist()
        for j, tokens in enumerate(ids):
            text = renderer.decode(tokens[: mask[j]])
            response = Response(text=text, model=lmm.name, complete=bool(out.complete[j]))
            answers[rows[j // num_return]].append((response, mask[j]))
    return answers


def _shared(
    lmm: Lmm,
    renderer: Renderer,
    items: Sequence[Item],
    settings: GenerateSettings,
    progress: Progress | None,
) -> list[Response]:
    encoded = _encode_once(lmm, renderer, items)
    with inference(lmm.model):
        answers = prefix.answer(
            lmm, renderer, encoded, end_ids(lmm, renderer), max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size, progress=progress,
        )  # fmt: skip
    return [
        Response(text=renderer.decode(tokens), model=lmm.name, complete=complete)
        for tokens, complete in answers
    ]


@torch.no_grad()
def rollout_tokens(
    lmm: Lmm,
    renderer: Renderer,
    items: Sequence[Item],
    settings: GenerateSettings,
    *,
    seed: int,
    num_return: int = 1,
    with_logprobs: bool = False,
) -> Generated:
    """Sample from the active adapter; rows are item 0's ``num_return`` samples, then item 1's, and so on.

    Items are generated ``settings.batch_size`` rows at a time, sorted by length; where the model allows it,
    rows that have ended make place for the next. The result is in the items' order; whether it is
    ``with_logprobs`` does not change it.
    """
    if not items:
        raise ValueError("no items to generate from; give at least one")
    order = list(range(len(items)))
    chunk = max(1, settings.batch_size // num_return)
    if len(items) > chunk:
        lengths = renderer.prompt_lengths(items)
        order.sort(key=lambda i: (-lengths[i], i))
    ends = end_ids(lmm, renderer)
    # an image token in a response would ask for features when the response is scored
    never = [renderer.image_token_id]
    ranked = [items[i] for i in order]
    # weights that are split over processes: all must read and write equally often
    flows = decode.is_able(lmm) and lmm.any_going is None
    runs = [ranked] if flows else [ranked[at : at + chunk] for at in range(0, len(ranked), chunk)]
    parts: list[Part] = []
    with inference(lmm.model), seeded(seed, lmm.device):
        for run in runs:
            if decode.is_able(lmm):
                parts += _decode(lmm, renderer, run, settings, ends, never, num_return, with_logprobs)
            else:
                config = decoding(settings, ends, renderer.pad_id, num_return=num_return, never=never)
                listening = Listening(settings.temperature, never) if with_logprobs else None
                parts.append(_generate(lmm, renderer, run, config, listening))
    return _assemble(parts, order, items, num_return, ends, renderer.pad_id)


def grid_features(
    lmm: Lmm, renderer: Renderer, images: Sequence[PILImage.Image], batch_size: int = 64
) -> list[Tensor]:
    """The tower's features (N, D) of each picture, without gradients; they stand for it in any item."""
    found: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        pixels = renderer.pixel_values(images[start : start + batch_size]).to(lmm.device)
        with torch.no_grad(), inference(unwrap(lmm.model).model.vision_tower):
            found += list(vision_features(lmm.model, pixels))
    return found


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers start from ``seed`` inside, and go on outside as if nothing had been drawn."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode inside; each part's own mode is given back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def end_ids(lmm: Lmm, renderer: Renderer) -> list[int]:
    """The tokens that end a response: the chat template's, and those that the checkpoint names."""
    known = unwrap(lmm.model).generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    return sorted({renderer.end_token_id, *known})


def decoding(
    settings: GenerateSettings,
    ends: list[int],
    pad_id: int,
    *,
    num_return: int = 1,
    never: list[int] | None = None,
) -> GenerationConfig:
    """The whole of how tokens are chosen: ``ends`` are end tokens, ``never`` are never chosen."""
    # everything that a checkpoint's own generation config might change is stated
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": 0,
        }
    return GenerationConfig(
        **sampling,
        max_new_tokens=settings.max_new_tokens,
        num_return_sequences=num_return,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=ends,
        pad_token_id=pad_id,
        suppress_tokens=never,
        use_cache=True,
    )


class Listening(LogitsProcessor):
    """Hears, ahead of temperature and top_p, what transformers' own loop draws from, step by step.

    ``never`` are left out by it: where ``suppress_tokens`` does, its share is lost before this is called.
    """

    def __init__(self, temperature: float, never: Sequence[int]) -> None:
        self.heard, self.never = decode.Heard(temperature), list(never)
        self.drawn_from: tuple[Tensor, Tensor] | None = None
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T) tokens so far and (B, V) raw logits of the next -> those that are drawn from."""
        self.settle(input_ids)
        norms = self.heard.norms(scores)
        scores = scores.index_fill(-1, torch.tensor(self.never, device=scores.device), float("-inf"))
        self.drawn_from = scores, norms
        return scores

    def settle(self, input_ids: Tensor) -> None:
        """The last of these tokens (B, T) are what was drawn in the step before."""
        if self.drawn_from is not None:
            self.steps.append(self.heard.said(*self.drawn_from, input_ids[:, -1]))
        self.drawn_from = None


def _generate(
    lmm: Lmm,
    renderer: Renderer,
    items: Sequence[Item],
    config: GenerationConfig,
    listening: Listening | None = None,
) -> Part:
    """One batch by transformers' own loop."""
    base = unwrap(lmm.model)
    how: dict[str, Any] = {"generation_config": config, "synced_gpus": lmm.any_going is not None}
    if listening is not None:
        config.suppress_tokens = None
        how["logits_processor"] = LogitsProcessorList([listening])
    if is_llava(base):
        batch = move(renderer.prompt_batch(_encode_once(lmm, renderer, items)), lmm.device)
        features, mask = image_features(base, batch), batch["attention_mask"]
        ids = base.generate(inputs_embeds=embed(base, batch, features), attention_mask=mask, **how)
    else:
        batch, features = move(renderer.prompt_batch(items), lmm.device), None
        ids = base.generate(**batch, **how)[:, batch["input_ids"].shape[1] :]
    logprobs = None
    if listening is not None:
        listening.settle(ids)
        logprobs = torch.stack(listening.steps, dim=1)
    return batch["input_ids"], batch["attention_mask"], ids, logprobs, features


def _decode(
    lmm: Lmm,
    renderer: Renderer,
    items: Sequence[Item],
    settings: GenerateSettings,
    ends: list[int],
    never: list[int],
    num_return: int,
    with_logprobs: bool,
) -> list[Part]:
    """All items by our loop, in the parts in which their prompts were read."""
    base, rest, read = unwrap(lmm.model), list(items), []

    def more(rows: int) -> decode.Read | None:
        chosen = rest[: rows // num_return]
        if not chosen:
            return None
        del rest[: len(chosen)]
        batch = move(renderer.prompt_batch(_encode_once(lmm, renderer, chosen)), lmm.device)
        features, mask = image_features(base, batch), batch["attention_mask"]
        # what was read is not kept while responses are written
        batch.pop("vision_features", None)
        state = decode.read(base, embed(base, batch, features), mask)
        if num_return > 1:
            state.keep(torch.arange(len(mask), device=lmm.device).repeat_interleave(num_return))
        read.append((batch["input_ids"], mask, features))
        return state

    choose = decode.sampler(settings.temperature, settings.top_p) if settings.temperature else decode.greedy
    first = more(max(settings.batch_size, num_return))
    assert first is not None
    limit, going = settings.max_new_tokens, lmm.any_going or bool
    heard = decode.Heard(settings.temperature) if with_logprobs else None
    said = [row for row, _ in decode.decode(base, first, choose, ends, never, limit, going, more, heard)]
    parts: list[Part] = []
    at = 0
    for ids, mask, features in read:
        rows = range(at, at := at + len(ids) * num_return)
        written = _stack([said[row] for row in rows], renderer.pad_id, lmm.device)
        logprobs = _stack([heard.rows[row] for row in rows], 0.0, lmm.device) if heard else None
        parts.append((ids, mask, written, logprobs, features))
    return parts


def _stack(rows: Sequence[Sequence[float]], fill: float, device: torch.device) -> Tensor:
    """Rows of unequal length, padded on the right."""
    tensors = [torch.tensor(row, device=device) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


def _encode_once(lmm: Lmm, renderer: Renderer, items: Sequence[Item]) -> list[Item]:
    """Replace pictures by their grid features; a picture asked about several times is encoded once."""
    pictures = {id(image): image for _, image in items if isinstance(image, PILImage.Image)}
    found = grid_features(lmm, renderer, list(pictures.values()))
    features = dict(zip(pictures, found, strict=True))
    pixels = [i for _, i in items if isinstance(i, Tensor) and i.ndim == 3]
    if pixels and features:
        return list(items)
    return [(messages, features.get(id(image), image)) for messages, image in items]


def _assemble(
    parts: list[Part],
    order: list[int],
    items: Sequence[Item],
    num_return: int,
    ends: list[int],
    pad_id: int,
) -> Generated:
    """Bring batches to common widths and the items' order."""
    place = torch.tensor(order).argsort()
    rows = (place[:, None] * num_return + torch.arange(num_return)).flatten()
    width = max(ids.shape[1] for ids, *_ in parts)
    prompt_ids = torch.cat([_pad_to(ids, width, pad_id, left=True) for ids, *_ in parts])
    prompt_mask = torch.cat([_pad_to(mask, width, 0, left=True) for _, mask, *_ in parts])
    length = max(ids.shape[1] for _, _, ids, *_ in parts)
    device = prompt_ids.device
    place, rows = place.to(device), rows.to(device)
    responses = torch.cat([_pad_to(ids, length, pad_id) for _, _, ids, *_ in parts])[rows]
    is_end = torch.isin(responses, torch.tensor(ends, device=device))
    # real tokens: all up to and with the first end token
    mask = (is_end.long().cumsum(-1) - is_end.long() == 0).long()
    complete = is_end.any(-1)
    heard = [_pad_to(said, length, 0) for *_, said, _ in parts if said is not None]
    return Generated(
        prompt_ids[place].repeat_interleave(num_return, 0),
        prompt_mask[place].repeat_interleave(num_return, 0),
        responses.masked_fill(mask == 0, pad_id),
        mask,
        complete,
        _gather_features([f for *_, f in parts], order, items, num_return),
        torch.cat(heard)[rows].masked_fill(mask == 0, 0) if heard else None,
    )


def _gather_features(
    parts: list[Tensor | None], order: list[int], items: Sequence[Item], num_return: int
) -> Tensor | None:
    given = [part for part in parts if part is not None]
    if not given:
        return None
    with_image = [i for i in order if items[i][1] is not None]
    place = torch.tensor(with_image).argsort().to(given[0].device)
    return torch.cat(given)[place].repeat_interleave(num_return, 0)


def _pad_to(values: Tensor, width: int, fill: int, left: bool = False) -> Tensor:
    missing = width - values.shape[1]
    return torch.nn.functional.pad(values, (missing, 0) if left else (0, missing), value=fill)
