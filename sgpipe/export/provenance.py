"""Where the rows of a run come from, in sentences, by the identities that its manifest records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import count

_FORMATS = {  # of imports, by the name of their dataset
    "visual_genome": "files in Visual Genome's format",
    "hico": "files in HICO-DET's format",
    "vcoco": "files in V-COCO's format",
    "open_images": "files in Open Images' format",
    "coco": "files in COCO's format",
    "coco_rel": "files in COCO's format, with relations in RelTR's or SGG-Benchmark's format",
    "label_studio": "tasks of Label Studio",
    "rlipv2": "files in the format of RLIPv2's pseudo-labels",
    "hf": "a dataset that `sgpipe export --to hf` wrote",
}


@dataclass(frozen=True)
class Origin:
    """How rows came to be.

    Attributes:
        generated: whether models chose the relations; None: the run does not say.
        steps: sentences, in order.
        identities: what the sentences come from, the first one first.
    """

    generated: bool | None
    steps: list[str]
    identities: Sequence[Mapping[str, Any]]


def describe_origin(run: Mapping[str, Any]) -> Origin:
    """The origin of a run by the header of its manifest."""
    identities = [identity for identity in Manifest.identities(run) if identity]
    steps = [step for identity in identities for step in _readable_steps(identity)]
    first = identities[0] if identities else {}
    if "tag" in first:
        generated: bool | None = True
    else:
        predicted = first.get("options", {}).get("predictions")  # some tasks of Label Studio
        generated = False if first.get("import") not in (None, "hf", "rlipv2") and not predicted else None
    return Origin(generated, steps or ["How the rows were made is not recorded."], identities)


def _readable_steps(identity: Mapping[str, Any]) -> list[str]:
    """The sentences of an identity; one sentence if others have changed it, as in a dataset from the hub."""
    try:
        return list(_steps(identity))
    except (AttributeError, KeyError, TypeError, ValueError):
        return ["One step is recorded in a form that sgpipe does not know; see below."]


def _steps(identity: Mapping[str, Any]) -> Iterator[str]:
    if "import" in identity:
        yield from _import_steps(identity)
    elif "scored" in identity and "by" in identity:
        served = ", behind an endpoint" if identity.get("served") else ""
        yield (
            "Column `opinion`: how probable a vision-language model finds each relation when it is asked "
            f"(`{identity.get('model')}`{served})."
        )
    elif "scored" in identity:
        weights = f", weights `{identity['weights']}`" if identity.get("weights") else ""
        yield (
            "Column `agreement`: how well CLIP finds that each relation fits its image "
            f"(model `{identity.get('model')}`{weights})."
        )
    elif "corrected" in identity:
        yield (
            "Corrected by people in `sgpipe view`: relations that they confirmed, changed or added have no confidence; "
            f"those that they called wrong are left out (conflicts: {identity.get('conflicts')})."
        )
    elif "exported" in identity:
        yield from _export_steps(identity["exported"])
    elif "tag" in identity:
        yield from _generation_steps(identity)


def _import_steps(identity: Mapping[str, Any]) -> Iterator[str]:
    name = identity["import"]
    source = _FORMATS.get(name, f"files in the format of `{name}`")
    version = identity.get("sgpipe", "")
    yield f"Objects and relations: imported by sgpipe {version} from {source}, as the files state them."
    yield "A relation without a confidence was annotated; one with a confidence was predicted by a model."
    if identity.get("options", {}).get("preprocess"):
        yield "Names are in lower case, and repeated and redundant relations are left out, as RLIPv2 does."


def _export_steps(exported: Mapping[str, Any]) -> Iterator[str]:
    if threshold := exported.get("threshold"):
        kept = f"{exported.get('relations', 0):,} of {count(exported.get('of', 0), 'relation')}"
        if sha256 := exported.get("calibration"):
            yield f"Exported with {kept}: those of probability {threshold:g} or more, by calibration `{sha256[:16]}`."
        else:
            yield f"Exported with {kept}: those of confidence {threshold:g} or more."


def _generation_steps(identity: Mapping[str, Any]) -> Iterator[str]:
    seed = identity.get("seed", 0)
    by = " by the procedure of RLIPv2" if identity.get("tag", {}).get("method", "rtagger") == "rtagger" else ""
    yield f"sgpipe {identity.get('sgpipe', '')} made the relations{by}, with seed {seed}."
    if parent := identity.get("parent"):
        yield f"Its first stages did not run: their columns are those of another run (`{parent}`)."
    yield _boxes(identity)
    yield _captions(identity)
    yield _candidates(identity)
    yield _relations(identity.get("tag", {}))


def _boxes(identity: Mapping[str, Any]) -> str:
    drawn, detect = identity.get("miniworld"), identity.get("detect")
    if drawn:
        settings = f"{count(drawn['images'], 'image')}, seed {drawn['seed']}, split `{drawn['split']}`"
        return f"Images and boxes: synthetic, drawn by sgpipe's miniworld ({settings})."
    if detect:
        detector = f"`{detect.get('detector')}`, above score {detect.get('threshold')}"
        return f"Boxes: predicted by an object detector ({detector}); people have not reviewed them."
    return f"Boxes: the annotations of the source (format `{identity.get('format')}`)."


def _captions(identity: Mapping[str, Any]) -> str:
    caption = identity.get("caption", {})
    if not caption.get("captioner"):
        if any(files.get("captions") for files in identity.get("source", {}).values()):
            return "Captions: those of the source's captions file; no captioner ran."
        return "Captions: none; no captioner ran."
    how = f"nucleus sampling, {count(caption.get('samples', 0), 'caption')}"
    if caption.get("decoding") == "beam":
        how = f"beam search with {count(caption.get('beams', 0), 'beam')}, one caption"
    served = " behind an endpoint" if caption.get("endpoint") else ""
    regions = " and ".join(_SCOPES.get(scope, scope) for scope in caption.get("scopes", ("image",)))
    return f"Captions: by a captioner{served} (`{caption['captioner']}`), {how} of {regions}."


_SCOPES = {"image": "each image", "box": "each box", "pair": "each pair of boxes"}


def _candidates(identity: Mapping[str, Any]) -> str:
    pair = identity.get("pair", {})
    if pair.get("candidates") == "prior":
        prior = f"scene graphs of another dataset (`{pair.get('prior')}`)"
        return f"Candidate relations: for two classes, the predicates that they have in {prior}; captions do not count."
    parser = identity.get("parse", {}).get("model")
    if pair.get("candidates") == "image":
        return f"Candidate relations: every predicate that the captions state (`{parser}`), for every pair of boxes."
    return f"Candidate relations: triplets parsed from the captions (`{parser}`) and matched with the boxes by class."


def _relations(tag: Mapping[str, Any]) -> str:
    if tag.get("method") == "overlap":
        return "Relations: all candidates whose boxes overlap; no tagger ran. **People have not reviewed them.**"
    if not tag.get("tagger"):
        return "Relations: all candidates; no tagger ran. **People have not reviewed them.**"
    scorer = {"clip": "CLIP model", "vlm": "vision-language model"}.get(tag.get("method", ""), "Relation Tagger")
    measure = "probability" if tag.get("calibration") else "confidence"
    kept = f"the run has those of {measure} above {tag.get('threshold', 0):g}"
    if tag.get("precision") is not None:
        kept = f"the run has those with an expected precision of {tag['precision']:g}"
    if tag.get("calibration"):
        kept += f", by calibration `{tag['calibration'][:16]}`"
    return (
        f"Relations: a {scorer} (`{tag['tagger']}`) scored every candidate; {kept}. **People have not reviewed them.**"
    )
