"""The certificate of a run: a JSON file beside the judgements, made by `sgpipe certify`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sgpipe.storage.judgement_lines import CertificateSettings


class CertifiedSet(BaseModel):
    """A set of relations that is shown to have the precision.

    Attributes:
        predicate: of these relations; None: they have any.
        threshold: their minimum confidence.
        relations: how many they are.
        population: how many the run has of the predicate, of any confidence.
        answers: how many questions have each verdict.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    predicate: str | None
    threshold: float
    relations: int
    population: int = Field(alias="of")
    answers: dict[str, int]


class NotCovered(BaseModel):
    """What the certificate says nothing about.

    `recall` says in words whether people were asked which relations are missing.
    """

    error_rows: int
    images_without_relations: int
    other_relations: int
    recall: str


class JudgementsRead(BaseModel):
    """The first bytes of the file of judgements, which the certificate follows from."""

    bytes: int
    sha256: str


class Certificate(BaseModel):
    """What people's answers certify. The fields stand in the file in this order.

    Attributes:
        run: its fingerprint.
        method: how the answers are counted, in words.
        precision, confidence, by, threshold, prediction, population, family: the settings.
        sets: those with the precision; none before enough questions are answered.
        people: how many judgements each person made.
        dates: the first and the last time of a judgement.
        plans_begun: how many plans of certificates the run has.
    """

    format: int = 1
    run: str
    method: str = "betting, sampling without replacement, valid at any time"
    precision: float
    confidence: float
    by: str | None
    threshold: float | None
    prediction: str
    population: str | None = None
    family: int | None = None
    sets: list[CertifiedSet]
    people: dict[str, int]
    dates: list[str]
    plans_begun: int
    not_covered: NotCovered
    judgements: JudgementsRead

    @property
    def settings(self) -> CertificateSettings:
        """The settings.

        Raises:
            ValueError: one of them is out of range.
        """
        names = set(CertificateSettings.model_fields)
        return CertificateSettings.model_validate(self.model_dump(include=names))

    def as_json(self) -> dict[str, object]:
        """Return the fields as plain values for JSON."""
        return self.model_dump(mode="json", by_alias=True)
