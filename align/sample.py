"""``align sample``: several responses of a model to each prompt, for annotators to compare.

Prompts in, Preference records without choices out (``samples.jsonl``). Thesis, 9.2: two responses
of the SFT model at temperature 0.7.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import torch

from align.checkpoint import CheckpointError, RunDir, progress
from align.config import SampleSettings
from align.generate import Item, generate
from align.launch import one_process
from align.models.lmm import Lmm, check_model
from align.models.lmm import load as load_lmm
from align.pictures import encode_pictures, open_pictures
from align.render import Renderer
from align.schedule import step_seed
from data.jsonl import Rejects, read_records, write_records
from data.load import load
from data.schema import Message, Preference, Prompt, Response

log = logging.getLogger(__name__)


def run(settings: SampleSettings) -> Path:
    """Write ``<output>/samples.jsonl``; an interrupted run goes on and ends with the same file.

    Prompts are answered in parts of fixed size, each with a seed of its own, kept in ``<output>/parts``. Bad
    records that were left out stand in ``<output>/rejects.jsonl``.

    Raises:
        DataError: unreadable prompts or pictures.
        ModelError: the checkpoint is no multimodal model.
        CheckpointError: the output is another run's, or its parts answer other prompts.
        LaunchError: this is one of several processes.
    """
    one_process("sample")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rejects = Rejects()
    prompts = read_prompts(settings, rejects)
    check_model(settings.model)
    if settings.dry_run:
        return Path(settings.output)
    with RunDir.create(settings.output, settings, "sample") as run_dir:
        if run_dir.is_done:
            return run_dir.path
        rejects.write(run_dir.path / "rejects.jsonl")
        if settings.resume:
            run_dir.truncate_metrics(-1)
        parts = sample_parts(settings, prompts, run_dir.path / "parts")
        records = [record for part in parts for record in read_records(part, "preference", strict=True)]
        kept = [record for record in records if not settings.distinct or _differs(record)]
        if not kept:
            log.warning("no prompt drew two different responses; raise generate.temperature")
        write_records(run_dir.path / "samples.jsonl", kept)
        run_dir.log(len(prompts), **{"sample/prompts": len(prompts), "sample/kept": len(kept)})
        run_dir.done()
    return run_dir.path


def read_prompts(settings: SampleSettings, rejects: Rejects | None = None) -> list[Prompt]:
    """The prompts that the settings name; ``rejects`` gets the bad ones. Raises DataError."""
    records = load(want="prompt", **settings.data.model_dump(), rejects=rejects)
    return [record for record in records if isinstance(record, Prompt)]


def sample_parts(settings: SampleSettings, prompts: list[Prompt], folder: Path) -> list[Path]:
    """One file of records for each part of the prompts, in order; those that exist are kept.

    Raises CheckpointError for a file that answers other prompts.
    """
    size = max(settings.generate.batch_size * 8, 64)
    files = {start: folder / f"{start:08d}.jsonl" for start in range(0, len(prompts), size)}
    missing = [start for start, file in files.items() if not file.exists()]
    for start, file in files.items():
        if start not in missing:
            check_part(file, prompts[start : start + size])
    if missing:
        lmm = load_lmm(settings.model)
        renderer = Renderer(lmm.processor)
        with progress(missing, "sample") as starts:
            for start in starts:
                part = prompts[start : start + size]
                seed = step_seed(settings.seed, "sample", start)
                write_records(files[start], answered(lmm, renderer, settings, part, seed))
    return list(files.values())


def check_part(file: Path, prompts: list[Prompt]) -> None:
    """Raise CheckpointError unless the part that an earlier start wrote answers these prompts, in order."""
    records = read_records(file, "preference", strict=True)
    asked = [(p.id, p.image, _messages(p)) for p in prompts]
    answered = [(r.id, r.image, r.messages) for r in records if isinstance(r, Preference)]
    for now, then in zip_longest(asked, answered):
        if now != then:
            first = (now or then)[0]
            raise CheckpointError(
                f"{file}: answers other prompts than the data now holds (the first that differs: {first!r}); "
                "choose another output, or give the data that the run was started with"
            )


def answered(
    lmm: Lmm, renderer: Renderer, settings: SampleSettings, prompts: list[Prompt], seed: int
) -> Iterator[Preference]:
    """The prompts with ``settings.responses`` responses each."""
    images, ids = [prompt.image for prompt in prompts], [prompt.id for prompt in prompts]
    pictures = open_pictures(images, settings.data.images, ids)
    encoded = encode_pictures(lmm, renderer, pictures)
    items: list[Item] = [(_messages(prompt), image) for prompt, image in zip(prompts, encoded)]
    answers = generate(lmm, renderer, items, settings.generate, seed=seed, num_return=settings.responses)
    for prompt, responses in zip(prompts, answers, strict=True):
        if isinstance(responses, list):
            yield _preference(prompt, responses)


def _messages(prompt: Prompt) -> list[Message]:
    return [Message(role="user", content=prompt.question)]


def _preference(prompt: Prompt, responses: list[Response]) -> Preference:
    return Preference(
        id=prompt.id,
        image=prompt.image,
        messages=_messages(prompt),
        responses=responses,
        choices={},
        facts=prompt.facts,
        source=prompt.source,
        split=prompt.split,
    )


def _differs(record: object) -> bool:
    return isinstance(record, Preference) and len({r.text for r in record.responses}) > 1
