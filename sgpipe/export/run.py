"""`sgpipe export`: the shards of a run in another form, in a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError, making_folder
from sgpipe.export.coco import write_coco, write_coco_relations
from sgpipe.export.hico import write_hico
from sgpipe.export.hugging_face import write_hugging_face
from sgpipe.export.rows import Labels
from sgpipe.export.scene_graphs import write_rlipv2, write_visual_genome
from sgpipe.records import TRAINED_ON
from sgpipe.utils.locking import only_process

HUGGING_FACE = "hf"
_WRITERS: dict[str, Callable[[Labels, Path], None]] = {
    "coco": write_coco,
    "coco-rel": write_coco_relations,
    "vg": write_visual_genome,
    "rlipv2": write_rlipv2,
    "hico": write_hico,
}
FORMS = (HUGGING_FACE, *_WRITERS)


@dataclass(frozen=True)
class Exported:
    """What was written: its folder, its files, and how many there were of what was left out."""

    root: Path
    files: list[str]
    left_out: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return {"root": str(self.root), "files": self.files, "left_out": self.left_out}


def export_run(
    root: Path,
    form: str,
    out: Path,
    *,
    threshold: float | None = None,
    images: Path | None = None,
    embed: bool = False,
) -> Exported:
    """Write the run in `root` to the new folder `out`.

    Args:
        threshold: least confidence of relations; by default all of them for the hub, else what is trained on.
        images, embed: as `write_hugging_face`, for the hub only.

    Raises:
        UserError: it is no run, a shard cannot be read, or `out` is there already; nothing was written.
    """
    if form not in FORMS:
        raise UserError(f"--to {form}: expected one of {', '.join(FORMS)}")
    if (embed or images) and form != HUGGING_FACE:
        raise UserError("--embed and --images are for --to hf; the other forms name their images")
    if images and not images.is_dir():
        raise UserError(f"image folder not found: {images}")
    default = 0.0 if form == HUGGING_FACE else TRAINED_ON
    labels = Labels(root, threshold if threshold is not None else default)
    with new_folder(out) as place:
        if form == HUGGING_FACE:
            write_hugging_face(labels, place, images, embed=embed)
        else:
            _WRITERS[form](labels, place)
            labels.left_out["error rows"] += sum(shard.counts.get("errors", 0) for shard in labels.manifest.shards)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return Exported(out, files, dict(+labels.left_out))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, renamed to it when the block ends, and gone when it fails.

    A kill leaves it behind; the next one of this name empties it.

    Raises UserError: `out` is there already and no empty folder, cannot be made, or another export is at work on it.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} is there already and is not overwritten; name a new folder")
    place = out.parent / f".{out.name}.tmp"
    lock = place / ".lock"
    with making_folder(out):
        place.mkdir(parents=True, exist_ok=True)
        lock.touch()
    with only_process(lock, out):
        try:
            for path in set(place.iterdir()) - {lock}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield place
            lock.unlink()
            os.replace(place, out)
        finally:
            shutil.rmtree(place, ignore_errors=True)
