"""The labels of one round: simulated ones, or a file of them joined with the responses that were sampled."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from align.config import RoundsSettings
from apps.world_commands import annotate
from data.errors import DataError
from data.jsonl import Rejects, read_records, write_json, write_records
from data.load import load
from data.schema import Preference
from data.world.build import read_scenes

#: where a round keeps its labels, those that cannot be used, and what they come to
LABELS, REJECTS, SUMMARY = "labels.jsonl", "rejects.jsonl", "labels.json"


def awaited_file(settings: RoundsSettings, number: int, folder: Path) -> Path | None:
    """The file of labels that the round in ``folder`` waits for; None where nobody is asked."""
    if settings.labels.by == "simulated":
        return None
    named = settings.labels.file
    return Path(named.replace("{round}", str(number))) if named else folder / "choices.jsonl"


def write_labels(settings: RoundsSettings, number: int, folder: Path) -> dict[str, Any]:
    """Write the labels of the round in ``folder`` to ``labels/``; returns what ``labels.json`` says of them.

    Records that cannot be used, of which a few are borne with, stand in ``labels/rejects.jsonl``. Ids begin
    with the round, so that the labels of several rounds can be learned together.

    Raises:
        DataError: unreadable labels, labels of other responses, or none that is decided.
    """
    read = read_records(folder / "sample/samples.jsonl", "preference", strict=True)
    samples = [record for record in read if isinstance(record, Preference)]
    file = awaited_file(settings, number, folder)
    source: dict[str, Any] = {"by": settings.labels.by}
    rejects = Rejects()
    if file is None:
        assert settings.labels.world is not None
        named = [sample.model_copy(update={"id": f"round-{number}/{sample.id}"}) for sample in samples]
        scenes = read_scenes(Path(settings.labels.world))
        found = annotate(named, scenes, seed=settings.seed, clean=settings.labels.clean)
    else:
        found = join(samples, read_labels(settings, file, rejects), file, number)
        source |= {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    decided = sum(record.preferred is not None for record in found)
    if not decided:
        where = file or folder / "sample/samples.jsonl"
        rule = f"none of {len(found)} records has a choice between its responses"
        raise DataError(rule, file=str(where), key="choices", mend="label them, ties apart")
    write_records(folder / "labels" / LABELS, found)
    rejects.write(folder / "labels" / REJECTS)
    summary = source | {"sampled": len(samples), "labelled": len(found), "decided": decided}
    summary |= {"rejected": len(rejects.found)}
    write_json(folder / "labels" / SUMMARY, summary)
    return summary


def read_labels(settings: RoundsSettings, file: Path, rejects: Rejects) -> list[Preference]:
    """The records of a file of labels; ``rejects`` gets the bad ones. Raises DataError for too many."""
    records = load(
        file,
        want="preference",
        format=settings.labels.format,
        options=settings.labels.options,
        images=settings.prompts.images,
        rejects=rejects,
    )
    return [record for record in records if isinstance(record, Preference)]


def join(
    samples: Sequence[Preference], labels: Iterable[Preference], file: Path, number: int
) -> list[Preference]:
    """Each label with image, question and facts of the sample that it is of, which may have more responses.

    A sample is found by its id, and where a format has none of ours by picture, question and responses. Where
    only some of its responses were compared, their places are in the id ("four/1-3"), so that all who
    compared them, in whatever order, are annotators of one pair. Who is not named is another annotator each
    time; a second choice of one who is named gets an id of its own ("four#2").

    Raises DataError for labels of what was not sampled.
    """
    by_id = {sample.id: sample for sample in samples}
    by_question: dict[tuple[str | None, str], list[Preference]] = defaultdict(list)
    for sample in samples:
        by_question[_asked(sample)].append(sample)
    found: list[Preference] = []
    strange: list[str] = []
    times = Counter[tuple[str, str | None]]()
    for label in labels:
        near = [by_id[label.id]] if label.id in by_id else by_question[_asked(label)]
        fitting = [one for one in near if _texts(label) <= _texts(one)]
        if not fitting:
            strange.append(label.id)
            continue
        sample = fitting[0]
        name, annotator = f"round-{number}/{sample.id}{_places(label, sample)}", label.annotator
        times[name, annotator] += 1
        again = times[name, annotator]
        if again > 1 and annotator is None:
            annotator = f"unnamed {again}"
        elif again > 1:
            name += f"#{again}"
        said = {response.text.strip(): response for response in sample.responses}
        chosen = {
            "responses": [said[response.text.strip()] for response in label.responses],
            "choices": label.choices,
            "annotator": annotator,
            "meta": label.meta,
        }
        found.append(sample.model_copy(update={"id": name} | chosen))
    if strange:
        named = ", ".join(map(repr, strange[:3])) + (" …" if len(strange) > 3 else "")
        rule = f"{len(strange)} of its records compare what round {number} did not sample ({named})"
        mend = "label this round's samples, and leave their ids, or their pictures and texts, as they are"
        raise DataError(rule, file=str(file), mend=mend)
    return found


def _places(label: Preference, sample: Preference) -> str:
    """Which of the sample's responses were compared, counted from one; nothing where all were."""
    texts = list(dict.fromkeys(response.text.strip() for response in sample.responses))
    compared = _texts(label)
    if len(compared) == len(texts):
        return ""
    return "/" + "-".join(str(place) for place, text in enumerate(texts, 1) if text in compared)


def _asked(record: Preference) -> tuple[str | None, str]:
    image = record.image
    where = None if image is None else image.path or image.id
    return where, record.messages[-1].content.strip()


def _texts(record: Preference) -> set[str]:
    return {response.text.strip() for response in record.responses}
