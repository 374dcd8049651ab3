"""The generated pages of the docs: all settings with their meaning, all commands with their options."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from tests.integration.documents import commands, docs_hook

RECIPES = ("labelling", "training")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_has_one_meaning(recipe: str) -> None:
    """In its field of the typed recipe, or in meanings.yml: not in neither, not in both."""
    hook = docs_hook("settings")
    meanings = hook.meanings()[recipe]
    settings = {setting.key: setting.described for setting in hook.settings(hook.RECIPES[recipe])}
    assert [key for key, described in settings.items() if not described and key not in meanings] == []
    assert [key for key in meanings if settings.get(key, "unknown")] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_settings_are_those_of_the_recipe(recipe: str) -> None:
    """Every first level of the recipe is there, and the defaults are those of an empty recipe."""
    hook = docs_hook("settings")
    page, empty = hook.settings_page(recipe), hook.RECIPES[recipe]()
    assert {setting.key.split(".")[0] for setting in hook.settings(type(empty))} == set(type(empty).model_fields)
    for setting in hook.settings(type(empty)):
        assert f"| `{setting.key}` |" in page
        if setting.default is not None and "NAME" not in setting.key and not setting.key.startswith("data.train."):
            assert shown(value(empty, setting.key)) == setting.default, setting.key


def value(part: BaseModel, key: str) -> object:
    for name in key.split("."):
        part = getattr(part, name)
    return part


def shown(value: object) -> str:
    """A value as YAML has it."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(str, value)) + "]"
    return {None: "null", True: "true", False: "false"}[value] if isinstance(value, (bool, type(None))) else str(value)


def test_every_command_and_option_is_on_the_page() -> None:
    page = docs_hook("commands").command_page()
    for path, command in commands().items():
        assert f" `sgpipe {path}`\n" in page
        section = page.partition(f" `sgpipe {path}`\n")[2]
        for param in command.params:
            assert any(option in section for option in param.opts), (path, param.name)


def test_ranges_are_readable() -> None:
    """Markdown does not unescape every character: a backslash before "<" would be shown."""
    page = docs_hook("commands").command_page()
    assert "0&lt;=x&lt;=1" in page
    assert "\\<" not in page
