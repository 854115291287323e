"""``rollouts.html`` in a PPO run's directory: its curves and what the policy says, while it runs and after.

Built from the run's own files (``metrics.jsonl``, ``rollouts.jsonl``, ``settings.yaml``), so that it can be
built at any time: ``align ppo page RUN``. All that it shows of a picture is a thumbnail inside the page.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.errors import DataError
from data.files import read_json, read_text
from data.processes import sole_writer
from data.schema import Image
from data.thumbnail import thumbnail
from evals.charts import number
from evals.report import (
    Answer,
    Curves,
    Gallery,
    GalleryItem,
    Page,
    Section,
    Status,
    Table,
    Text,
    format_number,
    write_report,
)

log = logging.getLogger(__name__)

NAME = "rollouts.html"
#: sides of a picture, points of a curve, characters of a text on the page, at most
SIDE, POINTS, LETTERS = 256, 200, 4000
#: steps whose responses are shown, and responses of each: the newest ones, and earlier ones to compare with
NEWEST, OF_NEWEST, EARLIER, OF_EARLIER = 3, 10, 10, 3
#: share of a run's time that its page may take
SHARE = 0.02

#: title, and metric -> name of its line; a metric that ends in "/" stands for all below it
Chart = tuple[str, Mapping[str, str]]
MAIN: tuple[Chart, ...] = (
    ("Reward of a response", {
        "objective/rewards": "reward", "objective/scores": "reward model's score",
        "objective/rlhf_reward": "reward − β·KL",
    }),
    ("Parts of the reward", {"reward/": ""}),
    ("KL to the reference, nats a response", {"objective/kl": "k1", "objective/kl_k3": "k3"}),
    ("Response length, tokens", {"response/length": "length"}),
    ("Responses without an end, share", {"response/incomplete": "incomplete"}),
    ("Entropy, nats a token", {"policy/entropy_avg": "entropy"}),
)  # fmt: skip
REST: tuple[Chart, ...] = (
    ("Clipped, share of tokens", {"policy/clipfrac_avg": "policy", "val/clipfrac_avg": "value"}),
    ("−log π of a response, nats", {"objective/entropy": "−log π"}),
    ("Policy loss, mean of tokens", {"loss/policy_avg": "policy loss"}),
    ("Value loss, mean of tokens", {"loss/value_avg": "value loss"}),
    ("Variance that the value explains, share", {"val/explained_var": "explained variance"}),
    ("Norm of the gradient, before clipping", {"policy/grad_norm": "policy", "val/grad_norm": "value"}),
    ("Speed, tokens a second", {"rate/tokens_per_s": "tokens a second"}),
    ("Time of a step, seconds", {"rate/rollout_s": "rollout", "rate/update_s": "update"}),
    ("Peak memory, GB", {"rate/peak_memory_gb": "peak memory"}),
)


# --- while the stage runs ---


class Follower:
    """Rewrites the page after a step, unless that would take more than ``SHARE`` of the run's time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.run: Path | None = None
        self._cost = 0.0
        self._written = -math.inf

    def watch(self, run: Path) -> None:
        """What ``align.ppo.run`` calls after each logged step, with the run's directory."""
        if self.run is None:
            print(f"the page: {run / NAME}", flush=True)
        self.run = run
        if self._cost <= SHARE * (self.clock() - self._written):
            self.write(running=True)

    def write(self, running: bool, stopped: str = "") -> None:
        """The page as of now. A page that cannot be written is told, and no reason for a run to end."""
        if self.run is None:
            return
        began = self.clock()
        try:
            write_page(self.run, running=running, stopped=stopped)
        except (OSError, DataError) as error:
            log.warning("%s was not written: %s", self.run / NAME, error)
        self._written = self.clock()
        self._cost = self._written - began


@contextlib.contextmanager
def following() -> Iterator[Callable[[Path], None]]:
    """A ``watch`` for ``align.ppo.run``; when the block ends, the page says how."""
    follower = Follower()
    try:
        yield follower.watch
    except BaseException as error:
        kind = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
        follower.write(running=False, stopped=kind or type(error).__name__)
        raise
    follower.write(running=False)


# --- the page ---


def write_page(
    run: Path, *, running: bool | None = None, stopped: str = "", images: str | None = None
) -> Path:
    """Write ``rollouts.html`` into a PPO run's directory, atomically; returns its path.

    ``running`` None: whether another process holds the directory. ``stopped`` says why a run ended early;
    ``images`` is where its pictures are now, when the image root of its settings is not here.

    Raises:
        DataError: ``run`` is no PPO run, or a line of its files cannot be read.
    """
    if not (run / "meta.json").exists() or not (run / "settings.yaml").exists():
        raise DataError("not a run directory", file=str(run), mend="give the output of `align ppo`")
    stage = read_json(run / "meta.json").get("stage")
    if stage != "ppo":
        rule = f"holds a run of {stage!r}, not 'ppo'"
        raise DataError(rule, file=str(run), mend="give the output of `align ppo`")
    page = build_page(run, _is_held(run) if running is None else running, stopped, images)
    write_report(run / NAME, page)
    return run / NAME


def _is_held(run: Path) -> bool:
    """Whether a process writes there now."""
    if not (run / ".lock").exists():
        return False
    try:
        with sole_writer(run):
            return False
    except BlockingIOError:
        return True


def build_page(run: Path, running: bool, stopped: str = "", images: str | None = None) -> Page:
    """The page of the run as its files are now; for the arguments see ``write_page``."""
    settings = yaml.safe_load(read_text(run / "settings.yaml"))
    metrics = read_lines(run / "metrics.jsonl")
    rows = read_lines(run / "rollouts.jsonl")
    sections: list[Section] = [*curves(metrics, MAIN)]
    if rows:
        sections.append(gallery(run, rows, images or settings["data"]["images"]))
    else:
        sections.append(Text("No rollouts are logged (dump_rollouts sets how many of a step are).", ""))
    sections += curves(metrics, REST)
    if table := others(metrics):
        sections.append(table)
    about = f"{settings['model']['path']}, judged by {settings['reward_model']}; β {settings['kl_coef']:g}"
    title = f"PPO: {'/'.join(run.resolve().parts[-2:])}"
    status = status_of(run, settings["steps"], metrics, running, stopped)
    return Page(title, sections, about, status, "From metrics.jsonl and rollouts.jsonl in the run directory.")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log, one a line; none where it does not exist. A last line being written is left out.

    Raises DataError for a line that is no JSON object.
    """
    if not path.exists():
        return []
    found = []
    for place, line in enumerate(read_text(path).split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError("not a JSON object", file=str(path), line=place, mend="remove the line")
        found.append(row)
    return found


def status_of(
    run: Path, steps: int, metrics: Sequence[Mapping[str, Any]], running: bool, stopped: str
) -> Status:
    """How far the run is; while it runs the page reloads itself about once a step."""
    done = int(metrics[-1]["step"]) if metrics else 0
    seconds = [
        row["rate/rollout_s"] + row["rate/update_s"] for row in metrics[-20:] if "rate/update_s" in row
    ]
    pace = statistics.median(seconds) if seconds else 0.0
    if running:
        left = pace * (steps - done) / 60
        detail = f"about {left:.0f} minutes left" if left >= 1 else ""
        refresh = round(min(max(pace, 5), 60))
        return Status("running", True, min(done, steps), steps, detail, refresh)
    if (run / "DONE").exists():
        ended = read_json(run / "result.json")["stopped"] if (run / "result.json").exists() else None
        text = f"ended early: {ended}" if ended else "finished"
    else:
        text = f"stopped: {stopped or 'no process is at work in it'}; --resume goes on from the checkpoint"
    return Status(text, False, min(done, steps), steps)


# --- curves ---


def curves(metrics: Sequence[Mapping[str, Any]], charts: Sequence[Chart]) -> list[Curves]:
    """The charts of which there is something to show."""
    found = []
    for title, lines in charts:
        series = {name: points(metrics, key) for key, name in _expanded(metrics, lines).items()}
        if series := {name: line for name, line in series.items() if line}:
            found.append(Curves(title, series, "step"))
    return found


def _expanded(metrics: Sequence[Mapping[str, Any]], lines: Mapping[str, str]) -> dict[str, str]:
    """Metric -> name, with every metric that is logged below one that ends in "/"."""
    found: dict[str, str] = {}
    logged = dict.fromkeys(key for row in metrics for key in row)
    for key, name in lines.items():
        below = [one for one in logged if key.endswith("/") and one.startswith(key)]
        found |= {one: one.removeprefix(key) for one in below} if key.endswith("/") else {key: name}
    return found


def points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value), thinned to at most about ``POINTS``, the last among them; NaN breaks the line."""
    found = [(float(row["step"]), value) for row in metrics if (value := _value(row.get(key))) is not None]
    stride = math.ceil(len(found) / POINTS) or 1
    return found[::-1][::stride][::-1]


def _value(logged: Any) -> float | None:
    if logged in ("nan", "inf", "-inf"):
        return math.nan
    return float(logged) if isinstance(logged, int | float) else None


def others(metrics: Sequence[Mapping[str, Any]]) -> Table | None:
    """What is logged beside the curves; None where that is nothing."""
    drawn = {key for _, lines in (*MAIN, *REST) for key in _expanded(metrics, lines)} | {"step"}
    rows: list[list[Any]] = []
    for key in dict.fromkeys(key for row in metrics for key in row):
        values = [value for row in metrics if (value := _value(row.get(key))) is not None]
        if key not in drawn and values:
            finite = [value for value in values if math.isfinite(value)]
            told = (values[0], values[-1], min(finite, default=math.nan), max(finite, default=math.nan))
            rows.append([key, *(number(x) if math.isfinite(x) else "–" for x in told)])
    return Table("Also logged", ["metric", "first", "newest", "least", "most"], rows) if rows else None


# --- the gallery ---


def gallery(run: Path, rows: Sequence[Mapping[str, Any]], root: str | None) -> Gallery:
    """The chosen rollouts, newest first, each with its picture, facts and the parts of its reward."""
    items = [item_of(row, picture(run, row.get("image"), root)) for row in chosen(rows)]
    pictured = sum(isinstance(row.get("image"), Mapping) for row in chosen(rows))
    note = (
        f"Of the {NEWEST} newest steps, and of up to {EARLIER} earlier ones to compare with. Score: of the "
        "reward model. KL: log π − log π_ref, summed over the response (k1). Moved most: the tokens on which "
        "policy and reference differ most, by log π − log π_ref."
    )
    if pictured and not any(item.image for item in items):
        note += f" The pictures are not to be found under {root}; --images DIR gives another image root."
    return Gallery("Rollouts", items, note, filters=("step", "ending"))


def chosen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most 60 rows, the newest steps first.

    Earlier steps stand a power of two apart, so that they stay the same for a while as the run goes on.
    """
    of_step: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        of_step[row["step"]].append(row)
    steps = list(of_step)
    early = steps[:-NEWEST]
    stride = 1
    while len(early[::stride]) > EARLIER:
        stride *= 2
    return [
        row
        for wanted, most in ((steps[-NEWEST:], OF_NEWEST), (early[::stride], OF_EARLIER))
        for step in reversed(wanted)
        for row in of_step[step][:most]
    ]


def item_of(row: Mapping[str, Any], image: bytes | None) -> GalleryItem:
    """One rollout."""
    ending = "complete" if row["complete"] else "no end token"
    answer = Answer(_cut(row["response"]), verdict=verdict(row))
    facts = f"The reward model read: {_cut(row['facts'])}" if row.get("facts") else ""
    name = f"step {row['step']} · {row['id']}"
    return GalleryItem(image, _cut(row["question"]), {name: answer}, facts, (str(row["step"]), ending))


def verdict(row: Mapping[str, Any]) -> str:
    """The figures of a rollout, in lines."""
    parts = {"score": row["score"], **row["parts"]}
    told = ", ".join(f"{name} {format_number(value, 2)}" for name, value in parts.items())
    lines = [f"reward {format_number(row['reward'], 2)}: {told}"]
    ending = "" if row["complete"] else ", no end token"
    lines.append(f"KL {format_number(row['kl'], 2)}, {row['tokens']} tokens{ending}")
    if "advantage" in row:
        advantage, value, reached = (
            format_number(x, 2) for x in (row["advantage"]["mean"], row["value"], row["return"])
        )
        lines.append(f"advantage {advantage}; value of the prompt {value}, return {reached}")
    # what would be told as 0.00 has not moved
    if moved := [one for one in row.get("moved", []) if abs(one["log_ratio"]) >= 0.005]:
        words = (f"“{one['token'].strip()}” {_signed(one['log_ratio'])}" for one in moved)
        lines.append(f"moved most: {', '.join(words)}")
    return "\n".join(lines)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} …"


def picture(run: Path, image: Any, root: str | None) -> bytes | None:
    """The thumbnail of a logged picture; None where there is none, or it cannot be had here."""
    if not isinstance(image, Mapping):
        return None
    if "file" in image:
        return _small(image["file"], str(run))
    return _small(image["path"], root) if "path" in image else None


@functools.lru_cache(maxsize=256)
def _small(path: str, root: str | None) -> bytes | None:
    """Kept, because the pictures of a page are mostly those of the one before."""
    return thumbnail(Image(id=path, path=path), root, SIDE)
