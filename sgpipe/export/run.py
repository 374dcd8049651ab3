"""`sgpipe export`: a run in another format, in a folder that appears complete or not at all."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sgpipe.calibration import probability_for
from sgpipe.errors import UserError, check_share
from sgpipe.export.formats import Format, formats_with, load_format
from sgpipe.export.hugging_face import exported_relations, write_readme
from sgpipe.export.rows import ExportRows, FormatOptions
from sgpipe.files.image_roots import ImagePlace, check_images
from sgpipe.files.locations import Location, location
from sgpipe.plugins import failures_told
from sgpipe.records import ORIGINS, TRAINING_CONFIDENCE
from sgpipe.registry import BUILT_IN
from sgpipe.storage.certificate import Certificate
from sgpipe.storage.run_folder import check_output
from sgpipe.utils.atomic import new_folder


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
    certificate: Certificate | None = None,
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
        to: a format of `sgpipe.export.formats`, or `package.module:attribute` of another one.
        threshold: minimum confidence of relations; by default that of the format, which is 0 for
            the hub, and else that of training. With a calibration it is a probability.
        calibration: with this file of `sgpipe calibrate`, the threshold is a probability; or
            instead of it `precision` is the expected one.
        certificate: of the run, as `sgpipe.stats.certify.check` returns it; it decides what is
            kept.
        images, embed, images_url, coordinates, templates, seed, parquet: of the formats that have
            them; see `FormatOptions`.
        origins: of the relations to write; see `records.RelationOrigin`.
        inside: `out` may be in the run's own folder, as that of `sgpipe push`.

    Raises:
        UserError: the folder is not a run, a shard cannot be read, `out` exists, or options are
            wrong or exclude each other; nothing is written.
    """
    form = load_format(to)
    options = FormatOptions(embed, images, images_url, coordinates, templates, seed, parquet)
    check_options(form, to, options)
    _check_relation_choice(threshold, calibration, precision, certificate, origins)
    threshold = _choose_threshold(form, threshold, calibration, precision, certificate)
    rows = ExportRows(location(root), threshold, calibration, certificate, origins, options)
    with new_folder(out if inside else check_output(out)) as folder:
        write_rows(form, to, rows, folder)
        if not form.own_readme:
            rows.left_out["error rows"] += rows.totals["errors"]
            write_readme(rows, folder, form)
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    left_out = {reason: number for reason, number in rows.left_out.items() if number > 0}
    note = "; ".join(filter(None, [*rows.manifest.notes, rows.note]))
    return Exported(out, written, left_out, exported_relations(rows), note)


def write_rows(form: Format, to: str, rows: ExportRows, folder: Path) -> None:
    """Write what a format makes of the rows.

    Raises:
        UserError: it is not one of sgpipe's, and fails or writes nothing.
    """
    if to in BUILT_IN["format"]:
        form.write(rows, folder)
        return
    with failures_told("format", to):
        form.write(rows, folder)
    if not any(path.is_file() for path in folder.rglob("*")):
        raise UserError(f"format {to} writes no file: expected some in the folder that write gets")


def _check_relation_choice(
    threshold: float | None,
    calibration: Location | None,
    precision: float | None,
    certificate: Certificate | None,
    origins: Collection[str],
) -> None:
    """Check the options that choose relations.

    Raises:
        UserError: a value is not one of its option, or two options exclude each other.
    """
    if threshold is not None:
        check_share("threshold", threshold)
    unknown = set(origins).difference(ORIGINS)
    if unknown:
        raise UserError(f"--origin {min(unknown)}: expected one or more of {','.join(ORIGINS)}")
    choices = (threshold, calibration, precision)
    is_limited = choices != (None, None, None) or {*origins} != {*ORIGINS}
    if certificate is not None and is_limited:
        raise UserError(
            "--certified chooses relations: omit --threshold, --calibration, --precision and"
            " --origin"
        )


def _choose_threshold(
    form: Format,
    threshold: float | None,
    calibration: Location | None,
    precision: float | None,
    certificate: Certificate | None,
) -> float:
    if certificate is not None:
        return min(certified.threshold for certified in certificate.sets)
    if precision is not None:
        probability = probability_for(calibration, precision, threshold)
        return probability if form.probability is None else max(probability, precision)
    if threshold is not None:
        return threshold
    return default_threshold(form, is_calibrated=calibration is not None)


def default_threshold(form: Format, *, is_calibrated: bool) -> float:
    """Return the minimum confidence or, with a calibration, probability of a format."""
    if is_calibrated and form.probability is not None:
        return form.probability
    return TRAINING_CONFIDENCE if form.threshold is None else form.threshold


def check_options(form: Format, to: str, options: FormatOptions) -> None:
    """Check the options of a format.

    Raises:
        UserError: a format lacks an option, two exclude each other, or the images are not there.
    """
    for option in options.named():
        if option not in form.options:
            raise UserError(f"--{option} is for --to {' or '.join(formats_with(option))}")
    if options.images_url is not None and (options.embed or options.images):
        raise UserError("--images-url: leave out --embed and --images")
    if options.images:
        check_images(options.images)
