"""What a user should know about the data before a training starts."""

from __future__ import annotations

from rlip_model.training.sampling import Vocabulary
from sgpipe.train_recipe import DataConfig
from sgpipe.trainset.contents import TrainSet


def remarks(trainset: TrainSet, data: DataConfig) -> list[str]:
    """One line each: rows that are left out, fewer names than texts that were asked for."""
    return [*_left_out(trainset), *([] if trainset.labels else _few_names(trainset, data.negative_texts))]


def _left_out(trainset: TrainSet) -> list[str]:
    lines = []
    total = trainset.rows + trainset.errors + trainset.bare
    if trainset.errors:
        lines.append(f"{trainset.errors:,} of {total:,} pictures are error rows and left out")
    if trainset.bare:
        relation = f"relation of confidence >= {trainset.threshold:.4g}"
        lines.append(f"{trainset.bare:,} of {total:,} pictures have no {relation} and are left out")
    return lines


def _few_names(trainset: TrainSet, texts: int) -> list[str]:
    objects, relations = int(texts * 2 / 3), texts - int(texts * 2 / 3)
    kinds: tuple[tuple[str, Vocabulary, int], ...] = (
        ("objects", trainset.objects, objects),
        ("relations", trainset.relations, relations),
    )
    return [
        f"names of {kind}: only {len(names.names):,}, fewer than the {wanted:,} texts asked for: all are used"
        for kind, names, wanted in kinds
        if len(names.names) < wanted
    ]
