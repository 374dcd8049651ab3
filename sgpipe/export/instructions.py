"""`--to instructions`: questions and answers about images, for training vision-language models.

A first pass over the rows counts what could be asked. Questions that read the same but for coordinates are a stratum,
and if some of them deny, of boxes that are placed alike; from each, a second pass draws as many items of every answer,
so that the text alone does not tell the answer. Memory grows with the number of strata, not of images.
"""

import json
import math
import random
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from itertools import combinations, count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import UserError
from sgpipe.export.hugging_face import feature_of
from sgpipe.export.rows import ExportRows, new_file
from sgpipe.records import HUB_DATASET, LABEL_STUDIO_DATASET, Record, list_of
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.config_file import Config, explained, merged, read_yaml
from sgpipe.utils.lemmas import gerund, is_participle, is_verb, lemmas, plural, verb_lemma, without_auxiliaries

_PACKAGED = Path(__file__).with_name("instructions.yaml")
_LONGEST_NAME = 100
_UNPRINTED = re.compile(r"[^\w\s'\u2019\".,&/()+%-]|_")
_START = re.compile(r"(^|(?<=[a-z\])][.?!] ))[a-z]")
_VOWEL = re.compile(r"(?!uni|use|uri|ute|eu|one\b)[aeiou]|hour|honou?r|heir")


class Phrases(Config):
    """The content of `instructions.yaml`, which explains it."""

    fields: dict[str, list[str]]
    templates: dict[str, list[dict[str, str]]]
    none_of_these: str
    plurals: dict[str, str]
    plural_only: frozenset[str]
    uncountable: frozenset[str]
    rewritten: dict[str, str | None]
    stative: dict[str, tuple[str, str]]
    not_verbs: frozenset[str]


def load_phrases(file: Path | None = None) -> Phrases:
    """Return the packaged phrases; what a file names replaces theirs. Raises UserError: the file is not usable."""
    packaged = read_yaml(_PACKAGED)
    with explained(Phrases, f"{file}: "):
        phrases = Phrases.model_validate(merged(packaged, read_yaml(file) if file else {}))
    for form, listed in phrases.templates.items():
        if form not in packaged["templates"] or not listed:
            raise UserError(f"{file}: {form}: expected templates of {', '.join(packaged['templates'])}")
        texts, known = packaged["templates"][form][0], packaged["fields"][form]
        for template in listed:
            without_fields = re.sub(rf"{{{{|}}}}|{{({'|'.join(known)})}}", "", " ".join(template.values()))
            if template.keys() != texts.keys() or {*"{}"} & {*without_fields}:
                expected = f"{' and '.join(texts)}, with the fields {', '.join(sorted(known))} as they are"
                raise UserError(f"{file}: {form}: expected {expected}; got {template}")
    return phrases


def filled(text: str, fields: dict[str, str]) -> str:
    """Return a text of a template with its fields, each sentence beginning with a capital."""
    return _START.sub(lambda start: start[0].upper(), text.format_map(fields))


@lru_cache(1 << 16)
def plain_name(name: str) -> str:
    """Return a class name or predicate as a text that no chat template takes for one of its tokens, "" if none is left:
    `<image>` becomes "image", "holding_hands" "holding hands"; of the signs, only those of ordinary writing stay.
    """
    text = " ".join(_UNPRINTED.sub(" ", unicodedata.normalize("NFKC", name)).split()).strip(" /&.,+%-")
    return text if len(text) <= _LONGEST_NAME and any(map(str.isalnum, text)) else ""


class English:
    """Class names and predicates as sentences need them."""

    def __init__(self, phrases: Phrases) -> None:
        self.phrases = phrases
        self.noun = lru_cache(1 << 16)(self._noun)
        self.predicate = lru_cache(1 << 16)(self._predicate)

    def _noun(self, name: str) -> tuple[str, str, bool]:
        """Return a class name with its article, its plural ("": it is not counted), and whether it is one itself."""
        words, last = name.split(), name.split()[-1]
        if name.lower() in self.phrases.uncountable:
            return name, "", False
        noun, is_word = last.lower(), last.isascii() and last.isalpha() and not last.isupper()
        is_many = noun in self.phrases.plural_only
        if is_word and not noun.endswith(("ss", "us", "is")):
            is_many |= lemmas(noun, "NOUN")[0] != noun or (noun.endswith("s") and plural(noun) == noun)
        if is_many:
            return name, name, True
        known, parts = self.phrases.plurals, noun.split("/")  # "cabinet/shelf" are cabinets/shelves
        is_word |= all(part.isascii() and part.isalpha() for part in parts) and not last.isupper()
        many = "/".join(known.get(part, plural(part)) for part in parts) if is_word else f"{last}s"
        many = " ".join([*words[:-1], many.capitalize() if is_word and last[0].isupper() else many])
        article = "an" if _VOWEL.match(name.lower()) else "a"
        return f"{article} {name}", known.get(name.lower(), many), False

    def _predicate(self, predicate: str, is_many: bool = False) -> dict[str, str] | None:
        """Return the fields of a predicate, `is_many` subjects having it; None: nobody could answer."""
        text = " ".join(without_auxiliaries(predicate))
        first, *rest = (self.phrases.rewritten.get(text, text) or "").split() or [""]
        if first in self.phrases.stative:
            base, one = (" ".join([verb, *rest]) for verb in self.phrases.stative[first])
            auxiliary, said = ("do", base) if is_many else ("does", one)
            that = f"that {said}"
        else:
            if first not in self.phrases.not_verbs and is_verb(first):  # "riding" and "made" can follow "is"
                is_form = verb_lemma(first) != first and (first.endswith("ing") or is_participle(first))
                first = first if is_form else gerund(first)
            base = that = " ".join([first, *rest])
            auxiliary = "are" if is_many else "is"
            one, said = f"is {base}", f"{auxiliary} {base}"
        fields = {"predicate": predicate, "is": auxiliary, "verb": base, "is_verb": said}
        return fields | {"one_verb": one, "that_verb": that} if first else None


COORDINATES = {"pixel": "in pixels", "normalised": "as shares of the sides", "0-1000": "as thousandths of the sides"}
LIKELY = 0.5  # the lowest probability of an answer, unless a threshold is given
_IMPROBABLE = 0.02  # the highest probability of what a question takes to be false
_MOST = 4  # options, or sentences
_WAITING = 1000  # images that wait for another one to be compared with
_NONE, _ONE = "none", "one"  # answers to questions with options: none of them; or one, wherever it stands
# Datasets whose annotators did not draw every object of a class, so that nothing can be counted.
_PARTIAL = frozenset({"visual_genome", "vg150", "hico", "vcoco", "open_images", "hoia", "rlipv2", "svg"})
_UNKNOWN = frozenset({"hf", HUB_DATASET, LABEL_STUDIO_DATASET})  # of these, nobody knows whether they did
_COLUMNS = ("objects", "relations", "pairs", "left_out")
_TEXT, _NUMBER = pa.string(), pa.int32()
_ROW: dict[str, pa.DataType] = {
    "images": list_of(bytes=pa.binary(), path=_TEXT),
    "messages": list_of(role=_TEXT, content=list_of(type=_TEXT, text=_TEXT)),
    **dict.fromkeys(("kind", "template", "answer"), _TEXT),
    "probability": pa.float64(),
    "image_ids": pa.list_(_TEXT),
    "objects": list_of(image_id=_TEXT, object=_NUMBER),
    "relations": list_of(image_id=_TEXT, subject=_NUMBER, predicate=_TEXT, object=_NUMBER, holds=pa.bool_()),
}

Key: TypeAlias = tuple[int, str, int]  # subject, predicate, object
Stratum: TypeAlias = tuple[str, ...]  # kind and form of a question, and what it shows besides coordinates


class Item(NamedTuple):
    """A question that an image can be asked.

    Attributes:
        answer: by which its stratum is balanced.
        claims: relations that hold or not; of options the right one first.
        probability: that the answer is right; NaN if that is not known.
        counted: the objects that it counts.
    """

    stratum: Stratum
    answer: str
    claims: tuple[tuple[Key, bool], ...]
    probability: float
    counted: tuple[int, ...] = ()


class Facts(NamedTuple):
    """What is known of an image: the names of its objects ("" of those that are not asked about), the probabilities of
    relations that are exported, improbable or neither, and the objects of each class that certainly has all its boxes.
    """

    names: list[str]
    boxes: list[tuple[float, float, float, float]]
    held: dict[Key, float]
    denied: dict[Key, float]
    unclear: dict[Key, float]
    counted: dict[str, list[int]]

    def classes(self, key: Key) -> tuple[str, str, str]:
        return self.names[key[0]], key[1], self.names[key[2]]

    def place(self, key: Key) -> str:
        """Return how the two boxes of a relation lie, which their coordinates tell without the image."""
        (x, y, w, h), (x2, y2, w2, h2) = self.boxes[key[0]], self.boxes[key[2]]
        across, down = min(x + w, x2 + w2) - max(x, x2), min(y + h, y2 + h2) - max(y, y2)
        if min(across, down) > 0:
            return "within" if 2 * across * down > min(w * h, w2 * h2) else "overlapping"
        gap, size = math.hypot(min(across, 0), min(down, 0)), min(max(w, h), max(w2, h2))
        return "touching" if gap < size / 4 else "near" if gap < size else "far"


class Instructions:
    """What images can be asked, in words.

    Attributes:
        least: the lowest probability of an answer; 0 without a calibration.
        absent: the highest probability of a candidate that the run does not have as a relation; 1 if it is not known.
        written: the number of rows by kind.
    """

    def __init__(self, rows: ExportRows, phrases: Phrases, coordinates: str = "pixel", seed: int = 0) -> None:
        self.run, self._english, self._coordinates, self._seed = rows, English(phrases), coordinates, seed
        self.least = 0.0 if rows.calibration is None else rows.threshold
        self.absent = self._absent()
        # One object of two runs that place it differently is two objects of the merged one.
        self._is_merged = any("merged" in identity for identity in Manifest.identities(rows.manifest.run))
        self.written, self._turns = Counter[str](), defaultdict[Any, Iterator[int]](count)
        self._orders: dict[Stratum, tuple[int, str, dict[str, str]]] = {}
        self._waiting: dict[Stratum, tuple[Item, dict[str, str], dict[str, Any]]] = {}

    def _absent(self) -> float:
        confidence, is_tagged = 0.0, False
        for identity in Manifest.identities(self.run.manifest.run):
            for name in ("tag", "exported"):
                if isinstance(step := identity.get(name), Mapping):
                    threshold = step.get("threshold") or 0.0
                    if step.get("calibration") is not None or not isinstance(threshold, int | float):
                        return 1.0  # the threshold is a probability, by a curve that may be another
                    confidence, is_tagged = max(confidence, threshold), is_tagged or name == "tag"
        return self._probabilities([confidence])[0] if is_tagged and self.run.calibration is not None else 1.0

    def items(self, record: Record) -> Iterator[Item]:
        facts = self._facts(record)
        is_incomplete = record.dataset in _UNKNOWN or any(box.origin == "detector" for box in record.objects)
        found = [*_relations(facts), *_choices(facts), *_descriptions(facts, self.least, record)]
        found += _existence(facts._replace(counted={}) if is_incomplete else facts)
        yield from (item for item in found if self._is_sure(item.probability))
        probability = math.nan if is_incomplete else 1.0  # how many objects are missed is not calibrated
        if max(map(len, facts.counted.values()), default=0) > 1 and self._is_sure(probability):
            for name, objects in facts.counted.items():
                if self._english.noun(name)[1]:
                    yield Item(("counting", "counting", name), str(len(objects)), (), probability, tuple(objects))

    def _is_sure(self, probability: float) -> bool:
        return probability >= self.least or self.run.calibration is None

    def _facts(self, record: Record) -> Facts:
        names, seen, partial = list[str](), set[Any](), set[str]()
        for box in record.objects:
            name = "" if box.is_nothing else plain_name(box.category)
            is_unusable = box.iscrowd or (name, box.bbox) in seen
            if is_unusable or box.origin == "grounded":
                partial.add(name)
            names.append("" if is_unusable else name)
            seen.add((name, box.bbox))
        counted: dict[str, list[int]] = {}
        if not self._is_merged and record.dataset not in _PARTIAL and not record.left_out.get("boxes"):
            for name in {*names}.difference(partial, [""]):
                counted[name] = [index for index, each in enumerate(names) if each == name]
        scored, kept, others = dict[Key, float](), set[Key](), dict[Key, float]()
        for relation in record.relations:
            key = relation.subject, plain_name(relation.predicate), relation.object
            if set(relation.origins).isdisjoint(self.run.origins):
                others[key] = math.nan
                continue
            confidence = math.inf if relation.confidence is None else relation.confidence
            scored[key] = max(scored.get(key, 0.0), confidence)
            if self.run.keeps(relation.predicate, relation.confidence):
                kept.add(key)
        known = others | dict(zip(scored, self._probabilities(scored.values()), strict=True))
        for pair in record.pairs:
            for text in pair.predicates:
                known.setdefault((pair.subject, plain_name(text), pair.object), self.absent)
        facts = Facts(names, [box.bbox for box in record.objects], {}, {}, {}, dict(sorted(counted.items())))
        for key, probability in known.items():
            if key[0] != key[2] and all(facts.classes(key)) and self._english.predicate(key[1]):
                is_denied = probability <= _IMPROBABLE and key not in others
                part = facts.held if key in kept else facts.denied if is_denied else facts.unclear
                part[key] = probability
        return facts

    def _probabilities(self, confidences: Collection[float]) -> list[float]:
        """Return the probabilities of confidences (an annotation's is 1); below the lowest judged one, that one's."""
        calibration = self.run.calibration
        if calibration is None or not confidences:
            return [1.0 if math.isinf(confidence) else math.nan for confidence in confidences]
        given = np.maximum(list(confidences), calibration.lowest)
        return list(np.where(np.isinf(given), 1.0, calibration.probabilities(np.minimum(given, 1))).tolist())

    def rows(
        self, record: Record, image: Any, left: dict[Stratum, Counter[str]], drawn: dict[Stratum, Counter[str]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of the items that are `drawn` of an image, and of comparisons with one before it; `left`: how
        many items of each answer are in this image and later ones.
        """
        chance = random.Random(f"{self._seed} {record.split} {record.image_id}")
        for item in self.items(record):
            takes = chance.random() * left[item.stratum][item.answer] < drawn[item.stratum][item.answer]
            left[item.stratum][item.answer] -= 1
            if takes:
                drawn[item.stratum][item.answer] -= 1
                row, fields = self._row(item, record, image)
                yield row
                if item.stratum[0] in ("existence", "counting"):
                    yield from self._comparison(item, fields, row)

    def _template(self, form: str, number: int) -> tuple[str, dict[str, str]]:
        templates = self._english.phrases.templates[form]
        return f"{form}/{number % len(templates) + 1}", templates[number % len(templates)]

    def _row(self, item: Item, record: Record, image: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Return a row and the fields of its texts: each answer of a stratum in turn by each template and letter."""
        kind, form, *shown = item.stratum
        turn = next(self._turns[item.stratum, item.answer])
        number = turn // len(item.claims) if item.answer == _ONE else turn
        name, texts = self._template(form, zlib.crc32(repr(item.stratum).encode()) + number)
        answer, text = item.answer, texts.get(item.answer, texts.get("answer", "{said}"))
        claimed = [self._fields(record, key) for key, _ in item.claims]
        fields = dict(claimed[0]) if claimed else {}
        if kind == "counting":
            fields = {"class": shown[0], "plural": self._english.noun(shown[0])[1], "count": answer}
        elif kind == "description":
            times = ("one", "two", "three", "four")[len(claimed) - 1]
            fields["relations"] = f"{times} relation{'s' * (len(claimed) > 1)}"
            fields["said"] = " ".join(filled(texts["sentence"], each) for each in claimed)
        elif form.startswith("choose"):
            part = {"choose_predicate": "is_verb", "choose_object": "the_object", "choose_subject": "the_subject"}[form]
            # Predicates in order, boxes with the right one first; both turned, so that each is right in the same text.
            order = sorted(range(len(claimed)), key=lambda at: item.claims[at][0][1])
            order = order[turn % len(order) :] + order[: turn % len(order)]
            options = [claimed[at][part] for at in order]
            place = len(options) if item.answer == _NONE else order.index(0)
            options += [self._english.phrases.none_of_these] * (kind == "none_of_these")
            answer, lines = "ABCDE"[place], zip("ABCDE", options, strict=False)
            fields["options"] = "\n".join(f"{letter}. {option}" for letter, option in lines)
            fields |= {"letter": answer, "option": options[place]}
        row = self._made(kind, name, [image], filled(texts["question"], fields), filled(text, fields), item.probability)
        ends = {end for (subject, _, object_), _ in item.claims for end in (subject, object_)}
        image_id = {"image_id": record.image_id}
        row["objects"] = [image_id | {"object": end} for end in sorted(ends.union(item.counted))]
        names = ("subject", "predicate", "object", "holds")
        row["relations"] = [image_id | dict(zip(names, (*key, holds), strict=True)) for key, holds in item.claims]
        return row | {"answer": answer, "image_ids": [record.image_id]}, fields

    def _comparison(self, item: Item, fields: dict[str, str], row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a comparison with an image that waits, with another answer to the same question."""
        other, _, its_row = self._waiting.pop(item.stratum, (item, {}, row))
        probability = item.probability + other.probability - 1
        if other.answer == item.answer:
            self._waiting[item.stratum] = item, fields, row
            if len(self._waiting) > _WAITING:
                del self._waiting[next(iter(self._waiting))]
        elif self._is_sure(probability):
            is_count = item.stratum[0] == "counting"
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
            both = {key: pair[0][key] + pair[1][key] for key in ("images", "image_ids", "objects", "relations")}
            question = filled(texts["question"], fields)
            made = self._made("comparison", name, both["images"], question, filled(texts[answer], fields), probability)
            yield made | both | {"answer": answer}

    def _made(
        self, kind: str, template: str, images: list[Any], question: str, answer: str, probability: float
    ) -> dict[str, Any]:
        self.written[kind] += 1
        asked: list[dict[str, str]] = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        said = [{"type": "text", "text": answer}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        known = None if math.isnan(probability) else round(probability, 5)
        return {"images": images, "messages": messages, "kind": kind, "template": template, "probability": known}

    def _fields(self, record: Record, key: Key) -> dict[str, str]:
        subject, object_ = (plain_name(record.objects[index].category) for index in (key[0], key[2]))
        a_subject, _, is_many = self._english.noun(subject)
        is_another = subject == object_ and a_subject != subject
        fields = {"subject": subject, "object": object_, "a_subject": a_subject}
        fields["a_object"] = f"another {object_}" if is_another else self._english.noun(object_)[0]
        fields["the_subject"] = f"the {subject} at {self._box(record, key[0])}"
        fields["the_object"] = f"the {object_} at {self._box(record, key[2])}"
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


def _relations(facts: Facts) -> Iterator[Item]:
    known = [*facts.held, *facts.unclear]
    objects, subjects = Counter(key[:2] for key in known), Counter(key[1:] for key in known)
    for key, probability in facts.held.items():
        subject, predicate, object_ = facts.classes(key)
        claims = ((key, True),)
        yield Item(("relation", "relation", subject, object_), predicate, claims, probability)
        yield Item(("relation", "verification", *facts.classes(key), facts.place(key)), "yes", claims, probability)
        if objects[key[:2]] == 1:
            yield Item(("which_object", "which_object", subject, predicate), object_, claims, probability)
        if subjects[key[1:]] == 1:
            yield Item(("which_object", "which_subject", object_, predicate), subject, claims, probability)
    for key, probability in facts.denied.items():
        asked = ("relation", "verification", *facts.classes(key), facts.place(key))
        yield Item(asked, "no", ((key, False),), 1 - probability)


def _existence(facts: Facts) -> Iterator[Item]:
    """Whether an image shows a relation of two classes: not, if it is improbable of all pairs of their boxes."""
    best = {facts.classes(key): key for key in sorted(facts.held, key=lambda key: (facts.held[key], key))}
    for shown, key in best.items():
        yield Item(("existence", "existence", *shown), "yes", ((key, True),), facts.held[key])
    absent = defaultdict[tuple[str, str, str], list[Key]](list)
    for key in facts.denied:
        absent[facts.classes(key)].append(key)
    for shown, keys in absent.items():
        subjects, objects = ({*facts.counted.get(name, ())} for name in (shown[0], shown[2]))
        doubt = sum(facts.denied[key] for key in keys)
        if len(keys) == len(subjects) * len(objects) - len(subjects & objects) and doubt <= _IMPROBABLE:
            yield Item(("existence", "existence", *shown), "no", tuple((key, False) for key in keys), 1 - doubt)


def _choices(facts: Facts) -> Iterator[Item]:
    """Multiple choice, with and without "none of these": of predicates of two boxes, or of boxes of one class."""
    for form, part in (("choose_predicate", 1), ("choose_object", 2), ("choose_subject", 0)):
        groups = defaultdict[Any, tuple[list[Key], list[Key]]](lambda: ([], []))
        for number, keys in enumerate((facts.held, facts.denied)):
            for key in keys:
                alike = () if part == 1 else (facts.classes(key)[part], facts.place(key))
                groups[(*key[:part], *alike, *key[part + 1 :])][number].append(key)
        for right, wrong in groups.values():
            wrong = sorted(wrong)[:_MOST]
            for size in range(1, min(len(wrong), _MOST - 1) + 1):
                # Other predicates make another question; other boxes of a class do not.
                for others in combinations(wrong, size) if part == 1 else [tuple(wrong[:size])]:
                    yield from _options(facts, form, right, others)


def _options(facts: Facts, form: str, right: list[Key], wrong: tuple[Key, ...]) -> Iterator[Item]:
    doubt, claims = sum(facts.denied[key] for key in wrong), tuple((key, False) for key in wrong)
    for keys in [(key, *wrong) for key in right] + [wrong] * (len(wrong) > 1):
        subject, predicate, object_ = facts.classes(keys[0])
        shown: Stratum = (form, subject, predicate, object_, facts.place(keys[0]), str(len(keys)))
        answer = predicate if form == "choose_predicate" else _ONE
        if form == "choose_predicate":
            shown = (form, subject, object_, *sorted(key[1] for key in keys))
        if keys[0] in facts.held:
            item = Item(("multiple_choice", *shown), answer, ((keys[0], True), *claims), facts.held[keys[0]] - doubt)
            yield from (item, item._replace(stratum=("none_of_these", *shown)))
        else:
            yield Item(("none_of_these", *shown), _NONE, claims, 1 - doubt)


def _descriptions(facts: Facts, least: float, record: Record) -> Iterator[Item]:
    """Up to four relations of different pairs of objects, the most probable first; how many, the image decides."""
    chosen: dict[frozenset[int], Key] = {}
    for key in sorted(facts.held, key=lambda key: (-facts.held[key], key)):
        chosen.setdefault(frozenset((key[0], key[2])), key)
    doubts = np.cumsum([1 - facts.held[key] for key in islice(chosen.values(), _MOST)])
    if possible := int(np.sum(~(1 - doubts < least))):
        number = 1 + zlib.crc32(record.image_id.encode()) % possible
        claims = tuple((key, True) for key in islice(chosen.values(), number))
        yield Item(("description", "description"), str(number), claims, float(1 - doubts[number - 1]))


def quotas(counts: Mapping[Stratum, Counter[str]]) -> dict[Stratum, Counter[str]]:
    """Return how many items of each answer are drawn from each stratum: of each as many, or as often as a guess among
    the options is right. A predicate, or a class that is counted, gets about twice the mean of its kind at most.
    """
    drawn = {stratum: _balanced(stratum, answers) for stratum, answers in counts.items()}
    totals = defaultdict[str, Counter[str]](Counter)
    for stratum, answers in drawn.items():
        for answer, number in answers.items():
            totals[stratum[0]][_topic(stratum, answer)] += number
    for stratum, answers in drawn.items():
        most = 2 * totals[stratum[0]].total() / max(len(totals[stratum[0]]), 1)
        part = min([1.0, *(most / totals[stratum[0]][_topic(stratum, answer)] for answer in answers)])
        unit = min(answers.values(), default=1)
        drawn[stratum] = Counter({answer: math.ceil(unit * part) * (n // unit) for answer, n in answers.items()})
    return drawn


def _balanced(stratum: Stratum, answers: Counter[str]) -> Counter[str]:
    kind, form, *shown = stratum
    if form.startswith("choose"):
        parts = dict.fromkeys(shown[2:], 1) if form == "choose_predicate" else {_ONE: int(shown[-1])}
        parts |= {_NONE: 1} if kind == "none_of_these" else {}
        unit = min(answers[answer] // part for answer, part in parts.items())
        return Counter({answer: unit * part for answer, part in parts.items() if unit})
    ranked = sorted(answers.items(), key=lambda item: (-item[1], item[0]))
    best = max(range(len(ranked)), key=lambda at: (at + 1) * ranked[at][1] if at else 0)
    return Counter({answer: ranked[best][1] for answer, _ in ranked[: best + 1] if best})


def _topic(stratum: Stratum, answer: str) -> str:
    """Return the predicate of an item, or the class that it counts."""
    return answer if stratum[1] in ("relation", "choose_predicate", "description") else stratum[2:][:2][-1]


def write_instructions(asked: Instructions, out: Path, *, parquet: bool) -> None:
    """Write SPLIT.jsonl or SPLIT.parquet; paths of images begin with `images_url`, or are where they are.

    Raises UserError: where the images are is not known.
    """
    rows = asked.run

    def made(split: str) -> Iterator[dict[str, Any]]:
        is_placed = not rows.embed and rows.images_url is None
        if is_placed:
            rows.image_root(split)  # raises before anything is counted
        counts = defaultdict[Stratum, Counter[str]](Counter)
        for record in rows.records(split, *_COLUMNS):
            rows.choose(record)  # which counts what is left out
            for item in asked.items(record):
                counts[item.stratum][item.answer] += 1
        drawn = quotas(counts)
        for record, content in rows.records_with_images(split, *_COLUMNS):
            path = rows.image_path(record) if is_placed else f"{rows.images_url or ''}{record.file_name}"
            if path is not None and (content is not None or not rows.embed):
                yield from asked.rows(record, {"bytes": content, "path": path} if parquet else path, counts, drawn)

    for split in rows.splits:
        path = out / f"{split}.{'parquet' if parquet else 'jsonl'}"
        with new_file(path) as file:
            if parquet:
                features = {name: feature_of(kind) for name, kind in _ROW.items()} | {"images": [{"_type": "Image"}]}
                schema = pa.schema(_ROW, metadata={"huggingface": json.dumps({"info": {"features": features}})})
                batches = made(split)
                with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                    while batch := list(islice(batches, 100 if rows.embed else 2000)):
                        writer.write_table(pa.Table.from_pylist(batch, schema))
            else:
                file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in made(split))
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(asked.written.items()))
    rows.note = f"{asked.written.total():,} questions ({kinds or 'nothing to ask'})"
    if asked.absent > _IMPROBABLE:
        why = "the run keeps too few improbable candidates; make it with a lower tag.threshold, such as 0"
        why = why if rows.calibration else "without --calibration, nothing is known to be false"
        rows.note += f"; few or no hard negatives, without which some kinds are missing: {why}"
