"""The foreign formats, by name. Each family lives in a file of its own; ``FORMATS`` lists them."""

from __future__ import annotations

from data.formats import (
    amber,
    aokvqa,
    coco,
    flickr30k,
    llava,
    llava_bench,
    llava_rlhf,
    mmbench,
    mmhal,
    pope,
    rlhf_v,
    trl,
    vqa,
)
from data.formats.base import Format
from data.jsonl import DataError

__all__ = ["FORMATS", "Format", "choose"]

FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        llava.LLAVA,
        llava_rlhf.PREFERENCES,
        llava_rlhf.PROMPTS,
        trl.PREFERENCES,
        trl.CONVERSATIONS,
        trl.COMPLETIONS,
        rlhf_v.RLHF_V,
        rlhf_v.RLAIF_V,
        coco.CAPTIONS,
        coco.PROMPTS,
        coco.INSTANCES,
        vqa.EXAMPLES,
        vqa.PROMPTS,
        aokvqa.EXAMPLES,
        aokvqa.PROMPTS,
        flickr30k.FLICKR30K,
        pope.POPE,
        pope.PROMPTS,
        mmhal.MMHAL,
        mmhal.PROMPTS,
        amber.AMBER,
        llava_bench.PROMPTS,
        mmbench.MMBENCH,
    )
}


def choose(name: str, want: str | None = None) -> Format:
    """The format of that name; where it makes another kind than ``want``, its family's format that does.

    So "trl" serves preferences and conversations, and "llava_rlhf" preferences and prompts. Raises
    DataError for an unknown name, or a family without that kind.
    """
    if name not in FORMATS:
        raise DataError(f"unknown format {name!r}", key="format", mend=f"use one of {', '.join(FORMATS)}")
    named = FORMATS[name]
    if want is None or named.kind == want:
        return named
    for other in FORMATS.values():
        if other.family == named.family and other.kind == want:
            return other
    able = [f.name for f in FORMATS.values() if f.kind == want]
    mend = f"use one of {', '.join(able)}" if able else "no format gives that kind"
    raise DataError(f"format {name!r} gives {named.kind!r} records, not {want!r}", key="format", mend=mend)
