"""The runs that are merged, the single runs that they consist of, and what the header of the merged
run states of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, absolute
from sgpipe.files.locations import Location
from sgpipe.sources.extended_run import open_parent
from sgpipe.storage.datasets import runs_of
from sgpipe.storage.header import ClassLists, Identity, RunHeader, SingleRun
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFiles
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import fingerprint

Match: TypeAlias = Literal["file", "id", "hash"]


@dataclass(frozen=True)
class MergeInputs:
    """The runs that are merged, by their ids, each once."""

    files: Mapping[str, RunFiles]

    @classmethod
    def open(cls, places: Sequence[str | Location], progress: Progress) -> MergeInputs:
        """Return the runs in these places.

        Raises:
            UserError: there is only one.
        """
        inputs: dict[str, RunFiles] = {}
        runs = [run for place in places for run in runs_of(place)]
        for files in map(open_parent, runs):
            run = input_id(files)
            if run in inputs:
                progress.say(
                    f"NOTE: {files.root} is the same run as {inputs[run].root}, and counts once"
                )
            inputs.setdefault(run, files)
        if len(runs) > 1 and len(inputs) == 1:
            [files] = inputs.values()
            raise UserError(
                f"all of these are the same run as {files.root}: merge needs two different runs"
            )
        return cls(inputs)

    def header(
        self, match: Match, min_iou: float, images: ImagePlace | None, preferred: str | None
    ) -> RunHeader:
        """Return what the manifest states of the merged run, and of its single runs."""
        runs = self.single_runs()
        if images is not None:
            for single in runs.values():
                single["images"] = dict.fromkeys(single["images"], absolute(images))
        identity: Identity = {
            "merged": {run: single["images"] for run, single in runs.items()},
            "match": match,
            "iou": min_iou,
        }
        overruled = self._overruled(list(runs), preferred)
        if overruled:
            identity["prefer"] = overruled
        origin: list[Identity] = []
        for single in runs.values():
            origin += single["identities"]
        return {
            "name": " + ".join(sorted({single["name"] for single in runs.values()})),
            "identity": identity,
            "origin": origin,
            "labels": _united_labels(runs),
            "runs": runs,
            "images": {},
            "finished": False,
        }

    def single_runs(self) -> dict[str, SingleRun]:
        """Return the single runs that all runs consist of, by their ids in order."""
        runs: dict[str, SingleRun] = {}
        for number, files in self.files.items():
            runs |= _single_runs(number, files)
        return dict(sorted(runs.items()))

    def corrections(self) -> dict[str, set[str]]:
        """Return the single runs that each is a correction of."""
        singles = self.single_runs()
        runs_of: defaultdict[str, set[str]] = defaultdict(set)  # by fingerprint
        for run, single in singles.items():
            runs_of[single["fingerprint"] or ""].add(run)
        for number, files in self.files.items():
            runs_of[files.manifest.run["fingerprint"]].update(_single_runs(number, files))
        corrects: dict[str, set[str]] = {}
        for run, single in singles.items():
            corrects[run] = set()
            for identity in single["identities"]:
                if "corrected" in identity:
                    corrects[run] |= runs_of[identity["corrected"]] - {run}
        return corrects

    def _overruled(self, runs: Sequence[str], preferred: str | None) -> dict[str, list[str]]:
        """Return the single runs that each overrules, by earlier merges and as `preferred`; those
        that do so mutually, not.

        What is preferred now is overruled by nothing.
        """
        losers = self._overruled_before(runs)
        if preferred is not None:
            winners = set(_single_runs(preferred, self.files[preferred]))
            for run in runs:
                if run in winners:
                    losers[run] |= set(runs) - winners
                else:
                    losers[run] -= winners
        return {run: sorted(overruled) for run, overruled in losers.items() if overruled}

    def _overruled_before(self, runs: Sequence[str]) -> dict[str, set[str]]:
        stated: dict[str, set[str]] = {run: set() for run in runs}
        for files in self.files.values():
            for run, overruled in files.manifest.identity.get("prefer", {}).items():
                stated[run].update(overruled)
        losers: dict[str, set[str]] = {}
        for run, overruled in stated.items():
            losers[run] = {loser for loser in overruled if run not in stated[loser]}
        return losers


def input_id(files: RunFiles) -> str:
    """Return what tells a run from others, however far they have come."""
    shards = sorted(shard.sha256 for shard in files.manifest.shards)
    return fingerprint({"run": files.manifest.run.get("fingerprint"), "shards": shards})


def is_merged(files: RunFiles) -> bool:
    """Return whether a run is a merged one."""
    return "merged" in files.manifest.identity


def ranked(runs: Mapping[str, SingleRun]) -> list[str]:
    """Return the ids of runs, that of the most rows first."""
    return sorted(runs, key=lambda run: (-runs[run]["rows"], run))


def _single_runs(number: str, files: RunFiles) -> dict[str, SingleRun]:
    """Return what is known of the single runs that a run consists of, by their ids."""
    manifest = files.manifest
    run = manifest.run
    if is_merged(files):
        return {name: single.copy() for name, single in run["runs"].items()}
    single: SingleRun = {
        "name": run.get("name") or "",
        "fingerprint": run.get("fingerprint"),
        "labels": run.get("labels"),
        "identities": Manifest.identities(run),
        "rows": sum(shard.rows for shard in manifest.shards),
        "images": {split: absolute(root) for split, root in manifest.image_roots.locations.items()},
    }
    return {number: single}


def _united_labels(runs: Mapping[str, SingleRun]) -> ClassLists | None:
    """Return the classes and predicates of all closed class lists, those of the largest run
    first.
    """
    objects: dict[str, None] = {}
    relations: dict[str, None] = {}
    is_closed = False
    for run in ranked(runs):
        labels = runs[run]["labels"]
        if labels:
            is_closed = True
            objects |= dict.fromkeys(labels["objects"])
            relations |= dict.fromkeys(labels["relations"])
    return {"objects": [*objects], "relations": [*relations]} if is_closed else None
