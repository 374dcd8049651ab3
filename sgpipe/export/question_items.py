"""What an image can be asked, for `--to instructions`: the items, before some of them are drawn.

Questions that read the same are a stratum, and the answers of a stratum are drawn equally often.
Coordinates are text, too, and tell where boxes are. So a question that some items deny shows no
coordinates if its classes alone say which objects are meant; where it needs them, a stratum has
boxes that are placed alike.
"""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, islice
from typing import NamedTuple, TypeAlias

import numpy as np

from sgpipe.records import Record

IMPROBABLE = 0.02  # the highest probability of what a question takes to be false
MOST = 4  # options, or sentences
# answers to questions with options: none of them; or one, wherever it stands
NONE = "none"
ONE = "one"

Key: TypeAlias = tuple[int, str, int]  # subject, predicate, object


class Stratum(NamedTuple):
    """Questions with the same text, but for the numbers of coordinates.

    Attributes:
        kind: of the rows that are written.
        form: of the templates.
        words: classes and predicates that the text shows.
        options: how many there are, without "none of these".
        place: how the boxes lie whose coordinates the text shows; "": it shows none, or nothing is
            denied of them.
    """

    kind: str
    form: str
    words: tuple[str, ...] = ()
    options: int = 0
    place: str = ""

    @property
    def shows_boxes(self) -> bool:
        return bool(self.place) or self.form in (
            "relation",
            "which_object",
            "which_subject",
            "description",
        )


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
    """What is known of an image: the names of its objects ("" of those that are not asked about),
    the probabilities of relations that are exported, improbable or neither, and the objects of each
    class that certainly has all its boxes.
    """

    names: list[str]
    boxes: list[tuple[float, float, float, float]]
    held: dict[Key, float]
    denied: dict[Key, float]
    unclear: dict[Key, float]
    counted: dict[str, list[int]]

    def classes(self, key: Key) -> tuple[str, str, str]:
        return self.names[key[0]], key[1], self.names[key[2]]

    def place_shown(self, key: Key) -> str:
        """Return how the two boxes of a relation lie if a text must show them; "" if the classes
        name the objects.
        """
        is_named = all(self.counted.get(self.names[index]) == [index] for index in (key[0], key[2]))
        return "" if is_named else self.place(key)

    def place(self, key: Key) -> str:
        """Return how the two boxes of a relation lie, which their coordinates tell without the
        image.
        """
        x, y, width, height = self.boxes[key[0]]
        other_x, other_y, other_width, other_height = self.boxes[key[2]]
        across = min(x + width, other_x + other_width) - max(x, other_x)
        down = min(y + height, other_y + other_height) - max(y, other_y)
        if min(across, down) > 0:
            smaller = min(width * height, other_width * other_height)
            return "within" if 2 * across * down > smaller else "overlapping"
        gap = math.hypot(min(across, 0), min(down, 0))
        size = min(max(width, height), max(other_width, other_height))
        if gap < size / 4:
            return "touching"
        return "near" if gap < size else "far"


def relation_items(facts: Facts) -> Iterator[Item]:
    """Yield what relates two boxes, whether a relation does, and which object is the other one."""
    known = [*facts.held, *facts.unclear]
    objects = Counter(key[:2] for key in known)
    subjects = Counter(key[1:] for key in known)
    for key, probability in facts.held.items():
        subject, predicate, object_ = facts.classes(key)
        claims = ((key, True),)
        yield Item(
            Stratum("relation", "relation", (subject, object_)), predicate, claims, probability
        )
        yield Item(_verification(facts, key), "yes", claims, probability)
        if objects[key[:2]] == 1:
            stratum = Stratum("which_object", "which_object", (subject, predicate))
            yield Item(stratum, object_, claims, probability)
        if subjects[key[1:]] == 1:
            stratum = Stratum("which_object", "which_subject", (object_, predicate))
            yield Item(stratum, subject, claims, probability)
    for key, probability in facts.denied.items():
        yield Item(_verification(facts, key), "no", ((key, False),), 1 - probability)


def _verification(facts: Facts, key: Key) -> Stratum:
    return Stratum("relation", "verification", facts.classes(key), place=facts.place_shown(key))


def existence_items(facts: Facts) -> Iterator[Item]:
    """Yield whether an image shows a relation of two classes: not, if it is improbable of all pairs
    of their boxes.
    """
    best: dict[tuple[str, str, str], Key] = {}
    for key in sorted(facts.held, key=lambda key: (facts.held[key], key)):
        best[facts.classes(key)] = key
    for words, key in best.items():
        yield Item(Stratum("existence", "existence", words), "yes", ((key, True),), facts.held[key])
    absent = defaultdict[tuple[str, str, str], list[Key]](list)
    for key in facts.denied:
        absent[facts.classes(key)].append(key)
    for words, keys in absent.items():
        subjects = set(facts.counted.get(words[0], ()))
        objects = set(facts.counted.get(words[2], ()))
        pairs = len(subjects) * len(objects) - len(subjects & objects)
        doubt = sum(map(facts.denied.__getitem__, keys))
        if len(keys) == pairs and doubt <= IMPROBABLE:
            claims = tuple((key, False) for key in keys)
            yield Item(Stratum("existence", "existence", words), "no", claims, 1 - doubt)


def choice_items(facts: Facts) -> Iterator[Item]:
    """Yield multiple choice, with and without "none of these"."""
    yield from _predicate_choices(facts)
    yield from _box_choices(facts, "choose_object", asked=2)
    yield from _box_choices(facts, "choose_subject", asked=0)


def _predicate_choices(facts: Facts) -> Iterator[Item]:
    """Yield questions for the predicate of two objects. Other wrong predicates make another
    question.
    """
    right = _grouped(facts.held, lambda key: (key[0], key[2]))
    wrong = _grouped(facts.denied, lambda key: (key[0], key[2]))
    for pair in dict.fromkeys([*right, *wrong]):
        options = sorted(wrong[pair])[:MOST]
        for size in range(1, min(len(options), MOST - 1) + 1):
            for combination in combinations(options, size):
                yield from _items_with_options(facts, "choose_predicate", right[pair], combination)


def _box_choices(facts: Facts, form: str, asked: int) -> Iterator[Item]:
    """Yield questions for one of several boxes of a class that are placed alike.

    Args:
        asked: its part of the keys.
    """

    def question_of(key: Key) -> tuple[object, ...]:
        known = key[:asked] + key[asked + 1 :]
        return known, facts.classes(key)[asked], facts.place(key)

    right = _grouped(facts.held, question_of)
    wrong = _grouped(facts.denied, question_of)
    for question in dict.fromkeys([*right, *wrong]):
        options = sorted(wrong[question])
        for size in range(1, min(len(options), MOST - 1) + 1):
            yield from _items_with_options(facts, form, right[question], tuple(options[:size]))


def _grouped(
    keys: Iterable[Key], question_of: Callable[[Key], tuple[object, ...]]
) -> defaultdict[tuple[object, ...], list[Key]]:
    groups = defaultdict[tuple[object, ...], list[Key]](list)
    for key in keys:
        groups[question_of(key)].append(key)
    return groups


def _items_with_options(
    facts: Facts, form: str, right: list[Key], wrong: tuple[Key, ...]
) -> Iterator[Item]:
    """Yield a question for each right option beside the wrong ones, and one of which no option is
    right.
    """
    doubt = sum(map(facts.denied.__getitem__, wrong))
    claims = tuple((key, False) for key in wrong)
    for key in right:
        probability = facts.held[key] - doubt
        answer = key[1] if form == "choose_predicate" else ONE
        for kind in ("multiple_choice", "none_of_these"):
            yield Item(
                _choice(facts, kind, form, (key, *wrong)),
                answer,
                ((key, True), *claims),
                probability,
            )
    if len(wrong) > 1:
        yield Item(_choice(facts, "none_of_these", form, wrong), NONE, claims, 1 - doubt)


def _choice(facts: Facts, kind: str, form: str, keys: tuple[Key, ...]) -> Stratum:
    subject, predicate, object_ = facts.classes(keys[0])
    if form == "choose_predicate":
        words = (subject, object_, *sorted(key[1] for key in keys))
        return Stratum(kind, form, words, len(keys), facts.place_shown(keys[0]))
    return Stratum(kind, form, (subject, predicate, object_), len(keys), facts.place(keys[0]))


def description_items(facts: Facts, lowest: float, record: Record) -> Iterator[Item]:
    """Yield up to four relations of different pairs of objects, the most probable first; the image
    decides how many.

    Args:
        lowest: the lowest probability of an answer.
    """
    chosen: dict[frozenset[int], Key] = {}
    for key in sorted(facts.held, key=lambda key: (-facts.held[key], key)):
        chosen.setdefault(frozenset((key[0], key[2])), key)
    doubts = np.cumsum([1 - facts.held[key] for key in islice(chosen.values(), MOST)])
    possible = int(np.sum(~(1 - doubts < lowest)))
    if possible:
        number = 1 + zlib.crc32(record.image_id.encode()) % possible
        claims = tuple((key, True) for key in islice(chosen.values(), number))
        yield Item(
            Stratum("description", "description"),
            str(number),
            claims,
            float(1 - doubts[number - 1]),
        )


def counting_items(facts: Facts, classes: Iterable[str], probability: float) -> Iterator[Item]:
    """Yield how many objects of these classes an image shows, if it shows several of any."""
    if max(map(len, facts.counted.values()), default=0) > 1:
        for name in classes:
            objects = facts.counted[name]
            yield Item(
                Stratum("counting", "counting", (name,)),
                str(len(objects)),
                (),
                probability,
                tuple(objects),
            )
