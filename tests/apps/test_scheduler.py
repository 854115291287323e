"""The scheduler with steps that only leave marks: order, failure, continuation, and no worker left behind."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.scheduler import Progress, Step, StepError, check_graph, run_steps, silence_third_parties
from data.jsonl import DataError

ROOT = Path(__file__).resolve().parents[2]
#: nothing here waits so long unless it is broken
PATIENCE = 120.0


# --- steps: module-level functions, so that a worker finds them ---


def mark(folder: str, name: str) -> None:
    with open(Path(folder) / "log", "a", encoding="utf-8") as file:
        file.write(f"{name}\n")


def meet(folder: str, name: str, other: str) -> None:
    """Ends only when ``other`` runs at the same time."""
    (Path(folder) / name).touch()
    until((Path(folder) / other).exists)
    mark(folder, name)


def finish(folder: str, name: str) -> None:
    mark(folder, name)
    (Path(folder) / f"{name}.done").touch()


def hang(folder: str, name: str) -> None:
    """Holds a lock for as long as its process lives."""
    with open(Path(folder) / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (Path(folder) / name).touch()
        time.sleep(PATIENCE)
    mark(folder, name)


def fail(folder: str, beside: str, own: bool) -> None:
    """Fails once ``beside`` runs."""
    until((Path(folder) / beside).exists)
    if own:
        raise DataError("the line is broken", file="x.jsonl", line=3, mend="mend it")
    raise KeyError("colour")


def die(folder: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tell_environment(folder: str) -> None:
    threads = os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]
    assert threads == ("1", "1")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert not sys.stderr.isatty()
    sys.stderr.write("a message\n")
    mark(folder, "told")


def until(condition: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < PATIENCE
        time.sleep(0.02)


def step(name: str, folder: Path, *needs: str) -> Step:
    return Step(name, mark, {"folder": str(folder), "name": name}, needs)


def log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().split() if path.exists() else []


def is_free(lock: Path) -> bool:
    """Whether the process that held the lock has ended."""
    with open(lock, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


# --- order ---


def test_steps_come_after_their_needs_and_run_side_by_side(tmp_path: Path) -> None:
    at = str(tmp_path)
    steps = [
        step("end", tmp_path, "left", "right"),
        Step("left", meet, {"folder": at, "name": "left", "other": "right"}, ("begin",)),
        Step("right", meet, {"folder": at, "name": "right", "other": "left"}, ("begin",)),
        step("begin", tmp_path),
        Step("environment", tell_environment, {"folder": at}, ("end",)),
    ]
    seen: list[tuple[set[str], set[str]]] = []
    run_steps(steps, on_change=lambda state: seen.append((set(state.running), set(state.done))))
    begin, *middle, end, told = log(tmp_path)
    assert (begin, sorted(middle), end, told) == ("begin", ["left", "right"], "end", "told")
    assert ({"left", "right"}, {"begin"}) in seen
    assert seen[-1] == (set(), {"begin", "left", "right", "end", "environment"})


def test_one_worker_runs_one_step_at_a_time_in_the_given_order(tmp_path: Path) -> None:
    widths: list[int] = []
    names = ["c", "a", "d", "b"]
    steps = [step(name, tmp_path) for name in names]
    run_steps(steps, workers=1, on_change=lambda state: widths.append(len(state.running)))
    assert log(tmp_path) == names
    assert max(widths) == 1


def test_graphs_that_cannot_run(tmp_path: Path) -> None:
    a, b = step("a", tmp_path, "b"), step("b", tmp_path, "a")
    with pytest.raises(ValueError, match=r"\['a', 'b'\] need each other in a circle"):
        check_graph([a, b, step("c", tmp_path)])
    with pytest.raises(ValueError, match=r"steps need \['b'\], which are not in the graph"):
        run_steps([a])
    with pytest.raises(ValueError, match=r"\['c'\] stand in the graph twice"):
        check_graph([step("c", tmp_path), step("c", tmp_path)])
    assert log(tmp_path) == []


def test_workers_draw_no_bars_on_a_terminal(tmp_path: Path) -> None:
    steps = f"[Step('tell', tell_environment, {{'folder': {str(tmp_path)!r}}})]"
    code = (
        "import sys\nfrom tests.apps.test_scheduler import Step, run_steps, tell_environment\n"
        f"if __name__ == '__main__':\n    assert sys.stderr.isatty()\n    run_steps({steps})"
    )
    (tmp_path / "main.py").write_text(code)
    outer, inner = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, tmp_path / "main.py"], env=environment, stderr=inner)
    assert os.read(outer, 10000) == b"a message\r\n"
    assert (ended.returncode, log(tmp_path)) == (0, ["told"])
    os.close(outer)
    os.close(inner)


# --- failure ---


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (True, "step bad: x.jsonl:3: the line is broken; mend it"),
        (False, "step bad: KeyError: 'colour' (ALIGN_DEBUG=1 shows where)"),
    ],
    ids=["ours", "foreign"],
)
def test_a_failure_names_the_step_and_stops_the_others(tmp_path: Path, own: bool, text: str) -> None:
    at = str(tmp_path)
    steps = [
        Step("long", hang, {"folder": at, "name": "long"}),
        Step("bad", fail, {"folder": at, "beside": "long", "own": own}),
        step("after", tmp_path, "bad"),
    ]
    states: list[Progress] = []
    with pytest.raises(StepError) as caught:
        run_steps(steps, on_change=states.append)
    assert str(caught.value) == text
    assert "in fail" in str(caught.value.__cause__.__cause__)  # the worker's traceback
    assert is_free(tmp_path / "lock")
    assert log(tmp_path) == []
    last = states[-1]
    assert (last.ended, last.finished, last.failure, last.running) == (True, False, text, set())


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    steps = [Step("doomed", die, {"folder": str(tmp_path)}), step("after", tmp_path, "doomed")]
    with pytest.raises(
        StepError, match=r"a worker process was killed while doomed ran.*start the same command"
    ):
        run_steps(steps)
    assert log(tmp_path) == []


def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    states: list[Progress] = []

    def interrupt(state: Progress) -> None:
        states.append(state)
        if not state.ended and (tmp_path / "long").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps = [Step("long", hang, {"folder": str(tmp_path), "name": "long"})]
        run_steps(steps, on_change=interrupt, every=0.05)
    assert is_free(tmp_path / "lock")
    assert (states[-1].ended, states[-1].failure) == (True, None)


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    steps = f"[Step('long', hang, {{'folder': {str(tmp_path)!r}, 'name': 'long'}})]"
    code = (
        "from tests.apps.test_scheduler import Step, hang, run_steps\n"
        f"if __name__ == '__main__': run_steps({steps})"
    )
    (tmp_path / "main.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py"], env=environment)
    until((tmp_path / "long").exists)
    parent.kill()
    parent.wait()
    until(lambda: is_free(tmp_path / "lock"))
    assert log(tmp_path) == []


# --- continuation ---


def test_a_finished_step_is_never_run_again(tmp_path: Path) -> None:
    at = str(tmp_path)
    names = ["first", "second", "third"]
    needs: list[tuple[str, ...]] = [(), ("first",), ("second",)]
    steps = [
        Step(n, finish, {"folder": at, "name": n}, need, tmp_path / f"{n}.done")
        for n, need in zip(names, needs, strict=True)
    ]
    broken = Step("second", fail, {"folder": at, "beside": "first.done", "own": True}, ("first",))
    with pytest.raises(StepError, match="step second"):
        run_steps([steps[0], broken, steps[2]])
    assert log(tmp_path) == ["first"]
    states: list[set[str]] = []
    run_steps(steps, on_change=lambda state: states.append(set(state.done)))
    assert log(tmp_path) == names
    assert states[0] == {"first"}
    run_steps(steps)
    assert log(tmp_path) == names


# --- noise ---


def test_only_what_asks_nothing_of_the_user_is_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_third_parties()
        for category in (FutureWarning, UserWarning):
            for module in ("transformers.models", "transformers", "transformersx", "align.sft"):
                warnings.warn_explicit(module, category, "file.py", 1, module)
    kept = [(str(w.message), w.category) for w in caught]
    user = [(m, UserWarning) for m in ("transformers.models", "transformers", "transformersx", "align.sft")]
    assert kept == [("transformersx", FutureWarning), ("align.sft", FutureWarning), *user]
