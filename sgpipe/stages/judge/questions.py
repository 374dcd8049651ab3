"""What a vision-language model is asked about a relation, and the probability of "yes" by its first token.

Each question is asked twice, with the answers named in both orders: models prefer the one that is named first, or last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sgpipe.records import Box, Relation
from sgpipe.stages.judge.judge import Unjudged

LONGEST_SIDE = 1024  # pixels of the image that is shown
NEITHER = Unjudged('the model answers neither "yes" nor "no"')
_ORDERS = ("yes or no", "no or yes")
_VARIANTS = ("{}", " {}", "\n{}", '"{}', "**{}")


def ask_about(objects: Sequence[Box], relation: Relation) -> tuple[str, ...]:
    """The question with the answers in both orders."""
    subject, object_ = objects[relation.subject], objects[relation.object]
    last = "" if object_.is_nothing else f" the {object_.category} (blue box)"
    question = f"Is the {subject.category} (red box) {relation.predicate}{last}?"
    return tuple(f"{question} Answer with one word: {order}." for order in _ORDERS)


def answer_texts(word: str) -> list[str]:
    """How an answer may begin."""
    spellings = (word, word.capitalize(), word.upper())
    return [variant.format(spelling) for variant in _VARIANTS for spelling in spellings]


def mean_of_orders(shares: Iterable[float | Unjudged]) -> float | Unjudged:
    """The mean of the probabilities of all orders, or the first reason why there is none."""
    found = []
    for share in shares:
        if isinstance(share, Unjudged):
            return share
        found.append(share)
    return sum(found) / len(found)


def share_of_yes(tokens: Mapping[str, float]) -> float | Unjudged:
    """The probability of "yes" among "yes" and "no".

    Args:
        tokens: the probabilities of the likeliest first tokens.
    """
    mass = {"yes": 0.0, "no": 0.0}
    for token, probability in tokens.items():
        word = token.strip(' \n\t"*.,!▁Ġ').lower()
        if word in mass:
            mass[word] += probability
    total = mass["yes"] + mass["no"]
    return mass["yes"] / total if total else NEITHER
