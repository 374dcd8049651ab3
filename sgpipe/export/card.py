"""The card of a data set on the Hugging Face hub: what is in it, where it is from, how good it is."""

from __future__ import annotations

from pathlib import Path

import jinja2
import numpy as np
import yaml

from sgpipe import __version__
from sgpipe.evaluation.known import LABELS, known_quality
from sgpipe.export.labels import Labels
from sgpipe.relations import TRAINED_ON
from sgpipe.shards.write import DATA
from sgpipe.stats.database import open_run
from sgpipe.stats.measures import Measures, measure_database

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_MOST = 10  # names in a list

# By data set: the identifier of its licence on the hub, and what is known of it.
_LICENCES = {
    "coco": ("cc-by-4.0", "COCO's annotations are CC BY 4.0; its pictures have the licences of their owners on Flickr"),
    "visual_genome": ("cc-by-4.0", "Visual Genome is CC BY 4.0"),
    "open_images": ("cc-by-4.0", "Open Images' annotations are CC BY 4.0, its pictures are listed as CC BY 2.0"),
    "objects365": ("cc-by-4.0", "Objects365's annotations are CC BY 4.0; its pictures are not its own"),
    "miniworld": ("apache-2.0", "the pictures and all about them were drawn by sgpipe, which is Apache-2.0"),
}
_UNKNOWN = ("other", "not known to sgpipe: look it up where the data is from, before you publish this")


def write_card(labels: Labels, out: Path, *, pictures: bool) -> None:
    """Write README.md; `pictures`: whether they are in the rows. Raises UserError: a shard cannot be read."""
    with open_run(labels.root) as database:
        measures = measure_database(database)
    run = labels.manifest.run
    licences = {dataset: _licence(dataset) for dataset in measures.datasets}
    quality = known_quality(labels.root, max(TRAINED_ON, labels.threshold))
    text = _template().render(
        header=yaml.safe_dump(_header(labels, measures, {name for name, _ in licences.values()}), sort_keys=False),
        name=run["name"],
        version=__version__,
        imported="import" in run.get("identity", {}),
        identity=yaml.safe_dump(run.get("identity", {}), sort_keys=False),
        licences={dataset: sentence for dataset, (_, sentence) in licences.items()},
        measures=measures,
        levels=[level for level in measures.thresholds if np.float32(level.threshold) > labels.threshold],
        predicates=sorted(labels.census.predicates.items(), key=lambda item: (-item[1], item[0])),
        most=_MOST,
        quality=quality[LABELS] if quality else None,
        pictures=pictures,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _header(labels: Labels, measures: Measures, licences: set[str]) -> dict[str, object]:
    """What the hub reads."""
    files = [{"split": split, "path": f"{DATA}/{split}-*.parquet"} for split in labels.splits]
    size = next((name for limit, name in _SIZES.items() if measures.rows < limit), "n>10M")
    return {
        "license": licences.pop() if len(licences) == 1 else "other",
        "pretty_name": f"{labels.manifest.run['name']} relations",
        "task_categories": ["object-detection"],
        "tags": ["scene-graph-generation", "visual-relationship-detection", "sgpipe"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _licence(dataset: str) -> tuple[str, str]:
    return _LICENCES.get({"coco2017": "coco", "o365": "objects365"}.get(dataset, dataset), _UNKNOWN)


def _template() -> jinja2.Template:
    # The card is Markdown: names stand between backticks and are not escaped as HTML.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sgpipe.export", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("card.md.jinja")
