"""Checkpoints and adapters that cannot be had: told of by name, and ahead of the base's weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.config import LoraSettings, ModelSettings
from align.models import lmm as lmm_module
from align.models.lmm import ModelError, add_adapters, check_adapter, check_model, device_of, load


@pytest.fixture(scope="module")
def adapter(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    base = load(ModelSettings(path=str(tiny_llava), device="cpu"))
    add_adapters(base.model, LoraSettings(r=2), ["policy"]).save_pretrained(folder)
    return folder / "policy"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the base's weights fails the test."""
    read = SimpleNamespace(from_pretrained=lambda *a, **k: pytest.fail("the base was loaded"))
    monkeypatch.setattr(lmm_module, "AutoModelForImageTextToText", read)


@pytest.mark.usefixtures("no_weights")
def test_adapters_that_are_none_are_named_before_the_base_loads(
    tiny_llava: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").touch()
    for name in ("bare", "weightless"):
        shutil.copytree(adapter, tmp_path / name)
    (tmp_path / "bare/adapter_config.json").unlink()
    (tmp_path / "weightless/adapter_model.safetensors").unlink()
    wrong = {
        "runs/adapter": "runs/adapter: no such directory",
        "file": "file: no such directory",
        "bare": r"bare: adapter_config\.json is missing; .*'adapter' or 'policy'",
        "weightless": r"weightless: no weights \(adapter_model\.safetensors\)",
    }
    for name, rule in wrong.items():
        settings = ModelSettings(path=str(tiny_llava), adapter=[str(adapter), name], device="cpu")
        with pytest.raises(ModelError, match=rule):
            check_model(settings)
        with pytest.raises(ModelError, match=rule):
            load(settings)
    check_model(ModelSettings(path="owner/base", adapter=[str(adapter), "owner/adapter"]))


def test_a_hub_id_that_cannot_be_had(tiny_llava: Path, request: pytest.FixtureRequest) -> None:
    """The tests run with HF_HUB_OFFLINE: as without a connection, or for an id that does not exist."""
    rule = r"owner/nothing: cannot be loaded \(.*\); check the Hub id and the connection"
    with pytest.raises(ModelError, match=rule) as caught:
        load(ModelSettings(path="owner/nothing", device="cpu"))
    assert isinstance(caught.value.__cause__, OSError) and "\n" not in str(caught.value)
    request.getfixturevalue("no_weights")
    with pytest.raises(ModelError, match=rule):
        load(ModelSettings(path=str(tiny_llava), adapter="owner/nothing", device="cpu"))


def test_a_damaged_configuration_is_the_folders_fault(tiny_llava: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llava, tmp_path / "damaged"))
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text("{")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ModelError, match=r"damaged: cannot be loaded \(.*\); restore its files"):
        load(ModelSettings(path=str(folder), device="cpu"))


def test_a_whole_adapter_passes(adapter: Path) -> None:
    check_adapter(str(adapter))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    check_adapter(str(adapter))
    (adapter / "adapter_model.bin").rename(adapter / "adapter_model.safetensors")


def test_each_process_takes_a_gpu_of_its_own(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are GPUs; LOCAL_RANK is torchrun's, and a launcher may show each process its GPU alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device_of("auto") == "cuda"
    for rank, device in (("-1", "cuda"), ("0", "cuda:0"), ("3", "cuda:3")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert device_of("auto") == device
    assert (device_of("cpu"), device_of("cuda:1")) == ("cpu", "cuda:1")
    # what the base of a reward function is loaded by, here with 8 bits
    placed: list[Any] = []

    def read(*_: Any, **options: Any) -> Any:
        placed.append(options["device_map"])
        raise OSError("no GPU here")

    monkeypatch.setattr(lmm_module, "AutoModelForImageTextToText", SimpleNamespace(from_pretrained=read))
    with pytest.raises(ModelError, match="no GPU here"):
        load(ModelSettings(path=str(tiny_llava), bits=8))
    assert placed == [{"": "cuda:3"}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of("auto") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == "cpu"
