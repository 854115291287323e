"""align.generate: batches equal single runs, seeds reproduce, ends are seen, nothing outside changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage

from align import decode
from align.config import GenerateSettings, LoraSettings, ModelSettings
from align.generate import Item, generate, grid_features, join, rollout_tokens
from align.models.lmm import Lmm, add_adapters, load, token_logprobs
from align.render import Renderer
from data.schema import Message

GREEDY = GenerateSettings(max_new_tokens=10, temperature=0.0, batch_size=8)
SAMPLED = GenerateSettings(max_new_tokens=10, temperature=1.0, batch_size=2)


@pytest.fixture
def lmm(tiny_llava: Path) -> Lmm:
    return load(ModelSettings(path=str(tiny_llava)))


@pytest.fixture
def items(pictures: list[PILImage.Image]) -> list[Item]:
    def say(*texts: str) -> list[Message]:
        return [Message(role=("user", "assistant")[i % 2], content=t) for i, t in enumerate(texts)]

    return [
        (say("What is in the image?"), pictures[0]),
        (say("Is there a dog?", "Yes.", "How many people sit beside the blue chair?"), pictures[0]),
        (say("Hi"), None),
        (say("Describe the picture in detail."), pictures[1]),
        (say("Is there a cat?"), pictures[2]),
    ]


def _by_hand(lmm: Lmm, renderer: Renderer, item: Item, n: int) -> list[int]:
    """Greedy decoding without cache, batch or generate(): the whole text again for every token."""
    batch = renderer.prompt_batch([item])
    start = batch["input_ids"].shape[1]
    for _ in range(n):
        with torch.no_grad():
            logits = lmm.model(**batch).logits[:, -1]
        logits[:, renderer.image_token_id] = -torch.inf
        token = logits.argmax(-1, keepdim=True)
        batch["input_ids"] = torch.cat([batch["input_ids"], token], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if int(token) == renderer.end_token_id:
            break
    return batch["input_ids"][0, start:].tolist()


def test_batched_greedy_equals_single_by_hand(any_tiny_llava: Path, items: list[Item]) -> None:
    lmm = load(ModelSettings(path=str(any_tiny_llava)))
    renderer = Renderer(lmm.processor)
    expected = [_by_hand(lmm, renderer, item, 10) for item in items]
    out = rollout_tokens(lmm, renderer, items, GREEDY, seed=0)
    for i, ids in enumerate(expected):
        assert out.response_ids[i][out.response_mask[i].bool()].tolist() == ids
    answers = generate(lmm, renderer, items, GREEDY.model_copy(update={"batch_size": 2}), seed=0)
    assert [a.text for a in answers] == [renderer.decode(ids) for ids in expected]


def test_seeds_reproduce_and_leave_the_random_state(lmm: Lmm, items: list[Item]) -> None:
    renderer = Renderer(lmm.processor)
    lmm.model.train()
    lmm.model.model.vision_tower.eval()
    modes = [m.training for m in lmm.model.modules()]
    before = torch.get_rng_state()
    first = generate(lmm, renderer, items, SAMPLED, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert modes == [m.training for m in lmm.model.modules()]
    torch.manual_seed(99)
    assert generate(lmm, renderer, items, SAMPLED, seed=1) == first
    assert generate(lmm, renderer, items, SAMPLED, seed=2) != first


def test_several_samples_an_item(lmm: Lmm, items: list[Item]) -> None:
    renderer = Renderer(lmm.processor)
    groups = generate(lmm, renderer, items, SAMPLED, seed=1, num_return=3)
    assert [len(g) for g in groups] == [3] * 5
    assert all(len({r.text for r in g}) > 1 for g in groups)
    with pytest.raises(ValueError, match="temperature 0"):
        generate(lmm, renderer, items, GREEDY, seed=1, num_return=2)


def test_every_batch_draws_its_own_numbers(lmm: Lmm, items: list[Item]) -> None:
    answers = generate(lmm, Renderer(lmm.processor), [items[0]] * 6, SAMPLED, seed=1)
    pairs = {(answers[i].text, answers[i + 1].text) for i in (0, 2, 4)}
    assert len(pairs) == 3


def test_top_p_cuts_the_tail(lmm: Lmm, items: list[Item]) -> None:
    renderer = Renderer(lmm.processor)
    narrow = SAMPLED.model_copy(update={"top_p": 1e-6})
    greedy = generate(lmm, renderer, items, GREEDY, seed=0)
    assert generate(lmm, renderer, items, narrow, seed=3) == greedy
    assert generate(lmm, renderer, items, SAMPLED, seed=3) != greedy


def _favour(lmm: Lmm, token: int) -> None:
    """Make one token always the likeliest."""
    model = lmm.model
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.language_model.norm.weight.zero_()
    bias = torch.zeros(model.lm_head.out_features)
    bias[token] = 50.0
    model.lm_head.bias = torch.nn.Parameter(bias)


def test_complete_tells_whether_the_end_token_came(lmm: Lmm, items: list[Item]) -> None:
    renderer = Renderer(lmm.processor)
    word = renderer.tokenizer("a", add_special_tokens=False)["input_ids"][0]
    _favour(lmm, word)
    cut = generate(lmm, renderer, items[:2], GREEDY, seed=0)
    assert [(r.text, r.complete) for r in cut] == [("a" * 10, False)] * 2
    _favour(lmm, renderer.end_token_id)
    ended = generate(lmm, renderer, items[:2], GREEDY, seed=0)
    assert [(r.text, r.complete) for r in ended] == [("", True)] * 2
    out = rollout_tokens(lmm, renderer, items[:2], GREEDY, seed=0)
    assert out.response_mask.sum(1).tolist() == [1, 1] and out.complete.all()


def test_mask_covers_the_first_end_token_and_no_more(lmm: Lmm, items: list[Item]) -> None:
    """Sampling from a model that often ends: rows differ in length, padding is masked."""
    renderer = Renderer(lmm.processor)
    end = renderer.end_token_id
    _favour(lmm, end)
    with torch.no_grad():
        lmm.model.lm_head.bias[end] = 4.0
    out = rollout_tokens(lmm, renderer, items, SAMPLED, seed=5)
    lengths = out.response_mask.sum(1).tolist()
    assert len(set(lengths)) > 1 and max(lengths) <= 10
    for row, n, complete in zip(out.response_ids.tolist(), lengths, out.complete.tolist(), strict=True):
        assert complete == (end in row)
        assert (row.index(end) + 1 if complete else 10) == n
        assert all(token == renderer.pad_id for token in row[n:])


def test_rollout_keeps_order_and_scores_what_was_sampled(lmm: Lmm, items: list[Item]) -> None:
    """Rows come back in the items' order with their own features, whatever the batches were."""
    renderer = Renderer(lmm.processor)
    out = rollout_tokens(lmm, renderer, items, SAMPLED, seed=3, num_return=2)
    length = out.response_ids.shape[1]
    assert out.prompt_ids.shape[0] == 10 and out.features is not None and out.features.shape[0] == 8
    batch = join({"input_ids": out.prompt_ids, "attention_mask": out.prompt_mask}, out)
    with torch.no_grad():
        logp, _ = token_logprobs(lmm.model, batch, out.features, response_len=length)
    for i, item in enumerate(items):
        for row in (2 * i, 2 * i + 1):
            prompt = renderer.prompt_batch([item])
            real = out.prompt_ids[row][out.prompt_mask[row].bool()]
            assert torch.equal(real, prompt["input_ids"][0])
            response = out.response_ids[row : row + 1]
            ids = torch.cat([prompt["input_ids"], response], 1)
            with torch.no_grad():
                logits = lmm.model(
                    **{**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
                ).logits
            alone = logits[:, -length - 1 : -1].log_softmax(-1).gather(-1, response[..., None])[0, :, 0]
            mask = out.response_mask[row].bool()
            assert torch.allclose(logp[row][mask], alone[mask], atol=1e-5)


@pytest.mark.parametrize("loop", ["ours", "transformers", "transformers, of any model"])
def test_log_probabilities_of_tokens_as_they_are_drawn(
    lmm: Lmm, items: list[Item], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    """Those of scoring, also where rows end and others take their place, and top_p cuts the draws' tail.

    A token that is never drawn has its share all the same.
    """
    renderer = Renderer(lmm.processor)
    lmm.model.lm_head.bias = torch.nn.Parameter(torch.zeros(lmm.model.lm_head.out_features))
    with torch.no_grad():
        lmm.model.lm_head.bias[[renderer.end_token_id, renderer.image_token_id]] = 3.0
    if loop != "ours":
        monkeypatch.setattr(decode, "is_able", lambda *_: False)
    if loop == "transformers, of any model":
        monkeypatch.setattr("align.generate.is_llava", lambda *_: False)
        items = [item for item in items if item[1] is not None]
    how = SAMPLED.model_copy(update={"temperature": 0.7, "top_p": 0.95})
    plain = rollout_tokens(lmm, renderer, items * 2, how, seed=2)
    out = rollout_tokens(lmm, renderer, items * 2, how, seed=2, with_logprobs=True)
    assert plain.logprobs is None and out.logprobs is not None
    assert torch.equal(plain.response_ids, out.response_ids)
    mask = out.response_mask
    assert len(set(mask.sum(1).tolist())) > 2
    batch = join(renderer.prompt_batch(items * 2), out)
    with torch.no_grad():
        logits = lmm.model(**batch).logits[:, -mask.shape[1] - 1 : -1] / 0.7
    expected = logits.log_softmax(-1).gather(-1, out.response_ids[..., None])[..., 0]
    torch.testing.assert_close(out.logprobs, expected.masked_fill(mask == 0, 0), atol=1e-4, rtol=1e-4)


def test_join_keeps_other_inputs(lmm: Lmm, items: list[Item]) -> None:
    renderer = Renderer(lmm.processor)
    out = rollout_tokens(lmm, renderer, items, GREEDY, seed=0)
    prompt = renderer.prompt_batch(items) | {"token_types": torch.ones_like(out.prompt_ids)}
    joined = join(prompt, out)
    assert torch.equal(joined["input_ids"], torch.cat([out.prompt_ids, out.response_ids], 1))
    assert joined["token_types"].shape == joined["input_ids"].shape
    assert joined["token_types"][:, out.prompt_ids.shape[1] :].sum() == 0
    assert torch.equal(joined["pixel_values"], prompt["pixel_values"])


def test_the_active_adapter_generates(lmm: Lmm, items: list[Item]) -> None:
    renderer = Renderer(lmm.processor)
    base = generate(lmm, renderer, items, GREEDY, seed=0)
    wrapped = Lmm(add_adapters(lmm.model, LoraSettings(r=4), ["policy", "value"]), lmm.processor)
    assert [r.text for r in generate(wrapped, renderer, items, GREEDY, seed=0)] == [r.text for r in base]
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.model.named_parameters():
            if "lora_B.policy" in name:
                parameter.normal_()
    assert [r.text for r in generate(wrapped, renderer, items, GREEDY, seed=0)] != [r.text for r in base]


def test_a_picture_is_encoded_once(lmm: Lmm, items: list[Item]) -> None:
    renderer = Renderer(lmm.processor)
    seen: list[int] = []
    hook = lmm.model.model.vision_tower.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    plain = generate(lmm, renderer, items, GREEDY, seed=0)
    assert sum(seen) == 3
    features = grid_features(lmm, renderer, [items[0][1], items[3][1], items[4][1]])
    hook.remove()
    known = dict(zip((0, 3, 4), features, strict=True)) | {1: features[0], 2: None}
    kept = [(messages, known[i]) for i, (messages, _) in enumerate(items)]
    assert generate(lmm, renderer, kept, GREEDY, seed=0) == plain


def test_no_items_is_an_error(lmm: Lmm) -> None:
    with pytest.raises(ValueError, match="no items"):
        rollout_tokens(lmm, Renderer(lmm.processor), [], GREEDY, seed=0)
