"""Precision, recall and F1 of the relation triplets of captions against gold triplets.

Gold: {id: {"caption": str, "set": str, "triplets": [[subject, predicate, object], ...]}}
Predicted: {id: [[subject, predicate, object], ...]}; an id that is missing counts as an empty
prediction.

Normalization, the same for gold and predicted triplets:
    noun phrase: lower case, without "'s" and punctuation, without leading determiners, possessives,
        numbers and quantifiers, last word in the singular (a table of irregular words, then rules
        for the endings)
    predicate: lower case, without leading forms of "be" and "have" that something follows, first
        word as a verb lemma (a table, or -ing, -ed or -s cut off where verb_vocab.json has the
        rest)

Levels:
    strict: all three parts are equal
    head: the last words of both noun phrases and the predicates are equal
    relaxed: the last words of both noun phrases are equal, and the predicates are, or their last or
        first words
    pair: the last words of both noun phrases are equal

Within a caption, predicted and gold triplets are matched one to one (a maximum matching); figures
are micro averages over the captions. Predicted triplets whose predicate is "be" are attributes and
not scored, as they are never gold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LEVELS = ("strict", "head", "relaxed", "pair")
_HERE = Path(__file__).parent
_WORDS: dict[str, Any] = json.loads((_HERE / "words.json").read_text(encoding="utf-8"))
_VERBS = set(json.loads((_HERE / "verb_vocab.json").read_text(encoding="utf-8")))
Triplet = tuple[str, str, str]


def score(
    gold: Mapping[str, Any],
    predicted: Mapping[str, Iterable[Sequence[str]]],
    ids: Collection[str] | None = None,
) -> dict[str, Any]:
    """The figures of every level over the captions `ids`, by default over all."""
    chosen = [key for key in gold if ids is None or key in ids]
    matched = dict.fromkeys(LEVELS, 0)
    counts = {"predicted": 0, "gold": 0, "be_dropped": 0, "captions": len(chosen)}
    for key in chosen:
        everything = [_normalized(triplet) for triplet in predicted.get(key, ())]
        predictions = [triplet for triplet in everything if triplet[1] != "be"]
        targets = [_normalized(triplet) for triplet in gold[key]["triplets"]]
        counts["predicted"] += len(predictions)
        counts["gold"] += len(targets)
        counts["be_dropped"] += len(everything) - len(predictions)
        for level in LEVELS:
            matched[level] += _matched(level, predictions, targets)
    figures = {
        level: _figures(count, counts["predicted"], counts["gold"])
        for level, count in matched.items()
    }
    return {**counts, **figures}


def _figures(matched: int, predicted: int, gold: int) -> dict[str, float]:
    precision = matched / predicted if predicted else 0.0
    recall = matched / gold if gold else 0.0
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0.0
    return {"P": round(precision, 4), "R": round(recall, 4), "F1": round(f1, 4)}


def _matched(level: str, predicted: Sequence[Triplet], targets: Sequence[Triplet]) -> int:
    """The size of a maximum matching, by augmenting paths."""
    fitting = [
        [index for index, target in enumerate(targets) if _fit(level, triplet, target)]
        for triplet in predicted
    ]
    partner: dict[int, int] = {}

    def augment(number: int, seen: set[int]) -> bool:
        for index in fitting[number]:
            if index not in seen:
                seen.add(index)
                if index not in partner or augment(partner[index], seen):
                    partner[index] = number
                    return True
        return False

    return sum(augment(number, set()) for number in range(len(predicted)))


def _fit(level: str, one: Triplet, other: Triplet) -> bool:
    if level == "strict":
        return one == other
    if any(one[place].split(" ")[-1] != other[place].split(" ")[-1] for place in (0, 2)):
        return False
    if level == "pair" or one[1] == other[1]:
        return True
    first = one[1].split(" ")
    second = other[1].split(" ")
    return level == "relaxed" and (first[-1] == second[-1] or first[0] == second[0])


def _normalized(triplet: Sequence[str]) -> Triplet:
    return _noun_phrase(triplet[0]), _predicate(triplet[1]), _noun_phrase(triplet[2])


def _noun_phrase(text: str) -> str:
    words = _without_leading(_split(text), _WORDS["determiners"])
    return " ".join([*words[:-1], *map(_singular, words[-1:])])


def _predicate(text: str) -> str:
    words = _without_leading(_split(text), _WORDS["auxiliaries"])
    return " ".join([*map(_lemma, words[:1]), *words[1:]])


def _split(text: str) -> list[str]:
    plain = text.lower().replace("'s", " ").replace("’s", " ")
    return [word for word in re.sub(r"[^a-z0-9\- ]", " ", plain).split() if word != "-"]


def _without_leading(words: list[str], dropped: Collection[str]) -> list[str]:
    """At least one word stays."""
    start = next((place for place, word in enumerate(words) if word not in dropped), len(words) - 1)
    return words[max(start, 0) :]


def _singular(word: str) -> str:
    if word in _WORDS["nouns"]:
        return str(_WORDS["nouns"][word])
    if len(word) > 3:
        if word.endswith("ies"):
            return word[:-3] + "y"
        if re.search(r"(s|x|z|ch|sh)es$", word):
            return word[:-2]
        if word.endswith("s") and not word.endswith(("ss", "us", "is")):
            return word[:-1]
    return word


def _lemma(word: str) -> str:
    if word in _WORDS["verbs"]:
        return str(_WORDS["verbs"][word])
    if word in _VERBS:
        return word
    choices = _lemmas(word)
    known = next((choice for choice in choices if choice in _VERBS), None)
    if known is None and choices and not word.endswith("s"):
        return choices[0]
    return known or word


def _lemmas(word: str) -> list[str]:
    """What a word may be a form of, likeliest first."""
    if word.endswith("ing") and len(word) > 4:
        return _stems(word[:-3])
    if word.endswith(("ied", "ies")):
        return [word[:-3] + "y"]
    if word.endswith("ed") and len(word) > 3:
        return _stems(word[:-2])
    if word.endswith("es"):
        return [word[:-1], word[:-2]]
    return [word[:-1]] if word.endswith("s") and not word.endswith("ss") else []


def _stems(rest: str) -> list[str]:
    """With an e, as it is, and without a doubled last letter."""
    doubled = len(rest) > 2 and rest[-1] == rest[-2]
    return [rest + "e", rest, *([rest[:-1]] if doubled else [])]
