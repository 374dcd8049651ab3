"""Planning from a store: seconds, memory of the driver, and requests until the first image can be
labelled.

    python -m benchmarks.bench_planning [--before TREE] [--milliseconds M] [--listed N …] [--photos N …]

A server of S3's answers to LIST and GET, in a process of its own, has N objects in one prefix, named
by numbers of nine digits, and takes M milliseconds for each answer. "listed": the images of a run
with annotations, whose prefix is listed. "photos": a run without annotations, whose images are also
indexed. "again": the same command when the run is there. TREE is a checkout of another version,
measured in turn with this one. Memory is what the driver takes at its peak beyond what it takes when
all modules are imported.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypedDict
from urllib.parse import parse_qs, quote, urlsplit

TREE = Path(__file__).parents[1]
PAGE = 1000
_MEGABYTE = 1 << 20
_STEP = """
import json, resource, sys, time
from pathlib import Path
from sgpipe.generation import image_roots
from sgpipe.generation.run import keep_indexes, open_image_roots
from sgpipe.recipe import SourceConfig
from sgpipe.sources.opening import open_source
from sgpipe.storage.run_folder import RunFolder
from sgpipe.utils.console import Progress
import duckdb, pyarrow.parquet, pyarrow.compute

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

uri, out, kind = sys.argv[1:]
split = {"images": uri, "annotations": None if kind == "photos" else "none.json"}
format = "folder" if kind == "photos" else "coco"
source = SourceConfig.model_validate({"format": format, "splits": {"all": split}})
folder = RunFolder(Path(out))
before, began, cpu = peak(), time.monotonic(), time.process_time()
with folder.lock():
    roots = open_image_roots(source, folder, Progress())
    if kind == "photos":
        open_source(source, "all", folder.index("all"), images=roots["all"])
    if hasattr(image_roots, "keep_listings"):
        image_roots.keep_listings(roots, folder, "now")
    keep_indexes(roots, folder)
seconds = time.monotonic() - began
print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu, "memory": peak() - before}))
"""


class Step(TypedDict):
    """What a command took."""

    seconds: float
    cpu: float
    memory: int
    requests: int


def serve(pipe: Connection, objects: int, seconds: float) -> None:
    """Serve a bucket; tell the address, and end with the process that started it."""
    from PIL import Image

    names = [f"photos/{number:09d}.jpg" for number in range(objects)]
    image = io.BytesIO()
    Image.new("RGB", (64, 48)).save(image, "JPEG")
    requests = Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path == "/requests":
                return self.reply(str(requests.total()).encode())
            requests["all"] += 1
            time.sleep(seconds)
            query = {key: values[0] for key, values in parse_qs(address.query).items()}
            if "list-type" in query:
                return self.reply(self.page(query))
            return self.reply(image.getvalue())

        def page(self, query: dict[str, str]) -> bytes:
            behind = query.get("continuation-token") or query.get("start-after", "")
            start = bisect_right(names, behind)
            shown = names[start : start + PAGE]
            contents = "".join(
                f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"d41d8cd98f00b204e9800998ecf8427e"</ETag><Size>9000</Size></Contents>'
                for name in shown
            )
            is_cut = start + PAGE < len(names)
            token = ""
            if is_cut:
                token = f"<NextContinuationToken>{quote(shown[-1])}</NextContinuationToken>"
            return (
                f"<ListBucketResult><IsTruncated>{str(is_cut).lower()}</IsTruncated>{contents}"
                f"{token}<KeyCount>{len(shown)}</KeyCount></ListBucketResult>"
            ).encode()

        def reply(self, body: bytes) -> None:
            size = len(body)
            if "Range" in self.headers:  # it is longer than any image of this server
                self.send_response(206)
                self.send_header("Content-Range", f"bytes 0-{size - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.send_header("ETag", '"d41d8cd98f00b204e9800998ecf8427e"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *values: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


@contextmanager
def bucket(objects: int, seconds: float) -> Iterator[str]:
    """Yield the address of a server with so many objects."""
    pipe, far_end = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(far_end, objects, seconds), daemon=True)
    process.start()
    yield pipe.recv()
    process.terminate()
    process.join()


def requests_to(server: str) -> int:
    with urllib.request.urlopen(f"{server}/requests") as answer:
        return int(answer.read())


def run(tree: Path, server: str, folder: Path, kind: str) -> Step:
    """Return what a command of a version took, with the machine's cache in the folder."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "SGPIPE_CACHE": str(folder / "cache"),
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = requests_to(server)
    command = [sys.executable, "-c", _STEP, "s3://bucket/photos", str(folder / "run"), kind]
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, check=True)
    step: Step = json.loads(done.stdout.splitlines()[-1])
    step["requests"] = requests_to(server) - before
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--milliseconds", type=float, default=50)
    parser.add_argument("--listed", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--photos", type=int, nargs="*", default=[10_000])
    arguments = parser.parse_args()
    from rich.table import Table

    from benchmarks.measure import report

    table = Table(
        "objects", "run", "version", "command", "s", "CPU-s", "MB", "bytes each", "requests"
    )
    trees = {"now": TREE} if arguments.before is None else {"before": arguments.before, "now": TREE}
    for kind in ("listed", "photos"):
        for objects in getattr(arguments, kind):
            with bucket(objects, arguments.milliseconds / 1000) as server:
                for version, tree in trees.items():
                    with tempfile.TemporaryDirectory() as folder:
                        for command in ("first", "again"):
                            step = run(tree, server, Path(folder), kind)
                            table.add_row(
                                f"{objects:,}",
                                kind,
                                version,
                                command,
                                f"{step['seconds']:.1f}",
                                f"{step['cpu']:.1f}",
                                f"{step['memory'] / _MEGABYTE:.0f}",
                                f"{step['memory'] / objects:.0f}",
                                f"{step['requests']:,}",
                            )
    report(__doc__ or "", table)


if __name__ == "__main__":
    main()
