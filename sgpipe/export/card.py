"""The README of an export: where its rows come from, what was left out of them, and, for the hub, how good they are.

Everything it says of how the rows were made comes from the identity of the run, which is what decided them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import yaml

from sgpipe.evaluation.label_quality.comparison import LABELS, run_quality
from sgpipe.export.rows import ExportRows
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.sources.annotated import to_single_line
from sgpipe.stats.audit import origins_text
from sgpipe.stats.measures import measure_database, use_probabilities
from sgpipe.storage.index import open_run
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import source_images
from sgpipe.storage.shards import DATA
from sgpipe.utils import __version__
from sgpipe.utils.console import count

_UNREVIEWED = "**People have not reviewed them.**"


class Origin(NamedTuple):
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
    identities, steps = [identity for identity in Manifest.identities(run) if identity], []
    for identity in identities:
        try:
            steps += list(_steps(identity))
        except (AttributeError, KeyError, TypeError, ValueError):  # changed by others, as in a dataset from the hub
            steps.append("One step is recorded in a form that sgpipe does not know; see below.")
    first = identities[0] if identities else {}
    generated: bool | None = True if any("tag" in each for each in identities) else None
    if (
        generated is None
        and first.get("import") not in (None, "hf", "rlipv2")
        and not first.get("options", {}).get("predictions")
    ):
        generated = False
    return Origin(generated, steps or ["How the rows were made is not recorded."], identities)


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
    elif "merged" in identity:
        yield f"These runs were merged, {len(identity['merged'])} in number: a relation names all that stated it."
    elif exported := identity.get("exported"):
        if threshold := exported.get("threshold"):
            sha256 = exported.get("calibration")
            measure, by = ("probability", f", by calibration `{sha256[:16]}`") if sha256 else ("confidence", "")
            kept = f"{exported.get('relations', 0):,} of {count(exported.get('of', 0), 'relation')}"
            yield f"Exported with {kept}: those of {measure} {threshold:g} or more{by}."
        if certificate := exported.get("certificate"):
            yield certified_text(certificate)
    elif "tag" in identity:
        made = "added relations to those known" if "known" in identity.get("pair", {}) else "made the relations"
        yield f"sgpipe {identity.get('sgpipe', '')} {made}, with seed {identity.get('seed', 0)}."
        if parent := identity.get("parent"):
            yield f"Its first stages did not run: their columns are those of another run (`{parent}`)."
        words = identity.get("ground", {}).get("detector")
        yield f"Boxes: {_boxes(identity)}{f'; of words of captions, by a detector (`{words}`)' if words else ''}."
        yield f"Captions: {_captions(identity)}."
        yield f"Candidate relations: {_candidates(identity)}."
        yield f"Relations: {_relations(identity['tag'])}. {_UNREVIEWED}"


def certified_text(certificate: Mapping[str, Any]) -> str:
    """Return what a certificate promises, and its limits, in a sentence."""
    which = "of each predicate" if certificate["by"] else "of these relations"
    begun = certificate.get("plans_begun", 1)
    together = f"; {begun} such plans were begun, each with this chance to be wrong" if begun > 1 else ""
    return (
        f"People's answers to a random sample certify a precision {which} of at least {certificate['precision']:g} "
        f"(confidence {certificate['confidence']:g}{', of each by itself' if certificate['by'] else ''}; of relations "
        f"between two boxes, as these people see them; how many relations are missing was not measured{together})."
    )


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
    marks = f"what a vision-language model (`{pair.get('model')}`) states of numbered boxes"
    if pair.get("candidates") == "marks":
        return marks
    beside = f"; and {marks}" if pair.get("candidates") == "captions+marks" else ""
    return f"triplets parsed from the captions (`{parser}`) and matched with the boxes by class{beside}"


def _relations(tag: Mapping[str, Any]) -> str:
    if not tag.get("tagger"):
        return f"all candidates{' whose boxes overlap' if tag.get('method') == 'overlap' else ''}; no tagger ran"
    scorer = {"clip": "CLIP model", "vlm": "vision-language model"}.get(tag.get("method", ""), "Relation Tagger")
    kept = f"{'probability' if tag.get('calibration') else 'confidence'} above {tag.get('threshold', 0):g}"
    if tag.get("precision") is not None:
        kept = f"a precision of {tag['precision']:g} (95% confidence)"
    by = f", by calibration `{tag['calibration'][:16]}`" if tag.get("calibration") else ""
    return f"those of {kept}{by}, scored by a {scorer} (`{tag['tagger']}`)"


README = "README.md"
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_MOST = 10  # names in a list

# By dataset: the identifier of its licence on the hub, and a sentence about it.
_LICENCES = {
    "coco": ("cc-by-4.0", "COCO's annotations are CC BY 4.0; its images keep the licences of their owners on Flickr"),
    "visual_genome": ("cc-by-4.0", "Visual Genome itself is CC BY 4.0; other scene graphs in its format may not be"),
    "open_images": ("cc-by-4.0", "Open Images' annotations are CC BY 4.0, its images are listed as CC BY 2.0"),
    "objects365": ("cc-by-4.0", "Objects365's annotations are CC BY 4.0; its images are not its own"),
    "miniworld": ("apache-2.0", "the synthetic images and their annotations come from sgpipe, which is Apache-2.0"),
}
_SHORT = {"coco2017": "coco", "o365": "objects365"}
_UNKNOWN = ("other", "unknown to sgpipe; check the source of the data before you publish this")


def write_readme(rows: ExportRows, out: Path, form: str, coordinates: str) -> None:
    """Write the README of a form other than the hub's, after its files; `coordinates`: of instructions."""
    before, common = totals(rows), _common(rows)
    objects = rows.census.categories.total() - rows.left_out["objects that the format cannot hold"]
    held = {"coco": ("captions",), "label-studio": ("captions",), "instructions": ("pairs",)}.get(form, ())
    unheld = [name for name in ("captions", "triplets", "pairs") if name not in held]
    if listed := ", ".join(f"{name} ({before[name]:,})" for name in unheld if before[name]):
        common["left_out"].append(f"What the format has no place for: {listed}.")
    table = [
        ("images", before["images"], before["images"] - before["errors"]),
        ("objects", before["boxes"], objects),
        ("relations", before["relations"], exported_relations(rows)),
    ]
    text = _template("readme.md.jinja").render(common, form=form, table=table, note=rows.note, coordinates=coordinates)
    (out / README).write_text(text, encoding="utf-8")


def write_card(rows: ExportRows, out: Path, *, embedded: bool) -> None:
    """Write the dataset card of the hub, after the data; `embedded`: whether the rows hold the images.

    Raises UserError: a shard cannot be read.
    """
    with open_run(rows.root) as database:
        if rows.calibration is not None:
            use_probabilities(database, rows.calibration)
        measures = measure_database(database)
        [(related,)] = database.rows("select count(*) from related_images where certainty >= ?::float", rows.threshold)
    before, exported = totals(rows), rows.census.predicates.total()
    files = [{"split": split, "path": f"{DATA}/{split}-*.parquet"} for split in rows.splits]
    licences = {dataset: _LICENCES.get(_SHORT.get(dataset, dataset), _UNKNOWN) for dataset in measures.datasets}
    quality = run_quality(rows.root, max(TRAINING_CONFIDENCE, rows.threshold), rows.calibration)
    names = {name for name, _ in licences.values()}
    header = {
        "license": names.pop() if len(names) == 1 else "other",
        "pretty_name": f"{rows.manifest.run.get('name', 'sgpipe')} relations",
        "task_categories": ["object-detection"],
        "tags": ["scene-graph-generation", "visual-relationship-detection", "sgpipe"],
        "size_categories": [next((name for limit, name in _SIZES.items() if measures.rows < limit), "n>10M")],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    text = _template("card.md.jinja").render(
        _common(rows),
        header=yaml.safe_dump(header, sort_keys=False),  # which the hub reads
        table=[
            ("images", before["images"], measures.rows),
            ("images with relations", before["images_with_relations"], related),
            ("relations", before["relations"], exported),
        ],
        licences={dataset: sentence for dataset, (_, sentence) in licences.items()},
        measures=measures,
        levels=[level for level in measures.thresholds if np.float32(level.threshold) > rows.threshold],
        predicates=sorted(rows.census.predicates.items(), key=lambda item: (-item[1], item[0])),
        relations=exported,
        scored=rows.census.scored,
        most=_MOST,
        quality=quality[LABELS] if quality else None,
        embedded=embedded,
        measure=rows.measure,
    )
    (out / README).write_text(text, encoding="utf-8")


def exported_relations(rows: ExportRows) -> int:
    """How many relations an export has, once its files are written."""
    lost = ("of other origins", "below the threshold", "that the format cannot hold")
    return totals(rows)["relations"] - sum(rows.left_out[f"relations {why}"] for why in lost)


def totals(rows: ExportRows) -> dict[str, int]:
    """The counts of the whole run."""
    names = ("images", "errors", "boxes", "captions", "triplets", "pairs", "relations", "images_with_relations")
    return {name: sum(shard.counts.get(name, 0) for shard in rows.manifest.shards) for name in names}


def _common(rows: ExportRows) -> dict[str, Any]:
    """What both templates show."""
    origin = describe_origin(rows.manifest.run)
    return {
        "name": rows.manifest.run.get("name", "sgpipe"),
        "version": __version__,
        "generated": origin.generated,
        "steps": [*origin.steps, *([certified_text(rows.certificate)] if rows.certificate else [])],
        "identities": [yaml.safe_dump(dict(each), sort_keys=False, allow_unicode=True) for each in origin.identities],
        "left_out": list(_left_out(rows)),
        "origins": origins_text(rows.census.origins),
    }


def _left_out(rows: ExportRows) -> Iterator[str]:
    """One sentence for each reason why something is missing."""
    before = totals(rows)
    if rows.certificate is not None and (below := rows.left_out["relations below the threshold"]):
        yield f"What is not certified: {below:,} of {count(before['relations'], 'relation')} of the run."
    elif rows.threshold:
        below = rows.left_out["relations below the threshold"]
        yield (
            f"Relations of {rows.measure} below {rows.threshold:g} (`--threshold`): {below:,} of "
            f"{count(before['relations'], 'relation')} of the run."
        )
    run = rows.manifest.run
    total = source_images(rows.root) or run.get("source_images")
    if total is not None and before["images"] < total:
        yield f"The run has {before['images']:,} of the {count(total, 'image')} of its source."
    elif run.get("finished") is False:
        yield f"The import was not finished: it has only the first {count(before['images'], 'image')} of its source."
    elif run.get("limit") == before["images"]:
        yield f"The run was limited to the first {count(before['images'], 'image')} of its source (`--limit`)."
    if errors := before["errors"]:
        rows_of = "its row has" if errors == 1 else "their rows have"
        yield f"{count(errors, 'image')} could not be processed: {rows_of} no relations."
    without = before["images"] - before["errors"] - before["images_with_relations"]
    if without:
        yield f"{count(without, 'image')} of the run {'has' if without == 1 else 'have'} no relations."
    for what, number in rows.left_out.items():
        if number and what not in ("relations below the threshold", "error rows"):
            yield f"{what[0].upper()}{what[1:]}: {number:,}."
    problems: Counter[str] = Counter()
    for shard in rows.manifest.shards:
        problems.update({key[8:]: number for key, number in shard.counts.items() if key.startswith("problem.")})
    if problems := +problems:
        listed = ", ".join(f"{name.replace('_', ' ')} ({number:,})" for name, number in problems.items())
        yield f"Dropped or repaired while the source was read: {listed}."


def _template(name: str) -> jinja2.Template:
    # The README is Markdown: names are in backticks and need no HTML escapes.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sgpipe.export", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = lambda name: f"`{to_single_line(name).replace('`', chr(39)) or ' '}`"
    return environment.get_template(name)
