"""Coloured polygons, the only drawing primitive, and the people and animals made of them, from the
side, facing right.

Points are complex numbers, x to the right and y up, so that sums move them and products turn them.
They are relative to what is drawn, in world units (a man is about 1.75 tall); within a person's
body, in fractions of the height.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from numpy.random import Generator

from sgpipe.miniworld.shapes import (
    RGB,
    Colour,
    Shapes,
    blob,
    capsule,
    disc,
    ellipse,
    limb,
    moved,
    path,
    pick,
    pick_colour,
    polygon,
    sector,
    shade,
    turned,
    vary,
)

SKIN: tuple[RGB, ...] = (
    (248, 212, 180),
    (232, 184, 146),
    (198, 144, 104),
    (146, 98, 68),
    (104, 68, 48),
)
HAIR: tuple[RGB, ...] = (
    (44, 34, 32),
    (92, 60, 38),
    (164, 108, 56),
    (222, 182, 98),
    (176, 76, 40),
    (120, 120, 124),
)
CLOTHES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TROUSERS: tuple[RGB, ...] = (
    (52, 62, 92),
    (74, 96, 140),
    (58, 56, 60),
    (104, 92, 76),
    (70, 84, 70),
    (120, 62, 58),
)

_DOWN = (0.05 - 0.3j, 0.02 - 0.3j)
PEOPLE = ("man", "woman", "boy", "girl")
Hands: TypeAlias = tuple[complex | None, complex | None]  # the near and the far one
Feet: TypeAlias = tuple[complex, complex] | None

_FOLDED = ("sitting", "lying", "looking")  # postures in which the hind legs are folded
_NECK_TURNS = {"running": -22, "jumping": -10, "lying": -34, "looking": 10}  # degrees

# Per posture, in leg lengths: the offset of hip and shoulder from their standing height, and the
# positions of the feet relative to the start of their leg: hind near, hind far, fore near, fore
# far.
_ANIMAL_POSTURES: dict[str, tuple[float, float, tuple[complex, ...]]] = {
    "standing": (0.0, 0.0, (-0.08 - 1j, 0.16 - 1j, 0.02 - 1j, 0.26 - 1j)),
    "walking": (-0.04, 0.0, (-0.4 - 0.92j, 0.34 - 0.95j, 0.42 - 0.93j, -0.34 - 0.95j)),
    "running": (-0.02, 0.04, (-0.95 - 0.62j, -0.7 - 0.8j, 0.95 - 0.52j, 0.7 - 0.72j)),
    "jumping": (0.0, 0.26, (-0.85 - 0.6j, -0.7 - 0.75j, 0.8 - 0.1j, 0.7 - 0.4j)),
    "sitting": (-0.58, 0.18, (0.55 - 0.42j, 0.66 - 0.42j, 0.1 - 1.16j, 0.26 - 1.16j)),
    "lying": (-0.72, -0.7, (0.6 - 0.28j, 0.7 - 0.26j, 0.72 - 0.32j, 0.86 - 0.3j)),
    "looking": (-0.58, 0.22, (0.55 - 0.42j, 0.66 - 0.42j, 0.06 - 1.2j, 0.22 - 1.2j)),
}


class Build(NamedTuple):
    height: float
    head: float
    hip: float
    shoulder: float
    girth: float


MAN = Build(height=1.75, head=0.115, hip=0.44, shoulder=0.725, girth=0.19)
WOMAN = Build(height=1.66, head=0.118, hip=0.45, shoulder=0.715, girth=0.15)
CHILD = Build(height=1.2, head=0.155, hip=0.38, shoulder=0.65, girth=0.19)


class Posture(NamedTuple):
    """Positions of the parts of a body, relative to the point on the ground below the hip.

    hip: its rise above standing height. lean: of the torso, forward, in degrees. feet, hands: of
    the near and the far limb, relative to the hip and to the shoulder.
    """

    hip: float
    lean: float
    feet: tuple[complex, complex]
    hands: tuple[complex, complex]
    gaze: float = 0.0


POSTURES: dict[str, Posture] = {
    "standing": Posture(0.0, 0, (-0.05 - 0.44j, 0.06 - 0.44j), _DOWN),
    "walking": Posture(-0.02, 3, (0.17 - 0.42j, -0.17 - 0.41j), (-0.14 - 0.27j, 0.16 - 0.25j)),
    "running": Posture(-0.02, 14, (0.25 - 0.34j, -0.32 - 0.22j), (-0.2 - 0.14j, 0.2 - 0.06j)),
    "kicking": Posture(-0.01, -12, (0.37 - 0.25j, -0.08 - 0.43j), (-0.24 - 0.12j, 0.24 - 0.1j)),
    "throwing": Posture(-0.02, -4, (0.18 - 0.41j, -0.2 - 0.4j), (0.13 + 0.28j, -0.24 - 0.04j)),
    "pushing": Posture(-0.07, 24, (-0.1 - 0.37j, -0.38 - 0.35j), (0.3 - 0.04j, 0.3 - 0.02j)),
    "petting": Posture(-0.04, 26, (0.03 - 0.41j, -0.12 - 0.41j), (0.2 - 0.22j, -0.02 - 0.28j)),
    "crouching": Posture(-0.15, 30, (0.06 - 0.3j, -0.14 - 0.3j), (0.2 - 0.22j, -0.02 - 0.24j)),
    "looking": Posture(0.0, 7, (0.09 - 0.44j, -0.11 - 0.43j), (0.13 + 0.17j, -0.06 - 0.27j), -8),
    "sitting": Posture(0.0, 0, (0.24 - 0.24j, 0.28 - 0.22j), (0.16 - 0.2j, 0.18 - 0.2j)),
    "straddling": Posture(0.0, 4, (0.09 - 0.4j, 0.12 - 0.39j), (0.22 - 0.14j, 0.24 - 0.13j)),
    "balancing": Posture(-0.09, 14, (-0.14 - 0.35j, 0.16 - 0.35j), (-0.25 + 0.02j, 0.27 + 0.03j)),
    "jumping": Posture(0.0, 14, (0.34 - 0.2j, -0.34 - 0.16j), (-0.22 + 0.06j, 0.24 + 0.1j)),
    "lying": Posture(0.0, 0, (-0.03 - 0.43j, 0.04 - 0.43j), (0.06 - 0.28j, 0.03 - 0.28j), -6),
}


@dataclass(frozen=True)
class Look:
    """The look of an animal or a thing; `style` selects a variant."""

    kind: str
    colour: Colour
    second: RGB
    size: float
    style: int


@dataclass(frozen=True)
class PersonLook:
    noun: str
    build: Build
    size: float
    skin: RGB
    hair: RGB
    top: Colour
    bottom: RGB
    long_hair: bool
    dress: bool
    shorts: bool
    hat: RGB | None

    @property
    def height(self) -> float:
        return self.build.height * self.size


def random_person(rng: Generator) -> PersonLook:
    noun = PEOPLE[rng.choice(4, p=[0.34, 0.34, 0.16, 0.16])]
    build = {"man": MAN, "woman": WOMAN}.get(noun, CHILD)
    female = noun in ("woman", "girl")
    return PersonLook(
        noun=noun,
        build=build,
        size=float(rng.uniform(0.94, 1.08)),
        skin=pick(rng, SKIN),
        hair=vary(rng, pick(rng, HAIR), 6),
        top=pick_colour(rng, CLOTHES),
        bottom=vary(rng, pick(rng, TROUSERS), 8),
        long_hair=female,
        dress=female and rng.random() < 0.7,
        shorts=build is CHILD or rng.random() < 0.15,
        hat=pick_colour(rng, CLOTHES).rgb if rng.random() < 0.18 else None,
    )


def shoulder_of(look: PersonLook, posture: str) -> complex:
    """Return the position of the shoulder in fractions of the height."""
    pose = POSTURES[posture]
    build = look.build
    return (build.hip + pose.hip) * 1j + turned(
        (build.shoulder - build.hip - 0.02) * 1j, -pose.lean
    )


def draw_person(
    look: PersonLook, posture: str, hands: Hands = (None, None), feet: Feet = None
) -> list[Shapes]:
    """Draw a person in world units: what is behind a held thing, and the near arm. The origin is
    below the hip.

    Args:
        hands, feet: points of the near and the far one; None keeps those of the posture.
    """
    pose = POSTURES[posture]
    build = look.build
    height = look.height
    hip = (build.hip + pose.hip) * 1j
    shoulder = shoulder_of(look, posture)
    legs = build.hip / MAN.hip  # postures are defined for the legs of a man
    if feet:
        near_foot = feet[0] / height
        far_foot = feet[1] / height
    else:
        near_foot = hip + pose.feet[0] * legs
        far_foot = hip + pose.feet[1] * legs
    near, far = hands
    near_hand = shoulder + pose.hands[0] if near is None else near / height
    far_hand = shoulder + pose.hands[1] if far is None else far / height
    top = look.top.rgb
    girth = look.build.girth
    torso = [capsule(top, shoulder - girth * 0.18j, hip + 0.04j, girth * 0.96, girth * 0.98)]
    if look.dress:
        reach = 0.24 if posture in ("sitting", "straddling") else 0.0
        waist = hip + 0.1j
        hem = hip + (reach * 0.5 - 0.17) * 1j
        left = hem - girth * 0.95
        right = hem + girth * 0.95 + reach * 0.6
        torso.append(blob(top, waist - girth * 0.5, left, hem - 0.02j, right, waist + girth * 0.5))
        torso.append(capsule(shade(top, 0.8), waist - girth * 0.45, waist + girth * 0.45, 0.03))
    else:
        torso.append(
            capsule(look.bottom, hip + 0.02j - girth * 0.22, hip + 0.02j + girth * 0.22, 0.1)
        )
    behind = [
        *_arm(look, shoulder, far_hand, 0.82),
        *_leg(look, hip + 0.02, far_foot, 0.8),
        *_leg(look, hip - 0.01, near_foot, 1.0),
        *torso,
        *moved(_head(look), shoulder + turned(0.03j, -pose.lean), -pose.lean * 0.6 + pose.gaze),
    ]
    return [moved(part, scale=height) for part in (behind, _arm(look, shoulder, near_hand, 1.0))]


def _leg(look: PersonLook, hip: complex, foot: complex, light: float) -> Shapes:
    cover = shade(look.skin if look.dress else look.bottom, light)
    shin = shade(look.skin if look.dress or look.shorts else look.bottom, light)
    length = (look.build.hip - 0.02) * 0.495
    shapes, knee, ankle = limb(cover, hip, foot + 0.025j, length, (0.105, 0.08, 0.062), 1)
    if shin != cover:
        shapes = [capsule(shin, knee, ankle, 0.07, 0.055), shapes[0]]
    foot_length = 0.076 if ankle.imag < hip.imag - 0.12 else 0.0496
    return [
        *shapes,
        ellipse(shade((64, 52, 50), light), ankle + 0.035 - 0.004j, foot_length, 0.034),
    ]


def _arm(look: PersonLook, shoulder: complex, hand: complex, light: float) -> Shapes:
    sleeve = shade(look.top.rgb, light * 0.9)
    skin = shade(look.skin, light)
    side = 1 if hand.imag > shoulder.imag + 0.12 else -1
    (upper, _), elbow, wrist = limb(sleeve, shoulder, hand, 0.165, (0.078, 0.066, 0.058), side)
    return [capsule(skin, elbow, wrist, 0.058, 0.048), upper, disc(skin, wrist, 0.034, 14)]


def _head(look: PersonLook) -> Shapes:
    """Draw the head on a neck at the origin; the hair that falls behind it and the face are in
    radii of the head.
    """
    radius = look.build.head
    skin = look.skin
    hair = look.hair
    cap = (0.75 + 0.72j, 0.5 + 1j, 1.13j, -0.55 + 0.98j, -0.98 + 0.45j, -1.02 - 0.2j)
    nape = -0.82 - (0.9j if look.long_hair else 0.62j)
    face = [
        ellipse(skin, 0, 0.92, 1),
        disc(skin, 0.92 - 0.12j, 0.15, 10),
        polygon(hair, *cap, nape, -0.5 - 0.25j, -0.4 + 0.32j, 0.15 + 0.52j),
        ellipse(shade(skin, 0.88), -0.2 - 0.1j, 0.15, 0.2, corners=10),
        disc((40, 34, 34), 0.5 + 0.08j, 0.115, 10),
        *path(shade(skin, 0.6), [0.3 - 0.4j, 0.48 - 0.54j, 0.7 - 0.42j], 0.1),
    ]
    if look.hat:
        face.append(sector(look.hat, 0.3j, 1.02, 0, 180))
        face.append(capsule(shade(look.hat, 0.8), -0.8 + 0.32j, 1.5 + 0.3j, 0.18))
    fall = blob(
        hair, -0.2 + 2.05j, -1.2 + 1.3j, -1.28 + 0.2j, -0.95 - 0.75j, -0.25 - 0.5j, 0.3 + 1.2j
    )
    middle = 0.012 + radius * 1j
    behind = moved([fall], scale=radius) if look.long_hair else []
    return [
        *behind,
        capsule(shade(skin, 0.86), -0.03j, middle, 0.07),
        *moved(face, middle, scale=radius),
    ]


class Frame(NamedTuple):
    """Proportions of a four-legged animal in world units."""

    length: float  # from hip to shoulder
    leg: float
    girth: float
    neck: float
    neck_angle: float
    head: float
    limb_width: float


FRAMES = {
    "dog": Frame(0.6, 0.4, 0.31, 0.23, 52, 0.175, 0.115),
    "cat": Frame(0.46, 0.28, 0.25, 0.15, 50, 0.175, 0.095),
    "horse": Frame(0.95, 0.82, 0.5, 0.62, 55, 0.21, 0.15),
}


def back_of(kind: str) -> float:
    """Return the height of the back of a standing animal at size 1, in world units."""
    frame = FRAMES[kind]
    return frame.leg + frame.girth * 0.86


def draw_animal(look: Look, posture: str) -> Shapes:
    """Draw an animal of size 1.

    The origin is on the ground below its trunk, or in the middle of a flying bird.
    """
    if look.kind == "bird":
        return _bird(look, posture)
    frame = FRAMES[look.kind]
    coat = look.colour.rgb
    far = shade(coat, 0.72)
    near = shade(coat, 0.95)
    girth = frame.girth
    hip_rise, shoulder_rise, (near_hind, far_hind, near_fore, far_fore) = _ANIMAL_POSTURES[posture]
    height = frame.leg + girth * 0.3
    hip = complex(-frame.length / 2, height + hip_rise * frame.leg)
    shoulder = complex(frame.length / 2, height + shoulder_rise * frame.leg)
    if posture in ("sitting", "looking"):
        hip = hip + frame.length * 0.18
        shoulder = shoulder - frame.length * 0.12
    shapes = [
        *_animal_leg(look, hip, far_hind, far, -1),
        *_animal_leg(look, shoulder, far_fore, far, 1),
        *moved(_tail(look, posture), hip + girth * (-0.42 + 0.2j)),
        capsule(coat, hip + girth * 0.08j, shoulder + girth * 0.04j, girth, girth * 1.06),
        *_marks(look, hip, shoulder),
        *_animal_leg(look, hip, near_hind, near, -1),
    ]
    if posture in _FOLDED:
        thigh = hip + girth * (0.18 - 0.08j)
        shapes.append(ellipse(near, thigh, girth * 0.48, girth * 0.42))
    shapes += _animal_leg(look, shoulder, near_fore, near, 1)
    shapes += _neck_and_head(look, shoulder, posture)
    lowest = min(float(shape.points.imag.min()) for shape in shapes)
    return moved(shapes, -lowest * 1j)


def _tail(look: Look, posture: str) -> Shapes:
    """Draw the tail of an animal from the origin."""
    coat = look.colour.rgb
    is_folded = posture in _FOLDED
    if look.kind == "horse":
        flow = 0.34 if posture in ("running", "jumping") else 0.1
        ends = (
            -0.1 - 0.02j - flow * 0.4,
            -0.14 - 0.55j + flow * (-1 + 1j),
            -0.02 - 0.4j + flow * 0.6j,
        )
        return [blob(shade(coat, 0.5), 0.08 + 0.06j, *ends)]
    if look.kind == "dog":
        end = -0.16 + (0.06j if is_folded else 0.2j)
        return path(coat, [0.06, -0.08 + 0.03j, end], 0.085, 0.045)
    if is_folded:
        points = [0.06, -0.08 - 0.06j, -0.2 - 0.08j, -0.28, -0.3 + 0.1j]
    else:
        points = [0.06, -0.12, -0.2 + 0.1j, -0.18 + 0.26j, -0.1 + 0.34j]
    return path(coat, points, 0.06, 0.045)


def _marks(look: Look, hip: complex, shoulder: complex) -> Shapes:
    """Draw the patch of a dog, or the stripes of a cat, if it has any."""
    girth = FRAMES[look.kind].girth
    middle = (hip + shoulder) / 2
    if not look.style or look.kind == "horse":
        return []
    if look.kind == "dog":
        patch = middle + girth * (-0.2 + 0.16j)
        return [ellipse(look.second, patch, girth * 0.5, girth * 0.28)]
    slope = (shoulder - hip).imag / (shoulder - hip).real
    stripes = []
    for step in (-0.66, -0.12, 0.42):
        top = middle + girth * (step * (1 + slope * 1j) + 0.48j)
        bottom = top + girth * (0.06 - 0.32j)
        stripes.append(capsule(look.second, top, bottom, girth * 0.16, girth * 0.05))
    return stripes


def _neck_and_head(look: Look, shoulder: complex, posture: str) -> Shapes:
    frame = FRAMES[look.kind]
    coat = look.colour.rgb
    neck = shoulder + frame.girth * (0.12 + 0.2j)
    top = neck + turned(frame.neck, frame.neck_angle + _NECK_TURNS.get(posture, 0))
    shapes: Shapes = []
    if look.kind == "horse":
        mane = [neck - 0.14 + 0.16j, top - 0.14 - 0.02j, top - 0.02 + 0.12j]
        shapes += path(shade(coat, 0.5), mane, 0.22, 0.16)
    shapes.append(capsule(coat, neck, top, frame.girth * 0.82, frame.head * 1.25))
    head = {"dog": _dog_head, "cat": _cat_head, "horse": _horse_head}[look.kind]
    tilt = 22 if posture == "looking" else 0
    return shapes + moved(head(look), top, tilt, frame.head)


def _animal_leg(look: Look, start: complex, foot: complex, colour: RGB, side: int) -> Shapes:
    frame = FRAMES[look.kind]
    start -= frame.girth * 0.1j
    length = frame.leg + frame.girth * 0.2
    width = frame.limb_width
    target = start + complex(foot.real * frame.leg, foot.imag * length + width * 0.4)
    shapes, _, end = limb(
        colour, start, target, length * 0.465, (width * 1.5, width, width * 0.8), side
    )
    paw = (50, 42, 40) if look.kind == "horse" else shade(colour, 0.9)
    return [
        *shapes,
        ellipse(paw, end + width * (0.2 - 0.02j), width * 0.62, width * 0.42, corners=12),
    ]


def _eye(at: complex, radius: float) -> Shapes:
    return [
        disc((252, 252, 248), at, radius * 1.5, 12),
        disc((30, 26, 26), at + radius * 0.3, radius, 10),
    ]


# Heads are in radii, around the end of the neck.
def _dog_head(look: Look) -> Shapes:
    coat = look.colour.rgb
    ear = look.second if look.style else shade(look.colour.rgb, 0.7)
    return [
        capsule(shade(coat, 1.12), 0.4 - 0.2j, 1.45 - 0.3j, 1, 0.72),
        disc(coat, 0, 1),
        ellipse((36, 30, 30), 1.72 - 0.12j, 0.22, 0.2, corners=12),
        capsule(shade(coat, 0.55), 0.9 - 0.48j, 1.55 - 0.5j, 0.09),
        *_eye(0.5 + 0.28j, 0.15),
        blob(ear, -0.55 + 0.95j, 0.05 + 0.75j, -0.1 - 0.3j, -0.55 - 0.85j, -1 - 0.35j),
    ]


def _cat_head(look: Look) -> Shapes:
    coat = look.colour.rgb
    eye = (196, 214, 84) if sum(coat) < 520 else (92, 160, 92)
    whisker = shade(coat, 0.5) if sum(coat) > 300 else (210, 210, 210)
    return [
        polygon(shade(coat, 0.85), -0.9 + 0.3j, -0.75 + 1.65j, -0.05 + 0.85j),
        polygon(coat, 0.1 + 0.85j, 0.75 + 1.65j, 0.95 + 0.3j),
        polygon((240, 160, 160), 0.35 + 0.85j, 0.68 + 1.35j, 0.8 + 0.6j),
        ellipse(coat, 0, 1.12, 0.98),
        ellipse(shade(coat, 1.5), 0.45 - 0.36j, 0.5, 0.36, corners=14),
        ellipse(eye, 0.02 + 0.16j, 0.2, 0.24, corners=12),
        ellipse((24, 24, 24), 0.06 + 0.16j, 0.08, 0.2, corners=8),
        ellipse(eye, 0.74 + 0.16j, 0.2, 0.24, corners=12),
        ellipse((24, 24, 24), 0.78 + 0.16j, 0.08, 0.2, corners=8),
        polygon((226, 112, 122), 0.3 - 0.16j, 0.6 - 0.16j, 0.45 - 0.34j),
        capsule(whisker, 0.7 - 0.3j, 1.5 - 0.25j, 0.05),
        capsule(whisker, 0.15 - 0.3j, -0.6 - 0.25j, 0.05),
        capsule(whisker, 0.7 - 0.44j, 1.5 - 0.46j, 0.05),
        capsule(whisker, 0.15 - 0.44j, -0.6 - 0.46j, 0.05),
    ]


def _horse_head(look: Look) -> Shapes:
    coat = look.colour.rgb
    return [
        polygon(shade(coat, 0.85), -0.5 + 0.5j, -0.25 + 1.45j, 0.1 + 0.6j),
        capsule(coat, 0, 1.75 - 0.95j, 1.35, 0.86),
        *([capsule((244, 240, 232), 0.55 + 0.42j, 1.75 - 0.5j, 0.18, 0.24)] if look.style else []),
        capsule(shade(coat, 0.8), 1.7 - 0.92j, 1.92 - 1.04j, 0.84, 0.78),
        ellipse((40, 32, 32), 2.08 - 0.9j, 0.1, 0.08, corners=8),
        *_eye(0.5 + 0.12j, 0.12),
    ]


def _bird(look: Look, posture: str) -> Shapes:
    coat = look.colour.rgb
    dark = shade(look.colour.rgb, 0.72)
    if posture == "flying":
        middle = 0j
        tilt = 4
        behind = [
            blob(shade(coat, 0.6), -0.08 + 0.06j, 0.06 + 0.34j, 0.52j, 0.14 + 0.36j, 0.16 + 0.04j)
        ]
        wing = blob(dark, 0.1 + 0.06j, -0.02 + 0.34j, -0.22 + 0.5j, -0.26 + 0.3j, -0.16 + 0.04j)
    else:
        middle = 0.2j
        tilt = 12
        leg = path((222, 132, 40), [0.12j, 0.01 + 0.012j, 0.07 + 0.012j], 0.026)
        behind = [*moved(leg, -0.02), *moved(leg, 0.07)]
        wing = blob(dark, 0.1 + 0.24j, -0.04 + 0.28j, -0.26 + 0.2j, -0.06 + 0.13j)
    head = middle + 0.2 + 0.13j
    return [
        *behind,
        *moved([polygon(dark, -0.12 + 0.04j, -0.42 + 0.05j, -0.4 - 0.07j, -0.12 - 0.06j)], middle),
        ellipse(coat, middle, 0.21, 0.135, tilt),
        ellipse(shade(coat, 1.7), middle + 0.05 - 0.05j, 0.13, 0.075, 12),
        polygon((240, 160, 40), head + 0.07 + 0.05j, head + 0.23 - 0.02j, head + 0.07 - 0.05j),
        disc(coat, head, 0.105),
        *_eye(head + 0.035 + 0.025j, 0.018),
        wing,
    ]
