"""``make world-base``: rebuild the small pretrained base of the built-in world (at most 30 minutes)."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Report:
    """Print figures with the seconds since ``start``; goes to the process beside as well."""

    start: float

    def __call__(self, figures: dict[str, float]) -> None:
        shown = "  ".join(f"{k} {v:.3f}" for k, v in figures.items())
        print(f"{time.monotonic() - self.start:6.0f} s  {shown}", flush=True)


def main(argv: list[str] | None = None) -> int:
    from align.config import WORLD_BASE
    from align.contrastive import ClipRun, compare_terms
    from align.models.world_base import build_base, new_clip, tokenizer_for_world
    from align.models.world_lessons import BaseRun

    parser = argparse.ArgumentParser(prog="world-base", description=__doc__)
    parser.add_argument("--output", type=Path, help="default: the shipped base, with --quick runs/world_base")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument(
        "--compare-terms",
        action="store_true",
        help="only train the encoder with and without the region term, and print what a linear probe reads",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    report = Report(time.monotonic())
    run = BaseRun()
    if args.quick:
        few = ClipRun(images=400, epochs=1)
        run = BaseRun(
            few, reading_steps=2, studying_steps=2, grounding_steps=2, steps=3, scenes=200, jumbled=100
        )
    if args.compare_terms:
        tokenizer = tokenizer_for_world()
        print(compare_terms(lambda: new_clip(tokenizer), run.clip, report))
        return 0
    output = args.output or (Path("runs/world_base") if args.quick else WORLD_BASE)
    output.parent.mkdir(parents=True, exist_ok=True)
    print(build_base(output, run, report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
