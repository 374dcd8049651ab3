"""The caption stage: captions of whole images, of boxes, or of the regions around box pairs, by a
captioner.

A caption depends on the run's seed, the image, the region and the sample number, not on
`batch_size` or other records.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Self

from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.model_cache import local_model
from sgpipe.plugins import built_in_class
from sgpipe.recipe import CaptionConfig
from sgpipe.records import Caption, Record, Scope
from sgpipe.stages.base import ImageStage
from sgpipe.stages.caption.captioner import Captioner, CaptionInput, settings_of
from sgpipe.stages.caption.own_captioner import OwnCaptioner
from sgpipe.stages.checkpoint import read_config
from sgpipe.stages.context import StageContext
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import Refusal
from sgpipe.utils.gpu import gpu_use

Window = tuple[int, int, int, int]


class Region(NamedTuple):
    """A part of an image: `boxes` index `Record.objects`, `window` is xyxy in pixels (None: the
    whole image).
    """

    scope: Scope
    boxes: tuple[int, ...] = ()
    window: Window | None = None


class CaptionStage(ImageStage):
    """Fills `captions` with `samples` nucleus samples (or one beam search result) for every region
    of the scopes.

    They are ordered by scope, region and sample; the number of duplicates shows how likely a
    caption is.
    """

    name = "caption"

    def __init__(self, config: CaptionConfig, roots: Mapping[str, ImagePlace], seed: int) -> None:
        super().__init__(config, roots)
        self.seed = seed
        self.streams = config.streams

    @classmethod
    def of(cls, context: StageContext) -> Self:
        return cls(context.plan.caption, context.roots, context.plan.seed)

    def check(self) -> None:
        load_captioner(self.config, self.cache_folder).check()

    def setup(self) -> None:
        self.set_up_device(here=self.config.endpoint is None)
        self.captioner: Captioner = load_captioner(self.config, self.cache_folder)
        self.captioner.setup()

    def gpu_use(self) -> dict[str, Any]:
        errors = {
            name: getattr(self.captioner, name, "") for name in ("graph_error", "batch_error")
        }
        dtype = getattr(self.captioner, "dtype", None)
        return gpu_use(self.device, dtype=dtype, **errors)

    def __call__(self, records: list[Record]) -> list[Record]:
        open_: deque[tuple[Record, Region]] = deque()
        for captions in self.captioner.caption(self._inputs(records, open_)):
            record, region = open_.popleft()
            if not record.ok:  # another region of it was refused
                continue
            if isinstance(captions, Refusal):
                record.captions = []
                record.fail(self.name, captions.reason)
            else:
                record.captions += [
                    Caption(text, region.scope, list(region.boxes)) for text in captions
                ]
        return records

    def _inputs(
        self, records: Sequence[Record], open_: deque[tuple[Record, Region]]
    ) -> Iterator[CaptionInput]:
        """Yield every region to caption, noted in `open_`; images are opened on demand."""
        for record in records:
            if record.ok:
                record.captions = []
        for record, (image, file) in self.opened(
            records, lambda *opened: opened, self.config.batch_size
        ):
            chosen, record.left_out["regions"] = regions(
                record, self.config.scopes, self.config.max_crops
            )
            for region in chosen:
                if not record.ok:
                    break
                open_.append((record, region))
                key = noise_key(self.seed, record, region.scope, region.boxes)
                crop = image.crop(region.window) if region.window else None
                yield CaptionInput(crop or image, key, None if crop else file)


def load_captioner(
    config: CaptionConfig, cache_folder: CacheFolder | None = None, role: str = "captioner"
) -> Captioner:
    """Return the captioner of a recipe, which is not set up yet.

    Raises:
        UserError: if there is no such model.
    """
    if config.plugin is not None and role == "captioner":
        return OwnCaptioner(config, config.plugin, cache_folder)
    if config.endpoint is None:
        config = config.model_copy(update={"captioner": local_model(str(config.captioner))})
    captioner_class = built_in_class("captioner", _kind_of_model(config, role), Captioner)
    captioner = captioner_class(settings_of(config))
    captioner.cache_folder = cache_folder
    captioner.role = role
    return captioner


def _kind_of_model(config: CaptionConfig, role: str) -> str:
    """Return the name of the captioner of sgpipe that has such models."""
    if config.endpoint is not None:
        return "served"
    is_blip = read_config(str(config.captioner), role).get("model_type") == "blip"
    return "blip" if is_blip and role == "captioner" else "vision-language"


def noise_key(seed: int, record: Record, scope: str, boxes: Sequence[int] = ()) -> int:
    """63 bits that select the noise of a region, the same in every process and for every order of
    the boxes.
    """
    corners = sorted(record.objects[index].bbox for index in boxes)
    name = [seed, record.dataset, record.split, record.image_id, scope, corners]
    digest = hashlib.blake2b(json.dumps(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def regions(record: Record, scopes: Sequence[Scope], max_crops: int) -> tuple[list[Region], int]:
    """Return the regions of each scope, ordered by box index, without crowd boxes; and how many
    more there are.

    Scope "box" has the `max_crops` largest boxes; scope "pair" the rectangles around as many pairs
    of the largest ones.
    """
    single = [index for index, box in enumerate(record.objects) if not box.iscrowd]
    single.sort(key=lambda index: record.objects[index].rank)
    selected: list[Region] = []
    beyond = 0
    for scope in dict.fromkeys(scopes):
        if scope == "image":
            selected.append(Region("image"))
            continue
        parts: Iterable[tuple[int, ...]] = ((index,) for index in single)
        if scope == "pair":
            parts = (
                tuple(sorted((first, last)))
                for at, last in enumerate(single)
                for first in single[:at]
            )
        of_scope = sorted(islice(parts, max_crops))
        selected += [Region(scope, boxes, _window(record, boxes)) for boxes in of_scope]
        beyond += math.comb(len(single), 2 if scope == "pair" else 1) - len(of_scope)
    return selected, beyond


def _window(record: Record, boxes: Sequence[int]) -> Window:
    """Return the whole pixels covered by the boxes, clipped to the image; at least one pixel."""
    bounds = [record.objects[index].bbox for index in boxes]
    left = min(max(math.floor(min(x for x, _, _, _ in bounds)), 0), record.width - 1)
    top = min(max(math.floor(min(y for _, y, _, _ in bounds)), 0), record.height - 1)
    right = min(math.ceil(max(x + width for x, _, width, _ in bounds)), record.width)
    bottom = min(math.ceil(max(y + height for _, y, _, height in bounds)), record.height)
    return left, top, max(right, left + 1), max(bottom, top + 1)
