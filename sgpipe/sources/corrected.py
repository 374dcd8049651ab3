"""`sgpipe correct`: a copy of a run in which relations are as people judged them.

Relations that people confirmed, changed or added have no confidence; what they called wrong is
gone. All else stays.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, absolute
from sgpipe.files.locations import Location
from sgpipe.storage.header import RunHeader
from sgpipe.storage.judgements import Conflicts, JudgementLog, RelationState
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.run_folder import copy_run
from sgpipe.storage.shards import SCORES, read_file, replace_column
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import fingerprint

Place: TypeAlias = tuple[int, int, str]  # subject, object, predicate
_Row: TypeAlias = dict[str, Any]
_COUNTS = ("confirmed", "removed", "changed", "added", "unsure", "undecided")


@dataclass(frozen=True)
class CorrectedRun:
    """What was corrected.

    Attributes:
        counts: relations by what was done; `unsure` ones and `undecided` conflicts stay as they
            are.
        conflicts: relations about which people differ.
        missing: judged relations that the run does not have.
        new_predicates: those appended to the closed class list of the run.
    """

    root: str
    images: int
    shards: int
    counts: dict[str, int]
    conflicts: int
    missing: int
    new_predicates: list[str]


def correct_run(
    source: Manifest,
    storage: Location,
    log: JudgementLog,
    out: Path,
    progress: Progress,
    conflicts: Conflicts = "majority",
    images: ImagePlace | None = None,
) -> CorrectedRun:
    """Copy a run to `out` with its relations corrected; an earlier call that stopped is resumed.

    Args:
        storage: of its shards.
        conflicts: see `RelationState.resolve`.
        images: their folder, if they have moved.

    Raises:
        UserError: there are no judgements, `out` is another run or in use, or a shard cannot be
            read.
    """
    states = list(log.current())
    if not states:
        raise UserError(
            f"{log.file} has no judgements of this run: judge relations with `sgpipe view` first"
        )
    corrections = Corrections(states, conflicts)
    header = RunHeader()
    new = list[str]()
    labels = source.run.get("labels")
    if labels:  # closed class lists
        new = sorted(corrections.predicates - set(labels["relations"]))
        header["labels"] = {**labels, "relations": [*labels["relations"], *new]}
    identity = {"corrected": source.run.get("fingerprint"), "judgements": corrections.fingerprint}
    header["images"] = {
        split: absolute(images or place) for split, place in source.image_roots.locations.items()
    }
    header["identity"] = identity | {"conflicts": conflicts}
    counts = Counter[str]()

    def corrected(shard: ShardEntry, _: bool) -> pa.Table:
        return corrections.apply(read_file(storage / shard.file), counts)

    title = f"{source.run.get('name', '')}: corrected by sgpipe"
    readme = title, "Relations without a confidence are confirmed or made by people."
    manifest = copy_run(source, out, header, corrected, "correcting", readme, progress)
    return CorrectedRun(
        root=str(out),
        images=sum(shard.rows for shard in manifest.shards),
        shards=len(manifest.shards),
        counts={name: counts[name] for name in _COUNTS},
        conflicts=sum(state.is_conflict for state in states),
        missing=len(states) - counts.total(),
        new_predicates=new,
    )


class Corrections:
    """What people's judgements leave of the relations of each image; `predicates`: of those that
    they state.
    """

    def __init__(self, states: Iterable[RelationState], conflicts: Conflicts) -> None:
        # What is left of each judged relation; None: it stays as it is.
        self._images: dict[tuple[str, str], list[tuple[RelationState, frozenset[Place] | None]]] = (
            defaultdict(list)
        )
        self.predicates: set[str] = set()
        outcomes = {}
        for state in states:
            left = state.resolve(conflicts)
            places = None if left is None else frozenset(key[2:] for key in left)
            self._images[state.key.split, state.key.image_id].append((state, places))
            self.predicates |= {predicate for *_, predicate in places or ()}
            outcomes[json.dumps(state.key)] = None if places is None else sorted(places)
        self.fingerprint = fingerprint(outcomes)

    def apply(self, table: pa.Table, counts: Counter[str]) -> pa.Table:
        """Return the table of a shard with corrected relations.

        Args:
            counts: of relations by what was done, to which those of the table are added.
        """
        images = list(zip(table["split"].to_pylist(), table["image_id"].to_pylist(), strict=True))
        judged_rows = [row for row, image in enumerate(images) if image in self._images]
        if not judged_rows:
            return table
        columns = [name for name in ("relations", *SCORES) if name in table.column_names]
        values = {name: table[name].to_pylist() for name in columns}
        for row in judged_rows:
            image = {name: column[row] for name, column in values.items()}
            objects = len(table["objects"][row])
            outcomes = self._outcomes(images[row], image["relations"], objects, counts)
            for name, value in _corrected_columns(image, outcomes).items():
                values[name][row] = value
        for name, column in values.items():
            table = replace_column(table, name, column)
        return table

    def _outcomes(
        self,
        image: tuple[str, str],
        relations: Sequence[_Row],
        objects: int,
        counts: Counter[str],
    ) -> dict[Place, frozenset[Place]]:
        """Return what is left of each judged relation of an image, without those that the image
        does not have, or cannot have.
        """
        present = set(map(_place, relations))
        outcomes: dict[Place, frozenset[Place]] = {}
        for state, left in self._images[image]:
            place = state.key[2:]
            is_possible = all(max(subject, object_) < objects for subject, object_, _ in left or ())
            if not is_possible or (place not in present and not state.is_added):
                continue
            counts[_outcome(state, left, is_present=place in present)] += 1
            if left is not None:
                outcomes[place] = left
        return outcomes


def _outcome(state: RelationState, left: frozenset[Place] | None, *, is_present: bool) -> str:
    """Return what people did to a relation, as `CorrectedRun.counts` calls it."""
    if left is None:
        return "undecided" if state.is_conflict else "unsure"
    if not left:
        return "removed"
    if not is_present:
        return "added"
    return "confirmed" if state.key[2:] in left else "changed"


def _corrected_columns(
    image: Mapping[str, list[Any]], outcomes: Mapping[Place, frozenset[Place]]
) -> dict[str, list[Any]]:
    """Return the corrected relations of an image, and the scores of those that it had before."""
    corrected, before = correct_relations(image["relations"], outcomes)
    columns: dict[str, list[Any]] = {"relations": corrected}
    for name in image.keys() - columns.keys():
        scores = [*image[name], None]  # the last one of new relations
        columns[name] = [scores[-1 if index is None else index] for index in before]
    return columns


def correct_relations(
    relations: Sequence[_Row], outcomes: Mapping[Place, frozenset[Place]]
) -> tuple[list[_Row], list[int | None]]:
    """Return the relations of an image as people say they are, and the index of each in the image
    before, or None.

    What one answer takes away and another adds stays. Each that is certain occurs once, without a
    confidence: in the place of the same one, behind the one that became it, or last.

    Args:
        outcomes: what is left of each judged relation.
    """
    certain = frozenset[Place]().union(*outcomes.values())
    corrected = list[_Row]()
    before = list[int | None]()
    waiting = set(certain)
    for place, index in _candidates(relations, outcomes, certain):
        if place in waiting:
            waiting.remove(place)
            ends = dict(zip(("subject", "object", "predicate"), place, strict=True))
            corrected.append(ends | {"confidence": None, "origin": "person"})
            before.append(index)
        elif index is not None and place not in certain and place not in outcomes:
            corrected.append(dict(relations[index]))
            before.append(index)
    return corrected, before


def _candidates(
    relations: Sequence[_Row],
    outcomes: Mapping[Place, frozenset[Place]],
    certain: Iterable[Place],
) -> Iterator[tuple[Place, int | None]]:
    """Yield the relations of an image with their indices, behind each what it became, and last
    what people added.
    """
    present = set(map(_place, relations))
    for index, relation in enumerate(relations):
        place = _place(relation)
        yield place, index
        for new_place in sorted(outcomes.get(place, frozenset()) - present):
            yield new_place, None
    for place in sorted(certain):
        yield place, None


def _place(relation: _Row) -> Place:
    return relation["subject"], relation["object"], relation["predicate"]
