"""One writer a folder: other processes, forked children, file systems without locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import processes
from data.processes import sole_writer

fcntl = pytest.importorskip("fcntl")

TAKE = "import pathlib; from data.processes import sole_writer\nwith sole_writer(pathlib.Path({!r})): pass"


def _taken_elsewhere(folder: Path) -> subprocess.CompletedProcess[str]:
    """What another process meets that wants to write there."""
    environment = os.environ | {"PYTHONPATH": str(Path(processes.__file__).resolve().parent.parent)}
    command = [sys.executable, "-c", TAKE.format(str(folder))]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with sole_writer(tmp_path):
        held = (tmp_path / ".lock").stat().st_mtime_ns
        with pytest.raises(BlockingIOError), sole_writer(tmp_path):
            pass
        assert "BlockingIOError" in _taken_elsewhere(tmp_path).stderr
        assert (tmp_path / ".lock").stat().st_mtime_ns == held
    assert _taken_elsewhere(tmp_path).returncode == 0


def test_a_child_that_lives_on_does_not_hold_the_folder(tmp_path: Path) -> None:
    """A forked worker inherits the open file, and with it the lock, unless that is given back."""
    read, write = os.pipe()
    with sole_writer(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the parent closes its end
            os._exit(0)
    os.close(read)
    try:
        with sole_writer(tmp_path):
            assert _taken_elsewhere(tmp_path).returncode != 0
    finally:
        os.close(write)
        os.waitpid(child, 0)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_writer(tmp_path):
        (tmp_path / "written").touch()
    monkeypatch.setattr(fcntl, "flock", lambda file, how: (_ for _ in ()).throw(OSError(errno.EIO, "x")))
    with pytest.raises(OSError, match="x"), sole_writer(tmp_path):
        pass
