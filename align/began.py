"""What a run began with, beside its settings: under anything else it is not gone on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from align.checkpoint import CheckpointError, RunDir
from align.config import BestOfSettings, FactKind, GroupSettings, ModelSettings, PpoSettings, is_hub_id
from align.meta import read_config
from align.pairs import Pair, picture_source
from align.reward_model import find_reward, read_info, sha256_of
from align.user_rewards import sources
from data.jsonl import read_json, write_json
from data.schema import Example, Prompt

BEGAN = "began.json"
#: bytes read at both ends of a file of a base's weights, and of the beginning of each tensor in it
ENDS, BEGINNING = 2**20, 4096


def belongings(
    settings: PpoSettings | GroupSettings | BestOfSettings, prompts: Sequence[Prompt], processes: int = 1
) -> dict[str, Any]:
    """What a run's results follow from beside its settings.

    Functions of ``user_rewards`` must have been imported. Raises ModelError for a Hub id that cannot be had.
    """
    ids = hashlib.sha256("\n".join(f"{p.id}\t{p.question}" for p in prompts).encode()).hexdigest()
    judged = hashlib.sha256()
    for prompt in prompts:
        # where the prompt is from decides nothing
        judged.update(prompt.model_dump_json(exclude={"source", "split"}).encode() + b"\n")
    return {
        "processes": processes,
        "model weights": base_digest(settings.model),
        "reward model weights": weights_digest(settings.reward_model),
        "weights of the reward model's base": base_digest(read_info(settings.reward_model).model),
        "prompts": ids,
        "pictures, facts or kinds of the prompts": judged.hexdigest(),
    } | _rewards_code(settings)


def _rewards_code(settings: PpoSettings | GroupSettings | BestOfSettings) -> dict[str, str]:
    found = {name: sha256_of(file) for name, file in sources(settings.user_rewards).items()}
    return {"code of the user rewards": digest_of(found.items())} if found else {}


def lessons(
    model: ModelSettings,
    learned: Iterable[Pair | Example],
    held_out: Iterable[Pair | Example],
    facts: Sequence[FactKind] = (),
) -> dict[str, str]:
    """What a run that learns from records follows from beside its settings; it reads the kinds ``facts``.

    Raises ModelError for a Hub id that cannot be had.
    """
    return {
        "model weights": base_digest(model),
        "records to learn from": digest_of(_told(record, facts) for record in learned),
        "held-out records": digest_of(_told(record, facts) for record in held_out),
    }


def _told(record: Pair | Example, facts: Sequence[FactKind]) -> list[Any]:
    """What is learned of a record: of a preference as of its pair, the better response first."""
    said = [(message.role, message.content) for message in record.messages]
    told = [record.id, picture_source(record.image), said]
    if isinstance(record, Pair):
        told += [record.chosen, record.rejected]
        told += [getattr(record.facts, kind) for kind in facts]
    return told


def digest_of(rows: Iterable[Any]) -> str:
    """sha256 of JSON values, in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row).encode() + b"\n")
    return found.hexdigest()


def weights_digest(reward_model: str | Path) -> str:
    """sha256 of a reward model's files that its scores depend on."""
    folder, found = find_reward(reward_model), hashlib.sha256()
    for name in ("reward.json", "head.safetensors", "adapter_model.safetensors"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def base_digest(model: ModelSettings) -> str:
    """sha256 of which weights these are: the base's, and those of the adapters merged into it.

    Of a folder's large files parts are read that no training leaves alone, of a Hub id its commit, which a
    configuration brings with it. Raises ModelError for a Hub id that cannot be had.
    """
    return digest_of([_base(model), *map(_adapter, model.adapters)])


def _base(model: ModelSettings) -> Any:
    if is_hub_id(model.path):
        return [model.path, getattr(read_config(model), "_commit_hash", None)]
    return [[file.name, file.stat().st_size, file_digest(file)] for file in _weights(model.path)]


def _adapter(path: str) -> Any:
    return path if is_hub_id(path) else [[file.name, sha256_of(file)] for file in _weights(path)]


def _weights(folder: str) -> list[Path]:
    found = sorted(Path(folder).glob("*.safetensors"))
    return found or sorted(Path(folder).glob("*.bin"))


def file_digest(file: Path) -> str:
    """sha256 of both ends of a file of weights and of where each of its tensors begins.

    For a file of 5 GB that is a few MB: whatever has learned differs there, though a frozen tensor stands at
    either end.
    """
    found = hashlib.sha256()
    with file.open("rb") as opened:
        size = file.stat().st_size
        found.update(opened.read(ENDS))
        opened.seek(max(0, size - ENDS))
        found.update(opened.read(ENDS))
        if file.suffix == ".safetensors":
            for start in _tensors(opened):
                opened.seek(start)
                found.update(opened.read(BEGINNING))
    return found.hexdigest()


def _tensors(file: BinaryIO) -> Iterator[int]:
    """Where the tensors of a safetensors file begin: its header's length (8 bytes), its header, its data.

    None of a damaged one, which will not load.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, ENDS * 100)))
    except ValueError:
        return
    for name, entry in header.items():
        if name != "__metadata__":
            yield 8 + length + entry["data_offsets"][0]


def check_belongs(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError where what lies in ``folder`` was made under other ``belongings``.

    What an older version did not write down is not asked for.
    """
    different = [name for name in now if name in then and then[name] != now[name]]
    if not different:
        return
    how = [
        f"{then[name]} processes, and there are {now[name]}" if name == "processes" else f"other {name}"
        for name in different
    ]
    raise CheckpointError(
        f"{folder}: was made with {'; '.join(how)}, so that the run would not go on as it began; start it as "
        "then, or choose another output"
    )


def check_goes_on(directory: RunDir, now: dict[str, Any]) -> None:
    """:func:`check_belongs` of a run's newest checkpoint, if there is one; no weights are read."""
    folder = directory.latest_checkpoint()
    if folder is not None and (folder / "run.json").exists():
        check_belongs(read_json(folder / "run.json"), now, folder)


def check_began(directory: RunDir, now: dict[str, Any]) -> None:
    """Write down what a run without checkpoints of ours begins with, or :func:`check_same` of that."""
    check_same(directory.path, now)
    if not (directory.path / BEGAN).exists():
        write_json(directory.path / BEGAN, now)


def check_same(output: str | Path, now: dict[str, Any]) -> None:
    """:func:`check_belongs` of what was written down of the run in ``output``, if there is one."""
    folder = Path(output)
    if (folder / BEGAN).exists():
        check_belongs(read_json(folder / BEGAN), now, folder)
