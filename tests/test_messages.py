"""Errors: an exit code, a line that names the culprit, no traceback, nothing left; in files:
`tests/bad_data`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.storage.manifest import MANIFEST, Manifest
from tests.detections import make_coco
from tests.sgpipe.generation.in_process import without_ray
from tests.sgpipe.training.data.runs import make_run, plain_record

COCO = (
    "generate coco --images DIR/coco/images --annotations DIR/coco/instances_val.json --out DIR/out"
)
CAPTIONED = f"{COCO} --captions DIR/coco/captions_val.json"
PACKAGED = "--captioner miniworld --tagger miniworld"
SERVED = f"{COCO} --captioner m --set caption.endpoint=http://127.0.0.1:9/v1 --set tag.method=all"
LISTED = f"generate folder --images DIR/coco/images --detector miniworld {PACKAGED} --out DIR/out"
IMPORT = "--images DIR/coco/images --out DIR/out"

# What is typed after `sgpipe`, and what the line has to name. DIR stands for the folder of the
# fixture `files`.
CASES: dict[str, str] = {
    # Paths that are missing, of the wrong kind, or in the way
    "generate coco --images DIR/none --annotations DIR/coco/instances_val.json --tagger none --out DIR/out": "DIR/none",
    f"{COCO.replace('instances_val', 'none')} --tagger none": "none.json",
    f"{COCO} --captions DIR/none.json --tagger none": "DIR/none.json",
    f"{CAPTIONED} --tagger DIR/none": "DIR/none",
    f"{CAPTIONED} --tagger DIR/bert": "DIR/bert",
    f"{CAPTIONED} --tagger none --calibration DIR/none.json": "DIR/none.json",
    f"{CAPTIONED.replace('DIR/out', 'DIR/coco/images')} --tagger none": "DIR/coco/images",
    f"{CAPTIONED.replace('DIR/out', 'DIR/empty.json')} --tagger none": "DIR/empty.json",
    f"{CAPTIONED} --tagger none --from DIR/none": "DIR/none",
    "generate DIR/none.yaml --out DIR/out": "DIR/none.yaml",
    "generate nowhere --out DIR/out": "nowhere",
    "label DIR/none.jpg --out DIR/out": "DIR/none.jpg",
    "stats DIR/none": "DIR/none",
    "stats DIR/coco": "DIR/coco",
    "stats DIR/none-*": "none-*",
    "stats DIR/c*": "DIR/c*",
    "verify DIR/r* --repair": "one by one",
    "compact DIR/r*": "DIR/r*",
    "stats DIR/run --html DIR/coco": "DIR/coco",
    "verify DIR/none": "DIR/none",
    "verify DIR/coco": "DIR/coco",
    "compact DIR/none": "DIR/none",
    "compact DIR/coco": "DIR/coco",
    "compact DIR/damaged": "DIR/damaged",
    "compact DIR/lost": "DIR/lost",
    "compact DIR/unfinished": "DIR/unfinished lacks 2 images",
    "view DIR/coco --no-browser": "DIR/coco",
    "calibrate DIR/run --truth DIR/none --out DIR/out": "DIR/none",
    "correct DIR/run --out DIR/run": "DIR/run",
    "export DIR/none --to coco --out DIR/out": "DIR/none",
    "export DIR/run --to coco --out DIR/coco": "DIR/coco",
    "train DIR/none.yaml --out DIR/out": "DIR/none.yaml",
    "train tagger --miniature --data DIR/none --out DIR/out": "DIR/none",
    "train tagger --miniature --data DIR/run --init DIR/bert --out DIR/out": "DIR/bert",
    "train tagger --miniature --data DIR/run --out DIR/coco": "DIR/coco",
    "predict DIR/none --data DIR/run --out DIR/out.json": "DIR/none",
    "predict DIR/bert --data DIR/run --out DIR/out.json": "DIR/bert",
    "convert DIR/none.pth --out DIR/out": "DIR/none.pth",
    "convert DIR/broken.json --out DIR/out": "DIR/broken.json",
    "eval labels --pred DIR/none --truth DIR/run": "DIR/none",
    "score DIR/run --model ViT-B-32 --out DIR/out": "--weights",
    "fetch s3://KEY:SECRET@bucket/run --out DIR/out": "keys",
    "fetch s3://KEY:or/SECRET@bucket/run --out DIR/out": "keys",
    "fetch DIR/run --out DIR/out": "DIR/run",
    "merge DIR/run DIR/run --out DIR/out": "DIR/run",
    "merge DIR/run DIR/other --prefer DIR/coco --out DIR/out": "DIR/coco",
    "merge DIR/run DIR/other --prefer DIR/third --out DIR/out": "DIR/third",
    # Files whose content is broken or of another form
    f"{COCO.replace('DIR/coco/instances_val.json', 'DIR/broken.json')} {PACKAGED} --split val": "DIR/broken.json",
    f"{COCO.replace('instances_val', 'captions_val')} {PACKAGED}": "captions_val.json",
    f"{COCO} --captions DIR/coco/instances_val.json --tagger miniworld": "instances_val.json",
    f"{CAPTIONED} --tagger none --calibration DIR/array.json": "DIR/array.json",
    "generate DIR/broken.yaml --out DIR/out": "DIR/broken.yaml",
    "generate DIR/typo.yaml --out DIR/out": "tag.treshold",
    "train DIR/typo.yaml --out DIR/out": "tag",
    f"import vg --annotations DIR/broken.json {IMPORT}": "DIR/broken.json",
    f"import vg --annotations DIR/coco/instances_val.json {IMPORT}": "instances_val.json",
    f"import coco --annotations DIR/array.json {IMPORT}": "DIR/array.json",
    f"import hico --annotations DIR/empty.json {IMPORT}": "DIR/empty.json",
    f"{COCO.replace('coco/images', 'hollow').replace('coco/instances_val', 'broken')} --tagger none --split val":
        "DIR/hollow contains no images",
    f"{COCO.replace('coco/images', 'others').replace('coco/instances_val', 'cut')} --tagger none --split val":
        "DIR/others has no image of the split val, such as ",
    "stats DIR/damaged": "damaged",
    "export DIR/lost --to coco --out DIR/out": "lost/data/",
    f"{SERVED} --batch-answers DIR/none.jsonl": "DIR/none.jsonl",
    f"{SERVED} --batch-answers DIR/broken.json": "DIR/broken.json, line 1",
    f"{SERVED} --batch-answers DIR/empty.json": "DIR/empty.json: there are no answers in it",
    f"{SERVED} --batch-file DIR/array.json": "DIR/array.json exists",
    f"{SERVED} --batch-file DIR/run/data/new.jsonl": "DIR/run/data/new.jsonl belongs to the run",
    # Values of options
    f"{SERVED} --batch-file DIR/new.jsonl --set engine.kind=ray": "not Ray",
    f"{SERVED} --batch-file DIR/new.jsonl --max-cost 1 --prompt-price 1 --completion-price 1": "--max-cost",
    f"{CAPTIONED} {PACKAGED} --set tag.method=all --batch-file DIR/new.jsonl": "no stage of this run asks",
    f"{COCO} --captioner m --set caption.engine=vllm --set tag.method=all --ray-address ray://127.0.0.1:9":
        "ray://127.0.0.1:9",
    f"{CAPTIONED} --tagger none --limit 0": "limit",
    f"{CAPTIONED} --tagger none --limit many": "limit",
    f"{CAPTIONED} --tagger none --part 0/3": "part",
    f"{CAPTIONED} --tagger none --part 4/3": "part",
    f"{CAPTIONED} --tagger none --part third": "part",
    f"{CAPTIONED} --tagger none --set tag.threshold=2": "tag.threshold",
    f"{CAPTIONED} --tagger none --precision 0.9": "precision",
    f"{CAPTIONED} --tagger none --split a/b": "split",
    f"{CAPTIONED} --tagger none --set x=1": "x",
    f"{CAPTIONED} --tagger none --set tag.treshold=0.1": "tag.treshold",
    f"{CAPTIONED} --tagger none --set tag.threshold=nan": "tag.threshold",
    f"{CAPTIONED} --tagger none --set tag.threshold": "tag.threshold",
    f"{CAPTIONED} --tagger none --set engine.unit_size=0": "engine.unit_size",
    f"{CAPTIONED} --tagger none --store bucket": "bucket",
    f"{CAPTIONED} --set tag.method=rtagger": "--tagger",
    f"{CAPTIONED} --set tag.prior=layout": "tag.prior",
    f"{CAPTIONED} --set tag.method=layout --tagger DIR/bert": "DIR/bert",
    f"{CAPTIONED} --set pair.candidates=layout --set pair.model=DIR/none": "DIR/none",
    f"{CAPTIONED} --set pair.probability=0": "pair.probability",
    "generate coco --images DIR/coco/images --tagger none --out DIR/out": "--annotations",
    f"{COCO.replace('--images DIR/coco/images', '')} --tagger none": "--images",
    "generate folder --images DIR/coco/images --set tag.method=rtagger --out DIR/out": "tag.tagger",
    "generate folder --images DIR/coco/images --tagger t --set detect.detector=null --out DIR/out": "detect.detector",
    f"{COCO.replace('coco ', 'folder ', 1)} --tagger none": "is for images without annotations",
    "generate folder --tagger none --out DIR/out": "names no data",
    "generate folder --inventory DIR/empty.json --tagger none --out DIR/out": "need --images",
    f"{LISTED} --inventory DIR/none":
        "no such file: DIR/none",
    f"{LISTED} --inventory DIR/empty.json":
        "DIR/empty.json lists nothing below DIR/coco/images",
    f"{COCO} --tagger none --set caption.captioner=null": "--caption",
    "generate coco --tagger none --out DIR/out": "train2017",
    "plan coco --root DIR/none --tagger none": "DIR/none",
    "generate miniworld --nowhere --out DIR/out": "--nowhere",
    "export DIR/run --to nowhere --out DIR/out": "nowhere",
    "export DIR/run --to coco --threshold 7 --out DIR/out": "threshold",
    "export DIR/run --to instructions --precision 0.9 --out DIR/out": "calibration",
    "export DIR/run --to instructions --coordinates miles --out DIR/out": "miles",
    "export DIR/run --to instructions --embed --out DIR/out": "--parquet",
    "export DIR/run --to vg --seed 1 --out DIR/out": "--to instructions",
    "train nowhere --out DIR/out": "nowhere",
    "train layout --out DIR/out": "--data",
    "train layout --data DIR/none --out DIR/out": "DIR/none",
    "train layout --data DIR/run --out DIR/coco": "DIR/coco",
    "train layout --data DIR/run --out DIR/out": "3 images with relations",
    "train layout --data DIR/run --init DIR/bert --out DIR/out": "--init",
    "train tagger --out DIR/out": "--data",
    "train tagger --miniature --data DIR/run --set optimisation.batch=0 --out DIR/out": "batch",
    "train tagger --miniature --data DIR/run --set model.nowhere=0 --out DIR/out": "nowhere",
    "push DIR/run --to nowhere": "nowhere",
    "predict DIR/bert --data DIR/run --form nowhere --out DIR/out": "form",
    "view DIR/run --port 99999999": "port",
    "stats DIR/run --html s3://bucket/x": "s3://bucket/x",
    "generate --truth nowhere --out DIR/out": "--truth",
    "eval hico --predictions DIR/coco": "--predictions",
    "calibrate DIR/run --judgements nowhere --out DIR/out": "--judgements",
    "view DIR/run --no-browser --as": "--as",
    "nowhere": "nowhere",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("messages")
    make_coco(folder / "coco", images=2)
    make_run(folder / "run", list(map(plain_record, "abc")), rows=2)
    for name in ("other", "third"):
        make_run(folder / name, [plain_record(name)], rows=2)
    for name in ("damaged", "lost"):
        shutil.copytree(folder / "run", folder / name)
    make_run(folder / "unfinished", list(map(plain_record, "abcdef")), rows=2)
    unfinished = Manifest.load(folder / "unfinished")
    unfinished.rewrite([unfinished.shards[1]])
    (folder / "damaged" / MANIFEST).write_bytes(b"\0" * 100)
    (folder / "lost" / Manifest.load(folder / "run").shards[0].file).unlink()
    contents = {"broken.json": "{", "array.json": "[1]", "empty.json": "", "broken.yaml": "tag: [1"}
    for name, content in {**contents, "typo.yaml": "tag: {treshold: 0.1}"}.items():
        (folder / name).write_text(content)
    (folder / "hollow/inner").mkdir(parents=True)
    (folder / "hollow/inner/notes.txt").touch()
    (folder / "others").mkdir()
    (folder / "others/of_another_dataset.jpg").touch()
    text = (folder / "coco/instances_val.json").read_text()
    # an error once all is read
    (folder / "cut.json").write_text(text[: text.index('"annotations"') + 20])
    (folder / "bert").mkdir()
    (folder / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGPIPE_CACHE", str(folder / "cache"))
        yield folder


@pytest.mark.parametrize("words", CASES)
@without_ray()
def test_bad_input_is_one_line_that_names_it(files: Path, tmp_path: Path, words: str) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, words.replace("DIR/out", str(out)).replace("DIR", str(files)).split()
    )
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    *before, last = result.stderr.splitlines()
    assert last.lower().startswith("error: "), result.stderr
    assert CASES[words].replace("DIR", str(files)) in last
    assert not any(line.lower().startswith("error: ") for line in before)
    assert "Traceback" not in result.output
    assert "SECRET" not in result.output
    assert not list(out.rglob("*.parquet"))


def test_an_import_without_images_is_told_before_its_annotations_are_read(
    files: Path, tmp_path: Path
) -> None:
    words = [
        "import",
        "coco",
        "--annotations",
        files / "broken.json",
        "--images",
        files / "hollow",
        "--split",
        "val",
    ]
    result = CliRunner().invoke(app, [*map(str, words), "--out", str(tmp_path / "out")])
    note, *_, error = result.stderr.splitlines()
    assert note.startswith(f"NOTE: {files / 'hollow'} contains no images")
    assert "broken.json" in error
