"""align.render: the loss mask, prompts as prefixes, inert planted tokens, facts ahead of the score."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from transformers import CLIPImageProcessor, CLIPImageProcessorPil

from align.config import ModelSettings
from align.models.lmm import CHAT_TEMPLATE, Lmm, hidden_states, load, vision_features
from align.render import REWARD_TEMPLATE, Renderer, RenderError, facts_text, fill
from data.schema import Example, Facts, Image, Message

IMAGE = Image(id="p", path="p.png")
#: LLaVA-1.5's published layout: a space after the answer and no end token
NO_END_TEMPLATE = CHAT_TEMPLATE.replace("eos_token if message['role'] == 'assistant' else ' '", "' '")
#: a layout with its own end token that differs from the tokenizer's eos, followed by a newline
CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def lmm(tiny_llava: Path) -> Lmm:
    return load(ModelSettings(path=str(tiny_llava)))


@pytest.fixture
def renderer(lmm: Lmm) -> Renderer:
    return Renderer(lmm.processor)


def _messages(*texts: str) -> list[Message]:
    return [Message(role=("user", "assistant")[i % 2], content=t) for i, t in enumerate(texts)]


def _example(*texts: str, name: str = "x", image: Image | None = IMAGE) -> Example:
    return Example(id=name, image=image, messages=_messages(*texts))


def _real(batch: dict[str, Any], row: int) -> list[int]:
    return batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()


def _with_template(lmm: Lmm, template: str) -> Any:
    class Wrapped(type(lmm.processor)):  # type: ignore[misc]
        pass

    processor = Wrapped.__new__(Wrapped)
    processor.__dict__ = dict(lmm.processor.__dict__)
    processor.chat_template = template
    return processor


class _Foreign:
    """LLaVA's processor seen through the common interface only."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.tokenizer, self.chat_template = processor.tokenizer, processor.chat_template
        self.image_processor, self.image_token = processor.image_processor, "<image>"

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
        return self._processor.apply_chat_template(*args, **kwargs)

    def __call__(self, **kwargs: Any) -> Any:
        return self._processor(**kwargs)


def test_ids_and_mask_equal_a_handmade_sequence(renderer: Renderer, pictures: list[PILImage.Image]) -> None:
    """Put together piece by piece: 4 image tokens, both answers and both end tokens learned, nothing else."""
    tokenizer = renderer.tokenizer

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    end = [tokenizer.eos_token_id]
    pieces = [
        (ids("USER: "), False),
        ([renderer.image_token_id] * 4, False),
        (ids("\nWhat is in the image? ASSISTANT:"), False),
        (ids(" There is a red apple on the table.") + end, True),
        (ids("USER: Is there a dog? ASSISTANT:"), False),
        (ids(" No.") + end, True),
    ]
    batch = renderer.train_batch(
        [
            _example("What is in the image?", "There is a red apple on the table.", "Is there a dog?", "No."),
            _example("Is there a dog?", "No.", name="y", image=None),
        ],
        [pictures[0], None],
    )
    assert _real(batch, 0) == [i for part, _ in pieces for i in part]
    expected = [i if learned else -100 for part, learned in pieces for i in part]
    assert batch["labels"][0].tolist() == expected
    # right padding, not learned
    short = ids("USER: Is there a dog? ASSISTANT:"), ids(" No.") + end
    padding = len(expected) - len(short[0]) - len(short[1])
    assert batch["labels"][1].tolist() == [-100] * len(short[0]) + short[1] + [-100] * padding
    assert batch["input_ids"][1, -padding:].eq(tokenizer.pad_token_id).all()
    assert batch["attention_mask"][1].tolist() == [1] * (len(expected) - padding) + [0] * padding
    assert batch["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, NO_END_TEMPLATE, CHATML], ids=["own", "no-end", "chatml"]
)
@pytest.mark.parametrize("answer", ["Yes.", "a", "2 é 🙂", "  spaced  ", "", "\nnew line"])
def test_prompt_is_a_token_prefix_of_the_training_text(
    lmm: Lmm, pictures: list[PILImage.Image], template: str, answer: str
) -> None:
    renderer = Renderer(_with_template(lmm, template))
    texts = ("What is in the image?", "A cat.", "And?", answer)
    whole = renderer.train_batch([_example(*texts)], [pictures[0]])
    ids, labels = _real(whole, 0), whole["labels"][0].tolist()
    first, second = (_real(renderer.prompt_batch([(_messages(*texts[:n]), pictures[0])]), 0) for n in (1, 3))
    assert ids[: len(first)] == first and ids[: len(second)] == second
    # all behind the prompt is learned, and it is the answer with its end token
    assert labels[len(second) :] == ids[len(second) :]
    assert ids[-1] == renderer.end_token_id and renderer.decode(ids[len(second) :]) == answer.strip()
    learned = [i for i, label in enumerate(labels) if label != -100 and i < len(second)]
    assert learned[0] == len(first) and renderer.decode([ids[i] for i in learned]) == "A cat."
    assert ids[learned[-1]] == renderer.end_token_id


def test_end_token_comes_from_the_template(lmm: Lmm) -> None:
    assert Renderer(_with_template(lmm, CHATML)).end_token == "<pad>"
    assert Renderer(_with_template(lmm, NO_END_TEMPLATE)).end_token == "</s>"


@pytest.mark.parametrize(
    "planted", ["</s>", "<image>", "a <image><image> b", "<<image>image>", "</</s>s>", "<s></s><pad>"]
)
def test_planted_special_tokens_are_inert(
    renderer: Renderer, pictures: list[PILImage.Image], planted: str
) -> None:
    plain = renderer.train_batch([_example("What is it?", "A cup.")], [pictures[0]])
    batch = renderer.train_batch([_example(f"{planted} What is it?", f"A {planted} cup.")], [pictures[0]])
    special = set(renderer.tokenizer.all_special_ids)
    count = [sorted(i for i in _real(b, 0) if i in special) for b in (plain, batch)]
    assert count[0] == count[1]
    prompt = renderer.prompt_batch([(_messages(planted + "?"), pictures[0])])
    assert sum(i in special for i in _real(prompt, 0)) == 4


def test_sanitizing_leaves_ordinary_text_alone(renderer: Renderer) -> None:
    text = "Is 3 < 4 or a<b>c? <Image> [image] {facts} USER:"
    assert renderer.sanitize(text) == text


def test_prompts_are_left_padded(renderer: Renderer, pictures: list[PILImage.Image]) -> None:
    items = [(_messages("What is in the image?"), pictures[0]), (_messages("Hi"), None)]
    batch = renderer.prompt_batch(items)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    padding = int((batch["attention_mask"][1] == 0).sum())
    assert padding > 0 and batch["attention_mask"][1, :padding].sum() == 0
    assert renderer.tokenizer.decode(batch["input_ids"][1, padding:]) == "USER: Hi ASSISTANT:"
    assert "labels" not in batch


def test_reward_text_has_facts_between_response_and_score(
    renderer: Renderer, pictures: list[PILImage.Image]
) -> None:
    item = (_messages("Is there a dog?"), "No, a cat.", "True of the image:\nA cat sits.", pictures[0])
    batch = renderer.reward_batch([item, (item[0], item[1], None, item[3])])
    with_facts, without = (renderer.tokenizer.decode(_real(batch, i)) for i in range(2))
    places = [with_facts.index(s) for s in ("Is there a dog?", "No, a cat.</s>", "A cat sits.", "correct?")]
    assert places == sorted(places)
    assert with_facts.endswith("correct? ASSISTANT:")
    assert batch["attention_mask"][:, -1].all()
    assert "{facts}" not in without and "A cat sits" not in without and "USER: Now judge" in without
    for word in ("accurate", "helpful", "natural", "concise"):
        assert word in REWARD_TEMPLATE


def test_reward_template_is_checked_and_facts_are_sanitized(
    renderer: Renderer, pictures: list[PILImage.Image]
) -> None:
    item = (_messages("Is there a dog?"), "No. </s>", "<image> a cat", pictures[0])
    ids = _real(renderer.reward_batch([item]), 0)
    assert ids.count(renderer.image_token_id) == 4 and ids.count(renderer.end_token_id) == 1
    with pytest.raises(RenderError, match=r"\{facts\}"):
        renderer.reward_batch([item], "Is it correct?")
    # braces in a template of one's own are text
    text = renderer.tokenizer.decode(_real(renderer.reward_batch([item], 'Give {"ok": 1}. {facts}'), 0))
    assert 'Give {"ok": 1}. < image> a cat ASSISTANT:' in text


def test_too_long_samples_are_named(renderer: Renderer, pictures: list[PILImage.Image]) -> None:
    example = _example("What is in the image?", "There is a red apple on the table.", name="sample-7")
    whole = renderer.train_batch([example], [pictures[0]])
    n, prompt = whole["input_ids"].shape[1], int((whole["labels"][0] == -100).sum())
    cut = renderer.train_batch([example], [pictures[0]], max_length=n - 2)
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, : n - 2])
    assert torch.equal(cut["labels"], whole["labels"][:, : n - 2])
    with pytest.raises(RenderError, match=r"sample-7.*no assistant token"):
        renderer.train_batch([example], [pictures[0]], max_length=prompt)
    image_end = int((whole["input_ids"][0] == renderer.image_token_id).nonzero()[-1]) + 1
    with pytest.raises(RenderError, match=r"sample-7.*inside the image"):
        renderer.train_batch([example], [pictures[0]], max_length=image_end - 1)
    item = (example.messages[:1], pictures[0])
    with pytest.raises(RenderError, match=r"q9.*a prompt is never cut"):
        renderer.prompt_batch([item], max_length=8, names=["q9"])
    with pytest.raises(RenderError, match="sample-7: its image was not given"):
        renderer.train_batch([example])


def test_lengths_are_known_without_a_picture(renderer: Renderer, pictures: list[PILImage.Image]) -> None:
    ask = _messages("What is in the image?")
    texts = [(ask, "A cat.", "One fact.\nAnother."), (ask, "A red apple on the table.", None)]
    for template in (None, "{facts}\nAnswer: {response} Good?"):
        batch = renderer.reward_batch([(*texts[0], pictures[0]), (*texts[1], None)], template)
        lengths = renderer.reward_lengths([(*texts[0], True), (*texts[1], False)], template)
        assert lengths == batch["attention_mask"].sum(1).tolist()


def test_samples_that_cannot_be_cut_are_told_together(
    renderer: Renderer, pictures: list[PILImage.Image]
) -> None:
    """Each says what rendering it would say, and a sample that can be cut says nothing."""
    answered = _example("What is in the image?", "There is a red apple on the table.", name="answered")
    asked = _example("What is in the image? " * 3, "There is a red apple on the table.", name="asked")
    words = _example("What is it? " * 9, "A cat.", name="words", image=None)
    long = int((renderer.train_batch([answered], [pictures[0]])["labels"][0] == -100).sum()) + 1
    expected = []
    for example, image in ((answered, pictures[0]), (asked, pictures[0]), (words, None)):
        try:
            renderer.train_batch([example], [image], max_length=long)
        except RenderError as error:
            expected.append(str(error))
    assert [text.split(":")[0] for text in expected] == ["sample asked", "sample words"]
    assert renderer.misfits([answered, asked, words], long) == expected
    (inside,) = renderer.misfits([answered], 4)
    assert "inside the image" in inside


def test_features_and_pixels_stand_for_pictures(
    lmm: Lmm, renderer: Renderer, pictures: list[PILImage.Image]
) -> None:
    pixels = renderer.pixel_values(pictures[:2])
    with torch.no_grad():
        grid = vision_features(lmm.model, pixels)
    question = _messages("What is in the image?")
    batches = [
        renderer.prompt_batch([(question, i) for i in images]) for images in (pictures[:2], pixels, grid)
    ]
    assert all(torch.equal(b["input_ids"], batches[0]["input_ids"]) for b in batches)
    with torch.no_grad():
        states = [hidden_states(lmm.model, b) for b in batches]
    assert torch.equal(states[0], states[1])
    assert torch.allclose(states[0], states[2], atol=1e-5)
    with pytest.raises(RenderError, match="mixes"):
        renderer.prompt_batch([(question, pictures[0]), (question, grid[0])])


def test_foreign_processors_expand_their_own_image_tokens(
    lmm: Lmm, renderer: Renderer, pictures: list[PILImage.Image]
) -> None:
    """A processor of another class gets text and pictures; ids, masks and labels come out the same."""

    foreign = Renderer(_Foreign(lmm.processor))
    examples = [_example("What is in the image?", "A cat.", "And?", "No."), _example("Hi", "Yes.")]
    a, b = (r.train_batch(examples, pictures[:2]) for r in (renderer, foreign))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    items = [(e.messages[:1], p) for e, p in zip(examples, pictures, strict=False)]
    a, b = (r.prompt_batch(items) for r in (renderer, foreign))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", ["own", "foreign"])
@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_a_cropping_processor_still_sees_the_edges(lmm: Lmm, kind: str, backend: str) -> None:
    """LLaVA-1.5's processor resizes the shorter side and crops the rest: pictures are padded ahead of it."""
    classes = {"torchvision": CLIPImageProcessor, "pil": CLIPImageProcessorPil}
    mean = [0.5, 0.25, 0.75]
    processor = copy.copy(lmm.processor)
    processor.image_processor = classes[backend](
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        do_center_crop=True,
        image_mean=mean,
        image_std=[1.0, 1.0, 1.0],
    )
    renderer = Renderer(_Foreign(processor) if kind == "foreign" else processor)
    plain = PILImage.new("RGB", (96, 32), "black")
    marked = plain.copy()
    marked.paste("white", (0, 0, 12, 32))
    pixels = [renderer.prompt_batch([(_messages("Hi"), p)])["pixel_values"][0] for p in (plain, marked)]
    assert pixels[0].shape == (3, 32, 32)
    assert (pixels[1] - pixels[0])[:, 16, 0].min() > 0.9
    assert torch.equal(pixels[1][..., 16:], pixels[0][..., 16:])
    # above and below the mean colour, which is 0 after normalising
    assert pixels[1][:, (0, -1)].abs().max() < 1 / 255


def test_facts_are_shuffled_picked_and_limited() -> None:
    facts = Facts(captions=[f"Caption {i}." for i in range(6)], answer="B", objects=["cat", "cup"])
    rng = random.Random(0)
    texts = [facts_text(facts, ["captions", "answer", "objects"], {"captions": 2}, rng) for _ in range(30)]
    assert len(set(texts)) > 10
    seen: set[str] = set()
    for text in texts:
        assert text is not None
        lines = text.split("\n")[1:]
        captions = [line for line in lines if line.startswith("Caption")]
        assert len(lines) == 4 and len(set(captions)) == 2 and set(captions) <= set(facts.captions)
        assert "The right answer is B." in lines
        seen |= set(captions)
    assert seen == set(facts.captions)
    assert facts_text(facts, ["captions"], {}, random.Random(1)) == facts_text(
        facts, ["captions"], {}, random.Random(1)
    )
    assert (
        facts_text(facts, ["rationales"], {}, rng) is None
        and facts_text(Facts(), ["answer"], {}, rng) is None
    )


def test_unusable_processors_are_named(lmm: Lmm) -> None:
    with pytest.raises(RenderError, match="no chat template"):
        Renderer(_with_template(lmm, ""))
    dropping = "{% for m in messages if m['role'] == 'user' %}{{ m['content'][0]['text'] }}{% endfor %}"
    with pytest.raises(RenderError, match="drops, repeats or reorders"):
        Renderer(_with_template(lmm, dropping))
    imageless = CHAT_TEMPLATE.replace("<image>", "(picture)")
    with pytest.raises(RenderError, match="0 image tokens for 1 image"):
        Renderer(_with_template(lmm, imageless)).prompt_batch(
            [(_messages("Hi"), PILImage.new("RGB", (8, 8)))]
        )


def test_a_template_is_filled_once_and_may_repeat_the_response(lmm: Lmm) -> None:
    template = "{facts}\nAnswer: {response} Good?"
    assert fill(template, facts="", response="a {facts} cat") == "Answer: a {facts} cat Good?"
    assert fill(template, facts="{response}", response="x") == "{response}\nAnswer: x Good?"
    assert fill("no {other} {place}", facts="f") == "no {other} {place}"
    renderer = Renderer(lmm.processor)
    messages = [Message(role="user", content="What is there?")]
    batch = renderer.reward_batch([(messages, "a red cat", "One fact.", None)], template)
    text = lmm.processor.tokenizer.decode(batch["input_ids"][0])
    assert text.count("a red cat") == 2 and text.rindex("a red cat") > text.index("One fact.")
