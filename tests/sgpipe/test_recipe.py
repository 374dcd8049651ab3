import re

import pytest

from sgpipe.errors import UserError
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.utils.config_file import parse_set, recipe_folder


@pytest.mark.parametrize("path", sorted(recipe_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_recipes_are_valid(path):
    assert load_recipe(path.stem).name == path.stem
    assert load_recipe(str(path)) == load_recipe(path.stem)


def test_overrides_replace_only_their_key():
    recipe = load_recipe("coco", {"caption.samples": 3, "tag.resources.cpus": 2})
    assert recipe.caption.samples == 3
    assert recipe.caption.captioner == load_recipe("coco").caption.captioner
    assert recipe.tag.resources.cpus == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("captoin: {}", "unknown key 'captoin'; did you mean 'caption'"),
        ("caption: {sample: 3}", "unknown key 'caption.sample'; did you mean 'caption.samples'"),
        ("caption: {zzz: 3}", "unknown key 'caption.zzz'; expected one of batch_size, beams"),
        ("caption: {samples: many}", "key 'caption.samples': expected a valid integer.*got 'many'"),
        ("caption: {top_p: 2}", "key 'caption.top_p': expected a number less than or equal to 1, got 2"),
        (
            "caption: {scopes: [imag]}",
            "key 'caption.scopes.0': expected 'image', 'box' or 'pair', got 'imag'",
        ),
        (
            "source: {splits: {val: {annotations: a, images: b, caption: c}}}",
            "unknown key 'source.splits.val.caption'; did you mean 'source.splits.val.captions'",
        ),
        ("tag: {tagger: 3, threshold: x}", r"key 'tag.tagger'.*\(and 1 more\)"),
        ("source: {splits: {val: {annotations: a}}}", "key 'source.splits.val.images': Field required"),
        ("source: {splits: {../x: {annotations: a, images: b}}}", "key 'source.splits"),
        ("- a", "expected keys and values, found list"),
        ("a: [", "line 1: not valid YAML"),
        ("{a: b", "not valid YAML"),
        ("tag:\n\tthreshold: 1", r"line 2: not valid YAML \(found character '\\t' that cannot start any token\)"),
        ("limit: yes", "key 'limit': expected a number, got True"),
        ("tag: {threshold: off}", "key 'tag.threshold': expected a number, got False"),
    ],
)
def test_errors_name_the_file_the_key_and_what_was_expected(tmp_path, text, message):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("caption.repetition_penalty=0", "expected a number greater than 0, got 0"),
        ("caption.repetition_penalty=-1.1", "expected a number greater than 0, got -1.1"),
        ("caption.repetition_penalty=.nan", "expected a finite number, got nan"),
        ("caption.repetition_penalty=high", "expected a valid number.*got 'high'"),
        ("caption.top_k=-1", "expected a number greater than or equal to 0, got -1"),
        ("caption.top_k=2.5", "expected a valid integer.*got 2.5"),
        ("caption.top_k=all", "expected a valid integer.*got 'all'"),
    ],
)
def test_impossible_settings_of_the_sampling_are_refused_in_one_line(setting, message):
    key = setting.partition("=")[0]
    with pytest.raises(UserError, match=f"^overrides: key '{key}': {message}$"):
        load_recipe("coco", parse_set([setting]))


def test_recipes_of_photographs_sample_as_the_published_captioner_and_the_miniworld_as_ever():
    def sampling(name):
        caption = load_recipe(name).caption
        return caption.top_p, caption.top_k, caption.repetition_penalty, caption.samples

    assert {name: sampling(name) for name in ("coco", "objects365", "folder")} == dict.fromkeys(
        ("coco", "objects365", "folder"), (0.9, 50, 1.1, 10)
    )
    assert sampling("miniworld") == (0.9, 0, 1.0, 10)
    assert (Recipe().caption.top_k, Recipe().caption.repetition_penalty) == (0, 1.0)


def test_an_error_in_an_option_names_the_option():
    with pytest.raises(UserError, match=r"^overrides: unknown key 'tag.treshold'; did you mean 'tag.threshold'"):
        load_recipe("coco", {"tag.treshold": 0.1})


def test_an_unknown_recipe_is_refused_with_the_list_of_packaged_ones(tmp_path):
    with pytest.raises(UserError, match=r"coco, .*folder, hub, miniworld, objects365"):
        load_recipe("cocoo")
    with pytest.raises(UserError, match="no such file"):
        load_recipe(str(tmp_path / "no.yaml"))


def test_values_of_set_are_yaml():
    assert parse_set(["a.b=1", "c=[x, y]", "d=null", "e=a=b", "f="]) == {
        "a.b": 1,
        "c": ["x", "y"],
        "d": None,
        "e": "a=b",
        "f": None,
    }


@pytest.mark.parametrize("bad", ["a", "=1", "a..b=1", "a=[1"])
def test_set_requires_a_key_and_a_value(bad):
    with pytest.raises(UserError, match=re.escape(repr(bad))):
        parse_set([bad])


def test_an_empty_recipe_has_default_settings(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_recipe(str(path)) == Recipe()
