"""Objects in a store that speaks S3: a server of moto's."""

import copy
from collections import Counter
from pathlib import Path

import boto3
import pytest

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import sizes
from sgpipe.files.stores import AccessError, CutError, ReplacedError, StorePath
from sgpipe.storage.manifest import Manifest, WriterClaim
from sgpipe.storage.run_folder import RunFolder
from tests.integration.faults.conftest import Faults
from tests.values import values_of

NAMES = ["a.jpg", "deep/er/b#1 ü%25?.jpg", "deep/c.jpg"]


@pytest.fixture
def reader(store: StorePath) -> StorePath:
    for name in NAMES:
        (store / name).put(name.encode() * 100)
    return StorePath(store.uri)


def test_objects_are_read_whole_in_ranges_and_as_files(reader: StorePath) -> None:
    reader.check()
    name = NAMES[1]
    content = name.encode() * 100
    place = reader / name
    last = name.rpartition("/")[2]
    info = place.head()
    assert info is not None
    assert (info.name, info.size) == (last, len(content))
    assert place.read() == content
    assert (reader / f"./deep//er/{last}").read() == content
    assert place.read_range(3, 5, info.version) == content[3:8]
    assert place.read_range(3, 0) == b""
    with place.open() as file:
        file.seek(-4, 2)
        assert file.read() == content[-4:]
        file.seek(1)
        assert file.read(7) == content[1:8]
    assert sorted(values_of(reader.list(), "name")) == sorted(NAMES)
    assert values_of((reader / "deep/er").list(), "name") == [last]
    assert copy.copy(place).read() == content


def test_what_is_missing_cut_or_replaced_is_told(reader: StorePath, store: StorePath) -> None:
    version = (reader / "a.jpg").head().version
    assert (reader / "none.jpg").head() is None
    assert (reader / "none.jpg").read() is None
    with pytest.raises(FileNotFoundError, match=f"^{store.uri}/none.jpg$"):
        (reader / "none.jpg").open()
    with pytest.raises(CutError, match="bytes 490 to 510"):
        (reader / "a.jpg").read_range(490, 20)
    with pytest.raises(CutError):
        (reader / "a.jpg").read_range(600, 20)
    assert (reader / "a.jpg").read_start(10_000) == b"a.jpg" * 100
    (store / "a.jpg").put(b"other")
    with pytest.raises(ReplacedError, match=r"a\.jpg was replaced while it was in use"):
        (reader / "a.jpg").read_range(0, 4, version)
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket/x/a: [^\n]*$"):
        (StorePath("s3://no-such-bucket/x") / "a").put(b"")


def test_a_busy_server_and_cut_answers_are_asked_again(reader: StorePath, faults: Faults) -> None:
    seen: Counter[str] = Counter()

    def fault(method: str, path: str) -> str | None:
        seen[path] += 1
        return {1: "503 SlowDown", 2: "cut"}.get(seen[path])

    faults.fault = fault
    assert (reader / "a.jpg").read() == b"a.jpg" * 100
    assert (reader / "deep/c.jpg").read_range(0, 10) == b"deep/c.jpg"


@pytest.mark.parametrize("fault", ["403 AccessDenied", "400 ExpiredToken"])
def test_a_refusal_is_told_in_one_line(reader: StorePath, faults: Faults, fault: str) -> None:
    faults.fault = lambda method, path: fault
    with pytest.raises(AccessError, match=f"^{reader.uri}/a.jpg: {fault[4:]}: as asked for$"):
        (reader / "a.jpg").read()
    with pytest.raises(UserError, match="must be allowed to list and read"):
        reader.check()


def test_what_the_public_may_read_needs_no_keys(
    reader: StorePath, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = boto3.client("s3", endpoint_url=server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    public = StorePath(reader.uri.replace("s3://", "s3://anonymous@"))
    with pytest.raises(AccessError, match="403 Forbidden"):
        (public / "a.jpg").read()
    bucket = reader.uri.split("/")[2]
    client.put_bucket_acl(Bucket=bucket, ACL="public-read")
    client.put_object_acl(Bucket=bucket, Key="some/labels/a.jpg", ACL="public-read")
    assert (public / "a.jpg").read() == b"a.jpg" * 100
    assert sorted(values_of(public.list(), "name")) == sorted(NAMES)


def test_objects_come_back_as_they_were_put(
    store: StorePath, tmp_path: Path, faults: Faults
) -> None:
    (store / "data/a").put(b"first")
    (store / "data/a").put(b"second")
    (tmp_path / "b").write_bytes(bytes(range(256)) * 50_000)
    faults.requests.clear()
    (store / "data/b").put(tmp_path / "b")
    # parts would stay there if the process were killed
    assert [method for method, _ in faults.requests] == ["PUT"]
    assert (store / "data/a").read() == b"second"
    assert sizes(store / "data") == {"a": 6, "b": 12_800_000}
    (store / "data/b").get_file(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()
    for _ in range(2):
        (store / "data/a").unlink()
    assert (store / "data/a").read() is None
    assert sizes(store / "nowhere") == {}
    assert [(store / "c").put_if(data, None) for data in (b"1", b"2")] == [True, False]
    version = (store / "c").version()
    assert [(store / "c").put_if(data, version) for data in (b"3", b"4")] == [True, False]
    assert (store / "c").read() == b"3"


def test_a_run_that_was_taken_over_sweeps_nothing(store: StorePath, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", store)
    shard = "data/val-000000000-000000002.parquet"
    with folder.lock():
        manifest = Manifest.create(folder.root, {})
        folder.claim.make()
        (store / shard).put(b"the other run's")
        WriterClaim(store).make()
        with pytest.raises(StoreError, match=r"^s3://.*: another run took over"):
            folder.sweep(manifest)
    assert (store / shard).read() == b"the other run's"
