"""``align sample``: several responses of a model to each prompt, for annotators to compare.

Prompts in, Preference records without choices out (``samples.jsonl``). Thesis, 9.2: two responses
of the SFT model at temperature 0.7.
"""

from __future__ import annotations

from pathlib import Path

from align.checkpoint import RunDir, progress
from align.config import SampleSettings
from align.generate import generate
from align.models.lmm import load as load_lmm
from align.render import Renderer
from data.images import open_image
from data.jsonl import read_records, write_records
from data.load import load
from data.schema import Message, Preference, Prompt, Response


def run(settings: SampleSettings) -> Path:
    """Write ``<output>/samples.jsonl``; an interrupted run continues with the prompts that are missing.

    Raises DataError for bad data and ModelError for a checkpoint that is no multimodal model.
    """
    data = settings.data
    prompts = load(data.path, "prompt", format=data.format, images=data.images, captions=data.captions,
                   limit=data.limit, max_bad=data.max_bad, strict=data.strict)  # fmt: skip
    if settings.dry_run:
        return Path(settings.output)
    with RunDir.create(settings.output, settings, "sample") as run_dir:
        lmm = load_lmm(settings.model)
        renderer = Renderer(lmm.processor)
        parts = run_dir.path / "parts"
        parts.mkdir(exist_ok=True)
        size = max(settings.generate.batch_size * 8, 64)
        files = []
        with progress(range(0, len(prompts), size), "sample") as starts:
            for start in starts:
                part = parts / f"{start:08d}.jsonl"
                files.append(part)
                if part.exists():
                    continue
                chunk = [p for p in prompts[start : start + size] if isinstance(p, Prompt)]
                items = [
                    ([Message(role="user", content=p.question)], open_image(p.image, data.images) if p.image else None)
                    for p in chunk
                ]
                answers = generate(
                    lmm, renderer, items, settings.generate, seed=settings.seed + start, num_return=settings.responses
                )
                write_records(part, (_pair(p, a) for p, a in zip(chunk, answers, strict=True) if isinstance(a, list)))
        records = [r for part in files for r in read_records(part, "preference")]
        kept = [r for r in records if not settings.distinct or _differs(r)]
        write_records(run_dir.path / "samples.jsonl", kept)
        run_dir.log(len(prompts), **{"sample/prompts": len(prompts), "sample/kept": len(kept)})
        run_dir.done()
    return run_dir.path


def _pair(prompt: Prompt, responses: list[Response]) -> Preference:
    return Preference(
        id=prompt.id,
        image=prompt.image,
        messages=[Message(role="user", content=prompt.question)],
        responses=responses,
        choices={},
        facts=prompt.facts,
        source=prompt.source,
        split=prompt.split,
    )


def _differs(record: Preference | object) -> bool:
    return isinstance(record, Preference) and len({r.text for r in record.responses}) > 1
