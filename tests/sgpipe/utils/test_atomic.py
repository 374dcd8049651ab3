"""Files appear whole, and only one process writes into a folder."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.utils.atomic import is_locked, new_folder, only_process, temporary_folder, write_text

HOLD = """
import sys, fcntl, errno
if len(sys.argv) > 2:
    def flock(*_): raise OSError(errno.ENOSYS, "Function not implemented")
    fcntl.flock = flock
from pathlib import Path
from sgpipe.utils.atomic import only_process
with only_process(Path(sys.argv[1]), Path("out")):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_device_or_pipe_receives_the_content_and_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    file = tmp_path / "elsewhere" / "file"
    file.write_text("before")
    link.symlink_to(file)
    write_text(link, "after")
    assert link.is_symlink()
    assert file.read_text() == "after"
    assert os.listdir(file.parent) == ["file"]


def test_a_second_process_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    lock = tmp_path / "new" / "lock"
    assert not is_locked(lock)
    command = [sys.executable, "-c", HOLD, str(lock)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    assert is_locked(lock)
    with pytest.raises(UserError, match=rf"^out is in use by process {process.pid} on"):
        only_process(lock, Path("out")).__enter__()
    process.kill()
    process.communicate()
    assert not is_locked(lock)
    with only_process(lock, Path("out")):
        assert is_locked(lock)


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_process(tmp_path / "lock", Path("out")):
        raise KeyError
    with (
        only_process(tmp_path / "lock", Path("out")),
        pytest.raises(UserError, match=f"process {os.getpid()}"),
    ):
        only_process(tmp_path / "lock", Path("out")).__enter__()


def test_the_temporary_folder_of_a_killed_process_is_deleted_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, pathlib, sys; from sgpipe.utils.atomic import temporary_folder\n"
        "with temporary_folder() as folder:\n    (folder / 'spilled').write_text('x' * 1000)\n"
        "    print(folder, flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)\n"
    )
    streams = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "env": {**os.environ, "TMPDIR": str(tmp_path)},
    }
    other = subprocess.Popen([sys.executable, "-c", code], text=True, **streams)
    left = Path(other.stdout.readline().strip())
    somebody_elses = tmp_path / ".sgpipe-new"
    somebody_elses.mkdir()
    os.utime(left / ".lock", (0, 0))
    with temporary_folder() as folder:
        assert folder.parent == left.parent
        assert (left / "spilled").exists()  # its process is at work
    assert not folder.exists()
    other.communicate()
    with temporary_folder():
        assert not left.exists()
    assert somebody_elses.exists()


def test_the_working_folder_is_refused_before_the_work_as_nobody_could_see_what_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(UserError, match=r"--out \. is the working folder or a mount point"),
        new_folder(Path(".")),
    ):
        pass
