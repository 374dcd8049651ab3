"""Relations of whole captions, by grammatical construction."""

import pytest

from sgpipe.stages.parse.grammar.relations import relations
from sgpipe.stages.parse.grammar.tree import Tree

# caption: its relations, "subject | predicate | object", separated by semicolons
VERBS = {
    "a man riding a horse": "man | riding | horse",
    "a man rides a horse": "man | rides | horse",
    "the man is riding a horse": "man | riding | horse",
    "a cat sleeping": "",
    "a man is a teacher": "",
    "a woman talking on a phone": "woman | talking on | phone",
    "a dog is on the bed": "dog | on | bed",
    "there is a cat sitting on a laptop": "cat | sitting on | laptop",
    "the dog has a collar": "dog | has | collar",
    "a man trying to catch a frisbee": "man | catch | frisbee",
    "a cat laying down on a couch": "cat | laying on | couch",
    "a girl picking up a toy": "girl | picking up | toy",
    "steps leading up to a house": "steps | leading up to | house",
    "a man standing in a kitchen cutting a cake": "man | standing in | kitchen; man | cutting | cake",
    "a woman wearing a hat standing on grass": "woman | wearing | hat; woman | standing on | grass",
    "a crowd watching a man perform": "crowd | watching | man",
}
PASSIVES = {
    "a horse ridden by a man": "man | riding | horse",
    "an elephant is being ridden by two people": "people | riding | elephant",
    "a hill covered in snow": "snow | covering | hill",
    "a table surrounded by chairs": "chairs | surrounding | table",
    "a car parked by a tree": "car | parked by | tree",
    "a plate topped with cheese": "plate | topped with | cheese",
    "a man dressed in a suit": "man | wearing | suit",
    "cows on a snow covered field": "cows | on | field; snow | covering | field",
}
COORDINATION = {
    "a man and a woman holding umbrellas": "man | holding | umbrellas; woman | holding | umbrellas",
    "a bowl of apples and bananas": "apples | in | bowl; bananas | in | bowl",
    "a man sitting on a bench and reading a book": "man | sitting on | bench; man | reading | book",
    "a kitchen with a stove, a sink, and a refrigerator": (
        "kitchen | with | stove; kitchen | with | sink; kitchen | with | refrigerator"
    ),
    "a woman holding a drink and a large carrot": "woman | holding | drink; woman | holding | carrot",
    "a plate topped with a sandwich and french fries": (
        "plate | topped with | sandwich; plate | topped with | french fries"
    ),
}
RELATIVE_CLAUSES = {
    "a clock that is hanging on the wall": "clock | hanging on | wall",
    "a girl who is eating a donut": "girl | eating | donut",
    "the eyeglasses the man is wearing": "man | wearing | eyeglasses",
    "the bench a man is sitting on": "man | sitting on | bench",
    "silver helmet man is wearing": "man | wearing | helmet",
}
PREPOSITIONS = {
    "a lamp in front of a window": "lamp | in front of | window",
    "people sitting in front of a building": "people | sitting in front of | building",
    "a cat on top of the bed": "cat | on top of | bed",
    "a dog next to a cat": "dog | next to | cat",
    "a man to the left of a car": "man | to the left of | car",
    "a car parked on the side of the road": "car | parked on side of | road",
    "a bird close to the water": "bird | close to | water",
    "smoke coming out of a chimney": "smoke | coming out of | chimney",
    "two dogs next to each other": "dogs | next to | dogs",
    "a cat beneath a table": "cat | under | table",
}
NOUNS = {
    "the wheel of a car": "car | has | wheel",
    "the man's hat": "man | has | hat",
    "a glass of wine": "wine | in | glass",
    "a plate of food": "food | on | plate",
    "a piece of pizza on a plate": "pizza | on | plate",
    "a picture of a dog": "dog | in | picture",
    "a man in a red shirt": "man | wearing | shirt",
    "a black haired boy": "boy | has | hair",
    "a group of people on a beach": "people | on | beach",
    "a close up of a pizza on a table": "pizza | on | table",
}
PLACES = {
    "a man flying a kite on a beach": "man | flying | kite; man | on | beach",
    "a woman holding a cat in her arms": "woman | holding | cat; cat | in | arms; woman | has | arms",
    "a man wearing a tie with stripes": "man | wearing | tie; tie | with | stripes",
    "a man putting a cake on a plate": "man | putting | cake; cake | on | plate",
}
ISSUE = {
    "a man riding a horse next to a dog on the beach": "man | riding | horse; man | next to | dog; dog | on | beach",
}


def expected(text: str) -> list[tuple[str, ...]]:
    return sorted(tuple(part.strip().split(" | ")) for part in text.split(";") if part.strip())


@pytest.mark.parametrize(
    ("caption", "text"),
    [item for table in (VERBS, PASSIVES, COORDINATION, RELATIVE_CLAUSES) for item in table.items()],
)
def test_clauses(triples, caption, text):
    assert triples(caption) == expected(text)


@pytest.mark.parametrize(
    ("caption", "text"), [item for table in (PREPOSITIONS, NOUNS, PLACES, ISSUE) for item in table.items()]
)
def test_phrases(triples, caption, text):
    assert triples(caption) == expected(text)


def test_lemma_is_that_of_the_verb_only():
    tree = Tree.build(
        ["men", "sitting", "on", "benches"], ["NNS", "VBG", "IN", "NNS"], ["ROOT", "acl", "prep", "pobj"], [0, 0, 1, 2]
    )
    assert [(r.predicate, r.lemma) for r in relations(tree)] == [("sitting on", "sit on")]


def test_nothing_is_related_to_itself():
    tree = Tree.build(["dog", "on", "it"], ["NN", "IN", "PRP"], ["ROOT", "prep", "pobj"], [0, 0, 1])
    assert relations(tree) == []
