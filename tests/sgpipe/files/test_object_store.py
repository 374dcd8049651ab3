"""Objects as files. Reading from a server is tested in tests/integration/faults."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from sgpipe.errors import UserError
from sgpipe.files import locations
from sgpipe.files.image_roots import check_images
from sgpipe.files.locations import ObjectInfo, StorePath, content_id
from sgpipe.files.model_cache import pin_model
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFiles

CONTENT = bytes(range(25))


class Reader(StorePath):
    """Of one object; notes what is asked for."""

    def __init__(self) -> None:
        super().__init__("s3://bucket/set")
        self.asked: list[tuple[int, int]] = []

    def head(self) -> ObjectInfo:
        return ObjectInfo(self.name, len(CONTENT), "1", datetime.now(UTC))

    def read_range(self, start: int, length: int, version: str | None = None) -> bytes:
        if length:
            self.asked.append((start, length))
        return CONTENT[start : start + length]


@pytest.mark.parametrize("options", [(), (1,)])
def test_a_whole_file_is_read_by_few_requests(monkeypatch: pytest.MonkeyPatch, options: tuple[Any, ...]) -> None:
    monkeypatch.setattr(locations, "_BUFFER", 10)
    reader = Reader()
    file = reader.open("rb", *options)
    assert file.read() == CONTENT
    assert reader.asked == [(0, 10), (10, 10), (20, 5)]
    file.seek(-3, io.SEEK_END)
    assert file.read() == CONTENT[-3:]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://", "s3:// names no bucket: expected s3://BUCKET"),
        ("gs:///folder", "gs:///folder names no bucket: expected gs://BUCKET"),
        ("gcs://bucket/x", "expected s3://, gs:// or abfs://"),
        ("file:///tmp/x", "expected s3://, gs:// or abfs://"),
        ("s3://bucket:x:y/z", "expected s3://, gs:// or abfs://"),
        *(
            (f"{uri}/x", "must not contain keys")
            for uri in ("s3://KEY:SECRET@b", "s3://anonymous:SECRET@b", "s3://KEY@b")
        ),
        ("abfs://box:SECRET@account.dfs.core.windows.net/x", "must not contain keys"),
        ("s3://bucket/run?secret_key=SECRET", "must not have a query (?…)"),
        ("https://bucket.host/run?X-Amz-Signature=SECRET", "must not have a query (?…)"),
    ],
)
def test_what_is_no_store_is_refused_wherever_a_place_is_named(uri: str, expected: str) -> None:
    readers: list[Callable[[str], Any]] = [RunFiles, Manifest.load, pin_model, check_images, content_id]
    for read in readers:
        with pytest.raises(UserError) as caught:
            read(uri)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "SECRET" not in str(caught.value)


def test_names_of_objects_may_have_a_question_mark() -> None:
    assert str(StorePath("s3://bucket/set/") / "./what?/b.tar") == "s3://bucket/set/what?/b.tar"
