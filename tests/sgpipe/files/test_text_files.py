import gzip
import json
import os
import threading
import tracemalloc

import pytest

from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import open_text, read_ends, read_text, text_sha256
from sgpipe.utils.hashing import file_sha256

TEXT = json.dumps({"a": list(range(3000)), "b": ["x"] * 100}).encode()
GZIP = gzip.compress(TEXT, mtime=0)


def flipped(at: int) -> bytes:
    return GZIP[:at] + bytes([GZIP[at] ^ 0xFF]) + GZIP[at + 1 :]


@pytest.mark.parametrize(
    "content",
    [
        GZIP,
        gzip.compress(TEXT[:50], mtime=0) + gzip.compress(TEXT[50:], mtime=0),
        GZIP + b"\0" * 512,
        gzip.compress(b"\xef\xbb\xbf" + TEXT, mtime=0),
    ],
    ids=["one member", "two members", "padded", "byte order mark"],
)
@pytest.mark.parametrize("name", ["a.json.gz", "a.json"])
def test_gzip_is_read_whatever_its_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert [item for key, item in JsonStream(path) if key == "a"] == list(range(3000))
    assert json.loads(read_text(path, "file")) == json.loads(TEXT)


def test_the_hash_is_that_of_the_content(tmp_path):
    plain, compressed = tmp_path / "a.json", tmp_path / "a.json.gz"
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
        (gzip.compress(b"", mtime=0), "is empty"),
        (b"\xef\xbb\xbf \n\t ", "is empty"),
        (gzip.compress(GZIP, mtime=0), "is not UTF-8 JSON"),
        (b"\0" * 4096, "is not UTF-8 JSON"),
        (TEXT.decode().encode("utf-16"), "is not UTF-8 JSON"),
        (TEXT.decode().encode("utf-16-le"), "not valid JSON"),
    ],
)
def test_what_is_not_text_is_refused_by_one_line(tmp_path, content, reason):
    path = tmp_path / "a file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        list(JsonStream(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_small_files_are_refused_in_the_same_words(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfealiases")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_text(path, "alias file")
    with pytest.raises(UserError, match=r"alias file .* cannot be read: No such file"):
        read_text(tmp_path / "none", "alias file")


def test_a_pipe_can_be_read_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for content in (TEXT, GZIP):
        writer = threading.Thread(target=path.write_bytes, args=(content,))
        writer.start()
        with open_text(path) as file:
            assert file.read() == TEXT
        writer.join()
    writer = threading.Thread(target=path.write_bytes, args=(b"[]",))
    writer.start()
    with pytest.raises(UserError, match="is a pipe, but it is read more than once"):
        read_ends(path, 100)
    writer.join()
