"""From steps to batches: pictures read, changed and put together by threads, ahead of who asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from rlip_model.training.annotations import label_scene
from rlip_model.training.augment import Augmentation, prepare
from rlip_model.training.batches import Batch, Example, collate
from rlip_model.training.pairs import tagger_triplets
from rlip_model.training.sampling import Texts, relabelled
from sgpipe.trainset.pictures import Pictures
from sgpipe.trainset.stream import Item, Step


@dataclass(frozen=True)
class Preparation:
    """What is made of a picture and its targets.

    Args:
        augment: None to change only the size, to `short_side` and at most `long_side` pixels.
        most_pairs: of an R-Tagger, which learns from unrelated pairs too; None: of another network.
        related_first: see `tagger_triplets`.
    """

    pictures: Pictures
    augment: Augmentation | None
    short_side: int
    long_side: int
    most_pairs: int | None = None
    related_first: bool = False

    def example(self, item: Item, texts: Texts) -> Example | None:
        """None if the picture cannot be read. Raises UserError: as `Pictures.open`."""
        image = self.pictures.open(item)
        if image is None:
            return None
        targets = label_scene(item.graph, *item.size, len(item.graph.relations))
        pixel_values, targets = prepare(
            image, targets, self.augment, self.short_side, self.long_side, item.rng, item.flip
        )
        height, width = pixel_values.shape[1:]
        if self.most_pairs is None:
            triplets = targets.labelled_triplets(width, height)
        else:
            triplets = tagger_triplets(
                targets, width, height, self.most_pairs, item.rng, related_first=self.related_first
            )
        return Example(item.image_id, pixel_values, relabelled(triplets, texts), item.size)


def batches(
    steps: Iterator[Step], preparation: Preparation, threads: int, prefetch: int, parts: int = 1
) -> Generator[list[Batch], None, None]:
    """The batches of each step, in so many equal parts, while the next `prefetch` steps are read by threads.

    They do not depend on the number of threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
    pending: deque[tuple[Step, list[Future[Example | None]]]] = deque()
    try:
        for step in steps:
            pending.append((step, [pool.submit(preparation.example, item, step.texts) for item in step.items]))
            if len(pending) > prefetch:
                yield _collated(*pending.popleft(), parts)
        while pending:
            yield _collated(*pending.popleft(), parts)
    finally:
        pool.shutdown(cancel_futures=True)


def _collated(step: Step, examples: list[Future[Example | None]], parts: int) -> list[Batch]:
    """The parts; a step without any item, of a validation, is an empty batch."""
    size = max(1, len(examples) // parts)
    cuts = [examples[at : at + size] for at in range(0, len(examples), size)] or [[]]
    return [_batch([future.result() for future in cut], step.spoken) for cut in cuts]


def _batch(examples: list[Example | None], texts: Texts) -> Batch:
    there = [example for example in examples if example is not None]
    return collate(there, texts, skipped=len(examples) - len(there))
