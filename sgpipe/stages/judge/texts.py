"""Relations as texts: what a CLIP model compares an image with, and what a vision-language model is asked."""

from __future__ import annotations

from collections.abc import Sequence

from sgpipe.records import Box, Relation

# Predicates that hold in both directions: a text with swapped roles says the same.
SYMMETRIC = frozenset(
    ("next to", "beside", "near", "by", "close to", "adjacent to", "alongside", "with", "touching", "facing", "hugging")
)


def relation_text(subject: Box, predicate: str, object_: Box) -> str:
    """The text "a SUBJECT PREDICATE an OBJECT"; without the object if there is none."""
    last = "" if object_.is_nothing else f" {with_article(object_.category)}"
    return f"{with_article(subject.category)} {predicate}{last}"


def with_article(name: str) -> str:
    """The name of a class with "a" or "an"."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def is_directed(subject: Box, object_: Box) -> bool:
    """Whether swapping subject and object changes the text."""
    return not object_.is_nothing and subject.category != object_.category


def contrast_texts(objects: Sequence[Box], relation: Relation) -> list[str]:
    """What else the two boxes may show: both things, unrelated, and the relation with swapped roles."""
    subject, object_ = objects[relation.subject], objects[relation.object]
    if object_.is_nothing:
        return [with_article(subject.category)]
    texts = [f"{with_article(subject.category)} and {with_article(object_.category)}"]
    if is_directed(subject, object_) and relation.predicate.strip().lower() not in SYMMETRIC:
        texts.append(relation_text(object_, relation.predicate, subject))
    return texts
