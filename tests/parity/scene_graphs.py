"""The annotations of Visual Genome's form, as the published code and its golden files have them."""

from collections.abc import Mapping
from typing import Any

from rlip_model.training.annotations import SceneAnnotation, SceneObject, SceneRelation


def scene_annotation(image: Mapping[str, Any], threshold: float = 0.0) -> SceneAnnotation:
    """An entry of scene_graphs.json with one name per object, without relations of a confidence below the threshold."""
    objects = [
        SceneObject(item["object_id"], item["names"], (item["x"], item["y"], item["w"], item["h"]))
        for item in image["objects"]
    ]
    relations = [
        SceneRelation(item["subject_id"], item["object_id"], item["predicate"], item.get("confidence"))
        for item in image["relationships"]
        if item.get("confidence") is None or item["confidence"] >= threshold
    ]
    return SceneAnnotation(image["image_id"], tuple(objects), tuple(relations))
