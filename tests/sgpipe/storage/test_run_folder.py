import os
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFolder, check_output, write_result_text


def test_a_run_that_stopped_before_its_first_shard_binds_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for seed in (0, 1):
        with folder.lock():
            assert folder.open({"identity": {"seed": seed}}).run["identity"] == {"seed": seed}


@pytest.mark.parametrize("was_there", [True, False])
def test_a_refused_command_removes_only_a_folder_that_it_made(tmp_path, was_there):
    root = tmp_path / "run"
    if was_there:
        root.mkdir()
    with pytest.raises(UserError, match="in vain"), RunFolder(root).lock():
        raise UserError("in vain")
    assert root.exists() == was_there


def test_only_temporary_files_of_a_run_are_swept(tmp_path):
    """`sgpipe stats --html RUN/report.html` may be writing into the folder while a run starts or
    ends.
    """
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        left = [".report.html.1f.tmp", "data/notes.tmp"]
        swept = [
            ".manifest.jsonl.1f.tmp",
            ".recipe.yaml.1f.tmp",
            ".README.md.1f.tmp",
            "data/.val.1f.tmp",
        ]
        swept += [".sgpipe/.ground_truth.json.1f.tmp", ".sgpipe/index-val.arrow.tmp"]
        for name in (*left, *swept):
            (folder.root / name).touch()
        folder.sweep(Manifest.create(folder.root, {}))
    assert sorted(
        str(path.relative_to(folder.root)) for path in folder.root.rglob("*tmp")
    ) == sorted(left)


@pytest.mark.parametrize(
    ("existing", "path"),
    [
        ("manifest.jsonl", "manifest.jsonl"), ("manifest.jsonl", "data/val-000000000-000000001.parquet"),
        ("manifest.jsonl", "judgements.jsonl"), (".sgpipe/lock", ".sgpipe/requests.sqlite"),
        ("run.json", "metrics.jsonl"), ("best/config.json", "best/tokenizer.json"),
    ],
)  # fmt: skip
def test_files_of_a_run_a_training_or_a_model_are_not_replaced(
    existing: str, path: str, tmp_path: Path
) -> None:
    for name in {existing, path}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("valuable")
    (tmp_path / "link").symlink_to(path)
    for file in (tmp_path / path, tmp_path / "link"):
        with pytest.raises(UserError, match="belongs to"):
            write_result_text(file, "result")
    assert (tmp_path / path).read_text() == "valuable"
    write_result_text(tmp_path / "reports/report.html", "result")
    write_result_text(tmp_path / "report.html", "result")


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    file = tmp_path / "annotations.json"
    photos.mkdir()
    for path in (photos / "1.jpg", file):
        path.write_text("valuable")
    os.link(file, tmp_path / "same.json")
    for path, read in [
        (file, file),
        (tmp_path / "same.json", file),
        (photos, photos),
        (photos / "1.jpg", tmp_path),
    ]:
        with pytest.raises(UserError, match="this command"):
            check_output(path, ["elsewhere", read])
    check_output(photos / "sheet.png", [photos, file])
    check_output(tmp_path / "report.html", [tmp_path])
