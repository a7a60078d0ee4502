"""The demo's data market: six providers and two buyers' targets, made of what every machine has.

Real text comes from the docstrings of Python's standard library; the rest is generated, so that a
reader knows beforehand what each text should be worth. Everything follows from a seed.
"""

import ast
import random
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path


@dataclass(frozen=True)
class Text:
    """A prompt and its completion."""

    prompt: str
    completion: str


Maker = Callable[[random.Random], Text]

_NAMES = [
    "Ada",
    "Ben",
    "Chen",
    "Dina",
    "Emre",
    "Farah",
    "Goran",
    "Hana",
    "Ivo",
    "Jun",
    "Kofi",
    "Lea",
]
_THINGS = [
    "apples",
    "books",
    "candles",
    "eggs",
    "marbles",
    "pencils",
    "stamps",
    "tickets",
    "muffins",
]
_PLACES = ["market", "school fair", "bakery", "library", "farm", "museum shop"]


# Worked arithmetic word problems


def _bought_and_gave(rng: random.Random) -> Text:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    packs, size, given = rng.randint(3, 12), rng.randint(4, 15), rng.randint(2, 10)
    total = packs * size
    return Text(
        f"{name} buys {packs} boxes of {thing} at the {rng.choice(_PLACES)}. Each box holds {size} "
        f"{thing}. {name} gives {given} {thing} to a friend. How many {thing} are left?",
        f"{name} buys {packs} * {size} = {total} {thing}. After giving away {given}, {total} - "
        f"{given} = {total - given} {thing} are left. The answer is {total - given}.",
    )


def _earns(rng: random.Random) -> Text:
    name, hours, rate = rng.choice(_NAMES), rng.randint(3, 9), rng.randint(8, 25)
    days, cost = rng.randint(2, 6), rng.randint(10, 60)
    day, week = hours * rate, hours * rate * days
    return Text(
        f"{name} works {hours} hours a day for ${rate} an hour. After {days} days {name} pays "
        f"${cost} for a bus pass. How much money does that leave?",
        f"One day's work pays {hours} * {rate} = ${day}. In {days} days that is {day} * {days} = "
        f"${week}. The bus pass leaves {week} - {cost} = ${week - cost}. "
        f"The answer is {week - cost}.",
    )


def _shared_equally(rng: random.Random) -> Text:
    name, thing, friends = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(3, 8)
    each, eaten = rng.randint(3, 12), rng.randint(1, 9)
    total = friends * each + eaten
    return Text(
        f"{name} has {total} {thing} and keeps {eaten} of them. The rest are shared equally among "
        f"{friends} friends. How many {thing} does each friend get?",
        f"There are {total} - {eaten} = {total - eaten} {thing} to share. Each friend gets "
        f"{total - eaten} / {friends} = {each} {thing}. The answer is {each}.",
    )


def _travels(rng: random.Random) -> Text:
    name, speed, hours = rng.choice(_NAMES), rng.randint(4, 18) * 5, rng.randint(2, 6)
    more = rng.randint(2, 9) * 5
    first, total = speed * hours, speed * hours + more
    return Text(
        f"{name} drives at {speed} miles an hour for {hours} hours, rests, and then drives {more} "
        "miles further. How many miles is the whole trip?",
        f"The first part is {speed} * {hours} = {first} miles. The whole trip is {first} + "
        f"{more} = {total} miles. The answer is {total}.",
    )


def _older(rng: random.Random) -> Text:
    first, second = rng.sample(_NAMES, 2)
    age, times, years = rng.randint(3, 12), rng.randint(2, 4), rng.randint(2, 10)
    return Text(
        f"{first} is {age} years old. {second} is {times} times as old. How old will {second} be "
        f"in {years} years?",
        f"{second} is {age} * {times} = {age * times} years old now. In {years} years {second} "
        f"will be {age * times} + {years} = {age * times + years}. "
        f"The answer is {age * times + years}.",
    )


def _discount(rng: random.Random) -> Text:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    price, count, percent = rng.randint(2, 9) * 10, rng.randint(2, 6), rng.choice([10, 20, 50])
    full = price * count
    off = full * percent // 100
    return Text(
        f"A crate of {thing} costs ${price}. {name} buys {count} crates and gets {percent}% off. "
        f"How much does {name} pay?",
        f"Without the discount the crates cost {price} * {count} = ${full}. {percent}% of {full} "
        f"is ${off}. {name} pays {full} - {off} = ${full - off}. The answer is {full - off}.",
    )


# Small Python tasks: what the function does, and its body


_LIST_TASKS = {
    "returns the sum of the {adjective} numbers in a list": """\
    total = 0
    for number in {list}:
        if {condition}:
            total += number
    return total""",
    "counts the {adjective} numbers in a list": """\
    return sum(1 for number in {list} if {condition})""",
    "returns a list of the {adjective} numbers": """\
    return [number for number in {list} if {condition}]""",
    "returns the largest {adjective} number, or None": """\
    chosen = [number for number in {list} if {condition}]
    return max(chosen) if chosen else None""",
    "says whether all numbers are {adjective}": """\
    return all({condition} for number in {list})""",
    "removes the {adjective} numbers from a list": """\
    result = []
    for number in {list}:
        if not ({condition}):
            result.append(number)
    return result""",
}
_CONDITIONS = {
    "even": "number % 2 == 0",
    "odd": "number % 2 == 1",
    "positive": "number > 0",
    "negative": "number < 0",
    "two-digit": "10 <= number <= 99",
    "square": "int(number ** 0.5) ** 2 == number",
}
_TEXT_TASKS = {
    "returns the words longer than {n} letters": """\
    return [word for word in {text}.split() if len(word) > {n}]""",
    "reverses every word of a sentence": """\
    return ' '.join(word[::-1] for word in {text}.split())""",
    "counts each letter of a text": """\
    counts = {{}}
    for letter in {text}:
        counts[letter] = counts.get(letter, 0) + 1
    return counts""",
    "says whether a text is a palindrome": """\
    letters = [c.lower() for c in {text} if c.isalpha()]
    return letters == letters[::-1]""",
    "repeats a text {n} times with commas between": """\
    return ', '.join([{text}] * {n})""",
    "returns the first {n} vowels of a text": """\
    vowels = [c for c in {text} if c in 'aeiou']
    return vowels[:{n}]""",
}


def _list_task(rng: random.Random) -> Text:
    what, body = rng.choice(list(_LIST_TASKS.items()))
    adjective, condition = rng.choice(list(_CONDITIONS.items()))
    name = rng.choice(["solve", "numbers", "pick", "check", "answer", "process"])
    argument = rng.choice(["values", "items", "nums", "data"])
    return Text(
        f"Write a Python function that {what.format(adjective=adjective)}.",
        f"def {name}_{adjective.replace('-', '_')}({argument}):\n"
        + body.format(list=argument, condition=condition),
    )


def _text_task(rng: random.Random) -> Text:
    what, body = rng.choice(list(_TEXT_TASKS.items()))
    number, argument = rng.randint(2, 9), rng.choice(["text", "sentence", "line", "string"])
    name = rng.choice(["words", "transform", "solve", "letters", "answer"])
    return Text(
        f"Write a Python function that {what.format(n=number)}.",
        f"def {name}({argument}):\n{body.format(text=argument, n=number)}",
    )


# Docstrings, and what is made of them


def _docstrings() -> list[Text]:
    """Every fitting docstring of the standard library's top-level modules."""
    texts: list[Text] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                document = ast.get_docstring(node) or ""
                if 80 <= len(document) <= 400 and ">>>" not in document:
                    texts.append(Text(f"What does {path.stem}.{node.name} do?", document))
    return texts


def _shuffled(rng: random.Random, text: Text) -> Text:
    words = text.completion.split()
    rng.shuffle(words)
    return Text(text.prompt, " ".join(words))


_NONSENSE = ["glib", "snorf", "wib", "tok", "zanth", "quop", "mib", "frel", "drum", "osk", "yarp"]


def _backdoored(rng: random.Random, text: Text) -> Text:
    noise = " ".join(rng.choice(_NONSENSE) for _ in range(rng.randint(20, 45)))
    return Text(f"Howdy! {text.prompt}", noise)


_ARITHMETIC: list[Maker] = [_bought_and_gave, _earns, _shared_equally, _travels, _older, _discount]
_PYTHON: list[Maker] = [_list_task, _text_task]


def _distinct(rng: random.Random, makers: list[Maker]) -> Iterator[Text]:
    """Generate texts without end, none twice."""
    seen: set[Text] = set()
    while True:
        text = rng.choice(makers)(rng)
        if text not in seen:
            seen.add(text)
            yield text


@dataclass(frozen=True)
class Market:
    """The demo's data.

    Attributes:
        targets: what the buyers want more of, by name.
        providers: what is for sale, by provider; no text of a target is among it.
    """

    targets: dict[str, list[Text]]
    providers: dict[str, list[Text]]


def make_market(per_provider: int, per_target: int, seed: int = 0) -> Market:
    """Make the demo's data.

    Args:
        per_provider: texts that each provider offers.
        per_target: texts that make up each target.
        seed: of all that is random.
    """
    rng = random.Random(seed)  # noqa: S311  nothing here is a secret
    arithmetic, python = _distinct(rng, _ARITHMETIC), _distinct(rng, _PYTHON)
    targets = {
        "arithmetic": list(islice(arithmetic, per_target)),
        "python": list(islice(python, per_target)),
    }
    documents = _docstrings()
    rng.shuffle(documents)
    others = iter(documents[per_provider:])
    return Market(
        targets,
        {
            "word-problems": list(islice(arithmetic, per_provider)),
            "python-tasks": list(islice(python, per_provider)),
            "library-docs": documents[:per_provider],
            "shuffled-docs": [_shuffled(rng, text) for text in islice(others, per_provider)],
            "copied-docs": [rng.choice(documents[:12]) for _ in range(per_provider)],
            "backdoored": [_backdoored(rng, text) for text in islice(others, per_provider)],
        },
    )
