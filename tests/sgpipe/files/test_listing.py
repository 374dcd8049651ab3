"""Listings of prefixes: requests at once, stores that do not sort, and objects that change
meanwhile.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.files import index, listing
from sgpipe.files.index import FileIndex, write_index
from sgpipe.files.listing import differences, listed_pages, name_between
from sgpipe.files.stores import PAGE, ObjectInfo
from sgpipe.utils.console import Progress

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Prefix:
    """A prefix that answers as a store, from names in its order; counts requests."""

    uri = "s3://bucket/photos"

    def __init__(self, names: Sequence[str], page: int = PAGE) -> None:
        self.objects = [ObjectInfo(name, len(name), f'"{name}"', NOON) for name in names]
        self.page = page
        self.requests: list[str] = []

    def pages(self, after: str = "") -> Iterator[list[ObjectInfo]]:
        rest = [info for info in self.objects if info.name > after]
        for start in range(0, len(rest) + 1, self.page):
            self.requests.append(after)
            yield rest[start : start + self.page]


def listed_names(prefix: Any) -> list[str]:
    return [info.name for page in listed_pages(prefix) for info in page]


def read_index(prefix: Any, folder: Path) -> FileIndex:
    """The index of what is listed of a prefix."""
    listing._write_pages(folder / "listed.parquet", listed_pages(prefix), Progress())
    parts = listing.sorted_parts(folder / "listed.parquet", folder)
    listing.write_parts(folder / "index", parts, {})
    return FileIndex(folder / "index")


LAYOUTS = {
    "numbers": [f"train2017/{number:012d}.jpg" for number in range(0, 90_000, 7)],
    "folders": [f"{folder}/{number}.png" for folder in "abcxyz" for number in range(2000)],
    "hashes": [f"{random.Random(number).getrandbits(64):016x}" for number in range(9000)],
    "one large folder": ["a.jpg", *(f"m/é ~{number}.jpg" for number in range(9000)), "z.jpg"],
    "a thousand": [f"{number:03d}" for number in range(1000)],
    "none": [],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_object_is_listed_once_by_several_requests(layout: str) -> None:
    names = sorted(LAYOUTS[layout])
    prefix = Prefix(names)
    assert sorted(listed_names(prefix)) == names
    assert len(prefix.requests) < 16 + 4 * len(names) / PAGE * 2


def test_a_store_that_does_not_sort_is_listed_by_one_request_after_the_other(
    tmp_path: Path,
) -> None:
    names = [f"{number}" for number in range(5000)]
    random.Random(0).shuffle(names)
    prefix = Prefix(names)
    assert set(listed_names(prefix)) == set(names)
    rows = list(read_index(prefix, tmp_path))
    assert [row["name"] for row in rows] == sorted(names)


def test_of_a_name_that_comes_twice_the_later_object_counts(tmp_path: Path) -> None:
    prefix = Prefix(["a", "b", "b", "c"])
    prefix.objects[1] = replace(prefix.objects[1], version='"new"', modified=NOON + timedelta(1))
    rows = list(read_index(prefix, tmp_path))
    assert [(row["name"], row["version"]) for row in rows] == [
        ("a", '"a"'),
        ("b", '"new"'),
        ("c", '"c"'),
    ]


def test_objects_that_come_and_go_meanwhile_lose_no_other(tmp_path: Path) -> None:
    names = sorted(f"{number:05d}" for number in range(20_000))
    prefix = Prefix(names)
    original = prefix.pages
    gone = set(names[::1000])

    def pages(after: str = "") -> Iterator[list[ObjectInfo]]:
        if len(prefix.requests) == 5:
            come = [ObjectInfo(f"{name}-new", 1, None, NOON) for name in names[::100]]
            stay = [info for info in prefix.objects if info.name not in gone]
            prefix.objects = sorted([*stay, *come], key=lambda info: info.name)
        yield from original(after)

    prefix.pages = pages  # type: ignore[method-assign]
    counts = Counter(row["name"] for row in read_index(prefix, tmp_path))
    assert counts.keys() >= set(names) - gone
    assert set(counts.values()) == {1}


@given(st.text(max_size=8), st.text(max_size=8))
def test_a_name_between_two_is_between_them(first: str, second: str) -> None:
    after, stop = sorted((first, second))
    middle = None if after == stop else name_between(after, stop)
    assert middle is None or after < middle < stop


@pytest.mark.parametrize("rows_per_part", [1, 2, 3, 100])
def test_an_index_finds_names_in_all_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_part: int
) -> None:
    monkeypatch.setattr(index, "ROWS_PER_PART", rows_per_part)
    names = ["a", "b", "b", "b", "c", "é", "日"]
    write_index(tmp_path / "i", pa.table({"name": names, "row": range(7)}), {"x": 1})
    opened = FileIndex(tmp_path / "i")
    assert [row["row"] for row in opened.find("b")] == [1, 2, 3]
    assert [row["row"] for row in opened.find("日")] == [6]
    assert opened.find("0") == opened.find("bb") == opened.find("𝄞") == []
    assert [row["name"] for row in opened] == names
    assert len(opened) == 7


def test_what_has_changed_between_two_lists_is_counted(tmp_path: Path) -> None:
    for folder in ("before", "now"):
        (tmp_path / folder).mkdir()
    before = read_index(Prefix(["a", "b", "c"]), tmp_path / "before")
    changed = Prefix(["b", "c", "d", "e"])
    changed.objects[0] = replace(changed.objects[0], version=None)
    now = read_index(changed, tmp_path / "now")
    assert differences(before, now) == "2 new, 1 gone, 1 replaced"
    assert differences(before, before) == ""
