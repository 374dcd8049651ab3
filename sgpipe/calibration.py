"""The calibration of a tagger, a small JSON file of `sgpipe calibrate`: from confidences to
probabilities.

    log odds of being correct = slope · log odds of the confidence + offset

This is Platt scaling (Platt 1999, Probabilistic outputs for support vector machines). A minimum
probability is a minimum confidence, so shards keep the tagger's own confidences.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, JsonValue, ValidationError

from sgpipe.errors import UserError, check_share
from sgpipe.files.locations import Location, read_text
from sgpipe.recipe import SERVED, UNSCORED, Config, PairConfig, TagConfig
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import write_result_text
from sgpipe.utils.console import count
from sgpipe.utils.hashing import differences
from sgpipe.utils.odds import NEAREST, Floats, from_log_odds, log_odds

_Share = Annotated[float, Field(ge=0, le=1)]
_ROOM = 0.4  # of the way from a precision to 1, that all correct answers show where a search starts
_ANY = 1e-6  # a probability that everything has but what is below the lowest judged confidence


class Calibration(Config):
    """How probable it is that a relation of a confidence is correct.

    `tagger`: see `scoring_of_run`. `lowest`: the lowest judged confidence; of lower ones, which get
    the probability 0, nothing is known. `levels`: falling minimum probabilities, the precision that
    each shows with 95% confidence, and that which it would show if all judged relations were
    correct.
    """

    format: Literal[2] = 2
    run: str
    tagger: dict[str, JsonValue]
    judged_by: Literal["ground truth", "people"]
    images: int
    judged: int
    correct: int
    slope: float = Field(gt=0)
    offset: float
    lowest: float = Field(ge=0, le=1)
    levels: tuple[tuple[_Share, _Share, _Share], ...] = Field(min_length=1)

    def probabilities(self, confidence: ArrayLike) -> Floats:
        confidences = np.asarray(confidence, np.float64)
        probabilities = from_log_odds(self.slope * log_odds(confidences) + self.offset)
        return np.where(confidences < self.lowest, 0.0, probabilities)

    def threshold(self, probability: float) -> float:
        """Return the minimum confidence of what is correct with at least this probability; 0 keeps
        everything.
        """
        if probability <= 0:
            return 0.0
        if probability >= 1:
            return float("inf")
        odds = (np.log(probability / (1 - probability)) - self.offset) / self.slope
        min_confidence = float(from_log_odds(odds))
        if min_confidence > 1 - NEAREST:
            return float("inf")
        if min_confidence <= NEAREST:  # below it, odds are the same
            return stored(self.lowest)
        return stored(max(min_confidence, self.lowest))

    def probability_for(self, precision: float) -> float:
        """Return the lowest probability that shows the precision with 95% confidence.

        Raises:
            UserError: none does.
        """
        check_share("precision", precision)
        probabilities, shown, highest = zip(*self.levels, strict=True)
        at = lowest_shown(shown, highest, precision)
        if at is not None:
            return probabilities[at] or _ANY
        judged = count(self.judged, "judged relation")
        best = max(
            (value for value in shown if lowest_shown(shown, highest, value) is not None),
            default=0.0,
        )
        none = f"no threshold has this precision with 95% confidence (the highest is {best:.3f})"
        hint = "judge more relations, or set a minimum probability (threshold)"
        raise UserError(f"precision {precision:g}: by {judged}, {none}; {hint}")

    def check_run(self, run: Mapping[str, Any], place: object) -> None:
        """Check that a run has the confidences that the calibration is for.

        Raises:
            UserError: the confidences of the run in `place`, by its header, are of another tagger.
        """
        self.check_scoring(scoring_of_run(run), place)

    def check_scoring(self, scoring: Mapping[str, Any], place: object) -> None:
        """Check that confidences were computed as those that the calibration is for.

        Raises:
            UserError: what decides confidences in `place` is not what the calibration is for.
        """
        lines = differences(self.tagger, scoring, {"method": "rtagger"})
        if lines:
            listed = "".join(
                f"\n  {line.replace(' then, ', ' in the calibration, ')}" for line in lines
            )
            why = "whose confidences are of another tagger; make one with `sgpipe calibrate`"
            raise UserError(f"the calibration of {self.run!r} does not fit {place}, {why}:{listed}")

    def save(self, file: Path) -> None:
        write_result_text(file, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")


def lowest_shown(lows: Sequence[float], highest: Sequence[float], target: float) -> int | None:
    """Return the number of the last of several thresholds, the strictest first, that shows a
    precision of `target`.

    The search ends at the first that does not, and so promises what a single test does: see
    `sgpipe.stats.thresholds`.

    Args:
        lows: the precision that each threshold shows.
        highest: what it would show if all judged relations were correct. The search starts where
            that leaves room for some that are not, or else at the lowest threshold.

    Returns:
        None if the first one does not show the precision.
    """
    needed = target + _ROOM * (1 - target)
    start = next((at for at, share in enumerate(highest) if share >= needed), len(lows) - 1)
    reached = None
    for at in range(max(start, 0), len(lows)):
        if lows[at] < target:
            break
        reached = at
    return reached


def load_calibration(file: Location) -> Calibration:
    """Read a file of `sgpipe calibrate`.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    text = read_text(file, "calibration")
    try:
        return Calibration.model_validate_json(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        place = ".".join(map(str, error.errors()[0]["loc"]))
        problem = (
            f"is not a file of `sgpipe calibrate` of this version ({place or 'the file'}: {reason})"
        )
        raise UserError(f"{file} {problem}: make it again") from None


def choose_threshold(
    calibration: Location | None, threshold: float, precision: float | None = None
) -> float:
    """Return the minimum confidence that settings ask for, rounded as shards store confidences.

    With a calibration, `threshold` is a probability; `precision` replaces it.

    Raises:
        UserError: as `probability_for`.
    """
    if precision is not None:
        threshold = probability_for(calibration, precision, None)
    check_share("threshold", threshold)
    return (
        stored(threshold)
        if calibration is None
        else load_calibration(calibration).threshold(threshold)
    )


def stored(confidence: float) -> float:
    """Round a confidence as shards store it, so that 0.7 is not below 0.7."""
    return float(np.float32(confidence))


def threshold_of_recipe(tag: TagConfig, pair: PairConfig) -> float:
    """Return the minimum confidence of a recipe.

    Raises:
        UserError: the calibration is for other scores.
    """
    if tag.calibration is not None:
        load_calibration(tag.calibration).check_scoring(
            scoring_of_recipe(tag, pair), f"the model {tag.tagger}"
        )
    return choose_threshold(tag.calibration, tag.threshold, tag.precision)


def probability_for(
    calibration: Location | None, precision: float, threshold: float | None
) -> float:
    """Return the minimum probability for a precision.

    Raises:
        UserError: a threshold is given, or no calibration.
    """
    if threshold is not None:
        raise UserError("threshold and precision both choose the relations; pass one of them")
    if calibration is None:
        raise UserError(
            "precision needs a calibration (--calibration), which `sgpipe calibrate` writes"
        )
    return load_calibration(calibration).probability_for(precision)


def scoring_of_recipe(tag: TagConfig, pair: PairConfig) -> dict[str, Any]:
    """Return what decides the confidences of the tag stage, but number format and device, which
    hardly matter.
    """
    model = {"endpoint": SERVED} if tag.is_served else {"tagger": tag.content}
    return _scoring(tag.model_dump() | model, pair.model_dump())


def scoring_of_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decided the confidences in a run, by its header: its fingerprint, unless it was
    one tagger.
    """
    scorings: list[dict[str, Any]] = []
    for identity in Manifest.identities(run):
        tag, pair = (
            identity.get(name) if isinstance(identity, Mapping) else None
            for name in ("tag", "pair")
        )
        if isinstance(tag, Mapping):  # others may have changed what came from the hub
            scorings.append(_scoring(tag, pair if isinstance(pair, Mapping) else {}))
    is_mixed = run.get("runs") and any(scoring != scorings[0] for scoring in scorings)  # merged
    return {"run": run.get("fingerprint")} if is_mixed or not scorings else scorings[-1]


def unscored_reason(run: Mapping[str, Any]) -> str | None:
    """Why the candidates of a run are relations, by its header, if nothing scored them; None: they
    have scores.
    """
    method = scoring_of_run(run).get("method")
    return UNSCORED.get(method) if isinstance(method, str) else None


def _scoring(tag: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    names = ["method", "tagger", "endpoint"]
    if tag.get("method") in (None, "rtagger"):  # runs of earlier versions do not name it
        names = ["tagger", "short_side", "long_side", "group_size"]
        # otherwise it decides only how much is computed together
        if pair.get("restrict") == "group":
            names.append("chunk")
        if tag.get("vocabulary") == "image":
            names += ["vocabulary", "vocabulary_others"]
    if tag.get("questions") == "shared":
        names.append("questions")
    if tag.get("prior") is not None:
        names += ["prior", "prior_power"]
    return {name: tag.get(name) for name in names} | {
        name: pair.get(name) for name in ("candidates", "restrict")
    }


def rounded(value: float) -> float:
    """Return a number as the file has it."""
    return round(float(value), 5)
