"""Locations: text that may be compressed, JSON read piece by piece, objects as files."""

import gzip
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.files import json_stream, stores
from sgpipe.files.image_roots import check_images
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import content_id, open_text, read_ends, read_text, text_sha256
from sgpipe.files.model_cache import pin_model
from sgpipe.files.stores import ObjectInfo, StorePath
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFiles
from sgpipe.utils.hashing import file_sha256

TEXT = json.dumps({"a": list(range(3000)), "b": ["x"] * 100}).encode()
GZIP = gzip.compress(TEXT, mtime=0)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)

CONTENT = bytes(range(25))


def flipped(at: int) -> bytes:
    return GZIP[:at] + bytes([GZIP[at] ^ 0xFF]) + GZIP[at + 1 :]


@pytest.mark.parametrize("name", ["a.json.gz", "a.json"])
def test_gzip_is_read_whatever_its_name(tmp_path, name):
    path = tmp_path / name
    two_members = (gzip.compress(part, mtime=0) for part in (TEXT[:50], TEXT[50:]))
    marked = gzip.compress(b"\xef\xbb\xbf" + TEXT, mtime=0)
    for content in (GZIP, b"".join(two_members), GZIP + b"\0" * 512, marked):
        path.write_bytes(content)
        assert [item for key, item in JsonStream(path) if key == "a"] == list(range(3000))
        assert json.loads(read_text(path, "file")) == json.loads(TEXT)


def test_the_hash_is_that_of_the_content(tmp_path):
    plain = tmp_path / "a.json"
    compressed = tmp_path / "a.json.gz"
    plain.write_bytes(TEXT)
    compressed.write_bytes(GZIP)
    stream = JsonStream(compressed)
    list(stream)
    assert stream.sha256 == text_sha256(compressed) == text_sha256(plain) == file_sha256(plain)
    assert read_ends(plain, 100) == (TEXT[:100], TEXT[-100:])
    assert read_ends(compressed, 100)[0] == TEXT[:100]


def test_gzip_is_never_decompressed_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"[")
        for _ in range(64):
            file.write(b'"%s",' % (b"x" * 1021) * 1024)
        file.write(b"1]")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tracemalloc.start()
    assert sum(1 for _ in JsonStream(path)) == 64 * 1024 + 1
    text_sha256(path)
    read_ends(path, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert os.listdir(tmp_path) == ["a.json.gz"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((GZIP[:end], "cut short") for end in (-1, len(GZIP) // 2, 3)),
        *((damaged, "corrupt") for damaged in (flipped(-5), flipped(2), GZIP + b"rest")),
        (gzip.compress(TEXT[:-5], mtime=0), "cut short"),
        *((empty, "is empty") for empty in (gzip.compress(b"", mtime=0), b"\xef\xbb\xbf \n\t ")),
        *(
            (odd, "is not UTF-8 JSON")
            for odd in (gzip.compress(GZIP), b"\0" * 4096, TEXT.decode().encode("utf-16"))
        ),
        *((wrong, "not valid JSON") for wrong in (TEXT.decode().encode("utf-16-le"), b"{a: 1}")),
        (b'{"a": [1 2]}', "expected ','"),
        (b'{"a": 1} x', "after the end"),
    ],
)
def test_what_is_not_text_is_refused_by_one_line(tmp_path, content, reason):
    path = tmp_path / "a file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        list(JsonStream(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_can_be_read_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def written(content: bytes) -> threading.Thread:
        writer = threading.Thread(target=path.write_bytes, args=(content,))
        writer.start()
        return writer

    for content in (TEXT, GZIP):
        writer = written(content)
        with open_text(path) as file:
            assert file.read() == TEXT
        writer.join()
    writer = written(b"[]")
    with pytest.raises(UserError, match="is a pipe, but it is read more than once"):
        read_ends(path, 100)
    writer.join()


@settings(max_examples=60, deadline=None)
@given(
    document=st.dictionaries(st.text(), VALUES, max_size=5),
    indent=st.sampled_from([None, 2]),
    data=st.data(),
)
def test_reads_what_json_reads_wherever_a_chunk_ends(tmp_path_factory, document, indent, data):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(document, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", data.draw(st.integers(1, 9)))
        stream = JsonStream(path)
        collected = {key: [] for key, value in document.items() if isinstance(value, list)}
        for key, item in stream:
            collected[key] = [*collected[key], item] if key in stream.arrays else item
    assert collected == document
    assert stream.sha256 == file_sha256(path)


def test_a_long_malformed_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 64)
    monkeypatch.setattr(json_stream, "_LOOKAHEAD", 64)
    path = tmp_path / "a.json"
    path.write_text('{"a": [{"b": oops}' + " " * 100_000 + "]}")
    stream = JsonStream(path)
    with pytest.raises(UserError, match="not valid JSON"):
        list(stream)
    assert len(stream._text) < 1000


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
def test_a_whole_file_is_read_by_few_requests(
    monkeypatch: pytest.MonkeyPatch, options: tuple[Any, ...]
) -> None:
    monkeypatch.setattr(stores, "_BUFFER", 10)
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
    readers: list[Callable[[str], Any]] = [
        RunFiles,
        Manifest.load,
        pin_model,
        check_images,
        content_id,
    ]
    for read in readers:
        with pytest.raises(UserError) as caught:
            read(uri)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "SECRET" not in str(caught.value)


def test_names_of_objects_may_have_a_question_mark() -> None:
    assert str(StorePath("s3://bucket/set/") / "./what?/b.tar") == "s3://bucket/set/what?/b.tar"
