"""Files of predictions in HICO-DET's form, for evaluators of one's own."""

from __future__ import annotations

import json
from pathlib import Path


def write_predictions(folder: Path, verbs: list[int]) -> Path:
    """Write predictions of two images, whose relations have these verbs of HICO-DET."""
    person = {"bbox": [0, 0, 9, 9], "category_id": 1}
    bike = {"bbox": [50, 50, 59, 59], "category_id": 2}
    relation = {"subject_id": 0, "object_id": 1}
    annotated = []
    predicted = []
    for number, verb in enumerate(verbs):
        name = {"file_name": f"HICO_test2015_0000000{number}.jpg"}
        truth = [relation | {"category_id": 77}]
        annotated.append(name | {"annotations": [person, bike], "hoi_annotation": truth})
        scored = [relation | {"category_id": verb, "score": 0.9}]
        predicted.append(name | {"predictions": [person, bike], "hoi_prediction": scored})
    (folder / "annotations.json").write_text(json.dumps(annotated))
    (folder / f"{verbs}.json").write_text(json.dumps(predicted))
    return folder / f"{verbs}.json"
