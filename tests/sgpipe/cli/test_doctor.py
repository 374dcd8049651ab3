import json
import shutil
from collections import namedtuple

import pytest
from typer.testing import CliRunner

from sgpipe.cli import doctor
from sgpipe.cli.main import app

Usage = namedtuple("Usage", "total used free")


def test_this_machine_has_what_sgpipe_needs(tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.stdout
    found = json.loads(result.stdout)
    assert [item["name"] for item in found] == ["packages", "gpu", "parser", "models", "disk", "ray", "hub"]
    assert all(item["fix"] for item in found if item["state"] == "bad")
    lines = CliRunner().invoke(app, ["doctor", str(tmp_path)]).stdout.splitlines()
    assert len(lines) == len(found)


def test_missing_and_old_packages_are_named(monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["torch>=99", "nowhere-to-be-found>=1", "x; extra == 'dev'"]
    )
    found = doctor._packages()
    assert found.state == "bad"
    assert "torch is " in found.detail
    assert "nowhere-to-be-found is missing" in found.detail


def test_missing_models_make_the_command_fail(monkeypatch, tmp_path):
    monkeypatch.setattr("sgpipe.recipe.packaged_model", lambda name: tmp_path / name)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "lacks captioner, tagger, parseda → pip install --force-reinstall sgpipe" in result.stdout


@pytest.mark.parametrize(("free", "state"), [(1 << 30, "note"), (100 << 30, "ok")])
def test_little_disk_space_is_noted(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, free))
    found = doctor._disk(tmp_path / "not" / "yet")
    assert (found.state, str(tmp_path) in found.detail) == (state, True)
