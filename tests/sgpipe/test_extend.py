"""The examples of docs/extend.md work, and what is wrong with code of others is told in a line."""

import hashlib
import inspect
import json
import math
import os
import re
import shutil
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import ray
from PIL import Image
from typer.testing import CliRunner

from sgpipe import load_recipe
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.export.formats import FormatOption
from sgpipe.generation.run import generate
from sgpipe.plugins import code_identity, installed, is_code_identity, packages_by_module
from sgpipe.records import Box, Record, Relation
from sgpipe.registry import Kind
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from tests.sgpipe.evaluation.own_predictions import write_predictions
from tests.sgpipe.generation.in_process import without_ray
from tests.sgpipe.training.data.runs import make_run
from tests.values import values_of

PAGE = (Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")
CAPTIONER = "own.captions:ColourCaptioner"
TAGGER = "own.near:NearTagger"


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """The package of the page, importable here and in processes that this one starts."""
    folder = tmp_path / "code"
    for name, code in re.findall(r'```python title="(\S+)"\n(.*?)```', PAGE, re.DOTALL):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    )
    yield folder
    forget_package()


def forget_package() -> None:
    """Let the next import of the package of the page read its files."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own", "test_own")]:
        del sys.modules[name]


def labelled(out: Path, engine: str = "local", tagger: str = "miniworld") -> list[Record]:
    settings = {
        "caption.captioner": CAPTIONER,
        "tag.tagger": tagger,
        "source.miniworld.images": 4,
        "engine.kind": engine,
    }
    generate(load_recipe("miniworld", settings), out)
    return list(iter_records(out))


@without_ray()
def test_the_captioner_of_the_page_works(extension, tmp_path):
    records = labelled(tmp_path / "run")
    captions = [caption.text for record in records for caption in record.captions]
    assert len(captions) == 4
    assert all(
        re.fullmatch(r"a person next to a dog in a (bright|dark) room", text) for text in captions
    )
    identity = Manifest.load(tmp_path / "run").run["identity"]["caption"]["captioner"]
    assert identity == code_identity("captioner", CAPTIONER)
    assert identity.startswith(f"{CAPTIONER} no version sha256:")


def test_the_format_of_the_page_leaves_small_boxes_out(extension, tmp_path):
    sizes = {"ball": 31, "person": 90, "dog": 32}
    objects = [Box(name, 1, (5, 5, side, side)) for name, side in sizes.items()]
    relations = [Relation(1, 0, "throwing", 0.9), Relation(1, 2, "next to", 0.9)]
    record = Record("1", "own", "val", "1.png", 640, 480, objects, relations=relations)
    make_run(tmp_path / "run", [record])
    run("export", tmp_path / "run", "--to", "own.lines:LINES", "--out", tmp_path / "lines")
    assert (tmp_path / "lines" / "val.txt").read_text() == "1.png\tperson\tnext to\tdog\n"
    readme = (tmp_path / "lines" / "README.md").read_text()
    assert "--to lines" in readme
    assert "Relations that the format cannot hold: 1" in readme


def test_the_page_lists_all_options_of_formats():
    [table] = re.findall(r"\| of `Format\(options=…\)`.*?\n\n", PAGE, re.DOTALL)
    assert re.findall(r'^\| `"(\S+)"`', table, re.MULTILINE) == list(get_args(FormatOption))


@without_ray()
def test_the_stage_of_the_page_captions_boxes(extension, tmp_path):
    settings = {"caption.then": ["own.sides:Sides"], "source.miniworld.images": 2}
    generate(load_recipe("miniworld", settings), tmp_path / "run")
    for record in iter_records(tmp_path / "run"):
        texts = values_of(record.captions, "text")
        left = min(record.objects, key=lambda box: box.bbox[0])
        assert f"a {left.category} to the left of a " in " ".join(texts)


def test_the_tests_of_the_page_pass(extension, tmp_path):
    module = import_module("test_own")
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    assert len(tests) == 5
    for test in tests.values():
        test(*[tmp_path] * len(inspect.signature(test).parameters))


@without_ray()
def test_the_stage_of_the_page_changes_captions(extension, tmp_path):
    captioner = (extension / "own/captions.py").read_text().replace("a dog", "a puppy")
    (extension / "own/puppies.py").write_text(captioner)
    assert "a puppy" in captioner
    settings = {
        "caption.captioner": "own.puppies:ColourCaptioner",
        "caption.then": ["own.words:CleanWords"],
        "source.miniworld.images": 2,
        "engine.kind": "local",
    }
    generate(load_recipe("miniworld", settings), tmp_path / "run")
    records = list(iter_records(tmp_path / "run"))
    captions = [caption.text for record in records for caption in record.captions]
    assert len(captions) == 2
    assert all("a dog" in text and "puppy" not in text for text in captions)


@without_ray()
def test_the_recipe_of_the_page_sets_settings_of_its_code(extension, tmp_path, monkeypatch):
    [recipe] = re.findall(r'```yaml title="replaced.yaml"\n(.*?)```', PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("replaced.yaml").write_text(recipe)
    Path("words.json").write_text(json.dumps({"dog": "puppy", "bright": "pale", "dark": "dim"}))
    changes = ("--set", "source.miniworld.images=4", "--set", "engine.kind=local")
    command = ("generate", "replaced.yaml", *changes)
    run(*command, "--out", "bright", "--set", "caption.options.bright=-1")
    run(*command, "--out", "dark", "--set", "caption.options.bright=256")
    for light, word in (("bright", "pale"), ("dark", "dim")):
        texts = [caption.text for record in iter_records(light) for caption in record.captions]
        assert texts == [f"a person next to a puppy in a {word} room"] * 4
    digest = hashlib.sha256(Path("words.json").read_bytes()).hexdigest()
    identity = Manifest.load(Path("dark")).run["identity"]["caption"]
    assert identity["captioner"] == f'{code_identity("captioner", CAPTIONER)} {{"bright": 256}}'
    replaced = code_identity("stage", "own.replace:Replace")
    assert identity["then"] == [f'{replaced} {{"words": "{digest}"}}']
    assert "options" not in identity
    assert is_code_identity(identity["captioner"])

    Path("words.json").unlink()
    done = CliRunner().invoke(app, [*command, "--out", "missing"])
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, "error: no such file: words.json")
    assert not Path("missing").exists()


def run(*words: object) -> str:
    """Run a command that succeeds; return what it prints to standard error."""
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.stderr
    return done.stderr


@pytest.fixture
def yolo(tmp_path):
    """The images and the annotations that the source of the page reads."""
    for name in ("labels", "photos"):
        (tmp_path / name).mkdir()
    for number in range(3):
        Image.new("RGB", (640, 480), (number, 90, 90)).save(tmp_path / f"photos/{number}.png")
        lines = ["0 0.5 0.5 0.2 0.4", "1 0.5 0.6 0.2 0.2", "2 0.95 0.5 0.2 0.1"]
        (tmp_path / f"labels/{number}.txt").write_text("\n".join(lines))
    return ["--annotations", tmp_path / "labels", "--images", tmp_path / "photos"]


@without_ray()
def test_the_source_of_the_page_is_imported_and_labelled(extension, yolo, tmp_path):
    command = ("import", "own.yolo:YOLO", *yolo, "--split", "val", "--out", tmp_path / "imported")
    run(*command)
    records = list(iter_records(tmp_path / "imported"))
    assert values_of(records, "image_id") == ["0", "1", "2"]
    assert values_of(records[0].objects, "category") == ["person", "dog", "ball"]
    assert records[0].objects[0].bbox == pytest.approx((256, 144, 128, 192))
    assert records[0].objects[2].bbox == pytest.approx((544, 216, 96, 48))  # clipped
    identity = Manifest.load(tmp_path / "imported").run["identity"]
    [code] = identity["options"].values()
    digest = hashlib.sha256((extension / "own/yolo.py").read_bytes()).hexdigest()
    assert code == f"own.yolo:YOLO no version sha256:{digest}"

    assert "imported before" in run(*command)
    (tmp_path / "labels/0.txt").write_text("0 0.5 0.5 0.2 0.4")
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 2
    assert "files.annotations: content of SHA-256" in done.stderr

    settings = ("--captioner", "miniworld", "--tagger", "miniworld", "--out", tmp_path / "labelled")
    run("generate", "miniworld", "--extend", tmp_path / "imported", *settings)
    labelled = list(iter_records(tmp_path / "labelled"))
    assert values_of(labelled, "objects") == values_of(records, "objects")
    assert all(values_of(labelled, "captions"))


def test_the_source_of_the_page_that_opens_files_states_classes_and_the_form_of_boxes(
    extension, yolo, tmp_path
):
    boxes = {"0.png": [["dog", 10, 20, 110, 90], ["cow", 0, 0, 9, 9]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    (tmp_path / "names.txt").write_text("person dog")
    files = ("--annotations", tmp_path / "boxes.json", "--names", tmp_path / "names.txt")
    command = ("import", "own.corners:CORNERS", *files, *yolo[2:])
    run(*command, "--out", tmp_path / "corners")
    [record] = iter_records(tmp_path / "corners")
    [dog] = record.objects
    assert (dog.category, dog.category_id, dog.bbox) == ("dog", 1, (10, 20, 100, 70))
    manifest = Manifest.load(tmp_path / "corners")
    assert manifest.run["labels"] == {"objects": ["person", "dog"], "relations": []}
    assert manifest.shards[0].counts["problem.unlisted_names"] == 1
    run(*command, "--boxes", "xywh", "--out", tmp_path / "sizes")
    [record] = iter_records(tmp_path / "sizes")
    assert record.objects[0].bbox == (10, 20, 110, 90)


def test_boxes_of_a_source_that_states_no_form_are_not_read_in_another_one(
    extension, yolo, tmp_path
):
    command = ("import", "own.yolo:YOLO", *yolo, "--boxes", "xyxy", "--out", tmp_path / "imported")
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 2
    assert done.stderr == (
        "error: --boxes xyxy: the boxes of yolo have a fixed form: omit it; a source of your own"
        " allows others by AnnotationSource(boxes=…)\n"
    )
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "nowhere.at:SOURCE", "nowhere.at cannot be imported"),
        ("SOURCE = 1", "wrong:SOURCE", "is not a sgpipe.Source"),
        ("yield 1 / 0", "wrong:SOURCE", "failed: ZeroDivisionError: division by zero"),
        ("yield 1", "wrong:SOURCE", "yields 1: expected a sgpipe.Record"),
        ("yield from ()", "wrong:SOURCE", "contains no image to import"),
    ],
)
def test_what_is_wrong_with_a_source_is_told_in_a_line(
    tmp_path, yolo, monkeypatch, code, name, message
):
    if "yield" in code:
        code = (
            f"import sgpipe\ndef read(place, split): {code}\nSOURCE = sgpipe.Source('wrong', read)"
        )
    (tmp_path / "wrong.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    words = ["import", name, *map(str, yolo), "--out", str(tmp_path / "imported")]
    done = CliRunner().invoke(app, words)
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1


@pytest.fixture
def package(extension):
    """The package of the page is installed, with the short names that the page gives."""
    [table] = re.findall(r'```toml title="pyproject.toml"\n(.*?)```', PAGE, re.DOTALL)
    lines = []
    project = tomllib.loads(table)["project"]
    for group, names in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    assert (project["name"], project["version"]) == ("own", "1.2")
    folder = extension / "own-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.2\n")
    (folder / "RECORD").write_text("own/captions.py,,\n")
    (folder / "entry_points.txt").write_text("\n".join(lines))
    for read_packages in (installed, packages_by_module):
        read_packages.cache_clear()
    yield
    for read_packages in (installed, packages_by_module):
        read_packages.cache_clear()


def test_a_package_that_is_installed_gives_short_names(package, yolo, tmp_path):
    names = {kind: list(installed(kind)) for kind in get_args(Kind)}
    assert names == {
        "captioner": ["colours"],
        "evaluator": ["predicates"],
        "format": ["lines"],
        "source": ["yolo"],
        "stage": ["clean"],
        "tagger": ["near"],
    }
    for kind in get_args(Kind):
        [reference] = installed(kind).values()
        assert code_identity(kind, reference).startswith(f"{reference} 1.2 sha256:")
    run("import", "yolo", *yolo, "--split", "val", "--out", tmp_path / "imported")
    run("export", tmp_path / "imported", "--to", "lines", "--out", tmp_path / "lines")
    assert (tmp_path / "lines/val.txt").is_file()
    settings = {"caption.captioner": "colours", "tag.tagger": "near"}
    recipe = load_recipe("miniworld", settings)
    assert (recipe.caption.plugin, recipe.tag.plugin) == (CAPTIONER, TAGGER)
    help_ = CliRunner().invoke(app, ["eval", "--help"]).output
    assert "Evaluate by own.predicates:PREDICATES" in " ".join(help_.split())


SOURCES = """
from collections import Counter
from pathlib import Path
from sgpipe import AnnotationSource, Box, Record, Source
def read(place, split, names: Path, first: int = 0):
    [name] = names.read_text().split()
    for number in range(first, 3):
        yield Record(str(number), "own", split, f"{number}.png", 9, 9, [Box(name, 1, (0, 0, 9, 9))])
READ = Source("own", read)
def open_images(annotations, split, images, names: Path):
    def read_all(problems):
        problems["own_kind"] += 2
        yield Record("7", "own", split, f"{Path(images).name}.png", 9, 9)
    return AnnotationSource("own", split, read_all, {"names": names, "annotations": annotations})
OPEN = Source("own", open=open_images)
WRONG = Source("own", open=lambda annotations, split: [])
"""


def test_a_source_has_options_files_and_counts(tmp_path, yolo, monkeypatch):
    (tmp_path / "sourced.py").write_text(SOURCES)
    (tmp_path / "names.txt").write_text("dog")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("--names", tmp_path / "names.txt")
    run("import", "sourced:READ", *yolo, *names, "--first", "1", "--out", tmp_path / "read")
    records = list(iter_records(tmp_path / "read"))
    assert [(record.image_id, record.objects[0].category) for record in records] == [
        ("1", "dog"),
        ("2", "dog"),
    ]
    identity = Manifest.load(tmp_path / "read").run["identity"]
    digest = hashlib.sha256(b"dog").hexdigest()
    assert (identity["files"]["names"], identity["options"]["first"]) == (digest, 1)
    run("import", "sourced:OPEN", *yolo, *names, "--out", tmp_path / "opened")
    [record] = iter_records(tmp_path / "opened")
    assert record.file_name == "photos.png"
    manifest = Manifest.load(tmp_path / "opened")
    assert manifest.shards[0].counts["problem.own_kind"] == 2
    assert list(manifest.run["identity"]["options"]) == ["source"]
    help_ = CliRunner().invoke(app, ["import", "sourced:READ", "--help"]).output
    assert "--first" in help_


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("READ", "Missing option '--names'"),
        ("READ --names none.txt", "path 'none.txt' does not exist"),
        ("WRONG", "open must return a sgpipe.AnnotationSource"),
    ],
)
def test_what_is_wrong_with_options_is_told_in_a_line(tmp_path, yolo, monkeypatch, name, message):
    (tmp_path / "sourced.py").write_text(SOURCES)
    monkeypatch.syspath_prepend(tmp_path)
    source, *options = name.split()
    words = ["import", f"sourced:{source}", *options, *map(str, yolo)]
    words += ["--out", str(tmp_path / "imported")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_relations_of_a_source_have_objects(tmp_path, yolo, monkeypatch):
    code = """
from sgpipe import Box, Record, Relation, Source
def read(place, split):
    for name, end in (("0", 1), ("1", 2)):
        boxes = [Box("dog", 1, (5, 5, 50, 50)), Box("cat", 2, (50, 50, 50, 50))]
        relations = [Relation(0, end, "near")]
        yield Record(name, "own", split, f"{name}.png", 0, 0, boxes, relations=relations)
SOURCE = Source("own", read)
"""
    (tmp_path / "ends.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    run("import", "ends:SOURCE", *yolo, "--out", tmp_path / "imported")
    first, second = iter_records(tmp_path / "imported")
    assert (first.width, first.height, len(first.relations)) == (640, 480, 1)
    assert second.error == "import: object 2 of a relation is not among the image's 2 objects"


def test_the_evaluator_of_the_page_measures_and_compares(extension, tmp_path):
    command = ["eval", "own.predicates:PREDICATES", "--annotations", tmp_path / "annotations.json"]
    command += ["--predictions", write_predictions(tmp_path, [77, 37])]
    command += [
        "--compare",
        write_predictions(tmp_path, [77, 77]),
        "--json-file",
        tmp_path / "out.json",
    ]
    run(*command)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["benchmark"] == "Predicates"
    assert result["summary"] == {"predicates found": 0.5}
    assert result["settings"] == {"code": code_identity("evaluator", "own.predicates:PREDICATES")}
    assert result["comparison"]["measures"]["predicates found"]["difference"] == -0.5

    code = (extension / "own/predicates.py").read_text()
    code = code.replace("(images, classes)", "(images, classes, best: int)")
    (extension / "own/best.py").write_text(code.replace("-10:", "-best:"))
    words = ["eval", "own.best:PREDICATES", "--best", "1", *command[2:6], "--json"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["best"] == "1"

    (extension / "own/bad.py").write_text(
        "import sgpipe\nBAD = sgpipe.Evaluator('bad', lambda *_: 1 / 0, 'hico')"
    )
    words = ["eval", "own.bad:BAD", *map(str, command[2:4]), "--predictions", str(command[5])]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    reason = "ZeroDivisionError: division by zero (own/bad.py:2)"
    assert done.stderr == f"error: evaluator own.bad:BAD failed: {reason}\n"


@without_ray()
def test_a_run_does_not_have_its_code_imported(extension, tmp_path):
    labelled(tmp_path / "run", tagger=TAGGER)
    shutil.rmtree(extension)
    forget_package()
    for command in ("verify", "stats"):
        run(command, tmp_path / "run")
    assert "own" not in sys.modules
    command = ["generate", "--from", str(tmp_path / "run"), "--out", str(tmp_path / "new")]
    for options, missing in (
        (["--tagger", "x"], f"pass --captioner {CAPTIONER}"),
        (["--captioner", "x"], f"pass --tagger {TAGGER}"),
    ):
        done = CliRunner().invoke(app, [*command, *options])
        assert done.exit_code == 2
        assert missing in done.stderr


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "nowhere.at:All", "nowhere.at cannot be imported (ModuleNotFoundError"),
        ("1 / 0", "wrong:Captions", "wrong cannot be imported (ZeroDivisionError"),
        ("", "wrong:Captions", "has no Captions"),
        ("class Captions: pass", "wrong:Captions", "is not a subclass of sgpipe.Captioner"),
        (
            "import sgpipe\nclass Captions(sgpipe.Captioner):\n    def __init__(self, config): 1 / 0",
            "wrong:Captions",
            "failed: ZeroDivisionError",
        ),
    ],
)
@without_ray()
def test_what_is_wrong_with_code_is_told_in_a_line(tmp_path, monkeypatch, code, name, message):
    (tmp_path / "wrong.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    command = ["generate", "--captioner", name, "--set", "source.miniworld.images=1"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run")])
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    assert done.exit_code == 2
    assert f"captioner {name}" in done.stderr
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1


@without_ray()
def test_the_tagger_of_the_page_scores_candidates(extension, tmp_path):
    records = labelled(tmp_path / "run", tagger=TAGGER)
    relations = [relation for record in records for relation in record.relations]
    assert relations
    assert all(0.05 <= relation.confidence <= 1 for relation in relations)
    assert set(values_of(relations, "origin")) == {"tagger"}
    for record in records:
        for relation in record.relations:
            corners = [record.objects[end].bbox[:2] for end in (relation.subject, relation.object)]
            far = math.dist(*corners) / math.hypot(record.width, record.height)
            assert relation.confidence == pytest.approx(1 - far)
    identity = Manifest.load(tmp_path / "run").run["identity"]["tag"]["tagger"]
    assert identity == code_identity("tagger", TAGGER)


@without_ray()
def test_a_tagger_that_is_edited_or_set_otherwise_runs_again_on_what_a_run_has(extension, tmp_path):
    code = extension / "own/near.py"
    start = "    def __init__(self, config, *, power=1):\n        super().__init__(config)"
    scores = "\n        self.power = power\n\n    def scores("
    edited = code.read_text().replace("    def scores(", f"{start}{scores}")
    code.write_text(edited.replace("1 - distance / diagonal", "0.5**self.power"))
    labelled(tmp_path / "run", tagger=TAGGER)
    names = ("--captioner", CAPTIONER, "--tagger", TAGGER, "--set", "engine.kind=local")
    command = ("generate", "--from", tmp_path / "run", *names, "--out")
    squared = run(*command, tmp_path / "squared", "--set", "tag.options.power=2")
    code.write_text(code.read_text().replace("0.5", "0.9"))
    forget_package()
    nearly = run(*command, tmp_path / "nearly")
    for out, output, confidence in (("squared", squared, 0.25), ("nearly", nearly, 0.9)):
        assert "tag to run (tag.tagger: " in " ".join(output.split())
        records = list(iter_records(tmp_path / out))
        confidences = [relation.confidence for row in records for relation in row.relations]
        assert confidences
        assert confidences == pytest.approx([confidence] * len(confidences))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("[0.5]", "returns 1 score for "),
        ("[2.0 for _ in candidates]", "returns the score 2.0: expected 0 to 1"),
        ("[float('nan') for _ in candidates]", "returns the score nan: expected 0 to 1"),
    ],
)
@without_ray()
def test_what_is_wrong_with_a_tagger_is_told_in_a_line(extension, tmp_path, scores, message):
    code = "import sgpipe\nclass Bad(sgpipe.Tagger):\n"
    code += f"    def scores(self, image, record, candidates): return {scores}"
    (extension / "own/bad.py").write_text(code)
    with pytest.raises(UserError, match=f"tagger own.bad:Bad {message}") as error:
        labelled(tmp_path / "run", tagger="own.bad:Bad")
    assert "\n" not in str(error.value)


@without_ray()
def test_an_exception_of_a_tagger_is_an_error_row_that_names_its_line(extension, tmp_path):
    code = "import sgpipe\nclass Bad(sgpipe.Tagger):\n"
    code += "    def scores(self, image, record, candidates): return [record.file_name['x']]"
    (extension / "own/bad.py").write_text(code)
    records = labelled(tmp_path / "run", tagger="own.bad:Bad")
    expected = r"tag: tagger own\.bad:Bad failed: TypeError: string ind.* \(own/bad\.py:3\)"
    failed = [record.error for record in records if not record.ok]
    assert failed
    assert all(re.fullmatch(expected, error) for error in failed)
    [traceback, *_] = sorted((tmp_path / "run/.sgpipe/errors").iterdir())
    assert "return [record.file_name['x']]" in traceback.read_text()


@pytest.mark.slow
def test_code_of_ones_own_labels_alike_on_ray(extension, tmp_path):
    ray.shutdown()  # workers of a Ray that another test started do not know the folder
    on_ray = labelled(tmp_path / "ray", "ray", TAGGER)
    assert on_ray == labelled(tmp_path / "local", "local", TAGGER)
