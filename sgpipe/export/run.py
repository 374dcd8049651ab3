"""`sgpipe export`: a run in another format, in a folder that appears complete or not at all."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.calibration import probability_for
from sgpipe.errors import UserError, check_share
from sgpipe.export import annotation_files as files
from sgpipe.export.hico import write_hico
from sgpipe.export.hugging_face import (
    exported_relations,
    write_hugging_face,
    write_readme,
    write_webdataset,
)
from sgpipe.export.instructions import COORDINATES, LIKELY, Instructions, write_instructions
from sgpipe.export.question_text import load_phrases
from sgpipe.export.rows import ExportRows
from sgpipe.files.image_roots import ImagePlace, check_images
from sgpipe.files.locations import Location, location
from sgpipe.records import ORIGINS, TRAINING_CONFIDENCE
from sgpipe.storage.run_folder import check_output
from sgpipe.utils.atomic import new_folder

HUGGING_FACE = "hf"
LABEL_STUDIO = "label-studio"
FIFTYONE = "fiftyone"
WEBDATASET = "webdataset"
INSTRUCTIONS = "instructions"
_WRITERS: dict[str, Callable[[ExportRows, Path], None]] = {
    HUGGING_FACE: write_hugging_face,
    "coco": files.write_coco,
    "coco-rel": files.write_coco_relations,
    "sgg-benchmark": files.write_sgg_benchmark,
    "vg": files.write_visual_genome,
    "rlipv2": files.write_rlipv2,
    "hico": write_hico,
    "psg": files.write_psg,
    "vg150": files.write_vg150,
    LABEL_STUDIO: files.write_label_studio,
    FIFTYONE: files.write_fiftyone,
    WEBDATASET: write_webdataset,
}
_WITH_IMAGES = (HUGGING_FACE, LABEL_STUDIO, FIFTYONE, INSTRUCTIONS)
FORMATS = (*_WRITERS, INSTRUCTIONS)


@dataclass(frozen=True)
class Exported:
    """What was written, the number of relations, what was left out, and a note on calibration or
    use of the files.
    """

    root: Path
    files: list[str]
    left_out: dict[str, int]
    relations: int
    note: str | None = None


def export_run(
    root: str | Location,
    to: str,
    out: Path,
    *,
    threshold: float | None = None,
    calibration: Location | None = None,
    precision: float | None = None,
    certificate: Mapping[str, Any] | None = None,
    images: ImagePlace | None = None,
    images_url: str | None = None,
    embed: bool = False,
    coordinates: str = "pixel",
    templates: Path | None = None,
    seed: int | None = None,
    parquet: bool = False,
    inside: bool = False,
    origins: Collection[str] = ORIGINS,
) -> Exported:
    """Write the run in `root` to the new folder `out`.

    Args:
        threshold: minimum confidence of relations; by default 0 for the hub, and that of training
            for other formats.
        calibration: with this file of `sgpipe calibrate`, the threshold is a probability; or
            instead of it `precision` is the expected one.
        certificate: of the run, as `sgpipe.stats.certify.check` returns it; it decides what is
            kept.
        images, embed, images_url, coordinates, templates, seed, parquet: of the forms that have
            them; see their writers, `Instructions` and `load_phrases`.
        origins: of the relations to write; see `records.RelationOrigin`.
        inside: `out` may be in the run's own folder, as that of `sgpipe push`.

    Raises UserError: the folder is not a run, a shard cannot be read, or `out` exists; nothing is
    written.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    for option, is_given, forms in (
        ("--embed", embed, _WITH_IMAGES),
        ("--images", images, (*_WITH_IMAGES, WEBDATASET)),
        ("--images-url", images_url is not None, (LABEL_STUDIO, INSTRUCTIONS)),
        ("--coordinates", coordinates != "pixel", (INSTRUCTIONS,)),
        ("--templates", templates, (INSTRUCTIONS,)),
        ("--seed", seed is not None, (INSTRUCTIONS,)),
        ("--parquet", parquet, (INSTRUCTIONS,)),
    ):
        if is_given and to not in forms:
            raise UserError(f"{option} is for --to {' or '.join(forms)}")
    if images_url is not None and (embed or images):
        raise UserError("--images-url: leave out --embed and --images")
    if embed and to == INSTRUCTIONS and not parquet:
        raise UserError("--embed stores the images in Parquet files: pass --parquet, too")
    if images:
        check_images(images)
    if threshold is not None:
        check_share("threshold", threshold)
    unknown = set(origins).difference(ORIGINS)
    if unknown:
        raise UserError(f"--origin {min(unknown)}: expected one or more of {','.join(ORIGINS)}")
    if precision is not None:
        threshold = probability_for(calibration, precision, threshold)
        threshold = max(threshold, precision) if to == INSTRUCTIONS else threshold
    if certificate is not None:
        if threshold is not None or calibration is not None or len(set(origins)) < len(ORIGINS):
            raise UserError(
                "--certified chooses relations: omit --threshold, --calibration, --precision and"
                " --origin"
            )
        threshold = min(each["threshold"] for each in certificate["sets"])
    if threshold is None:
        threshold = 0.0 if to == HUGGING_FACE else TRAINING_CONFIDENCE
        threshold = LIKELY if to == INSTRUCTIONS and calibration is not None else threshold
    rows = ExportRows(
        location(root),
        threshold,
        calibration,
        certificate,
        origins,
        images,
        images_url,
        embed=embed,
    )
    with new_folder(out if inside else check_output(out)) as folder:
        if to == INSTRUCTIONS:
            asked = Instructions(rows, load_phrases(templates), coordinates, seed or 0)
            write_instructions(asked, folder, parquet=parquet)
        else:
            _WRITERS[to](rows, folder)
        if to != HUGGING_FACE:
            rows.left_out["error rows"] += rows.totals["errors"]
            write_readme(rows, folder, to, COORDINATES[coordinates])
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return Exported(out, written, dict(+rows.left_out), exported_relations(rows), rows.note)
