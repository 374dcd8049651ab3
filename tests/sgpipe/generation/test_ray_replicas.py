"""Servers on a cluster as the driver sees them, with actors that answer what a test says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from sgpipe.generation import ray_replicas
from sgpipe.generation.ray_replicas import Directory, RayReplica, ReplicaState

LOST = "NOTE: vllm 1 is lost with its process or machine; Ray places it anew"


def replica(
    monkeypatch: pytest.MonkeyPatch, answers: Iterable[ReplicaState | Exception], lines: list[str]
) -> RayReplica:
    """Return one whose actor gives these answers, and no more after them."""
    left = list(answers)

    def get(question: object) -> ReplicaState:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "wait", lambda asked, timeout: (asked if left else [], []))
    monkeypatch.setattr(ray, "get", get)
    actor = SimpleNamespace(state=SimpleNamespace(remote=object))
    return RayReplica("vllm 1", actor, Path("logs"), lines.append)


def state(port: int, *lines: str, is_ready: bool = True) -> ReplicaState:
    url = f"http://10.0.0.1:{port}/v1"
    return ReplicaState(url, f"node {port}", is_ready, None, Path("log"), list(lines))


@pytest.mark.parametrize("is_noticed", [False, True])
def test_a_lost_server_is_told_even_if_it_returns_at_once(
    monkeypatch: pytest.MonkeyPatch, is_noticed: bool
) -> None:
    lines: list[str] = []
    losses = [ActorUnavailableError("lost", b"0" * 16)] if is_noticed else []
    answers = [state(1, "first"), state(1), *losses, state(2, is_ready=False), state(2, "second")]
    server = replica(monkeypatch, answers, lines)
    for _ in answers:
        server.look()
    assert (server.is_ready, server.url, server.node) == (True, state(2).url, "node 2")
    assert lines == [LOST], "it is quiet about itself while the run waits for it"
    server.speak()
    assert lines == [LOST, "first", "second"]


def test_why_an_actor_does_not_start_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = ModuleNotFoundError("No module named 'sgpipe'")
    report = RayTaskError("ReplicaActor", f"Traceback\nModuleNotFoundError: {cause}", cause)
    server = replica(monkeypatch, [ActorDiedError(report)], [])
    server.look()
    assert server.failure == f"a worker failed: ModuleNotFoundError: {cause}"


def test_a_server_without_room_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_replicas, "_PLACING_SECONDS", 0.0)
    server = replica(monkeypatch, [], [])
    server.look()
    assert server.failure == "no machine has had room for it for 0 seconds"


def test_the_key_is_not_printed() -> None:
    assert "secret" not in repr(Directory(SimpleNamespace(), "secret"))
