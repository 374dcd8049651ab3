"""A run through a real Label Studio and back, field by field; skipped without `make label-studio`,
as in CI.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgpipe.export.run import export_run
from sgpipe.records import Record, Relation
from sgpipe.sources.label_studio import label_studio_source
from tests.integration.served import served
from tests.sgpipe.export.runs import draw_images, imported, records
from tests.sgpipe.export.test_annotation_tools import rounded
from tests.sgpipe.stats.runs import make_shards

INSTALLED = Path(__file__).parents[2] / ".label-studio"
TOKEN = "0123456789abcdef0123456789abcdef01234567"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (INSTALLED / "data").exists(),
        reason="Label Studio is not installed; `make label-studio` installs it",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("label-studio")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[httpx.Client]:
    """Label Studio with an empty database, which serves local files below `folder`."""
    shutil.copytree(INSTALLED / "data", folder / "data")
    settings = {
        "BASE_DATA_DIR": folder / "data", "COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "", "LOCAL_FILES_SERVING_ENABLED": "true", "LOCAL_FILES_DOCUMENT_ROOT": folder,
        "USERNAME": "anna@example.org", "PASSWORD": "only-for-this-test", "USER_TOKEN": TOKEN,
        "ENABLE_LEGACY_API_TOKEN": "true",
    }  # fmt: skip
    environment = {f"LABEL_STUDIO_{name}": str(value) for name, value in settings.items()} | {
        "PYTHONPATH": ""
    }
    program = [
        INSTALLED / "bin/label-studio",
        "start",
        "--no-browser",
        "--internal-host",
        "127.0.0.1",
    ]
    with (
        served(program, folder / "server.log", environment) as address,
        httpx.Client(
            base_url=address, headers={"Authorization": f"Token {TOKEN}"}, timeout=60
        ) as client,
    ):
        yield client


def answer(response: httpx.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


def test_a_project_comes_back_with_what_was_changed(server: httpx.Client, folder: Path) -> None:
    originals = [replace(record, split="val") for record in records(12)]
    images = draw_images(folder / "images", originals)
    out = export_run(
        make_shards(folder / "run", originals),
        "label-studio",
        folder / "out",
        threshold=0.0,
        images=images,
    ).root
    tasks = json.loads((out / "val.json").read_text())
    configuration = (out / "labeling_config.xml").read_text()

    project = answer(
        server.post("/api/projects", json={"title": "sgpipe", "label_config": configuration})
    )["id"]
    answer(server.post("/api/storages/localfiles", json={"project": project, "path": str(images)}))
    counts = answer(server.post(f"/api/projects/{project}/import", json=tasks))
    assert (counts["task_count"], counts["prediction_count"]) == (len(originals), len(originals))
    served = server.get(tasks[0]["data"]["image"])
    assert served.content == (images / originals[0].file_name).read_bytes()

    before = snapshot(server, project, folder / "before.json")
    assert rows(folder, "before", predictions=True) == list(map(rounded, originals))

    number, changed, expected = correct(before)
    answer(server.post(f"/api/tasks/{before[number]['id']}/annotations/", json={"result": changed}))
    exported(server, project, folder / "after.json")
    (edited,) = rows(folder, "after")
    assert edited.relations == expected
    confirmed = rounded(originals[number])
    assert replace(edited, relations=[]) == replace(confirmed, relations=[])


def exported(server: httpx.Client, project: int, file: Path) -> None:
    """The annotated tasks of a project, as its button `Export` writes them."""
    file.write_text(
        server.get(f"/api/projects/{project}/export", params={"exportType": "JSON"}).text
    )


def snapshot(server: httpx.Client, project: int, file: Path) -> list[Any]:
    """All tasks of a project with their predictions, of which the button writes only the
    numbers.
    """
    options = {"serialization_options": {"predictions": {"only_id": False}}}
    created = answer(server.post(f"/api/projects/{project}/exports/", json=options))
    query = {"exportType": "JSON"}
    tasks = answer(
        server.get(f"/api/projects/{project}/exports/{created['id']}/download", params=query)
    )
    file.write_text(json.dumps(tasks))
    return tasks


def rows(folder: Path, name: str, **options: object) -> list[Record]:
    source = label_studio_source(folder / f"{name}.json", folder / "images", **options)
    return list(map(rounded, imported(source, folder / "images", folder / name)))


def correct(tasks: list[Any]) -> tuple[int, list[Any], list[Relation]]:
    """A task whose first link gets another predicate and direction, as its editor saves it; its
    number comes first.
    """
    number = next(
        n for n, task in enumerate(tasks) if any("from_id" in item for item in _results(task))
    )
    results = [
        {key: value for key, value in item.items() if key != "scores"}
        for item in _results(tasks[number])
    ]
    links = [item for item in results if item["type"] == "relation"]
    links[0] |= {"labels": ["next to"], "direction": "left"}
    ends = [
        (int(link["from_id"].removeprefix("object")), int(link["to_id"].removeprefix("object")))
        for link in links
    ]
    relations = {(*ends[0][::-1], "next to")}
    relations |= {
        (*pair, label)
        for pair, link in zip(ends[1:], links[1:], strict=True)
        for label in link["labels"]
    }
    return number, results, [Relation(*relation) for relation in sorted(relations)]


def _results(task: Any) -> list[Any]:
    return task["predictions"][0]["result"]
