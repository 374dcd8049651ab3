"""Compare sgpipe's candidates and post-processing with RLIPv2's, item by item.

`python -m tests.parity.candidates FOLDER`: RLIPv2's inputs and outputs; FOLDER/../data or
FOLDER/../../data has the annotations (coco_mini) and class tables (priors). Exits 0 if all sets are
equal, 1 if one is not, 2 for other folders.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sgpipe.records import Box, Pair, Record, Relation, Triplet, deduplicate
from sgpipe.stages.matching import SubstringMatcher
from sgpipe.stages.pair import (
    Prior,
    assign_categories,
    candidate_pairs,
    collect_prior,
    stated_predicates,
)
from sgpipe.stages.tag.stage import Group, reference_groups
from tests.values import values_of

PUBLISHED = "RLIPv2_train2017_threshold20_Top2_Tagger2_Noi24_20e_keep_names_freq"
DATA = ("coco_mini/instances_train2017", "coco_mini/instances_val2017")
DATA += ("priors/hico_obj_paraphrase", "priors/o365_obj_paraphrase", f"priors/{PUBLISHED}")
FILES = (
    "inputs_scene_graphs",
    "inputs_o365style_train",
    "inputs_o365style_val",
    "inputs_vg_preprocessed",
)
FILES += (
    "expected_candidates_coco",
    "expected_candidates_o365style",
    "expected_od_vg",
    "post_inputs",
    "post_expected",
)
FREQUENCIES = ("relationship_freq", "object_freq")
Check = tuple[str, str, Any, Any]
Content = Mapping[str, Any]
Image = tuple[dict[str, None], list[Box], float, float]
Bbox = tuple[float, float, float, float]


def load(folder: Path) -> dict[str, Any]:
    """The contents of `FILES` and `DATA` by file name, without their suffix."""
    data = next(
        (place / "data" for place in folder.parents[:2] if (place / "data").is_dir()), folder
    )
    contents = {}
    for path in (*(folder / name for name in FILES), *(data / name for name in DATA)):
        zipped = path.with_name(f"{path.name}.json.gz")
        text = (
            gzip.decompress(zipped.read_bytes())
            if zipped.is_file()
            else path.with_suffix(".json").read_bytes()
        )
        contents[path.name] = json.loads(text)
    return contents


def checks(files: Mapping[str, Any]) -> Iterator[Check]:
    """(name of the set, its size in words, ours, RLIPv2's) for everything in the files."""
    matcher = SubstringMatcher(files["hico_obj_paraphrase"])
    prior = collect_prior(files["inputs_vg_preprocessed"], matcher, verbatim=True)
    yield from coco_checks(files)
    yield from objects365_checks(files)
    yield from prior_checks(files, prior)
    yield from post_checks(files, prior)


def coco_checks(files: Mapping[str, Any]) -> Iterator[Check]:
    train = files["instances_train2017"]
    val = files["instances_val2017"]
    names = dict(values_of(train["categories"], "id", "name"))
    for variant, expected in files["expected_candidates_coco"]["expected"].items():
        if variant == "images":
            continue
        oracle = variant.startswith("oracle_captions/")
        images = annotated_images([train] if oracle else [train, val], names)
        ours = caption_candidates(
            files["inputs_scene_graphs"], images, files["hico_obj_paraphrase"], variant, oracle
        )
        yield f"coco {variant}", describe(ours), ours, expected


def objects365_checks(files: Mapping[str, Any]) -> Iterator[Check]:
    annotations = [files["inputs_o365style_train"], files["inputs_o365style_val"]]
    table = files["o365_obj_paraphrase"]
    for variant, expected in files["expected_candidates_o365style"]["expected"].items():
        images = annotated_images(annotations, dict(enumerate(table, 1)))
        for _, objects, width, height in images.values():
            for box in objects:
                box.bbox = as_if_normalised(box.bbox, width, height)
        ours = caption_candidates(files["inputs_scene_graphs"], images, table, variant)
        yield f"objects365 {variant}", describe(ours), ours, expected


def prior_checks(files: Mapping[str, Any], prior: Prior) -> Iterator[Check]:
    expected = files["expected_od_vg"]
    table: dict[str, dict[str, list[str]]] = {}
    for (subject, object_), predicates in prior.items():
        table.setdefault(subject, {})[object_] = predicates
    size = f"{len(prior)} class pairs, {sum(map(len, prior.values()))} predicates"
    yield "visual genome prior", size, table, expected["vg_rel_texts_for_hico_objects_nonempty"]

    train = files["instances_train2017"]
    images = annotated_images([train], dict(values_of(train["categories"], "id", "name")))
    ours = {}
    for image_id in (str(image["id"]) for image in train["images"]):
        objects = images[image_id][1] if image_id in images else []
        pairs, boxes = number_boxes(candidate_pairs(objects, prior)[0], objects)
        ours[image_id] = as_json(reference_groups(pairs, boxes=boxes))
    yield (
        "coco candidates by prior",
        describe(ours),
        ours,
        expected["expected_candidates_train2017"],
    )


def with_ties(relations: Sequence[Relation]) -> list[Relation]:
    """Those that `deduplicate` keeps and, as RLIPv2 does, the others that are as confident."""
    best_confidence = {
        (r.subject, r.predicate, r.object): r.confidence for r in deduplicate(relations)
    }
    return [
        r for r in relations if best_confidence[r.subject, r.predicate, r.object] == r.confidence
    ]


def post_checks(files: Mapping[str, Any], prior: Prior) -> Iterator[Check]:
    expected = files["post_expected"]
    records, ids = labelled_records(files["post_inputs"])
    choices = {
        "dedup": {r.image_id: with_ties(r.relations) for r in records},
        "top2": {r.image_id: top_per_pair(r.relations, 2) for r in records},
        "ood": {r.image_id: keep_known(r, prior) for r in records},
    }
    for name, choice in choices.items():
        ours = {
            image: [ids[id(relation)] for relation in selected]
            for image, selected in choice.items()
        }
        yield f"post {name}", f"{sum(map(len, ours.values()))} relations", ours, expected[name]

    counts = count_names(records)
    for record in records:
        record.relations = choices["top2"][record.image_id]
    for name, statistics in (
        ("keep_names_freq", counts),
        ("top2_keep_names_freq", count_names(records)),
    ):
        yield f"post {name}", size_of(statistics), in_order(statistics), in_order(expected[name])

    published = files[PUBLISHED]
    fused = frequencies(*(Counter(published[key]) + Counter(counts[key]) for key in FREQUENCIES))
    digest = hashlib.sha1(json.dumps(fused).encode()).hexdigest()
    predicates, objects = (fused[key] for key in FREQUENCIES)
    sums = [len(predicates), len(objects), sum(predicates.values()), sum(objects.values())]
    theirs = [expected["fused_counts"], expected["fused_top20"], expected["fused_sha1"]]
    yield "post fused frequencies", size_of(fused), [sums, list(predicates)[:20], digest], theirs


def top_per_pair(relations: Iterable[Relation], k: int) -> list[Relation]:
    """The `k` most confident relations per ordered pair, in first-seen order; sorted, stably, only
    where more.
    """
    pairs: dict[tuple[int, int], list[Relation]] = {}
    for relation in relations:
        pairs.setdefault((relation.subject, relation.object), []).append(relation)
    return [
        relation
        for group in pairs.values()
        for relation in (
            group
            if len(group) <= k
            else sorted(group, key=lambda candidate: -(candidate.confidence or 0))[:k]
        )
    ]


def keep_known(record: Record, prior: Prior) -> list[Relation]:
    """The relations whose predicate the prior has between the classes of their boxes."""
    names = values_of(record.objects, "category")
    known = [
        prior.get((names[relation.subject], names[relation.object]), ())
        for relation in record.relations
    ]
    return [
        relation
        for relation, predicates in zip(record.relations, known, strict=True)
        if relation.predicate in predicates
    ]


def count_names(records: Iterable[Record]) -> dict[str, Any]:
    """How often each predicate of a relation and the class name of each object occurs, in RLIPv2's
    form.
    """
    predicates: Counter[str] = Counter()
    objects: Counter[str] = Counter()
    for record in records:
        objects.update(values_of(record.objects, "category"))
        predicates.update(values_of(record.relations, "predicate"))
    return frequencies(predicates, objects)


def frequencies(*counts: Counter[str]) -> dict[str, Any]:
    """RLIPv2's `keep_names_freq` of predicates and objects: the most frequent first, ties in
    first-seen order.
    """
    predicates, objects = (dict(count.most_common()) for count in counts)
    lists = {"relationship_names": list(predicates), "object_names": list(objects)}
    return {**lists, "relationship_freq": predicates, "object_freq": objects}


def size_of(statistics: Mapping[str, Any]) -> str:
    return f"{len(statistics['relationship_freq'])} predicates, {len(statistics['object_freq'])} objects"


def annotated_images(files: list[Any], names: Mapping[int, str]) -> dict[str, Image]:
    """Per image: class names of all annotations in first-seen order, boxes with area inside it,
    width and height.
    """
    sizes = {
        image["id"]: (image["width"], image["height"]) for file in files for image in file["images"]
    }
    images: dict[str, Image] = {}
    for file in files:
        for item in file["annotations"]:
            width, height = sizes[item["image_id"]]
            entry = images.setdefault(str(item["image_id"]), ({}, [], width, height))
            name = names[item["category_id"]]
            entry[0].setdefault(name)
            x, y, w, h = item["bbox"]
            left = max(x, 0)
            top = max(y, 0)
            right = min(x + w, width)
            bottom = min(y + h, height)
            if right > left and bottom > top:
                bbox = (left, top, right - left, bottom - top)
                entry[1].append(Box(name, item["category_id"], bbox, bool(item.get("iscrowd"))))
    return images


def as_if_normalised(bbox: Bbox, width: float, height: float) -> Bbox:
    """RLIPv2's slip for Objects365: a box's corners in pixels taken for its normalised centre and
    size.
    """
    left = bbox[0]
    top = bbox[1]
    right = bbox[0] + bbox[2]
    bottom = bbox[1] + bbox[3]
    return (left - right / 2) * width, (top - bottom / 2) * height, right * width, bottom * height


def caption_candidates(
    graphs: Content,
    images: Mapping[str, Image],
    table: Content,
    variant: str,
    repeats: bool = False,
) -> dict[str, Any]:
    """RLIPv2's candidate file for parsed captions; `variant`: the synonyms of classes, and if boxes
    must overlap.
    """
    match, overlap = variant.split("/")[-2:]
    matcher = SubstringMatcher(
        table if match == "paraphrases" else {name: (name,) for name in table}
    )
    candidates = {}
    for image_id, (present, objects, *_) in images.items():
        if image_id not in graphs:
            continue
        triplets = [triplet for graph in graphs[image_id] for triplet in graph_triplets(graph)]
        assign_categories(matcher, triplets, present)
        predicates = stated_predicates(triplets, verbatim=True, repeats=repeats)
        pairs, _ = candidate_pairs(objects, predicates, require_overlap=overlap == "overlap=True")
        candidates[image_id] = as_json(reference_groups(number_boxes(pairs, objects)[0]))
    return candidates


def graph_triplets(graph: Mapping[str, Any]) -> Iterator[Triplet]:
    spans = values_of(graph["entities"], "span")
    for relation in graph["relations"]:
        subject = spans[relation["subject"]]
        object_ = spans[relation["object"]]
        yield Triplet(subject, relation["relation"], object_, "", "", "", 0)


def number_boxes(pairs: list[Pair], objects: list[Box]) -> tuple[list[Pair], int]:
    """The pairs with boxes numbered as in RLIPv2, which leaves out crowds, and the number of
    boxes.
    """
    usable = [index for index, box in enumerate(objects) if not box.iscrowd]
    number = {index: position for position, index in enumerate(usable)}
    return [Pair(number[p.subject], number[p.object], p.predicates) for p in pairs], len(usable)


def labelled_records(images: list[Any]) -> tuple[list[Record], dict[int, int]]:
    """Records with relations, and RLIPv2's relationship id by the identity of a relation."""
    records = []
    ids = {}
    for image in images:
        index = {item["object_id"]: position for position, item in enumerate(image["objects"])}
        objects = [Box(o["names"], 0, (o["x"], o["y"], o["w"], o["h"])) for o in image["objects"]]
        record = Record(
            str(image["image_id"]), image["dataset"], image["data_split"], "", 0, 0, objects
        )
        for item in image["relationships"]:
            ends = index[item["subject_id"]], index[item["object_id"]]
            record.relations.append(Relation(*ends, item["predicate"], item["confidence"]))
            ids[id(record.relations[-1])] = item["relationship_id"]
        records.append(record)
    return records, ids


def as_json(groups: list[Group]) -> list[Any]:
    return [[list(map(list, pairs)), predicates] for pairs, predicates in groups]


def in_order(value: Mapping[str, Any]) -> list[Any]:
    """A frequency file as lists, so that the order of its counts is compared too."""
    lists = [value["relationship_names"], value["object_names"]]
    return lists + [list(map(list, value[key].items())) for key in FREQUENCIES]


def describe(candidates: Mapping[str, Any]) -> str:
    groups = [group for image in candidates.values() for group in image]
    entries = sum(len(group[0]) for group in groups)
    texts = sum(len(group[1]) for group in groups)
    return f"{len(candidates)} images, {len(groups)} groups, {entries} entries, {texts} texts"


def first_difference(ours: Any, theirs: Any, place: str = "") -> str | None:
    """Where two JSON values first differ, and how; None if they are equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}, key=str):
            if key not in ours or key not in theirs:
                return f"{place}/{key}: only {'RLIPv2' if key in theirs else 'sgpipe'} has it"
            difference = first_difference(ours[key], theirs[key], f"{place}/{key}")
            if difference:
                return difference
        return None
    if isinstance(ours, list) and isinstance(theirs, list):
        for index, (our_item, other) in enumerate(zip(ours, theirs, strict=False)):
            difference = first_difference(our_item, other, f"{place}[{index}]")
            if difference:
                return difference
        return (
            None
            if len(ours) == len(theirs)
            else f"{place}: {len(ours)} items, RLIPv2 {len(theirs)}"
        )
    return None if ours == theirs else f"{place}: {ours!r}, RLIPv2 {theirs!r}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare candidates with RLIPv2's.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    try:
        files = load(folder)
    except (OSError, EOFError, ValueError) as error:
        print(f"not a folder of candidate sets: {error}", file=sys.stderr)
        return 2
    wrong = 0
    for name, size, ours, theirs in checks(files):
        difference = first_difference(ours, theirs)
        wrong += difference is not None
        print(f"{name}: {size}: {f'differs at {difference}' if difference else 'equal'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
