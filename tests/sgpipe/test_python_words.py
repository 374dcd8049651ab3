"""Errors speak to whom they reach: of options on the command line, of arguments and settings in Python."""

import ast
import inspect
import re
from copy import copy
from functools import cache
from pathlib import Path

import pytest
import typer

import sgpipe.recipe
import sgpipe.training.recipe
from sgpipe import Pipeline, UserError, generate, iter_records, load_recipe, load_train_recipe, train
from sgpipe.cli.main import app
from sgpipe.errors import EngineError, in_python, on_command_line, to_python
from sgpipe.pipeline import _WORDS as PIPELINE_WORDS
from sgpipe.utils.console import Progress

SOURCES = Path(sgpipe.recipe.__file__).parent
TABLES = {
    "generate": sgpipe.recipe.PYTHON_WORDS,
    "train": sgpipe.training.recipe.PYTHON_WORDS,
    "label": PIPELINE_WORDS,
    "": {},
}
FUNCTIONS = {"generate": (generate, load_recipe), "train": (train, load_train_recipe), "label": (Pipeline,)}
ONLY_THERE = {"--json", "--set", "--help"}
WORDS = {"--tagger": "tagger=", "--root": "source.root", "--data": "parts=[{'shards': {}}]", "option: ": "settings: "}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("no tagger: give --tagger FOLDER_OR_ID", "no tagger: give tagger=FOLDER_OR_ID"),
        ("give --tagger, or --root", "give tagger=, or source.root"),
        ("give --root DIR or --out", "give source.root=DIR or out="),
        ("--out a/b is a file, not a folder", "out=a/b is a file, not a folder"),
        ("--out labels is a file", "out=labels is a file"),
        ("choose another --out.", "choose another out=."),
        ("choose a new --out", "choose a new out="),
        ("give --image-paths 'x.json'", "give image_paths='x.json'"),
        ("--limit 0: expected at least 1", "limit=0: expected at least 1"),
        ("`sgpipe verify a --repair` mends it; else --out b", "`sgpipe verify a --repair` mends it; else out=b"),
        ("option: key 'a': got '--root'", "settings: key 'a': got 'source.root'"),
        ("give --data FOLDER (or two)", "give parts=[{'shards': FOLDER}] (or two)"),
        ("give --data, or --data a/b", "give parts, or parts a/b"),
        ("the option: --root", "the option: source.root"),
        ("the file /a/--tagger or a--root", "the file /a/--tagger or a--root"),
        ("nothing of the kind - really -- nothing", "nothing of the kind - really -- nothing"),
    ],
)
def test_options_become_arguments_and_settings(message, expected):
    assert to_python(message, WORDS) == expected


@pytest.mark.parametrize("kind", [UserError, EngineError])
def test_the_command_line_gets_its_own_words_back(kind):
    @in_python({"--tagger": "tag.tagger"})
    def inner() -> None:
        raise kind("give --tagger")

    @in_python({"--tagger": "tagger="})
    def outer() -> None:
        inner()

    for function, words in ((inner, "give tag.tagger"), (outer, "give tagger=")):
        with pytest.raises(kind) as caught:
            function()
        for error in (caught.value, copy(caught.value)):
            assert (str(error), on_command_line(error)) == (words, "give --tagger")
    assert on_command_line(kind("give --tagger")) == "give --tagger"


@pytest.mark.parametrize("command", FUNCTIONS)
def test_every_option_of_a_command_has_a_word_in_python(command):
    group = typer.main.get_command(app)
    options = {option for each in group.commands[command].params for option in each.opts if option.startswith("--")}
    arguments = {name for function in FUNCTIONS[command] for name in inspect.signature(function).parameters}
    as_arguments = {f"--{name.replace('_', '-')}" for name in arguments}
    of_the_graph = {"--threshold", "--out"} if command == "label" else set()
    assert options - ONLY_THERE - of_the_graph - as_arguments <= TABLES[command].keys()


def test_every_word_is_an_argument_or_a_setting():
    for command, recipe in (("generate", sgpipe.recipe.Recipe()), ("train", sgpipe.training.recipe.TrainRecipe())):
        known = recipe.model_dump()
        for option, word in TABLES[command].items():
            if word.endswith("=True") or word == "parent=" or option in ("option: ", "--set"):
                continue
            part = known
            for key in re.sub("^images in |=.*", "", word).split(".NAME")[0].split("."):
                part = part[key]


@cache
def messages() -> list[str]:
    """The texts of the package, except those of the command line itself; "{}" stands for a value."""
    texts = []
    for path in SOURCES.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if path.parent.name != "cli" and "--" in source:
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                    texts.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return [text for text in texts if "--" in text]


@pytest.mark.parametrize("command", TABLES)
def test_no_message_of_the_package_keeps_an_option(command):
    texts = messages()
    assert len(texts) > 30
    for text in texts:
        spoken = re.sub("`sgpipe [^`]*`", "", to_python(text.replace("{}", "a/b"), TABLES[command]))
        assert not re.search(r"(?<![\w-])--[a-z]", spoken), text


def train_recipe(**changes):
    return load_train_recipe("tagger", {key.replace("__", "."): value for key, value in changes.items()})


def labelling(**changes):
    return load_recipe("coco", {key.replace("__", "."): value for key, value in changes.items()})


CALLS = {
    "Pipeline without a tagger": (lambda out: Pipeline("folder"), "tagger=FOLDER_OR_ID"),
    "Pipeline without a captioner": (lambda out: Pipeline(settings={"caption.captioner": None}), "captioner=FOLDER"),
    "Pipeline with an unknown setting": (lambda out: Pipeline(settings={"tag.thresh": 1}), "^settings: unknown key"),
    "load_recipe with an unknown setting": (lambda out: labelling(tag__thresh=1), "^overrides: unknown key"),
    "load_recipe with keys that are no text": (lambda out: load_recipe("coco", {1: 2}), "are no overrides"),
    "load_recipe of no such file": (lambda out: load_recipe(out / "a.yaml"), "no such file"),
    "load_train_recipe with an unknown setting": (lambda out: train_recipe(seeds=1), "^overrides: unknown key"),
    "generate with a name": (lambda out: generate("coco", out), r"expected a Recipe, as load_recipe\(…\) returns"),
    "train with a name": (lambda out: train("tagger", out), r"expected a TrainRecipe, as load_train_recipe\(…\)"),
    "generate without data": (
        lambda out: generate(load_recipe("miniworld", {"source.format": "coco"}), out),
        "give source.splits.NAME.images and source.splits.NAME.annotations, or source.root",
    ),
    "generate without a tagger": (
        lambda out: generate(load_recipe("miniworld", {"tag.tagger": None}), out),
        "tag.tagger=",
    ),
    "train without data": (lambda out: train(train_recipe(), out), r"give data\.train=\[{'shards': FOLDER}\]"),
    "iter_records of nothing": (lambda out: iter_records(str(out)), "not an sgpipe run|no such"),
}


@pytest.mark.parametrize("call", CALLS)
def test_python_users_read_pythons_words(call, tmp_path):
    function, expected = CALLS[call]
    with pytest.raises(UserError, match=expected) as caught:
        function(tmp_path / "out")
    assert "--" not in str(caught.value)


def generate_miniworld(out):
    return generate(load_recipe("miniworld", {"source.drawn.images": 1}), str(out), Progress())


@pytest.mark.parametrize("function", [generate_miniworld, lambda out: train(train_recipe(), str(out))])
@pytest.mark.parametrize("full", [False, True])
def test_the_folder_is_called_out(function, full, tmp_path):
    out = tmp_path / "out"
    if full:
        out.mkdir()
    (out / "a.txt" if full else out).touch()
    with pytest.raises(UserError) as caught:
        function(out)
    assert str(caught.value).startswith(f"out={out} ")
    assert on_command_line(caught.value).startswith(f"--out {out} ")
