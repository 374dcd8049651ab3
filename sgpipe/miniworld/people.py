"""People: a man, a woman or a child, in a posture, with hands that reach for given points.

A person is drawn from the side, facing right. Lengths are fractions of the person's height.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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

    `hip` is its rise above standing height, `lean` the forward lean of the torso in degrees. `feet` and `hands` are
    those of the near and the far limb, relative to the hip and to the shoulder.
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


def draw_person(
    look: PersonLook,
    posture: str,
    hands: tuple[Point | None, Point | None] = (None, None),
    feet: tuple[Point, Point] | None = None,
) -> list[Shapes]:
    """Draw a person in world units: what is behind a held thing, and the near arm. The origin is below the hip.

    Args:
        hands: points that the near and the far hand reach for; None keeps the hand of the posture.
        feet: points of the near and the far foot; None keeps the feet of the posture.
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
    shapes, knee, ankle = limb(cover, hip, foot, (length * 0.495, length * 0.495), (0.105, 0.08, 0.062), 1)
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
    shapes, elbow, wrist = limb(sleeve, shoulder, hand, (length, length), widths, side)
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
