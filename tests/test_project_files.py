"""The files around the code agree with each other: Python versions, make targets, and the programs of hooks."""

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import sgpipe

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(name: str) -> Any:
    return yaml.safe_load(read(name))


def test_the_workflow_runs_every_supported_python() -> None:
    project = read("pyproject.toml")
    classifiers = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    for name, job in (("tests", "unit"), ("release", "wheel")):
        assert load(f".github/workflows/{name}.yml")["jobs"][job]["strategy"]["matrix"]["python"] == classifiers
    (required,) = re.findall(r'^requires-python = "(.+)"', project, re.MULTILINE)
    oldest = min(int(version.split(".")[1]) for version in classifiers)
    assert all(SpecifierSet(required).contains(version) for version in classifiers)
    assert not SpecifierSet(required).contains(f"3.{oldest - 1}")


def test_the_version_is_in_one_place_and_released() -> None:
    assert 'dynamic = ["readme", "version"]' in read("pyproject.toml")
    assert load("CITATION.cff")["version"] == sgpipe.__version__
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[1].rstrip(",") == sgpipe.__version__


@pytest.mark.parametrize(
    "name",
    [".ci/run", ".github/workflows/tests.yml", ".github/workflows/nightly.yml", "CONTRIBUTING.md"],
)
def test_named_make_targets_exist(name: str) -> None:
    called = set(re.findall(r"(?:^make|step make|run: make|`make) ([a-z][a-z-]*)", read(name), re.MULTILINE))
    assert called
    assert called <= set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


def test_links_of_the_readme_work_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for hatchling, which only environments that build have."""
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    interface = ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    absolute_links = runpy.run_path(str(ROOT / "hatch_build.py"))["absolute_links"]
    for text, expected in {
        "[a](docs/a.md)": "[a](R/blob/main/docs/a.md)",
        "![a](a.png)": "![a](R/raw/main/a.png)",
        "[![badge](b.svg)](docs/a.md)": "[![badge](R/raw/main/b.svg)](R/blob/main/docs/a.md)",
        "[![badge](https://b)](LICENSE)": "[![badge](https://b)](R/blob/main/LICENSE)",
        "[![badge](b.svg)](https://a)": "[![badge](R/raw/main/b.svg)](https://a)",
        "[x] [two words ![b](c)](d)": "[x] [two words ![b](R/raw/main/c)](R/blob/main/d)",
        "[write](mailto:a@b.org), [up](#top)": "[write](mailto:a@b.org), [up](#top)",
    }.items():
        assert absolute_links(text, "R") == expected


def test_hooks_run_programs_of_the_environment() -> None:
    """No hook downloads anything, and every program comes with the dev extra."""
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        folder, _, program = hook["entry"].split()[0].rpartition("/")
        assert (folder, hook["language"]) == (".venv/bin", "system"), hook["id"]
        assert (Path(sys.executable).parent / program).exists(), hook["id"]
