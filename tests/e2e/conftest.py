"""Real photographs in the layouts that people have them in, and a tiny model to run every stage with."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image as Pil

from apps import cli

#: name in the image folder -> (package, file, what is in it, what is not)
PHOTOS = {
    "astronaut.jpg": ("skimage", "astronaut.png", ["woman", "flag"], ["dog", "boat"]),
    "chelsea.png": ("skimage", "chelsea.png", ["cat"], ["bicycle", "flag"]),
    "coffee.jpg": ("skimage", "coffee.png", ["cup", "spoon", "table"], ["cat", "person"]),
    "rocket.jpg": ("skimage", "rocket.jpg", ["rocket"], ["cup", "cat"]),
    "camera.png": ("skimage", "camera.png", ["man", "camera"], ["car", "cat"]),
    "logo.png": ("skimage", "logo.png", ["snake"], ["table", "cup"]),
    "china.jpg": ("sklearn", "china.jpg", ["building", "tree"], ["cat", "rocket"]),
    "flower.jpg": ("sklearn", "flower.jpg", ["flower"], ["car", "man"]),
}


@pytest.fixture(autouse=True)
def _quiet_progress() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _source(package: str, name: str) -> Path:
    """A file that the package ships in its wheel; found without importing the package.

    Fails where it is missing: a test dependency is declared, and skipped tests would pass for green ones.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(f"{package} is not installed; install the test dependencies (pip install -e '.[test]')")
    folder = "data" if package == "skimage" else "datasets/images"
    path = Path(spec.submodule_search_locations[0]) / folder / name
    if not path.is_file():
        pytest.fail(f"{path}: {package} ships no such file; name another photograph in PHOTOS")
    return path


def _llava(name: str, there: list[str]) -> dict[str, Any]:
    """One LLaVA row: a description, then for odd ones a second turn."""
    turns = ["<image>\nDescribe the picture in detail.", f"The picture shows a {' and a '.join(there)}."]
    if len(there) > 1:
        turns += [f"Is there a {there[0]} in the image?", "Yes"]
    speakers = ("human", "gpt") * 2
    talk = [{"from": s, "value": v} for s, v in zip(speakers, turns)]
    return {"id": name.split(".")[0], "image": name, "conversations": talk}


def _preference(index: int, name: str, there: list[str], absent: list[str]) -> dict[str, Any]:
    """A LLaVA-RLHF row: the true response first in even rows, second in odd ones."""
    texts = [f"There is a {there[0]}.", f"There is a {there[0]} and a {absent[0]}."]
    outputs = texts if index % 2 == 0 else texts[::-1]
    return {
        "id": f"p{index}",
        "image": name,
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is in the image?"},
            {"from": "gpt", "value": ""},
        ],
        "output_1": {"from": "llava", "value": outputs[0]},
        "output_2": {"from": "llava", "value": outputs[1]},
        "preference": 1 + index % 2,
        "hallucination": True,
    }


def _prompt(index: int, name: str) -> dict[str, Any]:
    question = "Is there a cat in the image?" if index % 2 else "Describe the picture in detail."
    talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "-"}]
    kinds = (
        {"caption_type": 6, "length_bonus": 1.0} if index % 2 else {"caption_type": 1, "length_bonus": 4.0}
    )
    return {"id": f"r{index}", "image": name, "conversations": talk, **kinds}


def _pope(name: str, there: list[str], absent: list[str], start: int) -> list[dict[str, Any]]:
    asked = [(there[0], "yes"), (absent[0], "no")]
    return [
        {"question_id": start + i, "image": name, "text": f"Is there a {what} in the image?", "label": label}
        for i, (what, label) in enumerate(asked)
    ]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``images/``, the files that the recipes name, and ``base/``."""
    from align.models.tiny import build_tiny_llava

    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    for name, (package, file, *_) in PHOTOS.items():
        source = _source(package, file)
        if source.suffix == Path(name).suffix:
            shutil.copy(source, folder / "images" / name)
        else:
            Pil.open(source).convert("RGB").save(folder / "images" / name)
    rows = [(name, there, absent) for name, (_, _, there, absent) in PHOTOS.items()]
    pope = [row for i, (n, t, a) in enumerate(rows) for row in _pope(n, t, a, 2 * i + 1)]
    files = {
        "llava.json": [_llava(name, there) for name, there, _ in rows],
        "preferences.json": [_preference(i, *row) for i, row in enumerate(rows)],
        "captions.json": {n: [f"A photograph of a {t[0]}.", f"There is a {t[-1]}."] for n, t, _ in rows},
        "prompts.json": [_prompt(i, name) for i, (name, *_) in enumerate(rows)],
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "pope_random.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pope))
    build_tiny_llava(folder / "base")
    return folder


def _data(photos: Path, file: str, name: str) -> dict[str, Any]:
    return {"path": str(photos / file), "format": name, "images": str(photos / "images")}


@pytest.fixture(scope="session")
def recipes(photos: Path) -> dict[str, Path]:
    """A recipe of each stage; the output is given on the command line."""
    common = {"model": {"path": str(photos / "base"), "device": "cpu"}, "seed": 3, "report_to": []}
    learn = {"log_every": 1, "save_every": 2, "optim": {"lr": 0.01}, "lora": {"r": 4}}
    reward = common | learn | {"batch_size": 4, "holdout": 2, "epochs": 2, "eval_every": 1}
    reward |= {"data": _data(photos, "preferences.json", "llava_rlhf")}
    sft = common | learn | {"lora": None, "batch_size": 4, "max_steps": 4}
    sft |= {"data": _data(photos, "llava.json", "llava")}
    ppo = common | learn | {"rollouts": 8, "minibatch": 8, "steps": 4, "generate": {"max_new_tokens": 8}}
    ppo |= {
        "data": _data(photos, "prompts.json", "llava_rlhf_prompts")
        | {"captions": str(photos / "captions.json")}
    }
    sample = common | {"generate": {"max_new_tokens": 8, "temperature": 1.0}}
    sample |= {"data": _data(photos, "prompts.json", "llava_rlhf_prompts")}
    eval_ = common | {"benchmarks": {"pope_random": str(photos / "pope_random.jsonl")}, "bootstrap": 100}
    eval_ |= {"images": str(photos / "images"), "generate": {"max_new_tokens": 4, "temperature": 0.0}}
    found = {}
    stages = {"sft": sft, "sample": sample, "reward": reward, "ppo": ppo, "eval": eval_}
    for name, values in stages.items():
        found[name] = photos / f"{name}.yaml"
        found[name].write_text(yaml.safe_dump(values))
    return found


Command = Callable[..., int]


@pytest.fixture(scope="session")
def align(recipes: dict[str, Path]) -> Command:
    """Run one stage with its recipe and further arguments; returns the exit status."""

    def run(stage: str, *arguments: object) -> int:
        return cli.main([stage, str(recipes[stage]), *map(str, arguments)])

    return run


@pytest.fixture(scope="session")
def trained(photos: Path, align: Command) -> dict[str, Path]:
    """Output folders of a reward model without facts, and of one that reads captions."""
    captions = f"data.captions={photos / 'captions.json'}"
    runs = {"plain": (), "facts": ("facts=[captions]", captions)}
    for name, arguments in runs.items():
        assert align("reward", f"output={photos / name}", *arguments) == 0
    return {name: photos / name for name in runs}
