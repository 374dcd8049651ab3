"""Thumbnails on disk: kept, used again, and never more than there is room for."""

import os
from pathlib import Path

import pytest

from sgpipe.view.thumbnails import ThumbnailCache

KEYS = [f"{number:032x}" for number in range(16)]


def kept(cache: ThumbnailCache) -> list[int]:
    return [number for number, key in enumerate(KEYS) if cache.get(key) is not None]


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    ThumbnailCache(tmp_path / "new").put(KEYS[0], b"jpeg")
    assert ThumbnailCache(tmp_path / "new").get(KEYS[0]) == b"jpeg"
    assert ThumbnailCache(tmp_path / "new").get(KEYS[1]) is None


def test_those_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = ThumbnailCache(tmp_path, most=100)
    for number in range(10):
        cache.put(KEYS[number], b"0123456789")
    files = {path.stem: path for path in tmp_path.glob("??/*.jpg")}
    for number in range(10):  # the first was used last
        os.utime(files[KEYS[number]], (1000 - number, 1000 - number))
    assert len(files) == 10
    cache.put(KEYS[10], b"0123456789")
    assert kept(cache) == [0, 1, 2, 3, 4, 5, 6, 10]  # 80 bytes: some room for the next


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    cache = ThumbnailCache(tmp_path / "new")
    cache.put(KEYS[0], b"jpeg")
    assert kept(cache) == []
