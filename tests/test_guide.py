"""docs/train.md names every recipe, and no setting or option that does not exist."""

import re
from pathlib import Path

from rlip_model.config import ParSeDAConfig, RTaggerConfig
from sgpipe.training.recipe import load_train_recipe, train_recipe_folder
from tests.integration.documents import commands, docs_hook

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
EXAMPLES = "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")


def test_recipes_are_named() -> None:
    table = TEXT.split("| recipe |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named == {path.stem for path in train_recipe_folder().glob("*.yaml")}


def test_commands_and_their_options_exist() -> None:
    for group, name, rest in re.findall(r"^sgpipe (?:(import) )?([\w-]+) ?(.*)$", EXAMPLES, re.MULTILINE):
        known = {option for parameter in commands()[f"{group} {name}".strip()].params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[\w-]+", f" {rest}")) <= known, (name, rest)
        if name == "train" and (recipe := rest.split()[0]).islower():
            assert load_train_recipe(recipe)


def test_examples_set_what_can_be_set() -> None:
    settings = docs_hook("settings")
    assigned = re.findall(r"(?:--set |`)((?:optimisation|output|workers|data|model|loss)[\w.]+)=", TEXT)
    of_network = {f"model.config.{name}" for name in (*ParSeDAConfig().to_dict(), *RTaggerConfig().to_dict())}
    there = {setting.key for setting in settings.settings(settings.RECIPES["training"])}
    assert set(assigned) <= there | of_network
