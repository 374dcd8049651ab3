"""`--to instructions`: questions and answers about images, for training vision-language models.

A first pass over the rows counts what could be asked (`question_items`). From each stratum of
questions that read the same, a second pass draws as many items of every answer (`question_quotas`),
so that the text alone does not tell the answer. Memory grows with the number of strata, not of
images.
"""

import json
import math
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import UserError
from sgpipe.export.formats import Format
from sgpipe.export.hugging_face import feature_of
from sgpipe.export.question_items import (
    IMPROBABLE,
    NONE,
    ONE,
    Facts,
    Item,
    Key,
    Stratum,
    choice_items,
    counting_items,
    description_items,
    existence_items,
    relation_items,
)
from sgpipe.export.question_quotas import quotas
from sgpipe.export.question_text import English, Phrases, filled, load_phrases, plain_name
from sgpipe.export.rows import ExportRows, FormatOptions, new_file
from sgpipe.records import HUB_DATASET, LABEL_STUDIO_DATASET, Record, list_of
from sgpipe.storage.manifest import Manifest

_Row: TypeAlias = dict[str, Any]  # of a file; the columns of _ROW

LIKELY = 0.5  # the lowest probability of an answer, unless a threshold is given
_WAITING = 1000  # images that wait for another one to be compared with
# Datasets whose annotators did not draw every object of a class, so that nothing can be counted.
_PARTIAL = frozenset(
    {"visual_genome", "vg150", "hico", "vcoco", "open_images", "hoia", "rlipv2", "svg"}
)
# Nobody knows whether the annotators of these did.
_UNKNOWN = frozenset({"hf", HUB_DATASET, LABEL_STUDIO_DATASET})
_OPTION_FIELDS = {
    "choose_predicate": "is_verb",
    "choose_object": "the_object",
    "choose_subject": "the_subject",
}
_LETTERS = "ABCDE"
_COLUMNS = ("objects", "relations", "pairs", "left_out")
_TEXT = pa.string()
_NUMBER = pa.int32()
_ROW: dict[str, pa.DataType] = {
    "images": list_of(bytes=pa.binary(), path=_TEXT),
    "messages": list_of(role=_TEXT, content=list_of(type=_TEXT, text=_TEXT)),
    **dict.fromkeys(("kind", "template", "answer"), _TEXT),
    "probability": pa.float64(),
    "image_ids": pa.list_(_TEXT),
    "objects": list_of(image_id=_TEXT, object=_NUMBER),
    "relations": list_of(
        image_id=_TEXT, subject=_NUMBER, predicate=_TEXT, object=_NUMBER, holds=pa.bool_()
    ),
}


class Instructions:
    """What images can be asked, in words.

    Attributes:
        least: the lowest probability of an answer; 0 without a calibration.
        absent: the highest probability of a candidate that the run does not have as a relation; 1
            if it is not known.
        written: the number of rows by kind.
    """

    def __init__(
        self, rows: ExportRows, phrases: Phrases, coordinates: str = "pixel", seed: int = 0
    ) -> None:
        self.run = rows
        self._english = English(phrases)
        self._coordinates = coordinates
        self._seed = seed
        self.least = 0.0 if rows.calibration is None else rows.threshold
        self.absent = self._absent()
        # One object of two runs that place it differently is two objects of the merged one.
        self._is_merged = any(
            "merged" in identity for identity in Manifest.identities(rows.manifest.run)
        )
        self.written = Counter[str]()
        self._turns = defaultdict[object, Iterator[int]](count)
        self._orders: dict[Stratum, tuple[int, str, dict[str, str]]] = {}
        self._waiting: dict[Stratum, tuple[Item, dict[str, str], _Row]] = {}

    def _absent(self) -> float:
        """Return the highest probability of a candidate that is not a relation of the run."""
        if self.run.calibration is None:
            return 1.0
        confidence = 0.0
        is_tagged = False
        for identity in Manifest.identities(self.run.manifest.run):
            for step in (identity.get("tag"), identity.get("exported")):
                threshold = _threshold_of(step)
                if threshold is None:
                    return 1.0
                confidence = max(confidence, threshold)
            is_tagged = is_tagged or isinstance(identity.get("tag"), Mapping)
        return self._probabilities([confidence])[0] if is_tagged else 1.0

    def items(self, record: Record) -> Iterator[Item]:
        """Yield what an image can be asked with answers that are probable enough."""
        facts = self._facts(record)
        is_detected = any(box.origin == "detector" for box in record.objects)
        is_incomplete = is_detected or record.dataset in _UNKNOWN
        certain = facts._replace(counted={}) if is_incomplete else facts
        items = chain(
            relation_items(certain),
            choice_items(certain),
            description_items(certain, self.least, record),
            existence_items(certain),
        )
        yield from filter(lambda item: self._is_sure(item.probability), items)
        # How many objects are missed is not calibrated.
        probability = math.nan if is_incomplete else 1.0
        if self._is_sure(probability):
            countable = [name for name in facts.counted if self._english.noun(name)[1]]
            yield from counting_items(facts, countable, probability)

    def _is_sure(self, probability: float) -> bool:
        return probability >= self.least or self.run.calibration is None

    def _facts(self, record: Record) -> Facts:
        names, partial = _object_names(record)
        counted: dict[str, list[int]] = {}
        is_countable = record.dataset not in _PARTIAL and not record.left_out.get("boxes")
        if is_countable and not self._is_merged:
            counted = _objects_by_name(names, partial)
        boxes = [box.bbox for box in record.objects]
        facts = Facts(names, boxes, {}, {}, {}, counted)
        exported, unchosen, known = self._known_relations(record)
        for key, probability in known.items():
            if not self._is_asked(key, facts):
                continue
            if key in exported:
                facts.held[key] = probability
            elif probability <= IMPROBABLE and key not in unchosen:
                facts.denied[key] = probability
            else:
                facts.unclear[key] = probability
        return facts

    def _is_asked(self, key: Key, facts: Facts) -> bool:
        """Return whether sentences can name a relation."""
        subject, predicate, object_ = key
        is_named = subject != object_ and all(facts.classes(key))
        return is_named and bool(self._english.predicate(predicate))

    def _known_relations(
        self, record: Record
    ) -> tuple[set[Key], dict[Key, float], dict[Key, float]]:
        """Return the relations that are exported, those of other origins, and the probabilities of
        these, of all others, and of the candidates.
        """
        confidences = dict[Key, float]()
        exported = set[Key]()
        unchosen = dict[Key, float]()
        for relation in record.relations:
            key = relation.subject, plain_name(relation.predicate), relation.object
            if set(relation.origins).isdisjoint(self.run.origins):
                unchosen[key] = math.nan
                continue
            confidence = math.inf if relation.confidence is None else relation.confidence
            confidences[key] = max(confidences.get(key, 0.0), confidence)
            if self.run.keeps(relation.predicate, relation.confidence):
                exported.add(key)
        probabilities = self._probabilities(confidences.values())
        known = unchosen | dict(zip(confidences, probabilities, strict=True))
        for pair in record.pairs:
            for text in pair.predicates:
                known.setdefault((pair.subject, plain_name(text), pair.object), self.absent)
        return exported, unchosen, known

    def _probabilities(self, confidences: Collection[float]) -> list[float]:
        """Return the probabilities of confidences (an annotation's is 1); below the lowest judged
        one, that one's.
        """
        calibration = self.run.calibration
        if calibration is None or not confidences:
            return [1.0 if math.isinf(confidence) else math.nan for confidence in confidences]
        judged = np.maximum(list(confidences), calibration.lowest)
        probabilities = calibration.probabilities(np.minimum(judged, 1))
        return list(np.where(np.isinf(judged), 1.0, probabilities).tolist())

    def rows(
        self,
        record: Record,
        image: Any,
        left: dict[Stratum, Counter[str]],
        drawn: dict[Stratum, Counter[str]],
    ) -> Iterator[_Row]:
        """Yield the rows of the items that are `drawn` of an image, and of comparisons with one
        before it; `left`: how many items of each answer are in this image and later ones.
        """
        chance = random.Random(f"{self._seed} {record.split} {record.image_id}")
        for item in self.items(record):
            takes = (
                chance.random() * left[item.stratum][item.answer] < drawn[item.stratum][item.answer]
            )
            left[item.stratum][item.answer] -= 1
            if takes:
                drawn[item.stratum][item.answer] -= 1
                row, fields = self._row(item, record, image)
                yield row
                if item.stratum.kind in ("existence", "counting"):
                    yield from self._comparison(item, fields, row)

    def _template(self, form: str, number: int) -> tuple[str, dict[str, str]]:
        templates = self._english.phrases.templates[form]
        return f"{form}/{number % len(templates) + 1}", templates[number % len(templates)]

    def _row(self, item: Item, record: Record, image: Any) -> tuple[_Row, dict[str, str]]:
        """Return a row and the fields of its texts: each answer of a stratum in turn by each
        template and letter.
        """
        stratum = item.stratum
        turn = next(self._turns[stratum, item.answer])
        number = turn // len(item.claims) if item.answer == ONE else turn
        name, texts = self._template(stratum.form, zlib.crc32(repr(stratum).encode()) + number)
        answer = item.answer
        text = texts.get(answer, texts.get("answer", "{said}"))
        claims = [self._fields(record, key, stratum.shows_boxes) for key, _ in item.claims]
        fields = dict(claims[0]) if claims else {}
        if stratum.kind == "counting":
            plural = self._english.noun(stratum.words[0])[1]
            fields = {"class": stratum.words[0], "plural": plural, "count": answer}
        elif stratum.kind == "description":
            times = ("one", "two", "three", "four")[len(claims) - 1]
            fields["relations"] = f"{times} relation{'s' * (len(claims) > 1)}"
            fields["said"] = " ".join(filled(texts["sentence"], claim) for claim in claims)
        elif stratum.options:
            fields |= self._option_fields(item, claims, turn)
            answer = fields["letter"]
        row = self._conversation(
            stratum.kind,
            name,
            [image],
            filled(texts["question"], fields),
            filled(text, fields),
            item.probability,
        )
        row |= _sources(item, record.image_id)
        return row | {"answer": answer, "image_ids": [record.image_id]}, fields

    def _option_fields(self, item: Item, claims: list[dict[str, str]], turn: int) -> dict[str, str]:
        """Return the options with their letters: predicates in order, boxes with the right one
        first, both turned, so that each is right in the same text.
        """
        order = sorted(range(len(claims)), key=lambda index: item.claims[index][0][1])
        start = turn % len(order)
        order = order[start:] + order[:start]
        options = [claims[index][_OPTION_FIELDS[item.stratum.form]] for index in order]
        place = len(options) if item.answer == NONE else order.index(0)
        if item.stratum.kind == "none_of_these":
            options.append(self._english.phrases.none_of_these)
        lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
        return {"options": "\n".join(lines), "letter": _LETTERS[place], "option": options[place]}

    def _comparison(self, item: Item, fields: dict[str, str], row: _Row) -> Iterator[_Row]:
        """Yield a comparison with an image that waits, with another answer to the same question."""
        other, _, its_row = self._waiting.pop(item.stratum, (item, {}, row))
        probability = item.probability + other.probability - 1
        if other.answer == item.answer:
            self._waiting[item.stratum] = item, fields, row
            if len(self._waiting) > _WAITING:
                del self._waiting[next(iter(self._waiting))]
        elif self._is_sure(probability):
            is_count = item.stratum.kind == "counting"
            has_more = int(item.answer) > int(other.answer) if is_count else item.answer == "yes"
            if item.stratum in self._orders:  # of two comparisons with one text, one in each order
                order, name, texts = self._orders.pop(item.stratum)
            else:
                form = "compare_count" if is_count else "compare_existence"
                name, texts = self._template(form, next(self._turns[form]))
                order = next(self._turns[name]) % 2
                self._orders[item.stratum] = (1 - order, name, texts)
            answer = ("first", "second")[order]
            pair = (row, its_row) if has_more == (answer == "first") else (its_row, row)
            both = {
                key: pair[0][key] + pair[1][key]
                for key in ("images", "image_ids", "objects", "relations")
            }
            question = filled(texts["question"], fields)
            text = filled(texts[answer], fields)
            comparison = self._conversation(
                "comparison", name, both["images"], question, text, probability
            )
            yield comparison | both | {"answer": answer}

    def _conversation(
        self,
        kind: str,
        template: str,
        images: list[Any],
        question: str,
        answer: str,
        probability: float,
    ) -> _Row:
        self.written[kind] += 1
        user = [{"type": "image"}] * len(images)
        user.append({"type": "text", "text": question})
        assistant = [{"type": "text", "text": answer}]
        messages = [
            {"role": "user", "content": user},
            {"role": "assistant", "content": assistant},
        ]
        return {
            "images": images,
            "messages": messages,
            "kind": kind,
            "template": template,
            "probability": None if math.isnan(probability) else round(probability, 5),
        }

    def _fields(self, record: Record, key: Key, shows_boxes: bool) -> dict[str, str]:
        """Return the fields of a relation; the two objects have their boxes, or are named by their
        classes alone.
        """
        subject = plain_name(record.objects[key[0]].category)
        object_ = plain_name(record.objects[key[2]].category)
        a_subject, _, is_many = self._english.noun(subject)
        is_another = subject == object_ and a_subject != subject
        fields = {
            "subject": subject,
            "object": object_,
            "a_subject": a_subject,
            "a_object": f"another {object_}" if is_another else self._english.noun(object_)[0],
            "the_subject": f"the {subject}",
            "the_object": f"the {object_}",
        }
        if shows_boxes:
            fields["the_subject"] += f" at {self._box(record, key[0])}"
            fields["the_object"] += f" at {self._box(record, key[2])}"
        return fields | (self._english.predicate(key[1], is_many) or {})

    def _box(self, record: Record, index: int) -> str:
        x, y, width, height = record.objects[index].bbox
        corners = (x, y, x + width, y + height)
        if self._coordinates == "pixel":
            return str([round(corner) for corner in corners])
        sides = (record.width, record.height) * 2
        shares = [corner / side for corner, side in zip(corners, sides, strict=True)]
        if self._coordinates == "0-1000":
            return str([round(1000 * share) for share in shares])
        return f"[{', '.join(f'{share:.3f}' for share in shares)}]"


def _threshold_of(step: object) -> float | None:
    """Return the least confidence that a step kept.

    None: it is a probability, by a curve that may be another.
    """
    if not isinstance(step, Mapping):
        return 0.0
    threshold = step.get("threshold") or 0.0
    if step.get("calibration") is not None or not isinstance(threshold, int | float):
        return None
    return threshold


def _object_names(record: Record) -> tuple[list[str], set[str]]:
    """Return the names of the objects ("": it is not asked about), and those of which some objects
    cannot be counted.
    """
    names = list[str]()
    partial = {""}
    seen = set[tuple[str, tuple[float, ...]]]()
    for box in record.objects:
        name = "" if box.is_nothing else plain_name(box.category)
        is_unusable = box.iscrowd or (name, box.bbox) in seen
        if is_unusable or box.origin == "grounded":
            partial.add(name)
        names.append("" if is_unusable else name)
        seen.add((name, box.bbox))
    return names, partial


def _objects_by_name(names: Sequence[str], partial: Collection[str]) -> dict[str, list[int]]:
    objects: dict[str, list[int]] = {name: [] for name in sorted({*names}.difference(partial))}
    for index, name in enumerate(names):
        if name in objects:
            objects[name].append(index)
    return objects


def _sources(item: Item, image_id: str) -> dict[str, list[dict[str, object]]]:
    """Return the objects and relations of an image that an item is about."""
    ends = set(item.counted)
    relations: list[dict[str, object]] = []
    for (subject, predicate, object_), holds in item.claims:
        ends |= {subject, object_}
        relations.append(
            {
                "image_id": image_id,
                "subject": subject,
                "predicate": predicate,
                "object": object_,
                "holds": holds,
            }
        )
    objects: list[dict[str, object]]
    objects = [{"image_id": image_id, "object": end} for end in sorted(ends)]
    return {"objects": objects, "relations": relations}


def write_instructions(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.jsonl or SPLIT.parquet; paths of images begin with `images_url`, or are where
    they are.

    Raises:
        UserError: where the images are is not known.
    """
    options = rows.options
    if options.embed and not options.parquet:
        raise UserError("--embed stores the images in Parquet files: pass --parquet, too")
    phrases = load_phrases(options.templates)
    questions = Instructions(rows, phrases, options.coordinates, options.seed or 0)
    for split in rows.splits:
        if options.parquet:
            _write_parquet(out / f"{split}.parquet", _rows_of_split(questions, split), options)
        else:
            _write_json_lines(out / f"{split}.jsonl", _rows_of_split(questions, split))
    rows.note = _note(questions)


def _rows_of_split(questions: Instructions, split: str) -> Iterator[_Row]:
    rows = questions.run
    options = rows.options
    if not options.embed and options.images_url is None:
        rows.image_root(split)  # raises before anything is counted
    counts = defaultdict[Stratum, Counter[str]](Counter)
    for record in rows.records(split, *_COLUMNS):
        rows.choose(record)  # which counts what is left out
        for item in questions.items(record):
            counts[item.stratum][item.answer] += 1
    drawn = quotas(counts)
    for record, content in rows.records_with_images(split, *_COLUMNS):
        path = _image_path(rows, record)
        if path is None or (options.embed and content is None):
            continue
        image = {"bytes": content, "path": path} if options.parquet else path
        yield from questions.rows(record, image, counts, drawn)


def _image_path(rows: ExportRows, record: Record) -> str | None:
    if rows.options.images_url is not None:
        return f"{rows.options.images_url}{record.file_name}"
    if rows.options.embed:
        return record.file_name
    return rows.image_path(record)


def _write_parquet(path: Path, rows: Iterator[_Row], options: FormatOptions) -> None:
    features = {name: feature_of(kind) for name, kind in _ROW.items()}
    features["images"] = [{"_type": "Image"}]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(_ROW, metadata=metadata)
    group_size = 100 if options.embed else 2000
    with (
        new_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for group in iter(lambda: list(islice(rows, group_size)), []):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _write_json_lines(path: Path, rows: Iterator[_Row]) -> None:
    with new_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _note(questions: Instructions) -> str:
    """Return how many questions were written, and why hard ones are missing."""
    written = questions.written
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(written.items()))
    note = f"{written.total():,} questions ({kinds or 'nothing to ask'})"
    if questions.absent <= IMPROBABLE:
        return note
    if questions.run.calibration:
        reason = (
            "the run keeps too few improbable candidates; make it with a lower tag.threshold, such"
            " as 0"
        )
    else:
        reason = "without --calibration, nothing is known to be false"
    return f"{note}; few or no hard negatives, without which some kinds are missing: {reason}"


INSTRUCTIONS = Format(
    "instructions",
    write_instructions,
    options=("embed", "images", "images-url", "coordinates", "templates", "seed", "parquet"),
    keeps=("pairs",),
    probability=LIKELY,
)
