"""Pages of the docs: the generated ones have everything, the others name nothing that does not
exist.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlip_model.config import ParSeDAConfig, RTaggerConfig
from sgpipe.training.recipe import train_recipe_folder
from tests.integration.documents import commands, docs_hook
from tests.values import values_of

RECIPES = ("labelling", "training")
ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
PAGES = ("docs/internals.md", "rlip_model/README.md")
INTERNALS = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rlip_model").rglob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_has_one_meaning(recipe: str) -> None:
    """In its field of the typed recipe, or in meanings.yml: not in neither, not in both."""
    hook = docs_hook("settings")
    meanings = hook.meanings()[recipe]
    settings = dict(values_of(hook.settings(hook.RECIPES[recipe]), "key", "described"))
    assert [
        key for key, described in settings.items() if not described and key not in meanings
    ] == []
    assert [key for key in meanings if settings.get(key, "unknown")] == []


def test_every_command_and_option_is_on_the_page() -> None:
    page = docs_hook("commands").command_page()
    for path, command in commands().items():
        assert f" `sgpipe {path}`\n" in page
        section = page.partition(f" `sgpipe {path}`\n")[2]
        for param in command.params:
            assert any(option in section for option in param.opts), (path, param.name)


def test_recipes_are_named() -> None:
    table = GUIDE.split("| recipe |")[1].split("\n\n")[0]
    named = {
        name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])
    }
    assert named == set(values_of(train_recipe_folder().glob("*.yaml"), "stem"))


def test_examples_set_what_can_be_set() -> None:
    settings = docs_hook("settings")
    assigned = re.findall(
        r"(?:--set |`)((?:optimisation|output|workers|data|model|loss)[\w.]+)=", GUIDE
    )
    of_network = {
        f"model.config.{name}" for name in (*ParSeDAConfig().to_dict(), *RTaggerConfig().to_dict())
    }
    settable = set(values_of(settings.settings(settings.RECIPES["training"]), "key"))
    assert set(assigned) <= settable | of_network


def test_files_exist_and_names_are_where_they_are_said_to_be() -> None:
    files = set(re.findall(r"`(rlip_model/[\w/]+\.py)`", INTERNALS))
    assert len(files) > 15
    assert [file for file in files if not (ROOT / file).is_file()] == []
    for names, file in re.findall(r"((?:`\w+`, )*`\w+`) in `(rlip_model/[\w/]+\.py)`", INTERNALS):
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), (file, name)


def test_every_class_that_is_named_exists() -> None:
    """Names in the first column of the page's own tables may be those of the published code."""
    ours = {
        name
        for row in INTERNALS.splitlines()
        if row.startswith("|")
        for name in re.findall(r"`([A-Z]\w+)[`.(]", row)
    }
    published = {
        "HungarianMatcherHOI",
        "SetCriterionHOI",
        "PostProcessHOI",
        "PostProcessSGG",
        "MSDeformAttn",
    }
    published |= {"VLFuse_layers", "VXAc"}
    assert {name for name in ours - published if not re.search(rf"\b{name}\b", CODE)} == set()
