"""The search index of a run: a DuckDB file in RUN/.sgpipe/view/, opened read-only by any number of servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sgpipe.utils.console import Progress
from sgpipe.view.query import Vocabulary

# split, image_id, subject, object, predicate, state: right | wrong | unsure | changed | conflict
JudgedRow = tuple[str, str, int, int, str, str]


class Index:
    """The search index of a run. Threads may share it.

    Attributes:
        root: the run's folder or URI, as given.
        run: the header of the manifest.
        fingerprint: of the run; empty if it has none.
        images, relations: how many are indexed.
        problems: shards that are left out because they are damaged or missing, one message each.
        scored: whether `sgpipe score` measured the agreement of relations.
        annotated: whether no relation has a confidence.
        image_folders: of each split.
        cache: folder for whatever else is worth keeping, such as thumbnails (RUN/.sgpipe/view, or the user's cache
            folder for a run in a store or one that cannot be written).
        generation: changes whenever a refresh found something.
    """

    root: Path | str
    run: Mapping[str, Any]
    fingerprint: str
    images: int
    relations: int
    problems: list[str]
    scored: bool
    annotated: bool
    image_folders: Mapping[str, Path]
    cache: Path
    generation: int

    @classmethod
    def open(cls, root: Path | str, progress: Progress | None = None) -> Index:
        """Open the index of a run; build it first if there is none or the run has changed.

        Args:
            root: a run's folder, or the URI of one in an object store.

        Raises UserError: not a run, the manifest is damaged, the store cannot be reached, or the disk is full.
        """
        raise NotImplementedError

    def refresh(self) -> bool:
        """Index what was committed since; True if there was anything. Quick if nothing has changed.

        Raises UserError: as `open`; what was indexed before stays usable.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the index; the file stays."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The run's predicates and classes, the most frequent first."""
        raise NotImplementedError

    def predicates(self, prefix: str = "", limit: int = 20) -> list[tuple[str, int]]:
        """The predicates that start with `prefix`, in any case, and how often they occur; most frequent first."""
        raise NotImplementedError

    def set_judged(self, rows: Iterable[JudgedRow]) -> None:
        """Replace what is known of judgements; relations that the run does not have are ignored."""
        raise NotImplementedError
