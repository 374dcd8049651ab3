"""Where the rows of a run come from, in sentences, by the identities that its manifest records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import count

_UNREVIEWED = "**People have not reviewed them.**"


@dataclass(frozen=True)
class Origin:
    """How rows came to be.

    Attributes:
        generated: whether models chose the relations, or None if the run does not say.
        steps: sentences, in order.
        identities: what the sentences come from, the first one first.
    """

    generated: bool | None
    steps: list[str]
    identities: Sequence[Mapping[str, Any]]


def describe_origin(run: Mapping[str, Any]) -> Origin:
    """Return the origin of a run by the header of its manifest."""
    identities = [identity for identity in Manifest.identities(run) if identity]
    steps = [step for identity in identities for step in _readable_steps(identity)]
    first = identities[0] if identities else {}
    generated: bool | None = True if "tag" in first else None
    if first.get("import") not in (None, "hf", "rlipv2") and not first.get("options", {}).get("predictions"):
        generated = False
    return Origin(generated, steps or ["How the rows were made is not recorded."], identities)


def _readable_steps(identity: Mapping[str, Any]) -> list[str]:
    """Return the sentences of an identity; one sentence if others have changed it, as in a dataset from the hub."""
    try:
        return list(_steps(identity))
    except (AttributeError, KeyError, TypeError, ValueError):
        return ["One step is recorded in a form that sgpipe does not know; see below."]


def _steps(identity: Mapping[str, Any]) -> Iterator[str]:
    if name := identity.get("import"):
        yield f"Objects and relations: imported by sgpipe {identity.get('sgpipe', '')} from files of format `{name}`."
        yield "A relation without a confidence was annotated; one with a confidence was predicted by a model."
        if identity.get("options", {}).get("preprocess"):
            yield "Names are in lower case, and repeated and redundant relations are left out, as RLIPv2 does."
    elif "scored" in identity:
        model = f"`{identity.get('model')}`{', behind an endpoint' if identity.get('served') else ''}"
        column, scorer = ("opinion", "vision-language model") if "by" in identity else ("agreement", "CLIP model")
        yield f"Column `{column}`: scores of the relations by a {scorer} ({model})."
    elif "corrected" in identity:
        yield (
            "Corrected by people in `sgpipe view`: relations that they confirmed, changed or added have no confidence; "
            f"those that they called wrong are left out (conflicts: {identity.get('conflicts')})."
        )
    elif exported := identity.get("exported"):
        if threshold := exported.get("threshold"):
            sha256 = exported.get("calibration")
            measure, by = ("probability", f", by calibration `{sha256[:16]}`") if sha256 else ("confidence", "")
            kept = f"{exported.get('relations', 0):,} of {count(exported.get('of', 0), 'relation')}"
            yield f"Exported with {kept}: those of {measure} {threshold:g} or more{by}."
    elif "tag" in identity:
        yield f"sgpipe {identity.get('sgpipe', '')} made the relations, with seed {identity.get('seed', 0)}."
        if parent := identity.get("parent"):
            yield f"Its first stages did not run: their columns are those of another run (`{parent}`)."
        yield f"Boxes: {_boxes(identity)}."
        yield f"Captions: {_captions(identity)}."
        yield f"Candidate relations: {_candidates(identity)}."
        yield f"Relations: {_relations(identity['tag'])}. {_UNREVIEWED}"


def _boxes(identity: Mapping[str, Any]) -> str:
    drawn, detect = identity.get("miniworld"), identity.get("detect")
    if drawn:
        settings = f"{count(drawn['images'], 'image')}, seed {drawn['seed']}, split `{drawn['split']}`"
        return f"synthetic, drawn with their images by sgpipe's miniworld ({settings})"
    if detect:
        return f"predicted by an object detector (`{detect.get('detector')}`, above score {detect.get('threshold')})"
    return f"the annotations of the source (format `{identity.get('format')}`)"


def _captions(identity: Mapping[str, Any]) -> str:
    caption = identity.get("caption", {})
    if not caption.get("captioner"):
        given = any(files.get("captions") for files in identity.get("source", {}).values())
        return f"{'those of the source' if given else 'none'}; no captioner ran"
    how = f"nucleus sampling, {count(caption.get('samples', 0), 'caption')}"
    if caption.get("decoding") == "beam":
        how = f"beam search with {count(caption.get('beams', 0), 'beam')}, one caption"
    served = " behind an endpoint" if caption.get("endpoint") else ""
    regions = " and ".join(f"each {scope}" for scope in caption.get("scopes", ("image",)))
    return f"by a captioner{served} (`{caption['captioner']}`), {how} of {regions}"


def _candidates(identity: Mapping[str, Any]) -> str:
    pair, parser = identity.get("pair", {}), identity.get("parse", {}).get("model")
    if pair.get("candidates") == "prior":
        return f"the predicates of two classes in scene graphs of another dataset (`{pair.get('prior')}`)"
    if pair.get("candidates") == "image":
        return f"every predicate that the captions state (`{parser}`), for every pair of boxes"
    return f"triplets parsed from the captions (`{parser}`) and matched with the boxes by class"


def _relations(tag: Mapping[str, Any]) -> str:
    if not tag.get("tagger"):
        return f"all candidates{' whose boxes overlap' if tag.get('method') == 'overlap' else ''}; no tagger ran"
    scorer = {"clip": "CLIP model", "vlm": "vision-language model"}.get(tag.get("method", ""), "Relation Tagger")
    kept = f"{'probability' if tag.get('calibration') else 'confidence'} above {tag.get('threshold', 0):g}"
    if tag.get("precision") is not None:
        kept = f"an expected precision of {tag['precision']:g}"
    by = f", by calibration `{tag['calibration'][:16]}`" if tag.get("calibration") else ""
    return f"those of {kept}{by}, scored by a {scorer} (`{tag['tagger']}`)"
