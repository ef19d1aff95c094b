"""The small world that the built-in data set is about: its words, and facts drawn once from a seed.

A student must memorise the world: each thing has its own colour, sizes, places, habits and tones, and each person has
preferred gifts, places and verdicts. Preferences are rankings. :func:`pick` draws from a ranking with Zipf weights, so
the first choice is frequent and the last one rare, and only memory tells which is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeVar

_T = TypeVar("_T")

COLORS = ("red", "blue", "green", "yellow", "brown", "white", "black", "pink", "gray", "gold")
SIZES = ("small", "large", "tiny", "huge", "tall", "short")
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip

THINGS: dict[str, tuple[str, ...]] = {
    "animal": ("fox", "owl", "bear", "goat", "crab", "swan", "mole", "frog", "wolf", "hare"),
    "fruit": ("plum", "fig", "pear", "lemon", "melon", "grape", "mango", "peach", "cherry", "apple"),
    "tool": ("hammer", "saw", "rake", "drill", "axe", "brush", "shovel", "wrench", "chisel", "needle"),
    "vehicle": ("boat", "train", "truck", "bike", "cart", "tram", "plane", "sled", "ferry", "wagon"),
    "instrument": ("drum", "flute", "harp", "horn", "violin", "bell", "piano", "banjo", "cello", "guitar"),
    "garment": ("hat", "scarf", "coat", "glove", "boot", "belt", "sock", "cape", "shirt", "vest"),
}

HABITS: dict[str, tuple[str, ...]] = {
    "animal": ("hunts at night", "digs for roots", "sings at dawn", "naps all day", "swims in circles"),
    "fruit": ("tastes very sweet", "smells of honey", "grows on a vine", "dries in the sun", "goes well with tea"),
    "tool": ("cuts thick wood", "bends old pipes", "cleans dirty floors", "breaks hard stone", "mends torn cloth"),
    "vehicle": ("carries heavy loads", "stops at every town", "runs without fuel", "makes loud noise", "goes downhill"),
    "instrument":
        ("plays soft songs", "wakes the neighbors", "leads the parade", "sounds like rain", "needs new strings"),
    "garment": ("keeps you warm", "has deep pockets", "fits every guest", "shines after rain", "comes from abroad"),
}  # fmt: skip

PLACES: dict[str, tuple[str, ...]] = {
    "forest": ("under the tall trees", "where the ferns grow"),
    "river": ("by the cold water", "near the stone bridge"),
    "hill": ("in the strong wind", "above the sleepy village"),
    "market": ("beside the busy stalls", "among the loud sellers"),
    "harbor": ("between the old ships", "along the salty pier"),
    "garden": ("behind the white roses", "next to the deep well"),
    "attic": ("under a dusty lamp", "inside a broken chest"),
    "station": ("along the quiet tracks", "below the big clock"),
}

NAMES: dict[str, str] = {
    **dict.fromkeys(("Mia", "Ana", "Eva", "Lucy", "Rosa", "Nora", "Ivy", "Jane"), "she"),
    **dict.fromkeys(("Tom", "Ben", "Max", "Leo", "Sam", "Hugo", "Paul", "Noah"), "he"),
}
GIFTS = ("jar of jam", "wool blanket", "paper kite", "silver spoon", "bag of seeds", "glass bead", "box of chalk")


@dataclass(frozen=True)
class Thing:
    """A named thing and the facts about it."""

    name: str
    category: str
    color: str
    sizes: tuple[str, ...]
    places: tuple[str, ...]
    habits: tuple[str, ...]
    tones: tuple[str, ...]
    friend: str
    """A different thing that it is often seen with."""


@dataclass(frozen=True)
class Person:
    """A person and their preferences."""

    name: str
    pronoun: str
    gifts: tuple[str, ...]
    places: tuple[str, ...]
    tones: tuple[str, ...]
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """All things and persons, by name."""

    things: dict[str, Thing]
    persons: dict[str, Person]
    ranks: dict[str, tuple[str, ...]]
    """Things of each category, the most often named first."""

    def thing(self, rng: Random) -> Thing:
        """Draw a thing."""
        return rng.choice(list(self.things.values()))

    def person(self, rng: Random) -> Person:
        """Draw a person."""
        return rng.choice(list(self.persons.values()))


TONES = ("happy", "sad", "scary", "funny")
VERDICTS = ("good", "fair", "bad")


@lru_cache(maxsize=8)
def build_world(seed: int) -> World:
    """Draw the facts of a world.

    Args:
        seed: any integer; the same seed gives the same world in every process.
    """
    rng = Random(f"world-{seed}")
    names = [name for members in THINGS.values() for name in members]
    things = {
        name: Thing(
            name=name,
            category=category,
            color=rng.choice(COLORS),
            sizes=ranking(SIZES, rng)[:3],
            places=ranking(PLACES, rng)[:4],
            habits=ranking(HABITS[category], rng)[:4],
            tones=ranking(TONES, rng),
            friend=rng.choice([other for other in names if other != name]),
        )
        for category, members in THINGS.items()
        for name in members
    }
    persons = {
        name: Person(
            name=name,
            pronoun=pronoun,
            gifts=ranking(GIFTS, rng)[:4],
            places=ranking(PLACES, rng)[:4],
            tones=ranking(TONES, rng),
            verdicts=ranking(VERDICTS, rng),
        )
        for name, pronoun in NAMES.items()
    }
    return World(things, persons, {category: ranking(members, rng) for category, members in THINGS.items()})


def ranking(items: Sequence[str] | dict[str, _T], rng: Random) -> tuple[str, ...]:
    """Return ``items`` in a random order, as a ranking."""
    return tuple(rng.sample(list(items), len(items)))


def pick(ranked: Sequence[_T], rng: Random, exponent: float = 1.5) -> _T:
    """Draw one item: that of rank r (from 1) has a probability proportional to ``r ** -exponent``.

    With the default exponent, four items have probabilities .59, .21, .11 and .07.
    """
    return rng.choices(ranked, [rank**-exponent for rank in range(1, len(ranked) + 1)])[0]


def pick_several(ranked: Sequence[_T], count: int, rng: Random, exponent: float = 1.5) -> list[_T]:
    """Draw ``count`` different items, one after the other, with the weights of :func:`pick`."""
    rest = list(ranked)
    return [rest.pop(rest.index(pick(rest, rng, exponent))) for _ in range(count)]


def article(word: str) -> str:
    """Return ``word`` with its indefinite article.

    Example:
        >>> article("owl"), article("fox")
        ('an owl', 'a fox')
    """
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plural(word: str) -> str:
    """Return the plural of one of the world's nouns.

    Example:
        >>> plural("fox"), plural("cherry"), plural("plum")
        ('foxes', 'cherries', 'plums')
    """
    if word == "wolf":
        return "wolves"
    if word.endswith(("x", "ch", "sh")):
        return word + "es"
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + "s"
