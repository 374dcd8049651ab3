"""Archives of images are read as their folder, and what is wrong with them is one line."""

import copy
import errno
import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image
from rich.console import Console

from sgpipe.errors import EngineError, ImageError, UserError
from sgpipe.files import roots
from sgpipe.files.archives import ArchiveRoot
from sgpipe.files.image_roots import IndexFolder, existing_images, image_root
from sgpipe.files.roots import FolderRoot
from sgpipe.files.stores import StorePath
from sgpipe.images import open_ahead
from sgpipe.records import Record
from sgpipe.utils.console import Progress
from tests.values import values_of

NAMES = (
    "a.jpg",
    "A.jpg",
    "patch1/b c.png",
    "patch1/deep/ü#%.jpg",
    f"patch2/{'long' * 40}.jpg",
    "patch2/d.png",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((24 + number, 16), 60 + number).convert("RGB").save(path)
    return tmp_path / "images"


def make_zip(folder: Path, out: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(out, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return out


def make_tar(folder: Path, out: Path) -> Path:
    with tarfile.open(out, "w") as archive:
        archive.add(folder, ".")
    return out


def make_patches(folder: Path, out: Path) -> Path:
    """A tar for each folder of the first level, named within as in the folder; other files in one
    more.
    """
    out.mkdir()
    with tarfile.open(out / "rest.tar", "w") as rest:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                rest.add(path, path.name)
                continue
            with tarfile.open(out / f"{path.name}.tar", "w") as archive:
                archive.add(path, path.name)
    return out


def make_shards(folder: Path, out: Path) -> Path:
    """As WebDataset's: flat members, numbered archives."""
    out.mkdir()
    for number, name in enumerate(NAMES):
        with tarfile.open(out / f"train-{number // 2:06d}.tar", "a") as archive:
            archive.add(folder / name, f"{number:04d}{Path(name).suffix}")
    return out / "train-{000000..000002}.tar"


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "zip": lambda folder, out: make_zip(folder, out.with_suffix(".zip")),
    "deflated zip": lambda folder, out: make_zip(
        folder, out.with_suffix(".zip"), zipfile.ZIP_DEFLATED
    ),
    "tar": lambda folder, out: make_tar(folder, out.with_suffix(".tar")),
    "patches": make_patches,
}


def add(archive: tarfile.TarFile, name: str, data: bytes = b"x") -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that states any size, with the right checksum."""
    info = tarfile.TarInfo(name)
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size % (1 << 96) | 1 << 95).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pixels(place: Path | ArchiveRoot, names: Sequence[str]) -> list[bytes | None]:
    """What stages see of images; None: an error row."""
    records = [
        Record(name, "coco", "val", name, 24 + number, 16) for number, name in enumerate(names)
    ]
    images = open_ahead({"val": place}, records, lambda image, file: image.tobytes())
    return [image if isinstance(image, bytes) else None for _, image in images]


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_is_read_as_its_folder(folder: Path, tmp_path: Path, form: str) -> None:
    (folder / "patch2" / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    (folder / "patch2" / "empty.jpg").touch()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
    root = image_root(FORMS[form](folder, tmp_path / "packed"))
    assert isinstance(root, ArchiveRoot)
    assert dict(values_of(root.entries(), "name", "size")) == {
        n: file.stat().st_size for n, file in files.items()
    }
    for copied in (root, copy.copy(root)):
        for name in NAMES:
            assert (
                copied.open(name).read()
                == copied.open(f"./{name}").read()
                == files[name].read_bytes()
            )
    assert root.contains(NAMES[2])
    assert not any(map(root.contains, ("none.jpg", "a.JPG", "patch1", "../a.jpg", "")))
    for name, why in {
        "none.jpg": "not found",
        "../a.jpg": "not inside",
        "/a.jpg": "not inside",
    }.items():
        with pytest.raises(ImageError, match=why):
            root.open(name)
    names = [*NAMES, "patch2/broken.jpg", "patch2/empty.jpg", "missing.jpg", "../a.jpg"]
    assert pixels(root, names) == pixels(folder, names)
    assert [pixel is None for pixel in pixels(root, names)] == [False] * len(NAMES) + [True] * 4


def test_shards_are_named_by_a_range_or_by_their_folder(folder: Path, tmp_path: Path) -> None:
    shards = make_shards(folder, tmp_path / "shards")
    for location in (shards, shards.parent):
        root = image_root(location)
        assert sorted(values_of(root.entries(), "name")) == [
            f"{number:04d}{Path(name).suffix}" for number, name in enumerate(NAMES)
        ]
        assert root.open("train-000001/0002.png").read() == (folder / NAMES[2]).read_bytes()
        assert not root.contains("train-000000/0002.png")
    with pytest.raises(UserError, match=r"no such file: .*train-000003\.tar"):
        image_root(tmp_path / "shards" / "train-{000002..000004}.tar")
    with pytest.raises(UserError, match="names no archive: 000004 is larger than 000002"):
        image_root(tmp_path / "shards" / "train-{000004..000002}.tar")
    with pytest.raises(UserError, match="no such folder"):
        existing_images(tmp_path / "x{0..1}" / "images")


def test_the_index_is_made_once_and_may_be_in_the_run(folder: Path, tmp_path: Path) -> None:
    archive = make_tar(folder, tmp_path / "photos.tar")
    string_io = io.StringIO()
    root = image_root(archive, IndexFolder(progress=Progress(Console(file=string_io))))
    assert "reading the index of" in string_io.getvalue()
    assert isinstance(root, ArchiveRoot)
    written = root.index.path.stat().st_mtime_ns
    image_root(archive, IndexFolder(StorePath("s3://not-asked/x"))).open("a.jpg")
    assert root.index.path.stat().st_mtime_ns == written
    (tmp_path / "run" / ".sgpipe").mkdir(parents=True)
    root.index.path.rename(tmp_path / "run" / ".sgpipe" / root.index.name)
    image_root(archive, IndexFolder(tmp_path / "run")).open("a.jpg")
    assert not root.index.path.exists()
    (folder / "new.jpg").write_bytes((folder / "a.jpg").read_bytes())
    make_tar(folder, archive)
    assert existing_images(archive).contains("new.jpg")


def test_of_members_with_one_name_the_last_counts_as_when_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for data in (b"first", b"other", b"last"):
            add(archive, "./a.jpg" if data == b"other" else "a.jpg", data)
    root = image_root(tmp_path / "twice.tar")
    assert root.open("a.jpg").read() == b"last"
    assert values_of(root.entries(), "name") == ["a.jpg"]
    assert isinstance(root, ArchiveRoot)


def test_a_name_in_two_archives_is_never_guessed(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for number in (0, 1):
        with tarfile.open(tmp_path / "two" / f"patch{number}.tar", "w") as archive:
            add(archive, "a.jpg", b"%d" % number)
            add(archive, f"only{number}.jpg")
    root = image_root(tmp_path / "two")
    with pytest.raises(ImageError, match="2 archives have it: name it ARCHIVE/NAME"):
        root.open("a.jpg")
    assert not root.contains("a.jpg")
    assert root.open("patch1/a.jpg").read() == b"1"
    assert sorted(values_of(root.entries(), "name")) == [
        "only0.jpg",
        "only1.jpg",
        "patch0/a.jpg",
        "patch1/a.jpg",
    ]


def test_a_folder_that_holds_all_images_may_be_left_out(folder: Path, tmp_path: Path) -> None:
    """As in COCO's val2017.zip, whose annotations name images without it."""
    for split in ("train2017", "val2017"):
        (tmp_path / "sets").mkdir(exist_ok=True)
        for name in NAMES[:2]:
            place = tmp_path / split / split / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((folder / name).read_bytes() + split.encode())
        junk = tmp_path / split / "__MACOSX" / "._a.jpg"
        junk.parent.mkdir()
        junk.write_bytes(b"junk")
        (tmp_path / split / "README.txt").write_text("beside the images")
        make_zip(tmp_path / split, tmp_path / "sets" / f"{split}.zip")
    root = image_root(tmp_path / "sets" / "val2017.zip")
    for name in NAMES[:2]:
        for path in (name, f"val2017/{name}", f"val2017/val2017/{name}"):
            assert root.open(path).read() == (folder / name).read_bytes() + b"val2017"
    both = image_root(tmp_path / "sets")
    assert both.open(f"train2017/{NAMES[0]}").read().endswith(b"train2017")
    with pytest.raises(ImageError, match="2 archives have it"):
        both.open(NAMES[0])
    assert not both.contains("none.jpg")


def test_what_this_machine_lacks_is_no_fault_of_an_image(folder: Path, tmp_path: Path) -> None:
    root = image_root(make_tar(folder, tmp_path / "packed.tar"))
    lacks = mock.patch.object(
        Path, "open", side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    )
    with lacks, pytest.raises(EngineError, match="Too many open files"):
        root.open(NAMES[0])


def test_members_that_are_no_files_or_lead_outside_are_left_out_and_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for name in ("../a.jpg", "/etc/b.jpg", "x/../../c.jpg", "good.jpg"):
            add(archive, name)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"link-{kind.decode()}.jpg")
            info.type = kind
            info.linkname = "/etc/passwd"
            archive.addfile(info)
    string_io = io.StringIO()
    root = image_root(
        tmp_path / "bad.tar", IndexFolder(progress=Progress(Console(file=string_io, width=300)))
    )
    assert values_of(root.entries(), "name") == ["good.jpg"]
    for reason in ("link or device", "name that leaves the archive"):
        assert f"bad.tar: 3 members left out: {reason}\n" in string_io.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("damage", ["empty", "text", "half", "less its end", "in a header"])
def test_what_is_no_archive_or_cut_is_refused_in_one_line(
    folder: Path, tmp_path: Path, kind: str, damage: str
) -> None:
    data_bytes = (make_zip if kind == "zip" else make_tar)(
        folder, tmp_path / f"whole.{kind}"
    ).read_bytes()
    last = data_bytes.rindex(b"d.png") if kind == "tar" else data_bytes.index(b"PK\1\2")
    content = {
        "empty": b"",
        "text": b"<html>not found</html>",
        "half": (
            data_bytes[: len(data_bytes) // 2]
            if kind == "zip"
            else data_bytes[: data_bytes.rindex(b"d.png") + 100]
        ),
        "less its end": data_bytes[:-5] if kind == "zip" else data_bytes[: last + 700],
        "in a header": data_bytes[: last + 2] + b"\xff" * 200 + data_bytes[last + 202 :],
    }[damage]
    (tmp_path / f"cut.{kind}").write_bytes(content)
    with pytest.raises(
        UserError, match=f"cut.{kind} is not a {kind} archive, or is truncated or damaged"
    ) as caught:
        image_root(tmp_path / f"cut.{kind}")
    assert "\n" not in str(caught.value)


def test_headers_that_lie_and_compressed_tars_are_refused_in_one_line_and_end(
    tmp_path: Path,
) -> None:
    link = tarfile.GNUTYPE_LONGNAME
    damaged = r"\.tar is not a tar archive, or is truncated or damaged \(.+\); copy it"
    for name, content, message in (
        ("lies.tar", tar_header("a.jpg", -1), damaged),
        (
            "itself.tar",
            tar_header("a.jpg", 0) + tar_header("followed by itself", -512, b"V"),
            damaged,
        ),
        ("long.tar", tar_header("link", 1 << 50, link), damaged),
        ("links.tar", tar_header("link", 0, link) * 2000 + tar_header("a.jpg", 0), damaged),
        ("a.tar.gz", gzip.compress(tar_header("a.jpg", 0)), "compressed as a whole"),
        ("a.tar", gzip.compress(tar_header("a.jpg", 0)), damaged.replace(r"\(.+\); copy it", "")),
    ):
        (tmp_path / name).write_bytes(content + bytes(1024))
        with pytest.raises(UserError, match=message):
            existing_images(tmp_path / name)


def test_members_with_impossible_entries_do_not_end_in_a_traceback(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("good.jpg", b"good")
        archive.writestr("last.jpg", b"last")
    good = (tmp_path / "good.zip").read_bytes()
    entry = good.rindex(b"last.jpg") - 46
    end = good.rindex(b"PK\5\6")
    for at, data in {entry + 10: b"\xff\xff", entry + 46: b"\0"}.items():  # its method, its name
        (tmp_path / "odd.zip").write_bytes(good[:at] + data + good[at + len(data) :])
        root = existing_images(tmp_path / "odd.zip")
        assert root.open("good.jpg").read() == b"good"
        with pytest.raises(ImageError):
            root.open("last.jpg")
    # all members begin before the archive
    directory = int.from_bytes(good[end + 16 : end + 20], "little") + 1000
    (tmp_path / "odd.zip").write_bytes(
        good[: end + 16] + directory.to_bytes(4, "little") + good[end + 20 :]
    )
    with pytest.raises(UserError, match=r"\('good\.jpg' has an impossible size or position\)"):
        existing_images(tmp_path / "odd.zip")


def test_members_that_cannot_be_images_are_error_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(2 << 20))
        archive.writestr("empty.jpg", b"")
        archive.writestr("lies.jpg", bytes(2 << 20))
        archive.writestr("strange.jpg", b"x", zipfile.ZIP_BZIP2)
        archive.writestr("good.jpg", b"good")
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    at = data.rindex(b"lies.jpg") - 46
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")  # in the directory: no more is unpacked
    (tmp_path / "bomb.zip").write_bytes(data)
    root = image_root(tmp_path / "bomb.zip")
    reasons = {
        "bomb": "more than any image",
        "empty": "the file is empty",
        "strange": "compressed by method 12",
    }
    for name, reason in {**reasons, "lies": "its part of the archive is damaged"}.items():
        with pytest.raises(ImageError, match=reason):
            root.open(f"{name}.jpg")
    assert root.open("good.jpg").read() == b"good"


def test_an_archive_that_is_replaced_or_cut_in_use_gives_error_rows(
    folder: Path, tmp_path: Path
) -> None:
    archive = make_tar(folder, tmp_path / "photos.tar")
    root = image_root(archive)
    late = copy.copy(image_root(archive))
    assert root.open("a.jpg").read()
    with archive.open("ab") as file:
        file.truncate(1024)
    for opened in (root, copy.copy(late)):
        with pytest.raises(ImageError, match="was replaced while it was in use"):
            opened.open("a.jpg")
    archive.unlink()
    with pytest.raises(ImageError, match="not found"):
        copy.copy(late).open("a.jpg")


def test_a_folder_with_images_or_folders_beside_archives_is_a_folder(
    folder: Path, tmp_path: Path
) -> None:
    make_zip(folder / "patch1", folder / "same.zip")
    assert isinstance(image_root(folder), FolderRoot)
    (tmp_path / "unpacked" / "patch1").mkdir(parents=True)
    make_zip(folder, tmp_path / "unpacked" / "patch2.zip")
    assert isinstance(image_root(tmp_path / "unpacked"), FolderRoot)
    (tmp_path / "set").mkdir()
    for name in ("images.zip", "train.parquet", "raw.tar.gz"):
        (tmp_path / "set" / name).touch()
    assert isinstance(image_root(tmp_path / "set"), FolderRoot)
    with pytest.raises(UserError, match="is a file, not a folder of images or an archive"):
        existing_images(folder / NAMES[0])
