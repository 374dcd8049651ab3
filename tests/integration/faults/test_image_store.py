"""Images in an object store: a server of moto's, in which things go wrong."""

import copy
import io
import json
import random
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from sgpipe.errors import EngineError, UserError
from sgpipe.files import stores
from sgpipe.files.image_roots import ImageRoot, IndexFolder, existing_images, image_root
from sgpipe.files.index import IndexReference
from sgpipe.files.model_cache import cache_folder
from sgpipe.files.stores import StorePath
from sgpipe.generation.engine import UnitReader, WorkUnit
from sgpipe.generation.image_roots import keep_indexes, keep_listings, open_image_roots
from sgpipe.images import ImageError, open_ahead
from sgpipe.recipe import Resources, SourceConfig, SplitConfig
from sgpipe.records import Record
from sgpipe.sources.opening import open_source
from sgpipe.stages.base import LoadStage
from sgpipe.storage.manifest import run_images
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils.console import Progress
from tests.integration.faults.conftest import Faults

IMAGES = 40
Kept = tuple[StorePath, ImageRoot]
NAMES = [f"deep/{number:03d} ü.png" for number in range(IMAGES)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stores, "_READ_RETRIES", 1)


def png(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def images(store: StorePath) -> StorePath:
    for number, name in enumerate(NAMES):
        (store / name).put(png(number))
    return store


@pytest.fixture
def tars(store: StorePath) -> StorePath:
    for part in (0, 1):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for number, name in enumerate(NAMES):
                if number % 2 == part:
                    info = tarfile.TarInfo(name)
                    info.size = len(png(number))
                    archive.addfile(info, io.BytesIO(png(number)))
        (store / f"{'deep/' * part}patch{part}.tar").put(content.getvalue())
    return store


def records() -> list[Record]:
    return [Record(name, "coco", "val", name, 20 + number, 10) for number, name in enumerate(NAMES)]


def errors(root: ImageRoot) -> dict[str, str]:
    loaded = LoadStage({"val": root}, Resources())(records())
    return {record.image_id: str(record.error) for record in loaded if not record.ok}


@pytest.fixture(params=["images", "tars"])
def stored_images(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    """A store, and the root of what is in it as a run has it: with an index."""
    store: StorePath = request.getfixturevalue(request.param)
    return store, existing_images(store.uri, IndexFolder(tmp_path / "run", versioned=True))


def test_other_versions_and_new_objects_are_error_rows(stored_images: Kept) -> None:
    store, root = stored_images
    assert errors(root) == {}
    replaced, lost = (
        ("patch0.tar", NAMES[::2]) if (store / "patch0.tar").head() else (NAMES[0], NAMES[:1])
    )
    (store / replaced).put((store / replaced).read() + b" ")
    failed = errors(root)
    assert list(failed) == lost
    assert all("was replaced while it was in use" in error for error in failed.values())
    (store / replaced).unlink()
    assert all("image file not found" in error for error in errors(root).values())
    assert errors(root).keys() == failed.keys()


@pytest.mark.parametrize(
    ("fault", "why"), [("cut", "it is truncated"), ("403 InvalidObjectState", "as asked for")]
)
def test_cut_and_broken_objects_are_error_rows(
    stored_images: Kept, faults: Faults, fault: str, why: str
) -> None:
    _, root = stored_images
    faults.fault = lambda method, path: fault if "001" in path or "patch1.tar" in path else None
    failed = errors(root)
    assert NAMES[1] in failed
    assert NAMES[0] not in failed
    assert all(why in error for error in failed.values())


@pytest.mark.parametrize("fault", ["400 ExpiredToken", "403 AccessDenied"])
def test_keys_that_expire_end_the_run_resumably(
    stored_images: Kept, faults: Faults, fault: str
) -> None:
    _, root = stored_images
    left = iter(range(10))
    faults.fault = lambda method, path: None if next(left, None) is not None else fault
    with pytest.raises(
        EngineError, match=f"{fault[4:]}: as asked for; the keys in the environment"
    ):
        errors(root)
    faults.fault = lambda method, path: None
    assert errors(root) == {}


def test_what_cannot_be_work_is_refused_before_it_begins(images: StorePath, faults: Faults) -> None:
    for uri, why in {
        "s3://no-such-bucket/x": "NoSuchBucket",
        f"{images.uri}/nothing": "contains nothing",
        f"{images.uri}/none.tar": "no such file",
        f"{images.uri}/photos.tar.gz": "compressed as a whole",
    }.items():
        with pytest.raises(UserError, match=why) as caught:
            existing_images(uri)
        assert "\n" not in str(caught.value)
    faults.fault = lambda method, path: "403 AccessDenied"
    with pytest.raises(UserError, match="must be allowed to list and read it"):
        existing_images(f"{images.uri}/deep")


def test_the_indexes_travel_with_the_run(
    tars: StorePath, store: StorePath, tmp_path: Path, faults: Faults
) -> None:
    """Who reads the run elsewhere gets them from its store; a later run of the same images has its
    own.
    """
    labels = StorePath(f"{store.uri}-labels")
    folder = RunFolder(tmp_path / "out", labels)
    string_io = io.StringIO()
    progress = Progress(Console(file=string_io))
    listed = [
        {"id": n, "file_name": name, "width": 20 + n, "height": 10} for n, name in enumerate(NAMES)
    ]
    content = {"images": listed, "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    split = {"images": tars.uri, "annotations": tmp_path / "instances.json"}
    source = SourceConfig.model_validate({"splits": {"val": split}})
    with folder.lock():
        (folder.private / "images-old").mkdir()
        roots = open_image_roots(source, folder, progress)
        assert len(open_source(source, "val", folder.index("val"), images=roots["val"])) == IMAGES
        keep_indexes(roots, folder)
        [index] = folder.private.glob("images-*")
        assert (labels / f".sgpipe/{index.name}/index.json").head()
        assert "2 archives" in string_io.getvalue()
        shutil.rmtree(folder.private)
        shutil.rmtree(cache_folder())
        assert errors(copy.deepcopy(roots["val"])) == {}  # which has opened no index
    shutil.rmtree(cache_folder())
    faults.requests.clear()
    assert run_images(labels.uri, "val", tars.uri).contains(NAMES[0])
    assert not [
        path for method, path in faults.requests if method == "GET" and path.endswith(".tar")
    ]


def photo_run(images: StorePath, folder: RunFolder, *, relists: bool = False) -> str:
    """Open the images of a run of photos without annotations; returns what it says."""
    string_io = io.StringIO()
    progress = Progress(Console(file=string_io, width=300))
    split = {"images": images.uri}
    source = SourceConfig.model_validate({"format": "folder", "splits": {"all": split}})
    with folder.lock():
        roots = open_image_roots(source, folder, progress, relists=relists)
        open_source(source, "all", folder.index("all"), images=roots["all"])
        keep_listings(roots, folder, "today")
        keep_indexes(roots, folder)
    return string_io.getvalue()


@pytest.mark.parametrize("store_name", [None, "labels"])
def test_a_resumed_run_lists_nothing_again_and_says_what_has_changed(
    images: StorePath, tmp_path: Path, faults: Faults, store_name: str | None
) -> None:
    labels = None if store_name is None else StorePath(f"{images.uri}-{store_name}")
    folder = RunFolder(tmp_path / "out", labels)
    assert f"listing {images.uri}" in photo_run(images, folder)
    rows = SourceIndex(folder.index("all")).records(0, IMAGES)
    shutil.rmtree(cache_folder())
    if labels is not None:
        (folder.private / "listings.json").unlink()  # as on another machine
    finished = photo_run(images, folder)
    assert f"{images.uri} was listed today: {IMAGES} objects; --relist lists it again" in finished
    assert "NOTE" not in finished
    (images / NAMES[0]).put(png(0) + b" ")
    (images / NAMES[1]).unlink()
    (images / "new.png").put(png(1))
    (images / "newer.png").put(png(2))
    changed = photo_run(images, folder)
    assert f"{images.uri} has changed since; --relist takes the objects that it has" in changed
    assert SourceIndex(folder.index("all")).records(0, IMAGES) == rows
    relisted = photo_run(images, folder, relists=True)
    assert f"{images.uri} has changed since today: 2 new, 1 gone, 1 replaced" in relisted
    assert len(SourceIndex(folder.index("all"))) == IMAGES + 1
    faults.requests.clear()
    photo_run(images, folder)
    assert not [path for method, path in faults.requests if path.endswith(".png")]


def photo_records(images: ImageRoot, folder: RunFolder) -> list[Record]:
    """The records of photos as a worker gets them, whose images the driver has not opened."""
    source = SourceConfig(format="folder", splits={"all": SplitConfig(images=images.location)})
    index = open_source(source, "all", folder.index("all"), images=images)
    reader = UnitReader(folder.storage, {"all": folder.index_name("all")}, {"all": images})
    return reader(WorkUnit("all", 0, len(index)))


def test_workers_read_the_sizes_of_photos(
    images: StorePath, tmp_path: Path, faults: Faults
) -> None:
    files = {".hidden.png": b"", "broken.png": b"none", "notes.txt": b"", "z.PNG": png(50)}
    files |= {
        "empty.png": b"",
        "z.json": b"{}",
        **dict(zip(NAMES, map(png, range(IMAGES)), strict=True)),
    }
    for name, content in files.items():
        (images / name).put(content)
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run = RunFolder(tmp_path / "out")
    run.private.mkdir(parents=True)
    local = photo_records(existing_images(tmp_path / "photos"), run)
    faults.requests.clear()
    root = existing_images(images.uri, IndexFolder(run.root, versioned=True))
    stored = photo_records(root, run)
    assert SourceIndex(run.index("all")).meta["notes"] == ["1 file not read: notes.txt"]
    assert len(faults.requests) < 3 * len(stored)
    failed = {record.image_id: str(record.error) for record in stored if not record.ok}
    assert failed == {
        "broken.png": f"source: image cannot be read: {images}/broken.png (unknown format)",
        "empty.png": f"source: image cannot be read: {images}/empty.png (the file is empty)",
    }
    for record in (*local, *stored):
        record.error = None
    assert stored == local
    assert [record.width for record in stored if record.ok] == [*range(20, 20 + IMAGES), 70]


def test_an_inventory_takes_the_place_of_the_listing(
    images: StorePath, tmp_path: Path, faults: Faults
) -> None:
    inventory = tmp_path / "list.txt"
    split = {"images": images.uri, "inventory": inventory}
    source = SourceConfig.model_validate({"format": "folder", "splits": {"all": split}})
    run = RunFolder(tmp_path / "out")
    run.private.mkdir(parents=True)
    hashes: list[str] = []
    for names in (NAMES, [*reversed(NAMES)], [*NAMES, "gone.png"]):
        inventory.write_text("\n".join(names))
        faults.requests.clear()
        root = open_image_roots(source, run, Progress())["all"]
        index = open_source(source, "all", run.index("all"), images=root)
        assert len(faults.requests) < 5  # whether the bucket is there
        hashes.append(index.meta["annotations_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]
    failed = {record.image_id: record.error for record in photo_records(root, run) if not record.ok}
    assert failed == {"gone.png": f"source: image file not found: {images}/gone.png"}


def test_a_folder_has_an_inventory_too(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(1))
    inventory = tmp_path / "list.txt"
    inventory.write_text("missing.png\na.png\n")
    split = {"images": tmp_path / "photos", "inventory": inventory}
    source = SourceConfig.model_validate({"format": "folder", "splits": {"all": split}})
    run = RunFolder(tmp_path / "out")
    run.private.mkdir(parents=True)
    root = open_image_roots(source, run, Progress())["all"]
    records = photo_records(root, run)
    assert [(record.image_id, record.width) for record in records if record.ok] == [("a.png", 21)]
    [failed] = [record for record in records if not record.ok]
    assert failed.error == f"source: image file not found: {tmp_path}/photos/missing.png"


def test_a_lost_list_is_made_again(images: StorePath, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    photo_run(images, folder)
    shutil.rmtree(cache_folder())
    [part] = folder.private.glob("images-*/*.arrow")
    part.write_bytes(part.read_bytes()[:100])
    assert f"listing {images.uri}" in photo_run(images, folder)


def test_a_machine_fetches_a_part_of_an_index_once(
    images: StorePath, tmp_path: Path, faults: Faults
) -> None:
    folder = RunFolder(tmp_path / "out", StorePath(f"{images.uri}-labels"))
    photo_run(images, folder)
    [name] = [path.name for path in folder.private.glob("images-*")]
    shutil.rmtree(cache_folder())
    faults.requests.clear()
    workers = [IndexReference(name, folder.store) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda worker: worker.opened.find(NAMES[3]), workers))
    assert all(row == rows[0] and row for row in rows)
    fetched = [path.rpartition("/")[2] for method, path in faults.requests if method == "GET"]
    assert sorted(fetched) == ["00000.arrow", "index.json"]


def test_a_damaged_part_in_the_store_is_named(images: StorePath, tmp_path: Path) -> None:
    labels = StorePath(f"{images.uri}-labels")
    folder = RunFolder(tmp_path / "out", labels)
    photo_run(images, folder)
    [part] = folder.private.glob("images-*/*.arrow")
    (labels / f".sgpipe/{part.parent.name}/{part.name}").put(part.read_bytes()[:100])
    shutil.rmtree(cache_folder())
    index = IndexReference(part.parent.name, labels).opened
    with pytest.raises(UserError, match=r"cannot be read .*; delete it, and run again"):
        index.find(NAMES[3])


@pytest.mark.soak
def test_a_thousand_random_faults_change_nothing(
    images: StorePath, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 runs; up to three faults in a row for each image."""
    monkeypatch.setattr(stores, "_READ_RETRIES", 8)
    root = image_root(images.uri)
    fault_count = 0
    for seed in range(20):
        choose = random.Random(seed)
        left = {}

        def fault(
            method: str, path: str, choose: random.Random = choose, left: dict[str, int] = left
        ) -> str | None:
            nonlocal fault_count
            if left.setdefault(path, choose.randrange(4)) == 0:
                return None
            left[path] -= 1
            fault_count += 1
            return choose.choice(["503 SlowDown", "500 InternalError", "cut"])

        faults.fault = fault
        wanted = records()
        for number, (_, opened) in enumerate(
            open_ahead({"val": root}, wanted, lambda image, file: (image, file))
        ):
            assert not isinstance(opened, ImageError)
            assert opened[0].size == (20 + number, 10)
            assert opened[1].getvalue() == png(number)
    assert fault_count > 1000
