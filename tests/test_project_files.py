"""The files around the code agree with each other: Python versions, make targets, the programs of hooks, and CI."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
FORMS = ("bug.yml", "feature.yml")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(name: str) -> Any:
    return yaml.safe_load(read(name))


def test_the_workflow_runs_every_supported_python() -> None:
    project = read("pyproject.toml")
    classifiers = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    assert load(".github/workflows/tests.yml")["jobs"]["unit"]["strategy"]["matrix"]["python"] == classifiers
    (required,) = re.findall(r'^requires-python = "(.+)"', project, re.MULTILINE)
    oldest = min(int(version.split(".")[1]) for version in classifiers)
    assert all(SpecifierSet(required).contains(version) for version in classifiers)
    assert not SpecifierSet(required).contains(f"3.{oldest - 1}")


@pytest.mark.parametrize(
    "name",
    [".ci/run", ".github/workflows/tests.yml", ".github/workflows/nightly.yml", "CONTRIBUTING.md"],
)
def test_named_make_targets_exist(name: str) -> None:
    called = set(re.findall(r"(?:^make|step make|run: make|`make) ([a-z][a-z-]*)", read(name), re.MULTILINE))
    assert called
    assert called <= set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


def test_hooks_run_programs_of_the_environment() -> None:
    """No hook downloads anything, and every program comes with the dev extra."""
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        folder, _, program = hook["entry"].split()[0].rpartition("/")
        assert (folder, hook["language"]) == (".venv/bin", "system"), hook["id"]
        assert (Path(sys.executable).parent / program).exists(), hook["id"]


def test_issue_forms_ask_for_what_a_fix_needs() -> None:
    for name in FORMS:
        form = load(f".github/ISSUE_TEMPLATE/{name}")
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert any(field["validations"]["required"] for field in fields)
        assert len({field["id"] for field in fields}) == len(fields)


@pytest.mark.parametrize(
    ("failing", "ran"),
    [
        ("none", ["install", "docs", "lint", "test", "test-integration"]),
        ("lint", ["install", "docs", "lint"]),
        ("test", ["install", "docs", "lint", "test"]),
        ("test-integration", ["install", "docs", "lint", "test", "test-integration"]),
    ],
)
def test_ci_stops_at_the_first_failure(tmp_path: Path, failing: str, ran: list[str]) -> None:
    """Also where apt-get cannot install what is missing. make stands for pytest's exit code 5, no test ran, by a 2."""
    program(tmp_path / "bin" / "make", f'echo "$1" >> {tmp_path}/ran; [ "$1" != {failing} ] || exit 2')
    program(tmp_path / "bin" / "apt-get", "exit 100")
    program(tmp_path / ".ci" / "run", read(".ci/run"))
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHON": sys.executable}
    done = subprocess.run(["bash", tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0 if failing == "none" else 2, "")
    assert (tmp_path / "ran").read_text().split() == ran


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
