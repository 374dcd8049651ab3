"""Relations of whole captions, by grammatical construction, pronouns and known parsing errors among them."""

import pytest

from sgpipe.stages.parse.grammar.relations import relations
from sgpipe.stages.parse.grammar.repair import correct_attachments
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.stages.parse.stage import CaptionParser


@pytest.fixture(scope="module")
def triples():
    """(subject, predicate, object) of a caption's triplets, sorted."""
    parser = CaptionParser()
    return lambda caption: sorted((t.subject, t.predicate, t.object) for t in parser.parse([caption])[0])


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
PRONOUNS = {
    "a plate with a knife on it": "knife | on | plate",
    "the couch has a blanket on it": "blanket | on | couch",
    "pots with flowers in them": "flowers | in | pots",
    "a pole with a sign attached to it": "sign | attached to | pole",
    "girls posing with donuts with bites in them": "bites | in | donuts; girls | posing with | donuts",
    "he is riding a horse": "man | riding | horse",
    "she is on a bus": "woman | on | bus",
    "they are playing baseball": "people | playing | baseball",
    "a girl smiling while she eats a donut": "girl | eats | donut",
    "a bird with a fish in its beak": "bird | has | beak; bird | with | fish; fish | in | beak",
    "it is on the table": "",
}
REPAIRED = {
    "a man in a white shirt playing tennis": "man | playing | tennis; man | wearing | shirt",
    "a dog sleep on a bed": "dog | sleep on | bed",
    "metal fence surrounding sheep": "fence | surrounding | sheep",
    "pillows on the couches": "pillows | on | couches",
    "planes pulled up to a terminal": "planes | pulled up to | terminal",
    "giraffe standing between bushes": "giraffe | standing between | bushes",
    "garbage can filled with garbage": "garbage can | filled with | garbage",
    "a train traveling down train tracks": "train | traveling down | train tracks",
    "four people out in the snow": "people | in | snow",
}
CLAUSES = {
    "a man sits and eats a pizza": "man | eats | pizza",
    "a girl picks up a frisbee and throws it": "girl | picks up | frisbee; girl | throws | frisbee",
    "a group of people, one holding a frisbee": "people | holding | frisbee",
    "two women, one in a skirt, the other in a dress": "women | wearing | skirt; women | wearing | dress",
    "the boy looks down at the skateboard he is riding": "boy | looks down at | skateboard; boy | riding | skateboard",
    "a man jumps over a fence with his skateboard": "man | jumps over | fence; man | jumps with | skateboard",
    "a man and his dog are sitting on a bench": "man | with | dog; man | sitting on | bench; dog | sitting on | bench",
    "a man in a suit with a red tie": "man | wearing | suit; man | wearing | tie",
    "a man wearing a suit and tie": "man | wearing | suit; man | wearing | tie",
    "a man takes a bite of a pizza": "man | bites | pizza",
    "a man taking a big bite out of a sandwich": "man | biting | sandwich",
    "a batter swings at a ball": "batter | swings at | ball",
    "a female holding a tennis racquet": "female | holding | tennis racquet",
    "a tv showing two men in hats and women": "tv | showing | men; tv | showing | women; men | wearing | hats",
    "woman sitting at table with beverages consuming sandwich": (
        "woman | sitting at | table; woman | sitting with | beverages; woman | consuming | sandwich"
    ),
}
ISSUE = {
    "a man riding a horse next to a dog on the beach": "man | riding | horse; man | next to | dog; dog | on | beach"
}


def expected(text: str) -> list[tuple[str, ...]]:
    return sorted(tuple(part.strip().split(" | ")) for part in text.split(";") if part.strip())


TABLES = (
    VERBS,
    PASSIVES,
    COORDINATION,
    RELATIVE_CLAUSES,
    PREPOSITIONS,
    NOUNS,
    PLACES,
    PRONOUNS,
    REPAIRED,
    CLAUSES,
    ISSUE,
)


@pytest.mark.parametrize(("caption", "text"), [item for table in TABLES for item in table.items()])
def test_relations_of_a_caption(triples, caption, text):
    assert triples(caption) == expected(text)


def test_lemma_is_that_of_the_verb_only():
    tree = Tree.build(
        ["men", "sitting", "on", "benches"], ["NNS", "VBG", "IN", "NNS"], ["ROOT", "acl", "prep", "pobj"], [0, 0, 1, 2]
    )
    assert [(r.predicate, r.lemma) for r in relations(tree)] == [("sitting on", "sit on")]


def test_nothing_is_related_to_itself():
    tree = Tree.build(["dog", "on", "it"], ["NN", "IN", "PRP"], ["ROOT", "prep", "pobj"], [0, 0, 1])
    assert relations(tree) == []


def tree(*rows: str) -> Tree:
    """From rows "word tag label head"."""
    words, tags, deps, heads = zip(*(row.split() for row in rows), strict=True)
    return Tree.build(list(words), list(tags), list(deps), [int(head) for head in heads])


@pytest.mark.parametrize(
    ("caption", "relation"),
    [
        ("a man in a black coat standing on a corner", ("man", "standing on", "corner")),
        ("a woman with long hair sitting on a bus", ("woman", "sitting on", "bus")),
        ("a person on a snowboard jumping over a fence", ("person", "jumping over", "fence")),
        ("some people in a field working with animals", ("people", "working with", "animals")),
        ("a man wearing a white lab coat holding a bone", ("man", "holding", "bone")),
        ("a tower with a flag flying over it", ("flag", "flying over", "tower")),
        ("a man with a hat on his head", ("hat", "on", "head")),
        ("a bathroom with a toilet and a sink", ("bathroom", "with", "sink")),
        ("a table with a lamp standing on it", ("lamp", "standing on", "table")),
    ],
)
def test_attachment(triples, caption, relation):
    assert relation in triples(caption)


@pytest.mark.parametrize(("joined", "head"), [("woman", 0), ("bone", 2)])
def test_people_are_joined_to_people_and_things_to_things(joined, head):
    found = tree("man NN ROOT 0", "with IN prep 0", "dog NN pobj 1", "and CC cc 0", f"{joined} NN conj 0")
    correct_attachments(found)
    assert found.heads[4] == head
