"""docs/guide.md names every setting, recipe and column that there is, and no other."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel

from rlip_model.config import ParSeDAConfig, RTaggerConfig
from sgpipe.cli.main import app
from sgpipe.training.recipe import DataConfig, ShardsConfig, TrainRecipe, load_train_recipe, train_recipe_folder

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
SETTINGS = TEXT.split("## Settings")[1]
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in SETTINGS.splitlines() if row.startswith("| `")]
EXAMPLES = "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")


def settings(kind: Any, prefix: str = "") -> Iterator[str]:
    """All settings of a part of a recipe by dotted key, those of the parts in it too."""
    names = (
        {name: field.annotation for name, field in kind.model_fields.items()}
        if issubclass(kind, BaseModel)
        else {field.name: field.type for field in fields(kind)}
    )
    for name, annotation in names.items():
        parts = [each for each in (annotation, *get_args(annotation)) if is_part(each)]
        if not parts or get_args(annotation):  # a list of parts, or one that may be left out, is a setting itself
            yield f"{prefix}{name}"
        for part in parts:
            yield from settings(part, f"{prefix}{name}.")


def is_part(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def test_every_setting_is_explained_once_and_no_other() -> None:
    explained = [name for row in ROWS for name in re.findall(r"`([\w.]+)`", row[0])]
    there = [name for name in settings(TrainRecipe) if not name.startswith("data.val.")]
    assert len(there) > 55
    assert sorted(explained) == sorted(there)


def test_validation_shards_have_the_settings_of_training_shards() -> None:
    val, train = (DataConfig.model_fields[name].annotation for name in ("val", "train"))
    assert val == train == tuple[ShardsConfig, ...]


@pytest.mark.parametrize("row", [row for row in ROWS if row[1]], ids=lambda row: row[0])
def test_defaults_are_as_they_are_said_to_be(row: list[str]) -> None:
    values = [default(name) for name in re.findall(r"`([\w.]+)`", row[0])]
    if row[1] in ("all", "with init"):
        assert values == [None]
        return
    said = [value(text.strip()) for text in row[1].split(",")]
    if isinstance(values[0], tuple):
        values = list(values[0])
    assert values == (said if len(said) > 1 else said * len(values))


def value(text: str) -> Any:
    """A number, true, false or a word."""
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text, text)


def default(name: str) -> Any:
    part: Any = TrainRecipe()
    if name.startswith("data.train."):
        part, name = ShardsConfig(shards=Path("vg")), name.removeprefix("data.train.")
    for key in name.split("."):
        part = getattr(part, key)
    return part


def test_recipes_are_named() -> None:
    table = TEXT.split("| recipe |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named == {path.stem for path in train_recipe_folder().glob("*.yaml")}


def test_commands_and_their_options_exist() -> None:
    found = re.findall(r"^sgpipe (?:(import) )?([\w-]+) ?(.*)$", EXAMPLES, re.MULTILINE)
    assert len(found) > 15
    commands: Any = typer.main.get_command(app)
    for group, name, rest in found:
        command = (commands.commands[group] if group else commands).commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[\w-]+", f" {rest}")) <= known, (name, rest)
        if name == "train" and (recipe := rest.split()[0]).islower():
            assert load_train_recipe(recipe)


def test_examples_set_what_can_be_set() -> None:
    assigned = re.findall(r"(?:--set |`)((?:optimisation|output|workers|data|model|loss)[\w.]+)=", TEXT)
    assert len(assigned) > 7
    of_network = {f"model.config.{name}" for name in (*ParSeDAConfig().to_dict(), *RTaggerConfig().to_dict())}
    assert set(assigned) <= {*settings(TrainRecipe), *of_network}
