"""Servers that are started, watched, started again and ended, with a stand-in for an engine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig, Replicas
from sgpipe.stages.served.engines import process, replica
from sgpipe.stages.served.engines.commands import model_servers
from sgpipe.stages.served.engines.local import LocalReplicas
from sgpipe.stages.served.engines.process import ServerProcess, answers
from sgpipe.stages.served.engines.replica import Replica
from tests import endpoint_server
from tests.endpoint_server import wait_until
from tests.engine_commands import MODEL, servers_of, stand_in
from tests.processes import descendants, is_gone


def started(
    folder: Path, say: Callable[[str], None], engine: str, **replicas: object
) -> LocalReplicas:
    config = CaptionConfig(captioner=MODEL, engine=engine, replicas=Replicas(**replicas))
    return LocalReplicas({"caption": config}, folder / "engines", say)


def test_servers_answer_and_end_with_what_they_have_started(tmp_path: Path) -> None:
    lines: list[str] = []
    servers = started(tmp_path, lines.append, stand_in("--child"), min=2)
    urls = servers.start()["caption"]
    assert len(set(urls)) == 2
    assert all(answers(url, "") for url in urls)
    processes = descendants(os.getpid())
    assert len(processes) == 8, "two watchers, guardians, servers and children of these"
    servers.close()
    wait_until(lambda: all(map(is_gone, processes)))
    assert "starting tiny-vlm on 2 servers of " in lines[0]
    assert "2 of 2 servers of " in lines[1]


def test_a_killed_server_is_started_again_at_the_same_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_FIRST_PAUSE", 0.1)
    lines: list[str] = []
    servers = started(tmp_path, lines.append, stand_in("--child"))
    [url] = servers.start()["caption"]
    processes = descendants(os.getpid())
    [first] = servers_of(os.getpid())
    try:
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(lines) == 4)
        assert answers(url, "")
        assert "it ended with exit code 137: its log is empty; it is started again" in lines[2]
        assert lines[3].endswith(" 1 of 1 answers")
        assert all(map(is_gone, processes)), "what the killed one has started has ended, too"
    finally:
        servers.close()


def test_a_killed_watcher_leaves_nothing(tmp_path: Path) -> None:
    program = [sys.executable, endpoint_server.__file__, "--child", "--port", "0"]
    server = ServerProcess(program, {}, tmp_path / "log")
    wait_until(lambda: len(descendants(os.getpid())) == 4)
    [watcher, *others] = descendants(os.getpid())
    os.kill(watcher, signal.SIGKILL)
    wait_until(lambda: all(map(is_gone, others)))
    server.end()


def test_a_server_that_hangs_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(replica, "_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(replica, "_HUNG_SECONDS", 0.5)
    monkeypatch.setattr(process, "_ANSWER_SECONDS", 0.5)
    lines: list[str] = []
    servers = started(tmp_path, lines.append, stand_in())
    servers.start()
    try:
        [first] = servers_of(os.getpid())
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: len(lines) == 4)
        assert "it has not answered for 0 seconds" in lines[2]
        assert is_gone(first)
    finally:
        servers.close()


def test_a_server_that_never_starts_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(replica, "_MOST_STARTS", 2)
    lines: list[str] = []
    settings = CaptionConfig(captioner=MODEL, engine=stand_in("--failure", "out of memory"))
    [server] = model_servers({"caption": settings})
    command = server.command("127.0.0.1", 1, 0)
    broken = Replica(
        "it", command, {}, "http://127.0.0.1:1/v1", "", tmp_path / "log", 9, lines.append
    )
    broken.speak()

    def is_given_up() -> bool:
        broken.look()
        return broken.is_given_up

    wait_until(is_given_up)
    assert "it is started again" in lines[0]
    assert "out of memory; it is not started again after 2 attempts" in lines[1]


@pytest.mark.parametrize(
    ("options", "replicas", "reason"),
    [
        (
            ["--failure", "ValueError: no such model"],
            {"min": 2},
            "exit code 1: ValueError: no such",
        ),
        (["--loading", "60"], {"ready_timeout": 0.5}, "it has not answered for 0 seconds: its log"),
        (["--no-such-option"], {}, "exit code 2: .*unrecognized arguments: --no-such-option"),
    ],
)
def test_why_no_server_starts_is_one_line(
    options: list[str], replicas: dict[str, object], reason: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    servers = started(tmp_path, lines.append, stand_in(*options), **replicas)
    with pytest.raises(UserError, match=reason) as refusal:
        servers.start()
    servers.close()
    assert len(lines) == 1
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("caption.engine: ")
    assert str(tmp_path / "engines" / "caption-1.log") in str(refusal.value)
    assert servers_of(os.getpid()) == []


def test_the_last_error_of_a_log_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("RuntimeError: of an earlier start\n")
    code = "print('Traceback'); print('torch.OutOfMemoryError: CUDA'); print('warning: leaked')"
    server = ServerProcess([sys.executable, "-c", code], {}, log)
    wait_until(lambda: server.exit_code is not None)
    assert server.last_line() == "torch.OutOfMemoryError: CUDA"
    server.end()
    absent = ServerProcess([str(tmp_path / "none")], {}, log)
    wait_until(lambda: absent.exit_code is not None)
    assert absent.exit_code == 127
    assert absent.last_line() == f"{tmp_path / 'none'}: No such file or directory"
    absent.end()
