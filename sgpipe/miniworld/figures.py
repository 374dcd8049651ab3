"""People and animals, drawn from the side, facing right.

A person is a man, a woman or a child in a posture, with hands that reach for given points; lengths are fractions of the
height. Dogs, cats and horses share one skeleton; birds have their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from numpy.random import Generator

from sgpipe.miniworld.shapes import (
    CLOTHES,
    HAIR,
    RGB,
    SKIN,
    TROUSERS,
    Colour,
    Point,
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
    turn,
    vary,
)


class Build(NamedTuple):
    """The proportions of a body."""

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

    hip: its rise above standing height. lean: of the torso, forward, in degrees. feet, hands: of the near and the far
    limb, relative to the hip and to the shoulder.
    """

    hip: float
    lean: float
    feet: tuple[Point, Point]
    hands: tuple[Point, Point]
    gaze: float = 0.0


_DOWN = ((0.05, -0.3), (0.02, -0.3))
POSTURES: dict[str, Posture] = {
    "standing": Posture(0.0, 0, ((-0.05, -0.44), (0.06, -0.44)), _DOWN),
    "walking": Posture(-0.02, 3, ((0.17, -0.42), (-0.17, -0.41)), ((-0.14, -0.27), (0.16, -0.25))),
    "running": Posture(-0.02, 14, ((0.25, -0.34), (-0.32, -0.22)), ((-0.2, -0.14), (0.2, -0.06))),
    "kicking": Posture(-0.01, -12, ((0.37, -0.25), (-0.08, -0.43)), ((-0.24, -0.12), (0.24, -0.1))),
    "throwing": Posture(-0.02, -4, ((0.18, -0.41), (-0.2, -0.4)), ((0.13, 0.28), (-0.24, -0.04))),
    "pushing": Posture(-0.07, 24, ((-0.1, -0.37), (-0.38, -0.35)), ((0.3, -0.04), (0.3, -0.02))),
    "petting": Posture(-0.04, 26, ((0.03, -0.41), (-0.12, -0.41)), ((0.2, -0.22), (-0.02, -0.28))),
    "crouching": Posture(-0.15, 30, ((0.06, -0.3), (-0.14, -0.3)), ((0.2, -0.22), (-0.02, -0.24))),
    "looking": Posture(0.0, 7, ((0.09, -0.44), (-0.11, -0.43)), ((0.13, 0.17), (-0.06, -0.27)), -8),
    "sitting": Posture(0.0, 0, ((0.24, -0.24), (0.28, -0.22)), ((0.16, -0.2), (0.18, -0.2))),
    "straddling": Posture(0.0, 4, ((0.09, -0.4), (0.12, -0.39)), ((0.22, -0.14), (0.24, -0.13))),
    "balancing": Posture(-0.09, 14, ((-0.14, -0.35), (0.16, -0.35)), ((-0.25, 0.02), (0.27, 0.03))),
    "jumping": Posture(0.0, 14, ((0.34, -0.2), (-0.34, -0.16)), ((-0.22, 0.06), (0.24, 0.1))),
    "lying": Posture(0.0, 0, ((-0.03, -0.43), (0.04, -0.43)), ((0.06, -0.28), (0.03, -0.28)), -6),
}


PEOPLE = ("man", "woman", "boy", "girl")
Hands: TypeAlias = tuple[Point | None, Point | None]  # the near and the far one
Feet: TypeAlias = tuple[Point, Point] | None


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
    """The look of a person, the same in every posture."""

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
    """Return a random man, woman, boy or girl."""
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


def shoulder_of(look: PersonLook, posture: str) -> Point:
    """Return the position of the shoulder as a fraction of the height."""
    pose, build = POSTURES[posture], look.build
    base = (0.0, build.hip + pose.hip)
    return turn((0.0, base[1] + build.shoulder - build.hip - 0.02), -pose.lean, base)


def draw_person(look: PersonLook, posture: str, hands: Hands = (None, None), feet: Feet = None) -> list[Shapes]:
    """Draw a person in world units: what is behind a held thing, and the near arm. The origin is below the hip.

    hands, feet: points of the near and the far one; None keeps those of the posture.
    """
    pose, build, scale = POSTURES[posture], look.build, look.height
    hip = (0.0, build.hip + pose.hip)
    shoulder = shoulder_of(look, posture)
    ratio = build.hip / MAN.hip  # postures are defined for the legs of a man
    near_foot, far_foot = ((hip[0] + x * ratio, hip[1] + y * ratio) for x, y in pose.feet)
    if feet:
        near_foot, far_foot = ((x / scale, y / scale) for x, y in feet)
    near_hand, far_hand = (
        (target[0] / scale, target[1] / scale) if target else (shoulder[0] + rest[0], shoulder[1] + rest[1])
        for target, rest in zip(hands, pose.hands, strict=True)
    )
    neck = turn((shoulder[0], shoulder[1] + 0.03), -pose.lean, shoulder)
    behind = [
        *_arm(look, shoulder, far_hand, 0.82),
        *_leg(look, (hip[0] + 0.02, hip[1]), far_foot, 0.8),
        *_leg(look, (hip[0] - 0.01, hip[1]), near_foot, 1.0),
        *_torso(look, hip, shoulder, posture),
        *_head(look, neck, -pose.lean * 0.6 + pose.gaze),
    ]
    return [moved(part, (0, 0), scale=scale) for part in (behind, _arm(look, shoulder, near_hand, 1.0))]


def _leg(look: PersonLook, hip: Point, foot: Point, light: float) -> Shapes:
    length = look.build.hip - 0.02
    cover = shade(look.skin if look.dress else look.bottom, light)
    shin = shade(look.skin if look.dress or look.shorts else look.bottom, light)
    foot = (foot[0], foot[1] + 0.025)
    shapes, knee, ankle = limb(cover, hip, foot, length * 0.495, (0.105, 0.08, 0.062), 1)
    if shin != cover:
        shapes[1] = capsule(shin, knee, ankle, 0.07, 0.055)
        shapes.reverse()
    sole = shade((64, 52, 50), light)
    heading = 1.0 if ankle[1] < hip[1] - 0.12 else 0.6
    shapes.append(ellipse(sole, (ankle[0] + 0.035, ankle[1] - 0.004), 0.066 * heading + 0.01, 0.034))
    return shapes


def _torso(look: PersonLook, hip: Point, shoulder: Point, posture: str) -> Shapes:
    top, girth = look.top.rgb, look.build.girth
    collar = (shoulder[0], shoulder[1] - girth * 0.18)
    shapes = [capsule(top, collar, (hip[0], hip[1] + 0.04), girth * 0.96, girth * 0.98)]
    if not look.dress:
        ends = [(hip[0] + side * girth * 0.22, hip[1] + 0.02) for side in (-1, 1)]
        return [*shapes, capsule(look.bottom, ends[0], ends[1], 0.1)]
    reach = 0.24 if posture in ("sitting", "straddling") else 0.0
    hem = hip[1] - 0.17 + reach * 0.5
    left, right = (hip[0] - girth * 0.95, hem), (hip[0] + girth * 0.95 + reach * 0.6, hem)
    waist = [(hip[0] + side * girth * 0.5, hip[1] + 0.1) for side in (-1, 1)]
    belt = [(hip[0] + side * girth * 0.45, hip[1] + 0.1) for side in (-1, 1)]
    shapes.append(blob(top, waist[0], left, (hip[0], hem - 0.02), right, waist[1]))
    return [*shapes, capsule(shade(top, 0.8), belt[0], belt[1], 0.03)]


def _arm(look: PersonLook, shoulder: Point, hand: Point, light: float) -> Shapes:
    side = 1 if hand[1] > shoulder[1] + 0.12 else -1
    length = 0.165
    sleeve, widths = shade(look.top.rgb, light * 0.9), (0.078, 0.066, 0.058)
    shapes, elbow, wrist = limb(sleeve, shoulder, hand, length, widths, side)
    shapes[1] = capsule(shade(look.skin, light), elbow, wrist, 0.058, 0.048)
    shapes.append(disc(shade(look.skin, light), wrist, 0.034, 14))
    return [shapes[1], shapes[0], shapes[2]]


def _head(look: PersonLook, neck: Point, tilt: float) -> Shapes:
    radius, skin = look.build.head, look.skin
    x, y = 0.012, radius

    def at(*places: Point) -> list[Point]:
        """Points relative to the middle of the head, in radii."""
        return [(x + radius * right, y + radius * up) for right, up in places]

    shapes: Shapes = []
    if look.long_hair:
        fall = ((-0.2, 2.05), (-1.2, 1.3), (-1.28, 0.2), (-0.95, -0.75), (-0.25, -0.5), (0.3, 1.2))
        shapes.append(blob(look.hair, *((radius * right, radius * up) for right, up in fall)))
    nape = -0.9 if look.long_hair else -0.62
    cap = ((0.75, 0.72), (0.5, 1.0), (0, 1.13), (-0.55, 0.98), (-0.98, 0.45), (-1.02, -0.2), (-0.82, nape))
    shapes += [
        capsule(shade(skin, 0.86), (0, -0.03), (x, y), 0.07),
        ellipse(skin, (x, y), radius * 0.92, radius),
        disc(skin, at((0.92, -0.12))[0], radius * 0.15, 10),
        polygon(look.hair, *at(*cap, (-0.5, -0.25), (-0.4, 0.32), (0.15, 0.52))),
        ellipse(shade(skin, 0.88), at((-0.2, -0.1))[0], radius * 0.15, radius * 0.2, corners=10),
        disc((40, 34, 34), at((0.5, 0.08))[0], radius * 0.115, 10),
        *path(shade(skin, 0.6), at((0.3, -0.4), (0.48, -0.54), (0.7, -0.42)), radius * 0.1),
    ]
    if look.hat:
        shapes.append(sector(look.hat, at((0, 0.3))[0], radius * 1.02, 0, 180))
        left, right = at((-0.8, 0.32), (1.5, 0.3))
        shapes.append(capsule(shade(look.hat, 0.8), left, right, radius * 0.18))
    return moved(shapes, neck, tilt)


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

# Per posture, in leg lengths: the offset of hip and shoulder from their standing height, and the positions of the feet
# relative to the start of their leg: hind near, hind far, fore near, fore far.
_ANIMAL_POSTURES: dict[str, tuple[float, float, tuple[Point, Point, Point, Point]]] = {
    "standing": (0.0, 0.0, ((-0.08, -1), (0.16, -1), (0.02, -1), (0.26, -1))),
    "walking": (-0.04, 0.0, ((-0.4, -0.92), (0.34, -0.95), (0.42, -0.93), (-0.34, -0.95))),
    "running": (-0.02, 0.04, ((-0.95, -0.62), (-0.7, -0.8), (0.95, -0.52), (0.7, -0.72))),
    "jumping": (0.0, 0.26, ((-0.85, -0.6), (-0.7, -0.75), (0.8, -0.1), (0.7, -0.4))),
    "sitting": (-0.58, 0.18, ((0.55, -0.42), (0.66, -0.42), (0.1, -1.16), (0.26, -1.16))),
    "lying": (-0.72, -0.7, ((0.6, -0.28), (0.7, -0.26), (0.72, -0.32), (0.86, -0.3))),
    "looking": (-0.58, 0.22, ((0.55, -0.42), (0.66, -0.42), (0.06, -1.2), (0.22, -1.2))),
}


_COATS = {
    "dog": "brown brown black white gray",
    "cat": "orange orange black white gray",
    "horse": "brown black white gray",
    "bird": "blue red yellow green white black orange",
}
ANIMALS = tuple(_COATS)


def random_animal(kind: str, rng: Generator) -> Look:
    """Return the look of a dog, cat, horse or bird, with a second colour and of style 1 if it has marks."""
    coat = pick_colour(rng, _COATS[kind].split())
    light = sum(coat.rgb) > 420
    mark = shade(coat.rgb, 0.68 if light else 1.7)
    return Look(kind, coat, mark, float(rng.uniform(0.92, 1.1)), int(rng.random() < 0.5))


def back_of(kind: str) -> float:
    """Return the height of the back of a standing animal at size 1, in world units."""
    frame = FRAMES[kind]
    return frame.leg + frame.girth * 0.86


def draw_animal(look: Look, posture: str) -> Shapes:
    """Draw an animal in world units. The origin is on the ground below its trunk, or in the middle of a flying bird."""
    if look.kind == "bird":
        return moved(_bird(look, posture), (0, 0), scale=look.size)
    frame = FRAMES[look.kind]
    hip_rise, shoulder_rise, feet = _ANIMAL_POSTURES[posture]
    height = frame.leg + frame.girth * 0.3
    hip = (-frame.length / 2, height + hip_rise * frame.leg)
    shoulder = (frame.length / 2, height + shoulder_rise * frame.leg)
    if posture in ("sitting", "looking"):
        hip, shoulder = ((hip[0] + frame.length * 0.18, hip[1]), (shoulder[0] - frame.length * 0.12, shoulder[1]))
    coat = look.colour.rgb
    far, near = shade(coat, 0.72), shade(coat, 0.95)
    shapes = _animal_leg(frame, hip, feet[1], far, look, hind=True)
    shapes += _animal_leg(frame, shoulder, feet[3], far, look, hind=False)
    shapes += _tail(look, frame, hip, posture)
    shapes += _trunk(look, frame, hip, shoulder)
    shapes += _animal_leg(frame, hip, feet[0], near, look, hind=True)
    if posture in ("sitting", "lying", "looking"):
        haunch = (hip[0] + frame.girth * 0.18, hip[1] - frame.girth * 0.08)
        shapes.append(ellipse(near, haunch, frame.girth * 0.48, frame.girth * 0.42))
    shapes += _animal_leg(frame, shoulder, feet[2], near, look, hind=False)
    angle = frame.neck_angle + {"running": -22, "jumping": -10, "lying": -34, "looking": 10}.get(posture, 0)
    shapes += _neck_and_head(look, frame, shoulder, angle, 22 if posture == "looking" else 0)
    shapes = moved(shapes, (0, 0), scale=look.size)
    lowest = min(float(shape.points[:, 1].min()) for shape in shapes)
    return moved(shapes, (0, -lowest))


def _animal_leg(frame: Frame, start: Point, foot: Point, colour: RGB, look: Look, *, hind: bool) -> Shapes:
    length = 0.93 * (frame.leg + frame.girth * 0.2)
    start = (start[0], start[1] - frame.girth * 0.1)
    target = (start[0] + foot[0] * frame.leg, start[1] + foot[1] * (frame.leg + frame.girth * 0.2))
    width = frame.limb_width
    target = (target[0], target[1] + width * 0.4)
    shapes, _, end = limb(colour, start, target, length * 0.5, (width * 1.5, width, width * 0.8), -1 if hind else 1)
    paw = (50, 42, 40) if look.kind == "horse" else shade(colour, 0.9)
    shapes.append(ellipse(paw, (end[0] + width * 0.2, end[1] - width * 0.02), width * 0.62, width * 0.42, corners=12))
    return shapes


def _trunk(look: Look, frame: Frame, hip: Point, shoulder: Point) -> Shapes:
    coat, girth = look.colour.rgb, frame.girth
    ends = (hip[0], hip[1] + girth * 0.08), (shoulder[0], shoulder[1] + girth * 0.04)
    shapes = [capsule(coat, *ends, girth, girth * 1.06)]
    middle = ((hip[0] + shoulder[0]) / 2, (hip[1] + shoulder[1]) / 2 - girth * 0.2)
    if look.style and look.kind == "dog":
        patch = (middle[0] - girth * 0.2, middle[1] + girth * 0.36)
        shapes.append(ellipse(look.second, patch, girth * 0.5, girth * 0.28))
    if look.style and look.kind == "cat":
        slope = (shoulder[1] - hip[1]) / (shoulder[0] - hip[0])
        for step in (-0.55, -0.1, 0.35):
            x = middle[0] + step * girth * 1.2
            y = middle[1] + girth * 0.72 + (x - middle[0]) * slope
            stripe = (x, y - girth * 0.04), (x + girth * 0.06, y - girth * 0.36)
            shapes.append(capsule(look.second, *stripe, girth * 0.16, girth * 0.05))
    return shapes


def _tail(look: Look, frame: Frame, hip: Point, posture: str) -> Shapes:
    root = (hip[0] - frame.girth * 0.42, hip[1] + frame.girth * 0.2)
    low = posture in ("sitting", "lying", "looking")
    if look.kind == "horse":
        hair = shade(look.colour.rgb, 0.5)
        flow = 0.34 if posture in ("running", "jumping") else 0.1
        x, y = root
        ends = (x - 0.14 - flow, y - 0.55 + flow), (x - 0.02, y - 0.4 + flow * 0.6)
        return [blob(hair, (x + 0.08, y + 0.06), (x - 0.1 - flow * 0.4, y - 0.02), *ends)]
    if look.kind == "dog":
        tip = (root[0] - 0.16, root[1] + (0.06 if low else 0.2))
        return path(look.colour.rgb, [(root[0] + 0.06, root[1]), (root[0] - 0.08, root[1] + 0.03), tip], 0.085, 0.045)
    curl = [(0.06, 0), (-0.12, 0.0), (-0.2, 0.1), (-0.18, 0.26), (-0.1, 0.34)]
    if low:
        curl = [(0.06, 0), (-0.08, -0.06), (-0.2, -0.08), (-0.28, 0.0), (-0.3, 0.1)]
    return path(look.colour.rgb, [(root[0] + x, root[1] + y) for x, y in curl], 0.06, 0.045)


def _neck_and_head(look: Look, frame: Frame, shoulder: Point, angle: float, gaze: float) -> Shapes:
    girth = frame.girth
    base = (shoulder[0] + girth * 0.12, shoulder[1] + girth * 0.2)
    top = turn((base[0] + frame.neck, base[1]), angle, base)
    mane = [(base[0] - 0.14, base[1] + 0.16), (top[0] - 0.14, top[1] - 0.02), (top[0] - 0.02, top[1] + 0.12)]
    shapes = path(shade(look.colour.rgb, 0.5), mane, 0.22, 0.16) if look.kind == "horse" else []
    head = {"dog": _dog_head, "cat": _cat_head, "horse": _horse_head}[look.kind](look, frame.head)
    return [*shapes, capsule(look.colour.rgb, base, top, girth * 0.82, frame.head * 1.25), *moved(head, top, gaze)]


def _eye(at: Point, radius: float) -> Shapes:
    return [disc((252, 252, 248), at, radius * 1.5, 12), disc((30, 26, 26), (at[0] + radius * 0.3, at[1]), radius, 10)]


def _dog_head(look: Look, r: float) -> Shapes:
    coat = look.colour.rgb
    ear = look.second if look.style else shade(coat, 0.7)
    flap = ((-0.55, 0.95), (0.05, 0.75), (-0.1, -0.3), (-0.55, -0.85), (-1.0, -0.35))
    return [
        capsule(shade(coat, 1.12), (r * 0.4, -r * 0.2), (r * 1.45, -r * 0.3), r * 1.0, r * 0.72),
        disc(coat, (0, 0), r),
        ellipse((36, 30, 30), (r * 1.72, -r * 0.12), r * 0.22, r * 0.2, corners=12),
        capsule(shade(coat, 0.55), (r * 0.9, -r * 0.48), (r * 1.55, -r * 0.5), r * 0.09),
        *_eye((r * 0.5, r * 0.28), r * 0.15),
        blob(ear, *((r * x, r * y) for x, y in flap)),
    ]


def _cat_head(look: Look, r: float) -> Shapes:
    coat, inner = look.colour.rgb, (240, 160, 160)
    shapes = [
        polygon(shade(coat, 0.85), (-r * 0.9, r * 0.3), (-r * 0.75, r * 1.65), (-r * 0.05, r * 0.85)),
        polygon(coat, (r * 0.1, r * 0.85), (r * 0.75, r * 1.65), (r * 0.95, r * 0.3)),
        polygon(inner, (r * 0.35, r * 0.85), (r * 0.68, r * 1.35), (r * 0.8, r * 0.6)),
        ellipse(coat, (0.0, 0.0), r * 1.12, r * 0.98),
        ellipse(shade(coat, 1.5), (r * 0.45, -r * 0.36), r * 0.5, r * 0.36, corners=14),
    ]
    eye = (196, 214, 84) if sum(coat) < 520 else (92, 160, 92)
    for x in (r * 0.02, r * 0.74):
        shapes += [
            ellipse(eye, (x, r * 0.16), r * 0.2, r * 0.24, corners=12),
            ellipse((24, 24, 24), (x + r * 0.04, r * 0.16), r * 0.08, r * 0.2, corners=8),
        ]
    shapes.append(polygon((226, 112, 122), (r * 0.3, -r * 0.16), (r * 0.6, -r * 0.16), (r * 0.45, -r * 0.34)))
    whisker = shade(coat, 0.5) if sum(coat) > 300 else (210, 210, 210)
    for y in (-0.3, -0.44):
        shapes.append(capsule(whisker, (r * 0.7, r * y), (r * 1.5, r * (y * 1.5 + 0.2)), r * 0.05))
        shapes.append(capsule(whisker, (r * 0.15, r * y), (-r * 0.6, r * (y * 1.5 + 0.2)), r * 0.05))
    return shapes


def _horse_head(look: Look, r: float) -> Shapes:
    coat = look.colour.rgb
    shapes = [
        polygon(shade(coat, 0.85), (-r * 0.5, r * 0.5), (-r * 0.25, r * 1.45), (r * 0.1, r * 0.6)),
        capsule(coat, (0, 0), (r * 1.75, -r * 0.95), r * 1.35, r * 0.86),
        capsule(shade(coat, 0.8), (r * 1.7, -r * 0.92), (r * 1.92, -r * 1.04), r * 0.84, r * 0.78),
        ellipse((40, 32, 32), (r * 2.08, -r * 0.9), r * 0.1, r * 0.08, corners=8),
        *_eye((r * 0.5, r * 0.12), r * 0.12),
    ]
    if look.style:
        shapes.insert(2, capsule((244, 240, 232), (r * 0.55, r * 0.42), (r * 1.75, -r * 0.5), r * 0.18, r * 0.24))
    return shapes


def _bird(look: Look, posture: str) -> Shapes:
    coat, belly, beak = look.colour.rgb, shade(look.colour.rgb, 1.7), (240, 160, 40)
    dark, lift, tilt = shade(coat, 0.72), 0.2, 12
    legs = [[(x, 0.12), (x + 0.01, 0.012), (x + 0.07, 0.012)] for x in (-0.02, 0.07)]
    behind = [part for leg in legs for part in path((222, 132, 40), leg, 0.026)]
    wing = blob(dark, (0.1, lift + 0.04), (-0.04, lift + 0.08), (-0.26, lift + 0.0), (-0.06, lift - 0.07))
    if posture == "flying":
        lift, tilt = 0.0, 4
        behind = [blob(shade(coat, 0.6), (-0.08, 0.06), (0.06, 0.34), (0.0, 0.52), (0.14, 0.36), (0.16, 0.04))]
        wing = blob(dark, (0.1, 0.06), (-0.02, 0.34), (-0.22, 0.5), (-0.26, 0.3), (-0.16, 0.04))
    head, tips = (0.2, lift + 0.13), ((0.07, 0.05), (0.23, -0.02), (0.07, -0.05))
    return [
        *behind,
        polygon(dark, (-0.12, lift + 0.04), (-0.42, lift + 0.05), (-0.4, lift - 0.07), (-0.12, lift - 0.06)),
        ellipse(coat, (0.0, lift), 0.21, 0.135, tilt),
        ellipse(belly, (0.05, lift - 0.05), 0.13, 0.075, 12),
        polygon(beak, *((head[0] + x, head[1] + y) for x, y in tips)),
        disc(coat, head, 0.105),
        *_eye((head[0] + 0.035, head[1] + 0.025), 0.018),
        wing,
    ]
