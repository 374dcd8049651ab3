"""What predicates claim about positions and actors; a predicate that is not listed claims nothing."""

from __future__ import annotations

_POSTURES = ("sitting", "standing", "walking", "running", "lying", "laying", "parked", "driving", "riding")


def _in_any_posture(*places: str) -> tuple[str, ...]:
    return (*places, *(f"{posture} {place}" for place in places for posture in _POSTURES))


LEFT = ("left of", "to left of", "to the left of", "on the left of", "on left of", "left to")
RIGHT = ("right of", "to right of", "to the right of", "on the right of", "on right of", "right to")
RIDING = ("riding", "ride", "rides", "riding on", "sitting on", "sits on", "standing on", "stands on", "lying on",
          "laying on", "walking on", "parked on", "mounted on", "resting on")  # fmt: skip
UPON = ("on", "on top of", "atop", "upon", *RIDING)
OVER = ("above", "over", "flying over", "hanging over", "jumping over")
UNDER = _in_any_posture("under", "underneath", "beneath", "below")
INSIDE = ("within", "contained in", *_in_any_posture("inside", "inside of"))
AROUND = ("containing", "contains", "surrounding")
FRONT = _in_any_posture("in front of")
BEHIND = _in_any_posture("behind", "in back of")
HELD = ("holding", "holds", "hold", "carrying", "carries", "carry", "wearing", "wears", "wear", "eating", "eats",
        "drinking", "riding", "petting", "hugging", "touching")  # fmt: skip

# On which side of an axis a predicate places its subject; the object is then on the other side.
AXES: dict[tuple[str, int], tuple[str, ...]] = {
    ("left and right", 1): LEFT,
    ("left and right", -1): RIGHT,
    ("above and below", 1): (*UPON, *OVER),
    ("above and below", -1): UNDER,
    ("inside and around", 1): INSIDE,
    ("inside and around", -1): AROUND,
    ("front and back", 1): FRONT,
    ("front and back", -1): BEHIND,
}

# Constraints that a predicate puts on the two boxes; it may put several.
GEOMETRY: dict[str, tuple[str, ...]] = {
    "upward": (*UPON, *OVER),
    "downward": UNDER,
    "overlapping": INSIDE,
    "leftward": LEFT,
    "rightward": RIGHT,
    "close": tuple(dict.fromkeys((*HELD, *RIDING))),
}

# Predicates whose subject must be a person or an animal.
ACTS = (
    "wearing", "wears", "eating", "eats", "drinking", "drinks", "riding", "rides", "watching", "watches", "looking at",
    "looks at", "reading", "reads", "throwing", "throws", "kicking", "kicks", "petting", "feeding", "hugging",
    "kissing", "talking to", "talking on", "walking", "chasing", "playing with", "biting", "licking",
)  # fmt: skip
# Common classes of COCO and Objects365 that do not act by themselves.
LIFELESS = (
    "bicycle", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife",
    "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "hair drier", "toothbrush", "sneakers", "hat", "glasses", "table", "desk", "plate", "lamp", "helmet", "shoe",
)  # fmt: skip
NO_RELATION = (
    "a", "an", "the", "and", "or", "but", "it", "this", "that", "these", "there", "i", "he", "she", "they", "we", "you",
    "is", "are", "be", "was", "were", "been", "not", "no", "very", "one", "two", "some", "other", "s", "t",
)  # fmt: skip
