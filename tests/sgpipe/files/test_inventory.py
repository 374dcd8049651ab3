"""Inventories: what they list is what a listing would, whatever their form and order."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.files.image_roots import existing_images
from sgpipe.files.index import IndexFolder, KeptListing
from sgpipe.files.inventory import inventory_files, inventory_index
from sgpipe.files.locations import Location
from sgpipe.files.stores import StorePath
from sgpipe.utils.console import Progress

PHOTOS = StorePath("s3://bucket/some/photos")
NAMES = ["a.jpg", "b c.jpg", "deep/ü+.png", "it's.jpg", "z.jpg"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def indexed(inventory: Path, place: Location = PHOTOS) -> list[tuple[Any, ...]]:
    """Return the rows of the index of an inventory."""
    indexes = IndexFolder(versioned=True, inventory=inventory)
    index = inventory_index(str(place), place, indexes).opened
    return [tuple(row.values()) for row in index]


def write_parquet(file: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_keys_of_s3_inventory_are_those_below_the_prefix_in_order(tmp_path: Path) -> None:
    keys = [f"some/photos/{name}" for name in NAMES]
    keys += ["some/photos/", "some/photos2/x.jpg", "other.jpg"]
    random.Random(0).shuffle(keys)
    inventory = write_parquet(
        tmp_path / "inventory.parquet",
        bucket=["bucket"] * len(keys),
        key=keys,
        size=[len(key) for key in keys],
        e_tag=[f"tag of {key}" for key in keys],
    )
    expected = []
    for name in NAMES:
        key = f"some/photos/{name}"
        expected.append((name, len(key), f'"tag of {key}"'))
    assert indexed(inventory) == expected


def test_of_versions_and_duplicates_the_latest_counts(tmp_path: Path) -> None:
    inventory = write_parquet(
        tmp_path / "inventory.parquet",
        key=["some/photos/a.jpg", "some/photos/a.jpg", "some/photos/a.jpg", "some/photos/b.jpg"],
        size=[1, 2, 3, 4],
        last_modified_date=["2026-01-02 10:00", "2026-01-03", "2026-01-01", "2026-01-01"],
        is_latest=[True, True, False, True],
        is_delete_marker=[False, False, False, True],
    )
    assert indexed(inventory) == [("a.jpg", 2, None)]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_keys_of_s3_inventorys_csv_are_decoded(tmp_path: Path, suffix: str) -> None:
    rows = io.StringIO()
    keys = ["some/photos/b%20c.jpg", "some/photos/deep/%C3%BC%2B.png", "some/photos/a.jpg"]
    csv.writer(rows, quoting=csv.QUOTE_ALL).writerows(
        ["bucket", key, 100, "2026-01-01T00:00:00.000Z"] for key in keys
    )
    content = rows.getvalue().encode()
    inventory = tmp_path / f"inventory.{suffix}"
    inventory.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert [row[0] for row in indexed(inventory)] == NAMES[:3]


def test_a_csv_with_a_header_has_sizes(tmp_path: Path) -> None:
    inventory = write_lines(tmp_path / "list.csv", "Path,Size,ETag", "b.jpg,7,x", "a.jpg,,")
    assert indexed(inventory) == [("a.jpg", None, None), ("b.jpg", 7, '"x"')]


@pytest.mark.parametrize("place", [Path("/nowhere/photos"), PHOTOS])
def test_lines_of_text_are_paths_below_the_images_or_whole(tmp_path: Path, place: Location) -> None:
    lines = ["z.jpg", f"{place}/a.jpg", "", "./b c.jpg", "deep/ü+.png", "it's.jpg", "z.jpg"]
    inventory = write_lines(tmp_path / "list.txt", *lines)
    assert indexed(inventory, place) == [(name, None, None) for name in NAMES]


def test_a_folder_of_parquet_files_is_one_inventory(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        write_parquet(folder / f"{number}.parquet", path=[name])
    assert [row[0] for row in indexed(folder)] == NAMES


@pytest.mark.parametrize(
    "path",
    ["../a.jpg", "deep/../../a.jpg", "/etc/a.jpg", "s3://other/some/photos/a.jpg", "file:///a.jpg"],
)
def test_a_path_that_leaves_the_images_is_refused(tmp_path: Path, path: str) -> None:
    inventory = write_lines(tmp_path / "list.txt", "a.jpg", path)
    with pytest.raises(UserError, match="which is not below s3://bucket/some/photos") as error:
        indexed(inventory)
    assert f"{inventory} lists {path}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "lists nothing below"),
        ("blank.txt", b"\n\n", "lists nothing below"),
        ("others.csv", b"path,size\n", "lists nothing below"),
        ("bad.parquet", b"PAR1", "cannot be read"),
        ("latin.txt", b"\xfc.jpg\n", "cannot be read"),
    ],
)
def test_a_bad_inventory_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    inventory = tmp_path / name
    inventory.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        indexed(inventory)
    assert str(error.value).startswith(f"{inventory} ")
    assert "\n" not in str(error.value)


def test_an_inventory_without_paths_says_what_it_has(tmp_path: Path) -> None:
    inventory = write_parquet(tmp_path / "list.parquet", id=[1], size=[2])
    with pytest.raises(UserError, match=r"no column key, path, file_name or name; it has id, size"):
        indexed(inventory)
    with pytest.raises(UserError, match="no such file"):
        inventory_files(tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"contains no \.parquet files"):
        inventory_files(_made(tmp_path / "empty"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_changed_inventory_says_what_has_changed(tmp_path: Path) -> None:
    output = io.StringIO()
    progress = Progress(Console(file=output, width=300))
    inventory = write_lines(tmp_path / "list.txt", *NAMES)
    first = inventory_index(str(PHOTOS), PHOTOS, IndexFolder(None, progress, inventory=inventory))
    kept = {str(PHOTOS): KeptListing(first.name, "yesterday")}
    indexes = IndexFolder(None, progress, kept=kept, inventory=inventory)
    assert inventory_index(str(PHOTOS), PHOTOS, indexes) == first
    assert output.getvalue().splitlines() == [f"reading {inventory}"]
    write_lines(inventory, *NAMES[1:], "new.jpg", "newer.jpg")
    inventory_index(str(PHOTOS), PHOTOS, indexes)
    note = f"NOTE: {inventory} differs from what was listed yesterday: 2 new, 1 gone"
    assert output.getvalue().splitlines()[1:] == [f"reading {inventory}", note]


def test_an_archive_has_no_inventory(tmp_path: Path) -> None:
    (tmp_path / "x.zip").touch()
    inventory = write_lines(tmp_path / "list.txt", *NAMES)
    with pytest.raises(UserError, match=r"is an archive, .* omit --inventory"):
        existing_images(tmp_path / "x.zip", IndexFolder(inventory=inventory))
