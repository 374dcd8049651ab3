"""RLIPv2's pseudo-labels of COCO and Objects365, which are scene graphs in Visual Genome's format."""

from collections.abc import Iterator

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.images import image_exists
from sgpipe.records import Record
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts
from sgpipe.sources.fields import FieldError, JsonObject
from sgpipe.sources.plugin import Source
from sgpipe.sources.visual_genome import add_graph, graph_record, iter_graphs

_OBJECTS365 = ("o365", "objects365")


def pseudo_label_source(
    annotations: Location, images: ImagePlace, split: str, image_paths: Location | None = None
) -> AnnotationSource:
    """Return a file of pseudo-labels, with unchanged relations.

    Args:
        image_paths: Objects365's image_id_to_filepath.json, required for its images: their ids do
            not give file names.

    Raises:
        UserError: a file is missing or of another format.
    """
    annotated.require_format(annotations, "rlipv2", "vg")
    files = {"annotations": annotations}
    paths: dict[str, object] = {}
    if image_paths is not None:
        files["image_paths"] = image_paths
        paths = dict(JsonStream(image_paths))

    def start(item: object) -> Record:
        dataset = fields.clean(str(fields.mapping(item).get("dataset") or "rlipv2"))
        return graph_record(item, dataset, split)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        def fill(record: Record, item: object) -> None:
            add_graph(record, item, problems)
            annotated.drop_nameless(record, problems)
            graph = fields.mapping(item)
            if "file_name" in graph:
                return
            if record.dataset in _OBJECTS365:
                if not paths:
                    raise UserError(
                        f"{annotations}: image {record.image_id} is of Objects365, whose image ids"
                        " do not give file names: pass --image-paths image_id_to_filepath.json"
                    )
                if record.image_id not in paths:
                    raise FieldError(f"{image_paths} has no path for the image")
                record.file_name = fields.text(paths, record.image_id)
            elif record.dataset.startswith("coco"):
                record.file_name = _coco_file_name(record.image_id, graph, images)

        return annotated.read_records(iter_graphs(annotations), start, fill, problems)

    return AnnotationSource("rlipv2", split, read, files)


def _coco_file_name(image_id: str, graph: JsonObject, images: ImagePlace) -> str:
    """Return the name of an image of COCO, with the folder of its split if it is there."""
    name = f"{image_id:0>12}.jpg"
    folder = fields.clean(str(graph.get("data_split") or "train2017"))
    if image_exists(images, f"{folder}/{name}"):
        return f"{folder}/{name}"
    return name


RLIPV2 = Source("rlipv2", open=pseudo_label_source, is_unsplit=False)
