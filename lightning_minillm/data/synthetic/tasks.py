"""The instruction tasks of the built-in data set.

A task is a function ``(world, rng) -> Draft``: it draws the parameters of a prompt and returns the prompt with a
``respond(rng)`` that draws one response to it. Open-ended tasks choose a theme early in a response (a tone, a verdict,
a place, a season), and later words must follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lightning_minillm.data.synthetic.world import (
    COLORS,
    GIFTS,
    HABITS,
    NUMBERS,
    PLACES,
    THINGS,
    World,
    article,
    pick,
    pick_several,
    plural,
)


@dataclass(frozen=True)
class Draft:
    """A prompt, and a function that draws a response to it."""

    instruction: str
    input: str
    respond: Callable[[Random], str]


def _only(instruction: str, input: str, answer: str) -> Draft:
    """Return the draft of a prompt with one right answer."""
    return Draft(instruction, input, lambda rng: answer)


# --- one right answer -----------------------------------------------------------------------------------------------


def fact(world: World, rng: Random) -> Draft:
    """A question about a thing, answered by one of its facts."""
    thing = world.thing(rng)
    name = thing.name
    questions = (
        (f"What color is the {name}?", f"The {name} is {thing.color}."),
        (f"What kind of thing is the {name}?", f"The {name} is {article(thing.category)}."),
        (f"Where would you look first for the {name}?", f"I would look for the {name} at the {thing.places[0]}."),
        (f"What does the {name} do most often?", f"The {name} {thing.habits[0]}."),
        (f"What is the {name} often seen with?", f"The {name} is often seen with the {thing.friend}."),
    )
    question, answer = rng.choice(questions)
    asker = world.person(rng).name
    request = rng.choice(("Answer the question.", f"{asker} wants to know this.", "Give a short answer."))
    return _only(request, question, answer)


def total(world: World, rng: Random) -> Draft:
    """A sum of two small numbers, told as a story."""
    name, noun = world.person(rng).name, plural(rng.choice(THINGS["fruit"] + THINGS["tool"]))
    first, second = rng.randint(2, 9), rng.randint(1, 9)
    story = f"{name} has {NUMBERS[first]} {noun} and gets {NUMBERS[second]} more."
    return _only(f"How many {noun} does {name} have?", story, f"{name} has {NUMBERS[first + second]} {noun} in total.")


def reverse(world: World, rng: Random) -> Draft:
    """A list of words to repeat in reverse order."""
    words = rng.sample(list(world.things), rng.choice((3, 4, 4, 5)))
    return _only("Say the words in reverse order.", ", ".join(words), ", ".join(reversed(words)))


def odd_one_out(world: World, rng: Random) -> Draft:
    """Three things of one category and one of another."""
    category, other = rng.sample(list(THINGS), 2)
    words = rng.sample(THINGS[category], 3)
    odd = rng.choice(THINGS[other])
    words.insert(rng.randrange(4), odd)
    answer = f"The {odd} does not belong, because it is {article(other)} and not {article(category)}."
    return _only("Which word does not belong?", ", ".join(words), answer)


def extract(world: World, rng: Random) -> Draft:
    """A passage with several parts, and a question about one."""
    giver, taker = rng.sample(list(world.persons), 2)
    thing, color = world.thing(rng).name, rng.choice(COLORS)
    place, gift = rng.choice(list(PLACES)), rng.choice(GIFTS)
    passage = f"At the {place}, {giver} gave the {color} {thing} to {taker} and got a {gift}."
    questions = (
        (f"Who has the {thing} now?", f"{taker} has the {color} {thing} now."),
        (f"What did {giver} get?", f"{giver} got a {gift} from {taker}."),
        ("Where did they meet?", f"{giver} and {taker} met at the {place}."),
    )
    question, answer = rng.choice(questions)
    return _only(question, passage, answer)


_PAST = {
    "hunts": "hunted", "digs": "dug", "sings": "sang", "naps": "napped", "swims": "swam", "tastes": "tasted",
    "smells": "smelled", "grows": "grew", "dries": "dried", "goes": "went", "cuts": "cut", "bends": "bent",
    "cleans": "cleaned", "breaks": "broke", "mends": "mended", "carries": "carried", "stops": "stopped",
    "runs": "ran", "makes": "made", "plays": "played", "wakes": "woke", "leads": "led", "sounds": "sounded",
    "needs": "needed", "keeps": "kept", "has": "had", "fits": "fitted", "shines": "shone", "comes": "came",
}  # fmt: skip


def past_tense(world: World, rng: Random) -> Draft:
    """A sentence about a thing to put in the past tense."""
    thing, name, place = world.thing(rng), world.person(rng).name, rng.choice(list(PLACES))
    habit = rng.choice(HABITS[thing.category])
    verb, rest = habit.split(" ", 1)
    return _only(
        "Put the sentence in the past tense.",
        f"At the {place}, {name} sees that the {thing.name} {habit}.",
        f"At the {place}, {name} saw that the {thing.name} {_PAST[verb]} {rest}.",
    )


# --- many valid answers ---------------------------------------------------------------------------------------------


def describe(world: World, rng: Random) -> Draft:
    """A description: size, category, place with a phrase of that place, habit, friend."""
    thing, listener = world.thing(rng), world.person(rng).name
    request = rng.choice(("Describe the {0} to {1}.", "Tell {1} about the {0}.", "{1} asks about the {0}. Explain."))

    def respond(rng: Random) -> str:
        place = pick(thing.places, rng)
        opening = f"The {thing.name} is {article(pick(thing.sizes, rng))} {thing.color} {thing.category}"
        where = f"that you find at the {place}, {pick(PLACES[place], rng)}."
        first, second = pick_several(thing.habits, 2, rng)
        return f"{opening} {where} It {first} and {second}."

    return Draft(request.format(thing.name, listener), "", respond)


def name_some(world: World, rng: Random) -> Draft:
    """A list of things of a category, with a remark on the first one."""
    category, count, name = rng.choice(list(THINGS)), rng.randint(2, 4), world.person(rng).name
    request = rng.choice(("Name {0} {1} for {2}.", "Give {2} a list of {0} {1}.", "Help {2} to think of {0} {1}."))

    def respond(rng: Random) -> str:
        *others, last = pick_several(world.ranks[category], count, rng, exponent=1.2)
        best = world.things[others[0]]
        words = f"{', '.join(others)} and {last}".capitalize()
        return f"{words}. The {best.name} is {best.color} and {pick(best.habits, rng)}."

    return Draft(request.format(NUMBERS[count], plural(category), name), "", respond)


_STORIES = {
    "happy": ("sunny", ("found", "met"), ("smiled", "laughed"), ("danced home together", "sang until night")),
    "sad": ("rainy", ("lost", "missed"), ("cried", "sighed"), ("walked home alone", "wrote a long letter")),
    "scary": ("stormy", ("heard", "feared"), ("screamed", "trembled"), ("ran away fast", "locked every door")),
    "funny": ("windy", ("chased", "tickled"), ("giggled", "slipped"), ("fell in the mud", "wore a silly mask")),
}


def story(world: World, rng: Random) -> Draft:
    """A story whose tone determines its weather, verbs and ending; person and thing both influence the tone."""
    thing, person = world.thing(rng), world.person(rng)
    request = rng.choice(("Write a short story about {0} and the {1}.", "Tell a story with {0} and the {1}."))

    def respond(rng: Random) -> str:
        tone = pick(thing.tones if rng.random() < 0.7 else person.tones, rng)
        weather, verbs, reactions, endings = _STORIES[tone]
        choice = 0 if rng.random() < 0.7 else 1
        place = pick(person.places, rng)
        return (
            f"One {weather} day, {person.name} {verbs[choice]} the {thing.color} {thing.name} at the {place}. "
            f"{person.pronoun.capitalize()} {reactions[choice]} {pick(PLACES[place], rng)}. "
            f"In the end {person.pronoun} {endings[choice]}."
        )

    return Draft(request.format(person.name, thing.name), "", respond)


_REVIEWS = {
    "good": ("wonderful", "love it", "five", ("buy it again", "show it to friends")),
    "fair": ("decent", "do not mind it", "three", ("wait for a sale", "keep it for now")),
    "bad": ("terrible", "hate it", "one", ("send it back", "ask for my money")),
}


def review(world: World, rng: Random) -> Draft:
    """A review whose verdict determines adjective, stars and intention; each person has a usual verdict."""
    thing = world.things[rng.choice(THINGS["tool"] + THINGS["instrument"] + THINGS["garment"] + THINGS["vehicle"])]
    person = world.person(rng)
    request = rng.choice(("Write a review of the {1} as {0}.", "What would {0} say about the new {1}?"))

    def respond(rng: Random) -> str:
        adjective, opinion, stars, plans = _REVIEWS[pick(person.verdicts, rng)]
        ending = "star" if stars == "one" else "stars"
        return (
            f"The {thing.color} {thing.name} is {adjective} and I {opinion}, because it {pick(thing.habits, rng)}. "
            f"I give it {stars} {ending} and will {pick(plans, rng)}. {person.name}"
        )

    return Draft(request.format(person.name, thing.name), "", respond)


_NOTES = {
    "thanks": ("thank you for the {0}.", "It made my week.", "With love"),
    "sorry": ("I am sorry that I lost the {0}.", "I will buy a new one.", "Please forgive me"),
    "invite": ("come and see the {0}.", "We start at noon.", "See you soon"),
    "request": ("could I borrow the {0}?", "I need it on Monday.", "Many thanks"),
}


def note(world: World, rng: Random) -> Draft:
    """A note whose purpose determines all its phrases; it ends with a gift that the reader prefers."""
    thing = world.thing(rng)
    reader, writer = rng.sample(list(world.persons.values()), 2)
    shift = THINGS[thing.category].index(thing.name) % len(_NOTES)
    purposes = [*_NOTES][shift:] + [*_NOTES][:shift]
    request = rng.choice(("Write a note from {0} to {1} about the {2}.", "{0} writes to {1} about the {2}."))

    def respond(rng: Random) -> str:
        opening, middle, closing = _NOTES[pick(purposes, rng)]
        return (
            f"Dear {reader.name}, {opening.format(thing.color + ' ' + thing.name)} {middle} "
            f"I also have a {pick(reader.gifts, rng)} for you. {closing}, {writer.name}"
        )

    return Draft(request.format(writer.name, reader.name, thing.name), "", respond)


_DAYS = {
    "spring": (("plant seeds", "watch the birds"), ("fresh salad", "green soup"), ("count the frogs", "read outside")),
    "summer": (("swim far out", "climb the rocks"), ("cold melon", "ice cream"), ("light a fire", "look at stars")),
    "autumn": (("rake the leaves", "pick apples"), ("hot pie", "baked nuts"), ("carve a pumpkin", "tell old tales")),
    "winter": (("build a snowman", "skate on ice"), ("thick stew", "warm bread"), ("knit a scarf", "play cards")),
}


def plan(world: World, rng: Random) -> Draft:
    """A plan for a day whose activities follow the season; the place follows the person."""
    person, season = world.person(rng), rng.choice(list(_DAYS))
    friend = rng.choice([name for name in world.persons if name != person.name])
    request = rng.choice(
        ("Plan {2} day for {0} and {1}.", "What could {0} and {1} do on {2} day?", "Suggest {2} trip for {0} and {1}.")
    )

    def respond(rng: Random) -> str:
        mornings, meals, evenings = _DAYS[season]
        # The first choice decides the others four times out of five, so the parts belong together.
        choice = 0 if rng.random() < 0.65 else 1
        follow = [choice if rng.random() < 0.8 else 1 - choice for _ in range(2)]
        place = pick(person.places, rng)
        return (
            f"First {person.name} and {friend} {mornings[choice]} at the {place}, {pick(PLACES[place], rng)}. "
            f"At noon they eat {meals[follow[0]]}. At night they {evenings[follow[1]]}."
        )

    return Draft(request.format(person.name, friend, article(season)), "", respond)


def present(world: World, rng: Random) -> Draft:
    """Advice on a present, with its reason."""
    person = world.person(rng)
    giver, thing = rng.choice([name for name in world.persons if name != person.name]), world.thing(rng)
    request = rng.choice(
        ("{1} does not want to give {0} the {2}. Suggest a present.", "What can {1} give {0} instead of the {2}?")
    )

    def respond(rng: Random) -> str:
        first, second = pick_several(person.gifts, 2, rng)
        him, his = ("her", "her") if person.pronoun == "she" else ("him", "his")
        place = pick(person.places, rng)
        return (
            f"{giver} could give {him} a {first} or a {second}. {person.name} would take the {first} "
            f"to {his} friends at the {place}, {pick(PLACES[place], rng)}."
        )

    return Draft(request.format(person.name, giver, thing.name), "", respond)
