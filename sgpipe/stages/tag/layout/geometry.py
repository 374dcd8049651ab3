"""Numbers that describe a pair of boxes. A mirrored image has the same ones: left and right never
differ.
"""

from __future__ import annotations

import numpy as np

from sgpipe.stages.tag.layout.scene import FloatArray, IntArray, Rows, Scene

_BORDER = 2.0  # pixels; a box that ends so close to the border is cut off by it
_NEAR = 0.05  # of the subject's size: smaller distances do not differ


def describe(scene: Scene, rows: Rows) -> FloatArray:
    """Return `[rows, features]` of candidate pairs: of the two boxes together, of each alone, and
    counts.
    """
    subjects = scene.boxes[rows.subjects]
    objects = scene.boxes[rows.objects]
    sizes = scene.sizes[rows.subjects]
    columns = [
        *_together(subjects, objects, sizes),
        *_alone(subjects, sizes),
        *_alone(objects, sizes),
        *_counts(scene, rows),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _together(subjects: FloatArray, objects: FloatArray, sizes: FloatArray) -> list[FloatArray]:
    """Where the object is relative to the subject, how far, how large, and how much they
    overlap.
    """
    left, top, right, bottom = subjects.T
    object_left, object_top, object_right, object_bottom = objects.T
    width = right - left
    height = bottom - top
    object_width = object_right - object_left
    object_height = object_bottom - object_top
    area = width * height
    object_area = object_width * object_height
    size = np.sqrt(area)
    object_size = np.sqrt(object_area)

    shared_width = np.minimum(right, object_right) - np.maximum(left, object_left)
    shared_height = np.minimum(bottom, object_bottom) - np.maximum(top, object_top)
    shared = np.maximum(shared_width, 0) * np.maximum(shared_height, 0)
    gap_x = np.maximum(-shared_width, 0)
    gap_y = np.maximum(-shared_height, 0)
    gap = np.hypot(gap_x, gap_y)

    across = np.abs(left + right - object_left - object_right) / 2
    down = (object_top + object_bottom - top - bottom) / 2
    distance = np.hypot(across, down)
    left_part = (object_left - left) / width
    right_part = (right - object_right) / width
    return [
        across / width,
        across / height,
        down / height,
        (object_top - top) / height,
        (object_bottom - top) / height,
        (object_bottom - bottom) / height,
        np.minimum(left_part, right_part),
        np.maximum(left_part, right_part),
        np.log(object_width / width),
        np.log(object_height / height),
        np.log(object_area / area),
        shared / (area + object_area - shared),
        shared / area,
        shared / object_area,
        shared_width / np.minimum(width, object_width),
        shared_height / np.minimum(height, object_height),
        np.log1p(4 * gap / size),
        np.log1p(gap / object_size),
        gap_x / size,
        gap_y / size,
        np.log(distance / size + _NEAR),
        distance / np.sqrt(sizes.prod(axis=1)),
    ]


def _alone(boxes: FloatArray, sizes: FloatArray) -> list[FloatArray]:
    """Size, shape and place of boxes in their image, and at which of its borders they end."""
    left, top, right, bottom = boxes.T
    image_width, image_height = sizes.T
    width = right - left
    height = bottom - top
    at_left = left < _BORDER
    at_right = right > image_width - _BORDER
    return [
        np.log(width * height / (image_width * image_height)),
        np.log(width / height),
        np.abs((left + right) / 2 / image_width - 0.5),
        (top + bottom) / 2 / image_height,
        top / image_height,
        bottom / image_height,
        at_left.astype(np.float32) + at_right,
        (top < _BORDER).astype(np.float32),
        (bottom > image_height - _BORDER).astype(np.float32),
    ]


def _counts(scene: Scene, rows: Rows) -> list[FloatArray]:
    """How many subjects, other boxes, and boxes of the object's class the image has."""
    images = scene.images[rows.subjects]
    boxes = np.diff(scene.starts)
    subjects = np.bincount(scene.images, scene.is_subject, scene.images_count)
    others = boxes - subjects
    of_class = _same_class(scene)
    counts = [subjects[images], others[images], of_class[rows.objects]]
    return [np.log1p(count).astype(np.float32) for count in counts]


def _same_class(scene: Scene) -> IntArray:
    """Return for each box how many boxes of its image have its class, itself among them."""
    classes = int(scene.classes.max(initial=0)) + 1
    keys = scene.images * classes + scene.classes
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[inverse]
