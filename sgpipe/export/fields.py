"""What several formats write of an image, a box or a relation."""

from sgpipe.export.rows import as_number, plain
from sgpipe.records import Box, Record, Relation


def image_fields(record: Record) -> dict[str, object]:
    return {
        "image_id": as_number(record.image_id),
        "file_name": record.file_name,
        "width": record.width,
        "height": record.height,
    }


def corners(box: Box) -> list[float | int]:
    """Return the corners xyxy of a box, in pixels."""
    x, y, w, h = box.bbox
    return [plain(x), plain(y), plain(x + w), plain(y + h)]


def confidence_field(relation: Relation) -> dict[str, float]:
    return {} if relation.confidence is None else {"confidence": relation.confidence}


def unique_id(record: Record, seen: set[str]) -> str:
    """Return the id of an image, with the name of its split if another image has it, and add it to
    `seen`.
    """
    image_id = record.image_id
    while image_id in seen:
        image_id += f"-{record.split}"
    seen.add(image_id)
    return image_id
