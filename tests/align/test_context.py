"""align.context: a prompt and a response that go beyond the model's positions stop a run before it starts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage
from transformers import LlamaConfig, LlavaConfig

from align import context
from align.config import LoraSettings, ModelSettings, PpoSettings
from align.context import check_context, check_window, window
from align.diagnose import PpoError
from align.models.lmm import load_processor
from align.models.tiny import build_tiny_llava
from align.render import Renderer
from align.reward_model import RewardInfo, RewardModel
from data.schema import Facts, Image, Message, Prompt

LIMIT = 512  # of the tiny model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    build_tiny_llava(folder / "base")
    return folder


def reward(root: Path, name: str, **info: Any) -> Path:
    model = RewardModel.start(
        RewardInfo(model=ModelSettings(path=str(root / "base"), device="cpu"), **info), LoraSettings(r=2)
    )
    return model.save(root / name, "")


def settings(root: Path, folder: Path, new: int, **more: Any) -> PpoSettings:
    model = {"path": str(root / "base"), "device": "cpu"}
    generate = {"max_new_tokens": new}
    return PpoSettings(
        output="x", model=model, reward_model=str(folder), data={"path": "x"}, generate=generate, **more
    )


PICTURED = Prompt(id="pictured", question="What is it?", image=Image(id="a", path="a.png"))
WORDS = Prompt(id="words", question="What is it? " * 6)


def test_the_longest_prompt_decides_to_the_token(root: Path) -> None:
    """What the run itself would put into a batch is what is counted."""
    folder = reward(root, "short", template="Good?")
    renderer = Renderer(load_processor(ModelSettings(path=str(root / "base"))))
    picture = PILImage.new("RGB", (40, 20))
    for prompt, image in ((PICTURED, picture), (WORDS, None)):
        items = [([Message(role="user", content=prompt.question)], image)]
        asked = renderer.prompt_batch(items)["input_ids"].shape[1]
        judged = renderer.reward_batch([(*items[0][:1], "", None, image)], "Good?")["input_ids"].shape[1]
        most = LIMIT - judged
        check_context(settings(root, folder, most), [prompt])
        with pytest.raises(PpoError, match=rf"prompt '{prompt.id}' with what the reward model reads behind"):
            check_context(settings(root, folder, most + 1), [prompt])
        left = LIMIT - asked
        words = rf"context is {LIMIT} tokens, and prompt '{prompt.id}' takes {asked} .*at most {left},"
        with pytest.raises(PpoError, match=words):
            check_context(settings(root, folder, left + 1), [prompt])
    with pytest.raises(PpoError, match="prompt 'words'"):
        check_context(settings(root, folder, 500), [PICTURED, WORDS, PICTURED])


def test_facts_and_a_repeated_response_count(root: Path) -> None:
    template = "{facts}\n{response}\nGood?"
    folder = reward(root, "facts", template=template, facts=["captions"], max_facts={"captions": 2})
    long, short = "A red apple lies on the table. " * 3, "A cat."
    renderer = Renderer(load_processor(ModelSettings(path=str(root / "base"))))
    ask = [Message(role="user", content="What?")]
    facts = f"True of the image:\n{long}\n{long}"
    read = renderer.reward_batch([(ask, "", facts, None)], template)["input_ids"].shape[1]
    most = (LIMIT - read) // 2
    prompt = Prompt(id="q", question="What?", facts=Facts(captions=[short, long, short, long, short]))
    check_context(settings(root, folder, most - 2), [prompt])
    with pytest.raises(
        PpoError, match=r"reads behind it takes \d+ .* which is read 2 times; .* at most (\d+)"
    ) as said:
        check_context(settings(root, folder, most + 2), [prompt])
    mended = int(re.findall(r"at most (\d+)", str(said.value))[0])
    check_context(settings(root, folder, mended), [prompt])
    assert abs(mended - most) <= 1


def test_only_prompts_that_may_be_too_long_are_tokenized(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = reward(root, "counted", template="Good?")
    prompts = [
        WORDS.model_copy(update={"id": f"q{i}", "question": "What? " * (1 + i % 9)}) for i in range(50)
    ]
    prompts[30] = prompts[30].model_copy(update={"question": "What is it? " * 12})
    monkeypatch.setattr(context, "AT_ONCE", 20)
    tokenized: list[int] = []
    real = Renderer.prompt_lengths

    def counted(self: Renderer, items: Any) -> list[int]:
        tokenized.append(len(items))
        return real(self, items)

    monkeypatch.setattr(Renderer, "prompt_lengths", counted)
    check_context(settings(root, folder, 200), prompts)
    assert tokenized == []
    # room for the longest by its tokens, and not by its bytes
    monkeypatch.setattr(Renderer, "most_tokens", lambda self, items: [10**6] * len(items))
    lengths = [
        real(
            Renderer(load_processor(ModelSettings(path=str(root / "base")))),
            [([Message(role="user", content=p.question)], None)],
        )[0]
        for p in prompts
    ]
    with pytest.raises(PpoError, match=rf"prompt 'q30' takes {max(lengths)} "):
        check_context(settings(root, folder, LIMIT - max(lengths) + 1), prompts)
    monkeypatch.undo()
    with pytest.raises(PpoError, match=rf"prompt 'q30' takes {max(lengths)} "):
        check_context(settings(root, folder, LIMIT - max(lengths) + 1), prompts)


def test_a_prompt_that_leaves_no_room(root: Path) -> None:
    folder = reward(root, "plain")
    with pytest.raises(PpoError, match="leave such prompts out, or take a model of a longer context"):
        check_context(settings(root, folder, 8), [Prompt(id="q", question="What is it? " * 200)])
    check_context(settings(root, folder, 8), [])


def test_no_weights_are_read_and_a_dry_run_looks_nothing_up(root: Path, tmp_path: Path) -> None:
    folder = reward(root, "moved")
    bare = tmp_path / "bare"
    shutil.copytree(root / "base", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    chosen = settings(root, folder, 490)
    chosen = chosen.model_copy(update={"model": ModelSettings(path=str(bare))})
    with pytest.raises(PpoError, match=r"bare: its context is 512"):
        check_context(chosen, [WORDS])
    info = json.loads((folder / "reward.json").read_text())
    info["model"]["path"] = "owner/name"
    (folder / "reward.json").write_text(json.dumps(info))
    elsewhere = {"model": ModelSettings(path="owner/name"), "dry_run": True}
    check_context(settings(root, folder, 4000).model_copy(update=elsewhere), [WORDS])


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 2048),
        ({"rope_type": "linear", "factor": 4.0}, 8192),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        # there the stretched length is written down already
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
    ],
)
def test_stretched_positions(rope: dict[str, Any], expected: int) -> None:
    text = LlamaConfig(max_position_embeddings=2048, rope_parameters=rope | {"rope_theta": 1e4})
    assert window(LlavaConfig(text_config=text)) == expected
    check_window("m", LlavaConfig(text_config=text), 48, expected - 48)
    with pytest.raises(PpoError):
        check_window("m", LlavaConfig(text_config=text), 49, expected - 48)
