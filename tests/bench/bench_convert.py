"""Large files through ``align data convert``: CPU seconds and peak memory of the command itself.

150,000 LLaVA conversations in one JSON array; and JSON lines of 10,000 and of 300,000 records, whose peaks
differ by what is kept of a record (a hash of its id).
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

WORDS = ["the", "a", "of", "dog", "man", "street", "red", "car", "with", "and", "is", "in", "on", "walking"]


def _write(path: Path, n: int) -> None:
    """One conversation a line, or all of them in one array, as LLaVA-Instruct has them."""
    rng = random.Random(0)
    array = path.suffix == ".json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n" if array else "")
        for k in range(n):
            turns = []
            for turn in range(rng.choice([1, 1, 3, 4])):
                question = " ".join(rng.choices(WORDS, k=12)) + "?"
                answer = " ".join(rng.choices(WORDS, k=rng.randint(15, 90))) + "."
                turns.append({"from": "human", "value": question if turn else f"<image>\n{question}"})
                turns.append({"from": "gpt", "value": answer})
            row = {"id": f"{k:012d}", "image": f"{k % 80000:012d}.jpg", "conversations": turns}
            file.write(("," if array and k else "") + json.dumps(row) + "\n")
        file.write("]\n" if array else "")


def _convert(source: Path, target: Path) -> tuple[float, float]:
    """CPU seconds and peak megabytes of one conversion in a process of its own."""
    # the kernel's own peak: getrusage's would count this process too, out of which the other is made
    code = (
        "import resource, sys; from apps.cli import main; status = main(sys.argv[1:]);"
        "use = resource.getrusage(resource.RUSAGE_SELF);"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(use.ru_utime + use.ru_stime, int(peak) / 1024, file=sys.stderr); sys.exit(status)"
    )
    words = ["data", "convert", str(source), str(target), "--from", "llava", "--force"]
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    seconds, peak = map(float, done.stderr.split()[-2:])
    return seconds, peak


def test_a_large_array(tmp_path: Path) -> None:
    source = tmp_path / "llava.json"
    _write(source, 150_000)
    size = source.stat().st_size / 2**20
    seconds, peak = _convert(source, tmp_path / "out.jsonl")
    print(f"\n150,000 conversations ({size:.0f} MB array): {seconds:.1f} s of CPU, peak {peak:.0f} MB")
    assert peak < 600


def test_memory_of_json_lines(tmp_path: Path) -> None:
    peaks = {}
    for n in (10_000, 300_000):
        source = tmp_path / f"{n}.jsonl"
        _write(source, n)
        seconds, peaks[n] = _convert(source, tmp_path / "out.jsonl")
        print(f"\n{n:,} lines: {seconds:.1f} s of CPU, peak {peaks[n]:.0f} MB")
    assert peaks[300_000] - peaks[10_000] < 50
    print(f"growth: {peaks[300_000] - peaks[10_000]:.0f} MB")
