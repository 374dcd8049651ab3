"""The formats of `sgpipe export`: what one is, and which there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sgpipe.errors import UserError
from sgpipe.plugins import load_instance, names_of, reference_of

if TYPE_CHECKING:
    from sgpipe.export.rows import ExportRows

FormatOption = Literal[
    "embed", "images", "images-url", "coordinates", "templates", "seed", "parquet"
]


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


def load_format(name: str) -> Format:
    """Return a format by its name, or by `package.module:attribute`.

    Raises:
        UserError: there is no such format.
    """
    reference = reference_of("format", name)
    if reference is None:
        formats = ", ".join(names_of("format"))
        raise UserError(f"--to {name}: expected one of {formats}, or package.module:NAME")
    return load_instance("format", reference, Format)


def formats_with(option: str) -> list[str]:
    """Return the names of the formats that have an option."""
    return [name for name in names_of("format") if option in load_format(name).options]
