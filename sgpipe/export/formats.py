"""The formats of `sgpipe export`: what one is, and which there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sgpipe.errors import UserError
from sgpipe.plugins import installed, load_instance, reference_of

if TYPE_CHECKING:
    from sgpipe.export.rows import ExportRows

FormatOption = Literal[
    "embed", "images", "images-url", "coordinates", "templates", "seed", "parquet"
]

# By name: where the `Format` is. They are imported when they are asked for: some take long.
BUILT_IN = {
    "hf": "sgpipe.export.hugging_face:HUGGING_FACE",
    "coco": "sgpipe.export.coco:COCO",
    "coco-rel": "sgpipe.export.coco_relations:COCO_RELATIONS",
    "sgg-benchmark": "sgpipe.export.sgg_benchmark:SGG_BENCHMARK",
    "vg": "sgpipe.export.visual_genome:VISUAL_GENOME",
    "rlipv2": "sgpipe.export.rlipv2:RLIPV2",
    "hico": "sgpipe.export.hico:HICO",
    "psg": "sgpipe.export.psg:PSG",
    "vg150": "sgpipe.export.vg150:VG150",
    "label-studio": "sgpipe.export.label_studio:LABEL_STUDIO",
    "fiftyone": "sgpipe.export.fiftyone:FIFTYONE",
    "webdataset": "sgpipe.export.hugging_face:WEBDATASET",
    "instructions": "sgpipe.export.instructions:INSTRUCTIONS",
}


@dataclass(frozen=True)
class Format:
    """A format of `sgpipe export`.

    Args:
        name: that `--to` and the README of an export state.
        write: writes the rows of a run to a new folder.
        options: of the command, those that `write` heeds: they are in `rows.options`.
        keeps: what it writes beside objects and relations: captions, triplets or pairs.
        threshold: the minimum confidence of relations, unless the user gives one; None: 0.2.
        probability: the same with a calibration, where it differs; an expected precision is then
            at least the minimum, too.
        own_readme: `write` also writes README.md, which is otherwise that of sgpipe.
    """

    name: str
    write: Callable[[ExportRows, Path], None]
    options: tuple[FormatOption, ...] = ()
    keeps: tuple[str, ...] = ()
    threshold: float | None = None
    probability: float | None = None
    own_readme: bool = False


def format_names() -> list[str]:
    """Return the names that `--to` accepts, those of installed packages last."""
    return list(dict.fromkeys([*BUILT_IN, *installed("format")]))


def load_format(name: str) -> Format:
    """Return a format by its name, or by `package.module:attribute`.

    Raises:
        UserError: there is no such format.
    """
    reference = BUILT_IN.get(name) or reference_of("format", name)
    if reference is None:
        raise UserError(f"--to {name}: expected one of {', '.join(format_names())}")
    return load_instance("format", reference, Format)


def formats_with(option: str) -> list[str]:
    """Return the names of the formats that have an option."""
    return [name for name in format_names() if option in load_format(name).options]
