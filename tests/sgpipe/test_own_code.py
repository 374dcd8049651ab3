"""What is wrong with code of the user's own is told in one line, which names it and its line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from sgpipe import Pipeline
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.evaluation.result import Resampling, compare_paired
from sgpipe.recipe import CaptionConfig, TagConfig
from sgpipe.records import Record, Relation
from sgpipe.stages.caption.captioner import CaptionInput
from sgpipe.stages.caption.own_captioner import OwnCaptioner
from sgpipe.stages.tag.tagger import OwnTagger
from tests.sgpipe.evaluation.own_predictions import write_predictions
from tests.sgpipe.training.data.runs import make_run, plain_record

CAPTIONER = """
import sgpipe
class Own(sgpipe.Captioner):
    def caption(self, inputs):
        {}
"""
TAGGER = """
import sgpipe
class Own(sgpipe.Tagger):
    def scores(self, image, record, candidates):
        {}
"""
SOURCE = """
import sgpipe
def read(place, split):
    {}
Own = sgpipe.Source("own", read)
"""
FORMAT = """
import sgpipe
def write(rows, out):
    {}
Own = sgpipe.Format("own", write)
"""
EVALUATOR = """
import sgpipe
def measure(images, classes):
    {}
Own = sgpipe.Evaluator("own", measure, "hico")
"""
EXPECTED = "expected a list of captions (str) for each image, in their order"

WriteModule = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Write a module of one's own; returns the name of what it has."""
    monkeypatch.syspath_prepend(tmp_path / "code")
    folder = tmp_path / "code" / "own"
    folder.mkdir(parents=True)
    for name in ("own", "own.code"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def write(code: str) -> str:
        (folder / "code.py").write_text(code)
        return "own.code:Own"

    return write


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words: object) -> str:
    """Run a command that refuses what the user wrote; returns its line."""
    done = invoke(*words)
    assert done.exit_code == 2, (done.stderr, done.exception)
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("yield from ('a dog' for _ in inputs)", f"yields 'a dog' for an image: {EXPECTED}"),
        ("yield from ([3] for _ in inputs)", f"yields [3] for an image: {EXPECTED}"),
        ("yield from (None for _ in inputs)", f"yields None for an image: {EXPECTED}"),
        ("return None", f"returns None: {EXPECTED}"),
        ("yield from [['a dog']] * 9", f"yields more lists than images: {EXPECTED}"),
        ("list(inputs); yield ['a dog']", f"yields 1 list for 2 images: {EXPECTED}"),
        ("return iter(())", f"yields 0 lists for 2 images: {EXPECTED}"),
        ("yield from (['a', 'a\\n\\nb'] for _ in inputs)", "yields the caption 'a\\n\\nb': expected a single line"),
        ("yield from ({}['x'] for _ in inputs)", "failed: KeyError: 'x' (own/code.py:5)"),
        ("open('/none')", "failed: FileNotFoundError: [Errno 2] No such file or directory: '/none' (own/code.py:5)"),
    ],
)  # fmt: skip
def test_a_captioner_is_told_what_it_must_yield(
    write_module: WriteModule, body: str, expected: str
) -> None:
    name = write_module(CAPTIONER.replace("{}", body, 1))
    captioner = OwnCaptioner(CaptionConfig(captioner=name), name, None)
    inputs = (CaptionInput(Image.new("RGB", (9, 9)), number) for number in range(2))
    with pytest.raises(UserError) as error:
        list(captioner.caption(inputs))
    assert str(error.value).startswith(f"captioner {name} {expected}")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", "returns None: expected a list with a score from 0 to 1 for each candidate"),
        ("return '1' * len(candidates)", "returns '1"),
        ("return ['1' for _ in candidates]", "returns the score '1': expected 0 to 1"),
        ("return {}['x']", "failed: KeyError: 'x' (own/code.py:5)"),
    ],
)
def test_a_tagger_is_told_what_it_must_return(
    write_module: WriteModule, body: str, expected: str
) -> None:
    name = write_module(TAGGER.replace("{}", body, 1))
    tagger = OwnTagger(TagConfig(tagger=name), name, None)
    image = Image.new("RGB", (9, 9))
    with pytest.raises(UserError) as error:
        tagger.scores(image, Record("7", "own", "val", "7.png", 9, 9), [Relation(0, 1, "on")])
    assert str(error.value).startswith(f"tagger {name} {expected}")


SETTINGS = """
import sgpipe
class Own(sgpipe.Captioner):
    def __init__(self, config, *, bright: int, names: list[str] = ()):
        super().__init__(config)
    def caption(self, inputs):
        for source in inputs:
            yield ["a dog"]
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"brigth": 3}, "caption.options.brigth: not a setting of {}; did you mean 'bright'?"),
        (
            {"bright": [1]},
            "captioner {}: caption.options.bright: Input should be a valid integer, got [1]",
        ),
        (
            {"bright": 1, "names": 2},
            "captioner {}: caption.options.names: Input should be a valid list, got 2",
        ),
        (
            {},
            "captioner {} failed: TypeError: Own.__init__() missing 1 required keyword-only"
            " argument: 'bright'",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    tmp_path: Path, write_module: WriteModule, options: dict[str, object], expected: str
) -> None:
    name = write_module(SETTINGS)
    settings = ["--set", f"caption.options={json.dumps(options)}", "--set", "engine.kind=local"]
    line = refusal("generate", "--captioner", name, *settings, "--out", tmp_path / "out")
    assert line == expected.format(name)
    recipe = {"caption.captioner": name, "caption.options": options}
    with pytest.raises(UserError) as error:
        Pipeline(settings=recipe)(Image.new("RGB", (64, 64)))
    assert str(error.value) == expected.format(name)


def test_settings_of_code_need_code(tmp_path: Path) -> None:
    settings = ("--set", "pair.options.bright=3", "--out", tmp_path / "out")
    expected = "pair.options.bright: not a setting of any code of your own"
    assert refusal("generate", *settings) == expected


def record(objects: str = "[]", size: str = "9, 9", split: str = "split") -> str:
    return f"yield sgpipe.Record('7', 'own', {split}, '0.png', {size}, {objects})"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return None", " returns None: read must yield a sgpipe.Record for each image"),
        ("yield {'id': 3}", " yields {'id': 3}: expected a sgpipe.Record for each image"),
        (
            record("[sgpipe.Box('dog', 1, (1, 'a', 3, 4))]"),
            ": image '7': objects[0].bbox is (1, 'a', 3, 4), expected four numbers",
        ),
        (
            record("[sgpipe.Box('dog', 1, (1, 2, 3))]"),
            ": image '7': objects[0].bbox is (1, 2, 3), expected four numbers",
        ),
        (
            record("[sgpipe.Box('dog', 'one', (1, 2, 3, 4))]"),
            ": image '7': objects[0].category_id is 'one', expected an int",
        ),
        (record("[1]"), ": image '7': objects[0] is 1, expected a sgpipe.Box"),
        (record(size="9.0, 9"), ": image '7': width is 9.0, expected an int"),
        (record(split="'x'"), ": image '7': split is 'x', expected 'val', which read gets"),
        ("yield int(split)", " failed: ValueError: invalid literal for int()"),
    ],
)
def test_a_source_is_told_what_it_must_yield(
    tmp_path: Path, write_module: WriteModule, body: str, expected: str
) -> None:
    name = write_module(SOURCE.replace("{}", body, 1))
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    data = ("--annotations", tmp_path, "--images", tmp_path, "--split", "val")
    line = refusal("import", name, *data, "--out", tmp_path / "out")
    assert line.startswith(f"source {name}{expected}")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", "writes no file: expected some in the folder that write gets"),
        ("(out / 'empty').mkdir()", "writes no file: expected some in the folder that write gets"),
        ("1 / 0", "failed: ZeroDivisionError: division by zero (own/code.py:4)"),
    ],
)
def test_a_format_has_to_write_files(
    tmp_path: Path, write_module: WriteModule, body: str, expected: str
) -> None:
    name = write_module(FORMAT.replace("{}", body, 1))
    make_run(tmp_path / "run", [plain_record("a")])
    line = refusal("export", tmp_path / "run", "--to", name, "--out", tmp_path / "out")
    assert line == f"format {name} {expected}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 'returns None: expected numbers by their names, such as {"recall": 0.5}'),
        ("return {'recall': 'high'}", "returns 'recall': 'high', expected a number"),
        ("return {'recall': 1 / 0}", "failed: ZeroDivisionError: division by zero (own/code.py:4)"),
    ],
)
def test_an_evaluator_is_told_what_it_must_return(
    tmp_path: Path, write_module: WriteModule, body: str, expected: str
) -> None:
    name = write_module(EVALUATOR.replace("{}", body, 1))
    predictions = write_predictions(tmp_path, [77])
    files = ("--annotations", tmp_path / "annotations.json", "--predictions", predictions)
    assert refusal("eval", name, *files) == f"evaluator {name} {expected}"


def test_counts_are_whole_numbers_and_only_files_with_something_in_them_are_offered(
    tmp_path: Path, write_module: WriteModule
) -> None:
    numbers = "{'pairs': numpy.int64(1200), 'share': 0.5}"
    name = write_module(EVALUATOR.replace("{}", f"import numpy; return {numbers}", 1))
    predictions = write_predictions(tmp_path, [77])
    files = ("--annotations", tmp_path / "annotations.json", "--predictions", predictions)
    printed = invoke("eval", name, *files).stdout
    assert "1,200 " in printed
    assert "0.5000 " in printed
    assert json.loads(invoke("eval", name, *files, "--json").stdout)["summary"]["pairs"] == 1200
    for option in ("--csv", "--plot"):
        assert f"No such option: {option}" in invoke("eval", name, *files, option, "x").stderr
        assert option in invoke("eval", "hico", "--help").stdout


def test_a_count_is_compared_without_an_interval() -> None:
    """Half of the images have half of it."""
    names = [str(number) for number in range(20)]
    first = Resampling(
        names, lambda counts: {"share": counts[:9].mean(), "hits": 3.0 * counts.sum()}
    )
    second = Resampling(names, lambda counts: {"share": counts[:8].mean(), "hits": counts.sum()})
    compared = compare_paired(first, second, resamples=20).measures["hits"]
    assert compared.difference == 40
    assert math.isnan(compared.difference_interval[0])
    assert not compared.shown


def test_a_captioner_of_the_wrong_kind_is_refused_before_anything_is_written(
    tmp_path: Path, write_module: WriteModule
) -> None:
    name = write_module("import sgpipe\nOwn = sgpipe.Tagger")
    line = refusal("generate", "--captioner", name, "--out", tmp_path / "out")
    assert line == f"captioner {name} is not a subclass of sgpipe.Captioner"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["own.code", "own.code.Own", "own/code.py:Own"])
def test_code_in_another_form_is_not_taken_for_a_model(
    tmp_path: Path, write_module: WriteModule, name: str
) -> None:
    write_module(CAPTIONER)
    expected = f"{name} is code and no model: name a class of your own as package.module:Class"
    for option in ("--captioner", "--tagger"):
        assert refusal("generate", option, name, "--out", tmp_path / "out") == expected
    with pytest.raises(UserError, match="name a class of your own as"):
        Pipeline(captioner=name)
    for command in ("import", "eval"):
        expected = f"{name}: name code of your own as package.module:NAME"
        assert refusal(command, name) == expected
    line = refusal("export", tmp_path, "--to", name, "--out", tmp_path / "out")
    assert line.endswith("instructions, or package.module:NAME")


def test_code_that_cannot_be_imported_is_told_with_its_line(
    tmp_path: Path, write_module: WriteModule
) -> None:
    name = write_module("import sgpipe\n\n1 / 0\n")
    line = refusal("generate", "--captioner", name, "--out", tmp_path / "out")
    reason = "(ZeroDivisionError: division by zero) (own/code.py:3)"
    assert line == f"captioner {name}: own.code cannot be imported {reason}"
    line = refusal("generate", "--captioner", "own.py:Own", "--out", tmp_path / "out")
    assert line.endswith("; the name of a module has no .py")
