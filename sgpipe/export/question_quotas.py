"""How many of the items of `--to instructions` are drawn, so that the text of a question does not
tell its answer.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from sgpipe.export.question_items import NONE, ONE, Stratum


def quotas(counts: Mapping[Stratum, Counter[str]]) -> dict[Stratum, Counter[str]]:
    """Return how many items of each answer are drawn from each stratum: of each as many, or as
    often as a guess among the options is right. A predicate, or a class that is counted, gets about
    twice the mean of its kind at most.
    """
    drawn = {stratum: _balanced(stratum, answers) for stratum, answers in counts.items()}
    totals = defaultdict[str, Counter[str]](Counter)
    for stratum, answers in drawn.items():
        for answer, number in answers.items():
            totals[stratum.kind][_topic(stratum, answer)] += number
    return {
        stratum: _limited(stratum, answers, totals[stratum.kind])
        for stratum, answers in drawn.items()
    }


def _limited(stratum: Stratum, answers: Counter[str], totals: Counter[str]) -> Counter[str]:
    """Return fewer items if a topic of the stratum has more than twice the mean of the totals of
    all topics.
    """
    limit = 2 * totals.total() / max(len(totals), 1)
    share = min([1.0, *(limit / totals[_topic(stratum, answer)] for answer in answers)])
    unit = min(answers.values(), default=1)
    return Counter(
        {answer: math.ceil(unit * share) * (number // unit) for answer, number in answers.items()}
    )


def _balanced(stratum: Stratum, answers: Counter[str]) -> Counter[str]:
    if stratum.options:
        return _balanced_options(stratum, answers)
    ranked = sorted(answers.items(), key=lambda item: (-item[1], item[0]))
    sizes = [(place + 1) * number if place else 0 for place, (_, number) in enumerate(ranked)]
    best = sizes.index(max(sizes))
    if not best:  # a text with one answer tells it
        return Counter()
    return Counter({answer: ranked[best][1] for answer, _ in ranked[: best + 1]})


def _balanced_options(stratum: Stratum, answers: Counter[str]) -> Counter[str]:
    """Return how often each option is drawn: a predicate once, one of several boxes as often as
    there are boxes.
    """
    if stratum.form == "choose_predicate":
        shares = dict.fromkeys(stratum.words[2:], 1)
    else:
        shares = {ONE: stratum.options}
    if stratum.kind == "none_of_these":
        shares[NONE] = 1
    unit = min(answers[answer] // share for answer, share in shares.items())
    return Counter({answer: unit * share for answer, share in shares.items() if unit})


def _topic(stratum: Stratum, answer: str) -> str:
    """Return the predicate of an item, or the class that it counts."""
    if stratum.form in ("relation", "choose_predicate", "description"):
        return answer
    return stratum.words[0] if stratum.form == "counting" else stratum.words[1]
