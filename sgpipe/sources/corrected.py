"""`sgpipe correct`: a copy of a run in which relations are as people judged them.

Relations that people confirmed, changed or added have no confidence; what they called wrong is
gone. All else stays.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
from sgpipe.storage.shards import SCORES, read_file
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import fingerprint

Place: TypeAlias = tuple[int, int, str]  # subject, object, predicate
_Row: TypeAlias = dict[str, Any]


_COUNTS = ("confirmed", "removed", "changed", "added", "unsure", "undecided")


@dataclass(frozen=True)
class CorrectedRun:
    """What was corrected."""

    root: str
    images: int
    shards: int
    counts: dict[
        str, int
    ]  # relations by what was done; `unsure` ones and `undecided` conflicts stay as they are
    conflicts: int  # relations about which people differ
    missing: int  # judged relations that the run does not have
    new_predicates: list[str]  # appended to the closed class list of the run


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

    `storage`: of its shards. `conflicts`: see `RelationState.resolve`. `images`: their folder, if
    they have moved.

    Raises UserError: there are no judgements, `out` is another run or in use, or a shard cannot be
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
        """Return the table of a shard with corrected relations; adds to `counts` what was done, by
        relation.
        """
        images = list(zip(table["split"].to_pylist(), table["image_id"].to_pylist(), strict=True))
        judged_rows = [row for row, image in enumerate(images) if image in self._images]
        if not judged_rows:
            return table
        score_columns = [name for name in SCORES if name in table.column_names]
        values = {name: table[name].to_pylist() for name in ("relations", *score_columns)}
        for row in judged_rows:
            relations = values["relations"][row] or []
            objects = len(table["objects"][row].as_py() or ())
            outcomes = self._outcomes(images[row], relations, objects, counts)
            values["relations"][row], before = correct_relations(relations, outcomes)
            for name in score_columns:
                scores = values[name][row]
                values[name][row] = [None if place is None else scores[place] for place in before]
        for name, column in values.items():
            field = table.schema.field(name)
            place = table.column_names.index(name)
            table = table.set_column(place, field, pa.array(column, field.type))
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


def correct_relations(
    relations: Sequence[_Row], outcomes: Mapping[Place, frozenset[Place]]
) -> tuple[list[_Row], list[int | None]]:
    """Return the relations of an image as people say they are, and the index of each in the image
    before, or None.

    `outcomes` has what is left of each judged relation. What one answer takes away and another adds
    stays. Each that is certain is there once, without a confidence: in the place of the same one,
    behind the one that became it, or last.
    """
    there = set(map(_place, relations))
    certain = {place for left in outcomes.values() for place in left}
    places: list[tuple[Place, int | None]] = []
    for index, relation in enumerate(relations):
        place = _place(relation)
        new = sorted(outcomes.get(place, frozenset()) - there)
        places += [(place, index), *((other, None) for other in new)]
    places += [(place, None) for place in sorted(certain)]
    corrected = list[_Row]()
    before = list[int | None]()
    waiting = set(certain)
    for place, at in places:
        if place in waiting:
            waiting.remove(place)
            ends = dict(zip(("subject", "object", "predicate"), place, strict=True))
            corrected.append(ends | {"confidence": None, "origin": "person"})
            before.append(at)
        elif at is not None and place not in certain and place not in outcomes:
            corrected.append(dict(relations[at]))
            before.append(at)
    return corrected, before


def _place(relation: _Row) -> Place:
    return relation["subject"], relation["object"], relation["predicate"]
