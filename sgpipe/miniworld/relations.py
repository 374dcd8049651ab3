"""The relations of the miniworld: classes, composition, what each implies, and what only the
compositional split has.

A composition places and poses two actors so that a relation is visible: one of them is already in
place, `rng` varies the details, and people and animals that act face right.
"""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain, product
from typing import NamedTuple, TypeAlias

from numpy.random import Generator

from sgpipe.miniworld.actors import (
    BALL_RADIUS,
    CAR_HALF,
    HANDLE,
    KINDS,
    PEDALS,
    SADDLE,
    TOPS,
    Actor,
    SceneGroup,
)
from sgpipe.miniworld.figures import PersonLook, shoulder_of
from sgpipe.miniworld.shapes import capsule, path

_ROPE = (92, 70, 56)
_STRING = (84, 84, 92)

_GRIPS = {  # where a held thing is, from the hand
    "umbrella": 0, "sports ball": BALL_RADIUS * (0.75 - 1j), "kite": 0.04 + 0.3j, "skateboard": 0.16 - 0.05j,
    "cup": 0.05 - 0.16j, "cat": 0.02 - 0.3j, "bird": 0.02 - 0.02j,
}  # fmt: skip

Statement: TypeAlias = tuple[str, str, str]  # subject class, predicate, object class
Composition: TypeAlias = Callable[[SceneGroup, Actor, Actor, Generator], None]

# Predicates and their converse: if A is behind B, B is in front of A.
CONVERSE = {"next to": "next to", "behind": "in front of", "in front of": "behind"}

_NO_ROOM = {
    ("dog", "under", "chair"),
    ("skateboard", "on", "chair"),
    ("skateboard", "under", "chair"),
}

_SEATS = "chair, bench, dining table"
_LARGE = "person, horse, bicycle, chair, dining table, bench, car"
_GROUNDED = f"{_LARGE}, dog, cat, umbrella, skateboard, bird, sports ball"
_SMALL = "dog, cat, bird, sports ball, cup, skateboard"
_HELD = "umbrella, cup, sports ball, kite, skateboard, cat, bird"
_CHASED = "dog, cat, bird, sports ball"
_SHELTERED = "person, dog, cat, bird, chair, bench, sports ball"
_JUMPERS = "dog, cat, horse, person"
_ENDS = "fore aft"
_WHOLE = "body fore aft"
_IN_AIR = "body hands fore aft over"
SPLITS = ("train", "val", "test-compositional")
COMPOSITIONAL = "test-compositional"

# Implied predicates. Someone who pushes something is next to it; animals are petted, and bicycles
# walked, from their far side.
_ALSO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("riding", "sitting on", "standing on", "lying on"), ("on",)),
    **dict.fromkeys(("holding", "walking", "flying"), ("with",)),
    "petting": ("next to", "behind"),
    "pushing": ("next to",),
}
_ALSO_OF: dict[Statement, tuple[str, ...]] = {
    **{("person", "riding", mount): ("sitting on",) for mount in ("horse", "bicycle")},
    **{(rider, "riding", "skateboard"): ("standing on",) for rider in ("person", "dog", "cat")},
    ("person", "holding", "umbrella"): ("under",),
    ("person", "walking", "bicycle"): ("next to", "behind"),
}

# Combinations that never occur in training. Statements that imply one of them, or are implied by
# one, are excluded as well, so that the compositional split has no statement in common with the
# others.
_HELD_OUT: frozenset[Statement] = frozenset(
    (subject, predicate, object_)
    for predicate, pairs in {
        "riding": "dog > skateboard",
        "holding": "person > skateboard, person > bird",
        "sitting on": "cat > bench",
        "standing on": "dog > car, bird > chair, person > dining table",
        "on": "cup > bench, sports ball > dining table",
        "under": "dog > bench, bird > dining table, cat > umbrella, sports ball > chair",
        "chasing": "cat > sports ball, person > bird, dog > horse",
        "walking": "person > cat",
        "looking at": "person > horse, cat > bird, dog > sports ball",
        "pushing": "person > chair",
        "jumping over": "dog > bench, person > skateboard, horse > sports ball, cat > chair",
        "petting": "person > cat",
        "flying over": "bird > bench, bird > horse",
        "next to": (
            "dog > horse, dog > bicycle, cat > car, umbrella > chair, bicycle > bench, "
            "sports ball > skateboard, bird > dining table"
        ),
        "behind": "dog > car, person > dining table, horse > bench, bicycle > car, chair > dog",
    }.items()
    for subject, object_ in (pair.split(" > ") for pair in pairs.split(", "))
)


def ride(group: SceneGroup, rider: Actor, mount: Actor, rng: Generator) -> None:
    """Astride a horse, on a bicycle's saddle with feet on the pedals, or balancing on a
    skateboard.
    """
    top = mount.place(TOPS[mount.kind][0])
    rider.depth = mount.depth + (-0.1 if mount.kind == "bicycle" else 0.1)
    if mount.kind == "skateboard":
        rider.at = top
        rider.posture = "balancing" if rider.kind == "person" else "standing"
        _swish(group, complex(mount.extent().left - 0.1, mount.place(0.3j).imag), 0.34)
        return
    rider.posture = "straddling"
    _sit_at(rider, top)
    if mount.kind == "bicycle":
        near, far = PEDALS
        rider.feet = (mount.place(near), mount.place(far))
        rider.hands = (mount.place(HANDLE), mount.place(HANDLE))
        rider.free.discard("hands")
    else:
        mount.posture = "walking" if rng.random() < 0.7 else "running"
        if mount.posture == "running":
            _sit_at(rider, top - 0.22j * mount.look.size)
        head = mount.place(0.8 + (1.35j if mount.posture == "walking" else 1j))
        hand = complex(rider.at.real + 0.4, top.imag + 0.25)
        rider.hands = (None, hand)
        group.extras.append((mount.depth + 0.05, [capsule(_ROPE, hand, head, 0.03)]))


def _sit_at(sitter: Actor, seat: complex) -> None:
    look = _person(sitter)
    sitter.at = seat + (0.05 - look.build.hip) * look.height * 1j


def hold(group: SceneGroup, holder: Actor, thing: Actor, rng: Generator) -> None:
    """Held in the near hand, stretched forward; an umbrella above the head."""
    hand = _hand(
        holder, {"umbrella": 0.17 - 0.06j, "kite": 0.22 + 0.06j}.get(thing.kind, 0.25 - 0.1j)
    )
    thing.depth = holder.depth + 0.25
    thing.facing = holder.facing
    thing.airborne = True
    thing.free.clear()
    holder.free.discard("fore")
    thing.at = hand + _GRIPS[thing.kind]
    holder.hands = (hand, holder.hands[1])
    if thing.kind == "umbrella":
        thing.posture = "held"
        thing.depth = holder.depth - 0.05
        holder.free.discard("over")
    elif thing.kind == "sports ball":
        holder.hands = (hand - 0.02 - 0.02j,) * 2
    elif thing.kind == "skateboard":
        thing.tilt = 78
    elif thing.kind in ("cat", "bird"):
        thing.posture = "sitting" if thing.kind == "cat" else "standing"
        holder.hands = (thing.at + 0.03 + 0.05j,) * 2


def sit_on(group: SceneGroup, sitter: Actor, seat: Actor, rng: Generator) -> None:
    place = _on_top(seat, 0.0 if seat.kind == "chair" else float(rng.uniform(-0.5, 0.5)))
    sitter.posture = "sitting"
    sitter.depth = seat.depth + 0.1
    sitter.facing = seat.facing
    if sitter.kind == "person":
        _sit_at(sitter, place - (0.08 if seat.kind == "chair" else 0.0))
        sitter.free.discard("aft")
    else:
        sitter.at = place - 0.02j


def stand_on(group: SceneGroup, stander: Actor, base: Actor, rng: Generator) -> None:
    place = _on_top(base, 0.0 if base.kind in ("chair", "horse") else float(rng.uniform(-0.4, 0.4)))
    stander.at = place - 0.01j
    stander.posture = "standing"
    stander.depth = base.depth + 0.1


def lie_on(group: SceneGroup, lier: Actor, base: Actor, rng: Generator) -> None:
    lier.posture = "lying"
    lier.depth = base.depth + 0.1
    lier.tilt = 90 if lier.kind == "person" else 0
    box = lier.extent()
    lier.at = _on_top(base) - 0.02j - complex((box.left + box.right) / 2, box.bottom)


def put_on(group: SceneGroup, thing: Actor, base: Actor, rng: Generator) -> None:
    room = 0.0 if base.kind == "chair" or thing.kind == "skateboard" else 0.8
    thing.at = _on_top(base, float(rng.uniform(-room, room)))
    thing.depth = base.depth + 0.1
    thing.airborne = True
    thing.free.clear()


def _on_top(base: Actor, shift: float = 0.0) -> complex:
    """Return a point of the top surface, `shift` of its half width from the middle."""
    middle, half = TOPS[base.kind]
    return base.place(middle + shift * half)


def put_under(group: SceneGroup, thing: Actor, roof: Actor, rng: Generator) -> None:
    if roof.kind == "umbrella":
        side = float(rng.choice([-1.0, 1.0]))
        slim = thing.kind in ("person", "chair", "cat", "bird", "sports ball")
        thing.at = complex(roof.at.real + side * (0.42 if slim else 0.3))
        thing.depth = roof.depth + (-0.1 if thing.kind == "person" else 0.1)
        thing.facing = -1 if side > 0 else 1
        if thing.kind in ("dog", "cat"):
            thing.posture = str(rng.choice(["sitting", "lying", "standing"]))
        return
    thing.free.clear()
    room = {"chair": 0.02, "bench": 0.35, "dining table": 0.22}[roof.kind]
    thing.at = roof.at.real + float(rng.uniform(-room, room)) + 0.03j
    thing.depth = roof.depth - 0.1
    if thing.kind in ("dog", "cat"):
        thing.posture = "lying"


def next_to(group: SceneGroup, first: Actor, second: Actor, rng: Generator) -> None:
    """Side by side, nearly touching; the actor that is new in the group is placed next to the
    other.
    """
    placed, new = (first, second) if first in group.actors else (second, first)
    side = (
        "aft"
        if "aft" in placed.free and ("fore" not in placed.free or rng.random() < 0.5)
        else "fore"
    )
    placed.free.discard(side)
    gap = float(rng.uniform(0.04, 0.12))
    if new.kind in ("dog", "cat"):
        new.posture = str(rng.choice(["standing", "sitting"]))
    right = (side == "fore") == (placed.facing > 0)
    new.facing = int(rng.choice([-1, 1]))
    new.free.discard("aft" if (new.facing > 0) == right else "fore")
    box = new.extent()
    edge = placed.extent()
    new.at = 0j
    new.at = complex(edge.right + gap - box.left if right else edge.left - gap - box.right)


def stand_behind(group: SceneGroup, subject: Actor, object_: Actor, rng: Generator) -> None:
    """The new actor is farther away and partly hidden: higher in the image, drawn first, and
    shifted to one side.
    """
    near, far = (subject, object_) if subject in group.actors else (object_, subject)
    side = int(rng.choice([-1, 1]))
    far.facing = int(rng.choice([-1, 1]))
    far.depth = near.depth - 1
    far.at = 0j
    box = far.extent()
    front = near.extent()
    overlap = min(box.right - box.left, front.right - front.left) * float(rng.uniform(0.35, 0.5))
    if box.top > front.top * 1.5:
        overlap *= 1.4
    # Nothing else may be on, below or above either actor, because it could seem to belong to the
    # other.
    far.free.clear()
    near.free &= {"hands"}
    x = front.right - overlap - box.left if side > 0 else front.left + overlap - box.right
    far.at = complex(x, float(rng.uniform(0.2, 0.3)))


def kick(group: SceneGroup, kicker: Actor, ball: Actor, rng: Generator) -> None:
    kicker.posture = "kicking"
    toe = kicker.extent().right
    lift = float(rng.uniform(0.0, 0.1)) + 0.12
    ball.at = complex(toe + BALL_RADIUS * ball.look.size + float(rng.uniform(0.0, 0.06)), lift)
    ball.airborne = True
    _swish(group, complex(toe + 0.56 * ball.look.size + 0.16, lift + BALL_RADIUS), 0.2)


def throw(group: SceneGroup, thrower: Actor, ball: Actor, rng: Generator) -> None:
    thrower.posture = "throwing"
    ball.at = _hand(thrower, 0.14 + 0.28j) + complex(
        rng.uniform(0.4, 0.6), rng.uniform(-0.05, 0.15)
    )
    ball.airborne = True
    _swish(group, ball.at - 0.32 + BALL_RADIUS * 1j, 0.22)


def chase(group: SceneGroup, chaser: Actor, chased: Actor, rng: Generator) -> None:
    """Both run to the right, one close behind the other; the chaser is placed relative to the
    chased.
    """
    chaser.posture = "running"
    if chased.kind in ("dog", "cat", "horse", "person"):
        chased.posture = "running"
    elif chased.kind == "bird":
        chased.posture = "flying"
        chased.airborne = True
        chased.at = complex(chased.at.real, rng.uniform(0.5, 0.8))
    elif chased.kind == "sports ball":
        chased.at = complex(chased.at.real, rng.uniform(0.05, 0.2))
        chased.airborne = True
    box = chaser.extent()
    edge = chased.extent()
    chaser.at = complex(edge.left - float(rng.uniform(0.26, 0.36)) - box.right, chaser.at.imag)
    _swish(group, complex(chaser.extent().left - 0.05, 0.5 * box.top), 0.26)
    _swish(group, complex(edge.left - 0.05, (edge.top + edge.bottom) / 2), 0.18)


def walk(group: SceneGroup, walker: Actor, walked: Actor, rng: Generator) -> None:
    """A dog or cat on a leash ahead, a horse on a rope behind, a bicycle pushed by its
    handlebar.
    """
    walker.posture = "walking"
    if walked.kind == "bicycle":
        walked.at = walker.at + 0.5 - 0.06j
        walked.depth = walker.depth + 1
        walker.hands = (walked.place(SADDLE), walked.place(HANDLE))
        return
    walked.posture = "walking"
    reach, grip, neck = {
        "horse": (-2.0, -0.24 - 0.12j, 1.12 + 1.52j),
        "dog": (1.35, 0.2 - 0.2j, 0.42 + 0.62j),
        "cat": (1.35, 0.2 - 0.2j, 0.3 + 0.46j),
    }[walked.kind]
    walked.at = complex(walker.at.real + reach * walked.look.size)
    hand = _hand(walker, grip)
    collar = walked.place(neck)
    walker.hands = (hand, None)
    group.extras.append(
        (walker.depth + 0.4, path(_ROPE, [hand, (hand + collar) / 2 - 0.07j, collar], 0.04))
    )


def fly(group: SceneGroup, flyer: Actor, kite: Actor, rng: Generator) -> None:
    flyer.posture = "looking"
    hand = _hand(flyer, 0.2 + 0.06j)
    flyer.hands = (hand, hand + 0.02 - 0.1j)
    kite.posture = "flying"
    kite.airborne = True
    kite.depth = flyer.depth - 0.2
    kite.at = hand + complex(rng.uniform(0.8, 1.3), rng.uniform(1.05, 1.4))
    middle = (hand * 2 + kite.at) / 3 - 0.08j
    group.extras.append((flyer.depth - 0.3, path(_STRING, [hand, middle, kite.at], 0.03)))


def look_at(group: SceneGroup, looker: Actor, seen: Actor, rng: Generator) -> None:
    """Facing it from a small distance; people shade their eyes, animals sit and stretch their
    neck.
    """
    looker.posture = "looking"
    seen.at = seen.at.imag * 1j
    seen.facing = 1 if rng.random() < 0.5 else -1
    box = seen.extent()
    edge = looker.extent()
    seen.at += edge.right + float(rng.uniform(0.38, 0.5)) - box.left
    seen.free.discard("over")


def push(group: SceneGroup, pusher: Actor, thing: Actor, rng: Generator) -> None:
    grip = {
        "car": 0.74j - CAR_HALF + 0.1,
        "bench": -0.9 + 0.92j,
        "dining table": -0.82 + 0.8j,
        "chair": -0.36 + 1.04j,
    }
    look = _person(pusher)
    pusher.posture = "pushing"
    pusher.depth = thing.depth + 0.2
    hand = thing.place(grip[thing.kind])
    pusher.at = complex(hand.real - (shoulder_of(look, "pushing").real + 0.3) * look.height)
    pusher.hands = (hand, hand)


def jump_over(group: SceneGroup, jumper: Actor, obstacle: Actor, rng: Generator) -> None:
    jumper.posture = "jumping"
    jumper.airborne = True
    jumper.depth = obstacle.depth + 0.1
    jumper.at = 0j
    box = jumper.extent()
    top = obstacle.extent()
    x = (top.left + top.right) / 2 - (box.left + box.right) / 2
    jumper.at = complex(x, top.top + float(rng.uniform(0.08, 0.18)) - box.bottom)


def pet(group: SceneGroup, person: Actor, animal: Actor, rng: Generator) -> None:
    """A hand on the animal's back; for small animals the person bends down."""
    small = animal.kind in ("dog", "cat")
    person.posture = "crouching" if small else "petting"
    animal.posture = "standing"
    animal.depth = person.depth + 0.3
    animal.facing = int(rng.choice([-1, 1]))
    look = _person(person)
    hand_x = (
        person.at.real
        + (shoulder_of(look, person.posture).real + (0.16 if small else 0.26)) * look.height
    )
    animal.at = 0j
    animal.at = complex(hand_x - (0.3 if small else 0.36) - animal.extent().left)
    back = {"dog": 0.72, "cat": 0.56, "horse": 1.22}[animal.kind] * animal.look.size
    person.hands = (complex(hand_x + 0.05, back), None)


def fly_over(group: SceneGroup, bird: Actor, below: Actor, rng: Generator) -> None:
    box = below.extent()
    bird.posture = "flying"
    bird.airborne = True
    bird.depth = below.depth + 0.1
    bird.facing = int(rng.choice([-1, 1]))
    bird.at = complex((box.left + box.right) / 2, box.top + float(rng.uniform(0.34, 0.5)))


def _person(actor: Actor) -> PersonLook:
    assert isinstance(actor.look, PersonLook)
    return actor.look


def _hand(person: Actor, offset: complex) -> complex:
    """Return a point at an offset from a person's shoulder, given as a fraction of the height, in
    group coordinates.
    """
    reach = (shoulder_of(_person(person), person.posture) + offset) * _person(person).height
    return person.at + complex(person.facing * reach.real, reach.imag)


def _swish(group: SceneGroup, end: complex, length: float) -> None:
    """Motion lines behind something fast."""
    lines = ((0.09j, 0.6), (0j, 1.0), (-0.09j, 0.7))
    shapes = [
        capsule((250, 250, 250), end + rise - length * part, end + rise, 0.022)
        for rise, part in lines
    ]
    group.extras.append((-2.0, shapes))


class CompositionRule(NamedTuple):
    """A relation that can be composed.

    first: which of the actors must be placed first. subject_takes, object_takes: the slots (see
    `ThingClass`) that each uses up. weight: the relative frequency.
    """

    predicate: str
    subjects: str
    objects: str
    compose: Composition
    first: str
    subject_takes: frozenset[str]
    object_takes: frozenset[str]
    weight: float

    @property
    def statements(self) -> list[Statement]:
        """Return what is composed; of a symmetric relation the other direction is implied."""
        symmetric = CONVERSE.get(self.predicate) == self.predicate
        return [
            (subject, self.predicate, object_)
            for subject, object_ in product(self.subjects.split(", "), self.objects.split(", "))
            if (subject, self.predicate, object_) not in _NO_ROOM
            and not (symmetric and KINDS.index(subject) > KINDS.index(object_))
        ]


_RULES: tuple[tuple[str, str, str, Composition, str, str, str, float], ...] = (
    (
        "riding",
        "person",
        "horse, bicycle, skateboard",
        ride,
        "object",
        _WHOLE,
        "top over body",
        1.6,
    ),
    ("riding", "dog, cat", "skateboard", ride, "object", _WHOLE, "top over body", 0.5),
    ("holding", "person", _HELD, hold, "subject", "hands", "", 1.6),
    ("sitting on", "person, cat, dog", f"{_SEATS}, car", sit_on, "object", _WHOLE, "top over", 1.0),
    (
        "standing on",
        "person, dog, cat, bird",
        f"{_SEATS}, car",
        stand_on,
        "object",
        _WHOLE,
        "top over",
        1.0,
    ),
    ("standing on", "bird", "horse", stand_on, "object", _WHOLE, "top over body", 0.2),
    (
        "lying on",
        "cat, dog, person",
        "bench, dining table",
        lie_on,
        "object",
        _WHOLE,
        "top over",
        1.0,
    ),
    ("on", "cup, sports ball, skateboard", _SEATS, put_on, "object", _WHOLE, "top over", 1.0),
    ("under", _SMALL, _SEATS, put_under, "object", _ENDS, "below fore aft", 1.0),
    ("under", _SHELTERED, "umbrella", put_under, "object", _ENDS, "below fore aft", 0.6),
    ("next to", _GROUNDED, _GROUNDED, next_to, "either", "", "", 1.3),
    ("behind", f"{_LARGE}, dog", f"{_LARGE}, dog, cat", stand_behind, "object", _ENDS, _ENDS, 1.0),
    (
        "in front of",
        f"{_LARGE}, dog, cat",
        f"{_LARGE}, dog",
        stand_behind,
        "subject",
        _ENDS,
        _ENDS,
        1.0,
    ),
    ("kicking", "person", "sports ball", kick, "subject", "body fore", _WHOLE, 1.0),
    ("throwing", "person", "sports ball", throw, "subject", "body hands fore over", _WHOLE, 1.0),
    ("chasing", "dog", f"{_CHASED}, person, horse", chase, "object", _WHOLE, _WHOLE, 1.0),
    ("chasing", "cat", _CHASED, chase, "object", _WHOLE, _WHOLE, 0.6),
    ("chasing", "person", f"{_CHASED}, horse", chase, "object", _WHOLE, _WHOLE, 0.6),
    (
        "walking",
        "person",
        "dog, cat, horse, bicycle",
        walk,
        "subject",
        f"{_WHOLE} hands",
        f"{_WHOLE} top over",
        1.3,
    ),
    ("flying", "person", "kite", fly, "subject", "body hands fore over", "", 1.2),
    (
        "looking at",
        "person",
        "dog, cat, horse, bird, bicycle, car",
        look_at,
        "subject",
        "body hands fore",
        _ENDS,
        1.0,
    ),
    ("looking at", "dog, cat", f"{_CHASED}, cup", look_at, "subject", "body fore", _ENDS, 0.8),
    ("pushing", "person", f"{_SEATS}, car", push, "object", _IN_AIR, "aft", 1.2),
    (
        "jumping over",
        _JUMPERS,
        "bench, sports ball, skateboard, chair",
        jump_over,
        "object",
        _IN_AIR,
        "top over",
        1.0,
    ),
    ("petting", "person", "dog, cat, horse", pet, "subject", "body hands fore", _WHOLE, 1.2),
    ("flying over", "bird", f"{_LARGE}, dog, cat", fly_over, "object", _WHOLE, "over", 0.6),
)
RULES = tuple(
    CompositionRule(*row[:5], frozenset(row[5].split()), frozenset(row[6].split()), row[7])
    for row in _RULES
)

# All predicates of the scene graphs; "with" is only implied.
PREDICATES: tuple[str, ...] = (*dict.fromkeys(rule.predicate for rule in RULES), "with")


def implied(subject: str, predicate: str, object_: str) -> list[tuple[str, bool]]:
    """Return the predicates that a relation implies, each with whether it holds from object to
    subject.
    """
    direct = [*_ALSO.get(predicate, ()), *_ALSO_OF.get((subject, predicate, object_), ())]
    converse = [CONVERSE[stated] for stated in (predicate, *direct) if stated in CONVERSE]
    predicates = [(implied_predicate, False) for implied_predicate in dict.fromkeys(direct)]
    predicates += [(implied_predicate, True) for implied_predicate in dict.fromkeys(converse)]
    return predicates


def closure(statement: Statement) -> frozenset[Statement]:
    subject, _, object_ = statement
    statements = {statement}
    for predicate, swapped in implied(*statement):
        ends = (object_, subject) if swapped else (subject, object_)
        statements.add((ends[0], predicate, ends[1]))
    return frozenset(statements)


@cache
def statements_of(split: str) -> frozenset[Statement]:
    """Return the relations composed in the images of a split.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: expected one of {', '.join(SPLITS)}")
    all_statements = set(chain.from_iterable(rule.statements for rule in RULES))

    def apart_from(statements: Iterable[Statement]) -> frozenset[Statement]:
        excluded = frozenset().union(*map(closure, statements))
        return frozenset(
            statement for statement in all_statements if closure(statement).isdisjoint(excluded)
        )

    seen = apart_from(_HELD_OUT)
    return apart_from(seen) if split == COMPOSITIONAL else seen
