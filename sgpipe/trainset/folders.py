"""The folders of shards that a training names: which of their splits, which labels, and where the pictures are."""

from __future__ import annotations

from collections.abc import Iterable

from sgpipe.errors import UserError
from sgpipe.shards.manifest import Manifest, ShardEntry
from sgpipe.train_recipe import ShardsConfig
from sgpipe.trainset.contents import Folder, Labels


def shards_by_split(manifest: Manifest, config: ShardsConfig) -> dict[str, list[ShardEntry]]:
    """The shards of the splits that are asked for, in the order asked for.

    Raises UserError: there is no shard, or no such split.
    """
    there = sorted({shard.split for shard in manifest.shards})
    if not there:
        raise UserError(f"{config.shards} holds no shards yet; `sgpipe generate` or `sgpipe import` makes some")
    unknown = [name for name in config.splits or () if name not in there]
    if unknown:
        raise UserError(f"{config.shards} has no split {unknown[0]!r}; it has {', '.join(there)}")
    wanted = there if config.splits is None else list(dict.fromkeys(config.splits))
    return {split: [shard for shard in manifest.shards if shard.split == split] for split in wanted}


def describe(manifest: Manifest, config: ShardsConfig, splits: Iterable[str]) -> Folder:
    """The folder with the image folders of these splits, as far as they are known."""
    roots = {split: config.images or manifest.image_folders.get(split) for split in splits}
    images = {split: str(root.expanduser().absolute()) for split, root in roots.items() if root}
    return Folder(str(config.shards.expanduser().absolute()), config.weight, images)


def closed_labels(manifest: Manifest, config: ShardsConfig) -> Labels:
    """All class names of the run's dataset.

    Raises UserError: the run has no such lists.
    """
    lists = manifest.run.get("labels")
    if not lists:
        raise UserError(f"{config.shards} has no closed lists of labels; train on it with data.labels=sampled")
    return Labels(tuple(lists["objects"]), tuple(lists["relations"]))


def check_names(config: ShardsConfig, labels: Labels, objects: Iterable[str], relations: Iterable[str]) -> None:
    """Raises UserError: the folder has a name that is not among the labels."""
    for kind, names, known in (("object", objects, labels.objects), ("relation", relations, labels.relations)):
        strange = sorted(set(names) - set(known))
        if strange:
            raise UserError(
                f"{config.shards}: {kind} {strange[0]!r} is not among the {len(known)} labels of its dataset; "
                "train on it with data.labels=sampled, or import it again"
            )
