"""The README of an export: where its rows come from, by the identity of the run, what was left out of them, and, for
the hub, how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from sgpipe.evaluation.label_quality import LABELS, run_quality
from sgpipe.export.rows import ExportRows
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.sources.fields import single_line
from sgpipe.stats.audit import origins_text
from sgpipe.stats.measures import measure_database
from sgpipe.storage.index import open_run
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFiles
from sgpipe.storage.shards import DATA
from sgpipe.utils import __version__
from sgpipe.utils.console import count


def describe_origin(run: Mapping[str, Any], reviewed: bool) -> tuple[bool | None, list[str], list[dict[str, Any]]]:
    """Return how rows came to be, by the header of their manifest: whether models chose the relations (None: unknown),
    sentences in order, and the identities that they come from. `reviewed`: whether people judged some relations.
    """
    identities, steps = [identity for identity in Manifest.identities(run) if identity], []
    for identity in identities:
        try:
            steps += _sentences("steps.md.jinja", identity=identity, identities=identities, reviewed=reviewed)
        except (jinja2.UndefinedError, AttributeError, KeyError, TypeError, ValueError):  # changed by others
            steps.append("One step is recorded in a form that sgpipe does not know; see below.")
    first = identities[0] if identities else {}
    is_annotated = first.get("import") not in (None, "hf", "rlipv2") and not first.get("options", {}).get("predictions")
    generated = True if any("tag" in each for each in identities) else False if is_annotated else None
    return generated, steps or ["How the rows were made is not recorded."], identities


def certified_text(certificate: Mapping[str, Any]) -> str:
    """Return what a certificate promises, and its limits, in a sentence."""
    which = "of each predicate" if certificate["by"] else "of these relations"
    begun = certificate.get("plans_begun", 1)
    together = f"; {begun} such plans were begun, each with this chance to be wrong" if begun > 1 else ""
    return (
        f"People's answers to a random sample certify a precision {which} of at least {certificate['precision']:g} "
        f"(confidence {certificate['confidence']:g}{', of each by itself' if certificate['by'] else ''}; of relations "
        f"between two boxes, as these people see them; how many relations are missing is not certified{together})."
    )


README = "README.md"

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
    before, common = rows.totals, _common(rows)
    objects = rows.census.categories.total() - rows.left_out["objects that the format cannot hold"]
    held = {**dict.fromkeys(("coco", "label-studio", "fiftyone"), "captions"), "instructions": "pairs"}.get(form)
    unheld = [name for name in ("captions", "triplets", "pairs") if name != held]
    if listed := ", ".join(f"{name} ({before[name]:,})" for name in unheld if before[name]):
        common["left_out"].append(f"What the format has no place for: {listed}.")
    table = [
        ("images", before["images"], before["images"] - before["errors"]),
        ("objects", before["boxes"], objects),
        ("relations", before["relations"], exported_relations(rows)),
    ]
    values = {"form": form, "table": table, "note": rows.note, "coordinates": coordinates}
    (out / README).write_text(card_template("readme.md.jinja").render(common, **values), encoding="utf-8")


def write_card(rows: ExportRows, out: Path, *, embedded: bool) -> None:
    """Write the dataset card of the hub, after the data; `embedded`: whether the rows hold the images."""
    with open_run(rows.root) as database:
        measures = measure_database(database, calibration=rows.calibration)
        query = "select count(*) from related_images where certainty >= ?::float"
        [(related,)] = database.rows(query, [rows.threshold])
    before, exported = rows.totals, rows.census.predicates.total()
    files = [{"split": split, "path": f"{DATA}/{split}-*.parquet"} for split in rows.splits]
    licences = {dataset: _LICENCES.get(_SHORT.get(dataset, dataset), _UNKNOWN) for dataset in measures.datasets}
    quality = run_quality(rows.root, max(TRAINING_CONFIDENCE, rows.threshold), rows.calibration)
    names = {name for name, _ in licences.values()}
    header = {
        "license": names.pop() if len(names) == 1 else "other",
        "pretty_name": f"{rows.manifest.run.get('name', 'sgpipe')} relations",
        "task_categories": ["object-detection"],
        "tags": ["scene-graph-generation", "visual-relationship-detection", "sgpipe"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    text = card_template("card.md.jinja").render(
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
        most=10,  # names in a list
        quality=quality[LABELS] if quality else None,
        embedded=embedded,
        measure=rows.measure,
    )
    (out / README).write_text(text, encoding="utf-8")


def exported_relations(rows: ExportRows) -> int:
    """Return how many relations an export has, once its files are written."""
    lost = ("of other origins", "below the threshold", "that the format cannot hold")
    return rows.totals["relations"] - sum(rows.left_out[f"relations {why}"] for why in lost)


def _common(rows: ExportRows) -> dict[str, Any]:
    """Return what both templates show."""
    run, problems = rows.manifest.run, {key: n for key, n in rows.totals.items() if key.startswith("problem.")}
    reviewed = bool(rows.certificate) or RunFiles(rows.root).judgements.is_file()
    generated, steps, identities = describe_origin(run, reviewed)
    return {
        "name": run.get("name", "sgpipe"),
        "version": __version__,
        "generated": generated,
        "steps": [*steps, *([certified_text(rows.certificate)] if rows.certificate else [])],
        "identities": [yaml.safe_dump(dict(each), sort_keys=False, allow_unicode=True) for each in identities],
        "left_out": _sentences("left_out.md.jinja", rows=rows, before=rows.totals, problems=problems),
        "origins": origins_text(rows.census.origins) if rows.census.origins else "No relations",
    }


def _sentences(name: str, **values: Any) -> list[str]:
    """Return the lines of a template, for which what its values lack is empty."""
    text = card_template(name, jinja2.ChainableUndefined).render(values)
    return [line for line in text.splitlines() if line.strip()]


def card_template(name: str, undefined: type[jinja2.Undefined] = jinja2.StrictUndefined) -> jinja2.Template:
    """Return a template of this folder."""
    # The README is Markdown: names are in backticks and need no HTML escapes.
    loader = jinja2.PackageLoader("sgpipe.export", ".")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=undefined)
    environment.filters |= {
        "code": lambda name: f"`{single_line(name).replace('`', chr(39)) or ' '}`",
        "counted": count,
        "certified": certified_text,
    }
    return environment.get_template(name)
