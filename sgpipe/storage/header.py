"""The header of a run: what the first line of its manifest states of it, as plain values.

Which keys a header has depends on the command that wrote the run.
"""

from typing import Any, TypeAlias, TypedDict

# What decides the rows of a run, such as `RunIdentity.as_json`: plain nested values.
Identity: TypeAlias = dict[str, Any]
GpuUse: TypeAlias = dict[str, Any]  # what a stage used of a GPU, as `utils.gpu.gpu_use` says it


class ClassLists(TypedDict):
    """The closed lists of a run, which `annotations` of others are compared with."""

    objects: list[str]
    relations: list[str]


class ParentRun(TypedDict):
    """The run that some columns come from, and what they are."""

    run: str
    reused: list[str]


class SingleRun(TypedDict):
    """A run that went into a merged one.

    Attributes:
        identities: what decided its rows, after those of the runs that it was made from.
        rows: how many it has.
        images: where those of each split are.
    """

    name: str
    fingerprint: str | None
    labels: ClassLists | None
    identities: list[Identity]
    rows: int
    images: dict[str, str]


class RunHeader(TypedDict, total=False):
    """What a manifest states of its run.

    Attributes:
        name: of the run.
        source_images: how many its source has; `source_splits`: how many each split of it has.
        identity: what decides its rows; `fingerprint`: a hash of it.
        origin: the identities of the runs that it was made from.
        parent: the run that some columns come from.
        source_counts, source_problems: what its source has, and what was lost while it was read.
        software: the versions of libraries that computed when the run began.
        images: where the images of each split are.
        labels: the classes and predicates of a closed list; None: any name.
        store: where the shards are, if not in the folder.
        part: which part of its source it has, such as "3/100", if not all.
        finished: an import, a merge or a copy has all rows; `limit`: those that were asked for.
        runs, matched: of a merged run, by the ids of runs, and how many images were united.
    """

    schema_version: int
    name: str
    source_images: int
    source_splits: dict[str, int]
    identity: Identity
    origin: list[Identity]
    parent: ParentRun
    source_counts: dict[str, int]
    source_problems: dict[str, int]
    software: dict[str, str]
    images: dict[str, str]
    labels: ClassLists | None
    store: str
    part: str
    finished: bool
    limit: int | None
    runs: dict[str, SingleRun]
    matched: dict[str, int]
    fingerprint: str
