from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.training.recipe import TrainRecipe, load_train_recipe
from sgpipe.utils.config_file import _all_settings, dump_yaml, parse_set, read_yaml, recipe_folder

# a million
ALIASES = "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]\n" for i in range(6)
)


@pytest.mark.parametrize("path", sorted(recipe_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_recipes_are_valid(path):
    assert load_recipe(path.stem).name == path.stem
    assert load_recipe(str(path)) == load_recipe(path.stem)


def test_overrides_replace_only_their_key():
    recipe = load_recipe("coco", {"caption.samples": 3, "tag.resources.cpus": 2})
    assert recipe.caption.samples == 3
    assert recipe.caption.captioner == load_recipe("coco").caption.captioner
    assert recipe.tag.resources.cpus == 2
    assert load_recipe("coco", {"caption.captioner": Path("blip")}).caption.captioner == "blip"
    with pytest.raises(UserError, match=r"caption\.scopes\.foo"):
        load_recipe("coco", {"caption.scopes": ["image"], "caption.scopes.foo": 1})
    split = {"annotations": "a.json", "images": "images"}
    assert list(load_recipe("coco", {"source.splits": {"mine": split}}).source.splits) == ["mine"]


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("captoin: {}", "captoin"), ("caption: {samples: many}", "caption.samples: .*'many'"),
        ("caption: {samples: 3, samples: 4}", "duplicate key samples"),
        ("caption: {top_p: 2}", "caption.top_p: .* 1, got 2"),
        ("caption: {scopes: [imag]}", "caption.scopes.0: .*got 'imag'"),
        ("tag: {tagger: 3, threshold: x}", "tag.tagger"),
        ("tag: {threshold: .nan}", "tag.threshold"), ("tag: {resources: {actors: 0}}", "tag.resources.actors"),
        ("source: {splits: {val: {annotations: a}}}", "source.splits.val.images"),
        ("source: {splits: {../x: {annotations: a, images: b}}}", "source.splits"), ("name: ../../x", "name"),
        ("- a", "expected keys and values"), ("a: [", "not valid YAML"), ("a: !!float ''", "not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML"), ("limit: true", "limit: .*got True"),
        ("seed: 0b1", "seed: .*got '0b1'"), ("a: &a {b: *a}", "a"), (ALIASES + "name: *a5", "a"),
        ("{a: " * 5000 + "1" + "}" * 5000, ""),
    ],
    ids=range(20),
)  # fmt: skip
def test_errors_name_the_file_and_the_setting(tmp_path, text, setting):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=setting) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_has_the_defaults_and_a_number_may_be_text(tmp_path):
    (tmp_path / "my.yaml").write_text("")
    assert load_recipe(str(tmp_path / "my.yaml")) == Recipe()
    (tmp_path / "my.yaml").write_text("seed: '7'")
    assert load_recipe(str(tmp_path / "my.yaml")).seed == 7


@pytest.mark.parametrize("name", ["coco", "objects365", "folder", "miniworld"])
def test_recipes_of_photographs_sample_as_the_published_captioner_and_the_miniworld_as_ever(name):
    caption = load_recipe(name).caption
    sampling = (caption.top_p, caption.top_k, caption.repetition_penalty, caption.samples)
    assert sampling == ((0.9, 0, 1.0, 10) if name == "miniworld" else (0.9, 50, 1.1, 10))


def test_an_unknown_recipe_is_refused_with_the_list_of_packaged_ones(tmp_path):
    with pytest.raises(UserError, match=r"coco, .*folder, hub, miniworld, objects365"):
        load_recipe("cocoo")
    with pytest.raises(UserError, match="no such file"):
        load_recipe(str(tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("010", 10),
        ("-07", -7),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("0.10", 0.1),
        ("-.inf", float("-inf")),
        ("1e", "1e"),
        ("yes", "yes"),
        ("off", "off"),
        ("n", "n"),
        ("True", True),
        ("false", False),
        ("2020-01-01", "2020-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ("[x, 010]", ["x", 10]),
        ("a=b", "a=b"),
    ],
)
def test_values_are_read_as_yaml_1_2_in_files_and_on_the_command_line(text, value, tmp_path):
    assert parse_set([f"a.b={text}"]) == {"a.b": value}
    (tmp_path / "a.yaml").write_text(f"a: {text}")
    assert read_yaml(tmp_path / "a.yaml") == {"a": value}
    assert type(read_yaml(tmp_path / "a.yaml")["a"]) is type(value)


def test_what_is_written_is_read_again(tmp_path):
    texts = ["1e5", "0o17", "010", "1:30", "yes", "null", "", "2020-01-01", "a: b", ".inf", "<<"]
    (tmp_path / "a.yaml").write_text(
        dump_yaml({"classes": texts, "values": [1e-5, 10, None, True]})
    )
    assert read_yaml(tmp_path / "a.yaml") == {"classes": texts, "values": [1e-5, 10, None, True]}


def test_an_override_is_blamed_itself_and_not_the_file():
    for key, value in (
        ("tag.threshold", 3),
        ("caption", 1),
        ("source.splits", {"val": {"images": 1}}),
        ("tag.no", 1),
    ):
        with pytest.raises(UserError) as refused:
            load_recipe("coco", {key: value, "seed": 1})
        assert "coco" not in str(refused.value)
        assert key in str(refused.value)


@pytest.mark.parametrize(
    ("load", "name", "kind"),
    [(load_recipe, "coco", Recipe), (load_train_recipe, "tagger", TrainRecipe)],
)
def test_a_misspelt_setting_names_the_one_that_was_probably_meant(load, name, kind):
    settings = sorted(_all_settings(kind))
    assert len(settings) > 30
    for setting in settings:
        misspelt = f"{setting}{setting[-1]}"
        with pytest.raises(
            UserError, match=rf"unknown setting '{misspelt}'; did you mean '{setting}'\?$"
        ):
            load(name, {misspelt: 1})


def test_a_setting_without_its_section_or_of_a_split_is_found_and_nothing_else_is_guessed(tmp_path):
    with pytest.raises(
        UserError, match=r"unknown setting 'treshold'; did you mean '\w+\.threshold'\?$"
    ):
        load_recipe("coco", {"treshold": 0.1})
    (tmp_path / "r.yaml").write_text("source: {splits: {val: {images: a, annotation: b}}}")
    with pytest.raises(
        UserError, match=r"'source.splits.val.annotation'; .* 'source.splits.val.annotations'\?$"
    ):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(UserError, match=r"unknown setting 'zzz'$"):
        load_recipe("coco", {"zzz": 1})
