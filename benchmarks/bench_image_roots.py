"""Labelling from a folder, a zip, tars and an object store: the same images, the same rows, how
much longer.

    python -m benchmarks.bench_image_roots [--images N] [--milliseconds M]

Synthetic images, labelled by the miniworld's captioner and tagger, which are tiny: reading an image
is a larger part of the work than with any model for photographs. The stages run in one process,
without Ray. All roots take turns, unit by unit, so that other load on the machine meets all of
them. The store is moto's server in a process of its own, and each request to it takes at least M
milliseconds. Both open images ahead: two threads for archives, eight for the store.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from rich.table import Table

from benchmarks.measure import report
from sgpipe.files.image_roots import ImagePlace, IndexFolder, image_root
from sgpipe.files.stores import StorePath
from sgpipe.recipe import StagePlan, load_recipe, with_model_folders
from sgpipe.records import to_table
from sgpipe.sources.opening import open_source
from sgpipe.stages.build import build_stages
from sgpipe.stages.runner import StageRunner

UNIT = 100
# the models are soon done with an image
SMALL = {
    "caption.samples": 1,
    "tag.short_side": 96,
    "tag.long_side": 144,
}
ARCHIVES = 4


def serve(pipe: Connection, seconds: float) -> None:
    """A server of moto's; tells its address, and ends with the process that started it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication
    from moto.server import ThreadedMotoServer

    original = DomainDispatcherApplication.__call__

    def late(*request: object) -> object:
        time.sleep(seconds)
        return original(*request)

    DomainDispatcherApplication.__call__ = late
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    pipe.send("http://{}:{}".format(*server.get_host_and_port()))
    pipe.recv()


@contextmanager
def store(images: Path, seconds: float) -> Iterator[str]:
    """The images in a bucket; the URI of it."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other, seconds), daemon=True)
    process.start()
    url = pipe.recv()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ["AWS_ENDPOINT_URL"] = url
    urllib.request.urlopen(urllib.request.Request(f"{url}/images", method="PUT"))
    bucket = StorePath("s3://images/val")
    for path in images.iterdir():
        (bucket / path.name).put(path)
    try:
        yield "s3://images/val"
    finally:
        process.kill()


def pack(images: Path, out: Path) -> dict[str, ImagePlace]:
    """The images in a zip, and in a folder of tars."""
    files = sorted(images.iterdir())
    with zipfile.ZipFile(out / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.name)
    (out / "tars").mkdir()
    for number in range(ARCHIVES):
        with tarfile.open(out / "tars" / f"patch{number}.tar", "w") as tar:
            for path in files[number::ARCHIVES]:
                tar.add(path, path.name)
    return {"folder": images, "zip": out / "images.zip", f"{ARCHIVES} tars": out / "tars"}


def draw(number: int, out: Path) -> Path:
    command = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", "miniworld"]
    subprocess.run(
        [*command, "--count", str(number), "--out", str(out)], check=True, capture_output=True
    )
    return out


def label(drawn: Path, roots: dict[str, ImagePlace]) -> tuple[dict[str, float], int]:
    """Seconds of each root, and the number of relations, which is the same for all."""
    split = {"images": drawn / "images", "annotations": drawn / "instances.json"}
    settings = {
        "source.splits": {"val": split},
        "caption.captioner": "MINIWORLD",
        "tag.tagger": "MINIWORLD",
    }
    recipe = with_model_folders(load_recipe("coco", settings | SMALL))
    index = open_source(recipe.source, "val", drawn / "index.arrow")
    indexes = IndexFolder(drawn, whole=True)
    image_roots = {name: {"val": image_root(location, indexes)} for name, location in roots.items()}
    plan = StagePlan.of_recipe(recipe)
    runners = {
        name: StageRunner(build_stages(plan, roots_of_split, index.meta["categories"]))
        for name, roots_of_split in image_roots.items()
    }
    seconds = dict.fromkeys(roots, 0.0)
    relations = 0
    for runner in runners.values():
        runner(index.records(0, 2))
    for turn, start in enumerate(range(0, len(index), UNIT)):
        tables = []
        names = list(runners)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            records = index.records(start, min(start + UNIT, len(index)))
            began = time.perf_counter()
            labelled, _ = runners[name](records)
            seconds[name] += time.perf_counter() - began
            tables.append(to_table(labelled))
        relations += sum(len(record.relations) for record in labelled)
        if not all(table.equals(tables[0]) for table in tables):
            raise SystemExit(f"the rows from {start} differ")
    return seconds, relations


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--milliseconds", type=float, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary
        drawn = draw(options.images, Path(temporary, "drawn"))
        roots = pack(drawn / "images", Path(temporary))
        with store(drawn / "images", options.milliseconds / 1000) as uri:
            began = time.perf_counter()
            name = next((drawn / "images").iterdir()).name
            for _ in range(20):
                (StorePath(uri) / name).read()
            single = (time.perf_counter() - began) / 20
            seconds, relations = label(drawn, roots | {f"S3, {options.milliseconds:g} ms": uri})
    table = Table(
        "images in", "s", "ratio to the folder", title=f"{options.images:,} synthetic images"
    )
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.1f}", f"{taken / seconds['folder']:.2f}")
    report(
        __doc__,
        table,
        f"All rows are the same: {relations:,} relations. One request at a time takes"
        f" {1000 * single:.0f} ms for an image, so that reading each image twice would add"
        f" {2 * single * options.images:.0f} s without threads.",
    )


if __name__ == "__main__":
    main()
