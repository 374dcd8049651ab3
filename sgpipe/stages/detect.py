"""The detect stage: boxes for pictures that nobody has annotated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torchvision.ops import batched_nms
from transformers.utils.logging import disable_progress_bar

from sgpipe.devices import pick_device
from sgpipe.errors import UserError
from sgpipe.images import ImageError, open_image
from sgpipe.recipe import DetectConfig
from sgpipe.records import Box, Record
from sgpipe.sources.clip import clip_objects
from sgpipe.stages.detectors import Found, detector_classes, load


class DetectStage:
    """Fills `objects` with what a detector finds, every picture by itself; the surest first.

    `roots` maps a split to its image folder. `category_id` counts the detector's classes from 1.
    """

    name = "detect"
    fills: tuple[str, ...] = ("objects", "status", "error")

    def __init__(self, config: DetectConfig, roots: Mapping[str, Path]) -> None:
        self.config = config
        self.roots = roots
        self.resources = config.resources

    def setup(self) -> None:
        """Load the detector. Raises UserError: none is named, or it is none."""
        if self.config.detector is None:
            raise UserError("detect.detector must name an object detector: a folder or hub id")
        torch.set_num_threads(max(1, int(self.resources.cpus)))
        disable_progress_bar()
        self.classes = detector_classes(self.config)
        self.detector = load(self.config, pick_device(self.config.device))

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                try:
                    found = self.detector(open_image(self.roots, record), self.config.threshold)
                except ImageError as reason:
                    record.fail(self.name, str(reason))
                    continue
                record.objects = self._boxes(found)
                clip_objects(record, Counter())
        return records

    def _boxes(self, found: Found) -> list[Box]:
        """Without boxes of a class that overlap a surer one of it."""
        if not bool(found.scores.isfinite().all()):
            raise UserError(f"detector {self.config.detector} finds NaN: its weights are damaged")
        kept = batched_nms(found.boxes, found.scores, found.labels, self.config.overlap)[: self.config.max_boxes]
        corners = found.boxes[kept].double().tolist()
        return [
            Box(self.classes[label], label + 1, (left, top, right - left, bottom - top))
            for label, (left, top, right, bottom) in zip(found.labels[kept].tolist(), corners, strict=True)
        ]
