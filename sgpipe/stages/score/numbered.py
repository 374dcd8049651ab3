"""One image for many questions: its boxes are outlined and numbered, and questions name their
numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from sgpipe.records import Box, Relation
from sgpipe.utils.console import single_line
from sgpipe.viz import TextPlacer, colour_of, corners, font, middle

MOST_MARKS = 30  # on an image, so that numbers can be read; further boxes are on further copies
# pixels of the longer side of a numbered image
_SHORTEST = 640
_LONGEST = 1024
# parts of the longer side
_LINE = 1 / 200
_NUMBER = 1 / 40
_FIRST_LINE = "Things in this image are outlined and numbered."


@dataclass
class NumberedImage:
    """The boxes that are numbered on one copy of an image, and the relations asked about.

    Attributes:
        boxes: indices of objects; the first has number 1.
        relations: indices of relations, all between these boxes.
    """

    boxes: list[int] = field(default_factory=list)
    relations: list[int] = field(default_factory=list)

    def prompt(self, objects: Sequence[Box]) -> str:
        """Return what all questions begin with: the number and name of each box."""
        lines = [_FIRST_LINE]
        for number, index in enumerate(self.boxes, 1):
            lines.append(f"{number}: {single_line(objects[index].category)}")
        return "\n".join(lines)

    def question(self, objects: Sequence[Box], relation: Relation) -> str:
        subject = self._name(objects, relation.subject)
        predicate = single_line(relation.predicate)
        if objects[relation.object].is_nothing:
            return f"Is {subject} {predicate}?"
        return f"Is {subject} {predicate} {self._name(objects, relation.object)}?"

    def _name(self, objects: Sequence[Box], index: int) -> str:
        number = self.boxes.index(index) + 1
        return f"the {single_line(objects[index].category)} ({number})"


def draw_numbers(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Return the image with outlined boxes, numbered from 1 where numbers hide little.

    It costs a fraction of `viz.draw_marks`, which smooths lines.
    """
    longer = max(image.size)
    scale = min(max(longer, _SHORTEST), _LONGEST) / longer
    width, height = (max(round(side * scale), 1) for side in image.size)
    marked = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)
    pen = ImageDraw.Draw(marked)
    line = round(_LINE * max(marked.size))
    text_height = round(_NUMBER * max(marked.size))
    letters = font(text_height)
    rectangles = [corners(box.bbox, scale, marked.size) for box in boxes]
    for index, rectangle in enumerate(rectangles):
        pen.rectangle(rectangle, outline=colour_of(index), width=line)
    placer = TextPlacer(width, height, rectangles)
    for index, rectangle in enumerate(rectangles):
        number = str(index + 1)
        size = (letters.getlength(number) + 3 * line, text_height + line)
        place = placer.place_beside(rectangle, size)
        x, y = middle(place)
        left, top, right, bottom = rectangle
        nearest = (min(max(x, left), right), min(max(y, top), bottom))
        pen.line(((x, y), nearest), fill=colour_of(index), width=line)
        pen.rectangle(place, fill=colour_of(index))
        pen.text((x, y), number, fill="white", font=letters, anchor="mm")
    return marked


def numbered_images(objects: Sequence[Box], relations: Sequence[Relation]) -> list[NumberedImage]:
    """Distribute relations over as few copies of the image as their boxes need, pairs of large boxes
    first.

    The largest box of a copy has number 1.
    """
    ranks = [box.rank for box in objects]
    ranks_of_pairs = [(ranks[relation.subject], ranks[relation.object]) for relation in relations]

    copies: list[NumberedImage] = []
    numbered: set[int] = set()
    for index in sorted(range(len(relations)), key=ranks_of_pairs.__getitem__):
        ends = {relations[index].subject, relations[index].object}
        ends = {end for end in ends if not objects[end].is_nothing}
        if not copies or len(numbered | ends) > MOST_MARKS:
            copies.append(NumberedImage())
            numbered = set()
        numbered |= ends
        copies[-1].boxes = sorted(numbered, key=ranks.__getitem__)
        copies[-1].relations.append(index)
    return copies
