import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.files import json_stream
from sgpipe.files.json_stream import JsonStream
from sgpipe.utils.hashing import file_sha256

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8
)


@settings(max_examples=60, deadline=None)
@given(document=st.dictionaries(st.text(), VALUES, max_size=5), indent=st.sampled_from([None, 2]), data=st.data())
def test_reads_what_json_reads_wherever_a_chunk_ends(tmp_path_factory, document, indent, data):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(document, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", data.draw(st.integers(1, 9)))
        stream = JsonStream(path)
        arrays = {key: [] for key, value in document.items() if isinstance(value, list)}
        for key, item in stream:
            arrays[key].append(item)
    scalars = {key: value for key, value in document.items() if not isinstance(value, list)}
    assert arrays == {key: document[key] for key in arrays}
    assert stream.scalars == scalars
    assert stream.sha256 == file_sha256(path)


def test_accepts_nan_which_exporters_write(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [NaN]}')
    assert math.isnan(next(iter(JsonStream(path)))[1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": [1, 2', "cut short"),
        (b'{"a": [1, {"b": "c', "cut short"),
        (b'{"a": [1], "b"', "cut short"),
        (b"", "is empty"),
        (b"3", "is not UTF-8 JSON"),
        (b'{"a": [1 2]}', "expected ','"),
        (b'{"a": [1,]}', "comma"),
        (b'{"a": 1} x', "after the end"),
        (b'{"a": [' + b"1" * 5000 + b"]}", "too many digits"),
        (b"{a: 1}", "not valid JSON"),
        (b"\xff\xd8\xff\xe0 an image", "is not UTF-8 JSON"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_faults_are_one_line_that_names_the_file(tmp_path, content, reason):
    path = tmp_path / "annotations.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        list(JsonStream(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for place, reason in ((tmp_path / "no.json", "no such file"), (tmp_path, "folder")):
        with pytest.raises(UserError, match=reason):
            list(JsonStream(place))


def test_a_long_malformed_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 64)
    monkeypatch.setattr(json_stream, "_LOOKAHEAD", 64)
    path = tmp_path / "a.json"
    path.write_text('{"a": [{"b": oops}' + " " * 100_000 + "]}")
    stream = JsonStream(path)
    with pytest.raises(UserError, match="not valid JSON"):
        list(stream)
    assert len(stream._text) < 1000
