"""Two-passage questions whose support is known, generated from a seed: what citations.py asks.

Invented names, two passages, and an answer whose sentences were written from the one passage, the other, both or
neither. Kinds: `copy`, `paraphrase`, `short` (the bare value), `numbers` (both passages are about the same thing),
`shared` (both share nearly all words), `negation`, `joined` (one sentence from both), `mixed` (one sentence from a
passage, one from memory), `memory` (neither passage has it), `related` (likewise, and both speak of the same things),
`against` (the answer says another value than the passage, as memory does), `negated` (the answer denies what the
passage says), `unspaced` (Chinese, Japanese), `blended` (the name of one passage, the number of the other), `padded` (a
passage's name among praise that no passage has), `follow-up` (memory's answer, and the question says hardly anything).
The shares in ckcontrol/citations.py were chosen on even seeds; odd ones use other relations and wordings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    kind: str
    question: str
    passages: tuple[str, str]
    answer: tuple[str, ...]  # sentences
    support: tuple[tuple[int, ...], ...]  # of each sentence: places in passages

    @property
    def text(self) -> str:
        return ("" if self.kind == "unspaced" else " ").join(self.answer)


@dataclass(frozen=True)
class Relation:
    """`{n}` is who it is about and `{v}` the value; the second passage adds something beside the point."""

    ask: str
    tells: str
    copies: str
    rewords: str
    beside: str
    values: Callable[[random.Random], str]


def coined(chance: random.Random, ends: Sequence[str] = ("en", "ow", "ia", "or", "ix", "un")) -> str:
    parts = [chance.choice("b d f g k l m n p r s t v z br dr kr st th".split()) + chance.choice("aeiou") for _ in "12"]
    return ("".join(parts) + chance.choice("l m n r s t".split()) + chance.choice(ends)).capitalize()


def number(low: int, high: int) -> Callable[[random.Random], str]:
    return lambda chance: str(chance.randint(low, high))


def of(*values: str) -> Callable[[random.Random], str]:
    return lambda chance: chance.choice(values)


def person(chance: random.Random) -> str:
    return f"{coined(chance, ('a', 'o', 'e'))} {coined(chance)}"


SEEN = [
    Relation(
        "How long is the river {n}?",
        "The river {n} is {v} km long and flows into the Gulf of Sarn.",
        "The river {n} is {v} km long.",
        "From source to mouth it measures {v} km.",
        "The {n} freezes in most winters.",
        number(20, 900),
    ),
    Relation(
        "Who designed the {n} bridge?",
        "The {n} bridge was designed by {v} and opened to carts.",
        "The {n} bridge was designed by {v}.",
        "Its architect was {v}.",
        "The {n} bridge is painted green every fourth year.",
        person,
    ),
    Relation(
        "When was the university of {n} founded?",
        "The university of {n} was founded in {v} by monks.",
        "The university of {n} was founded in {v}.",
        "It has existed since {v}.",
        "The university of {n} teaches mostly in summer.",
        number(1200, 1990),
    ),
    Relation(
        "What does the company {n} make?",
        "The company {n} makes {v} for farms.",
        "The company {n} makes {v}.",
        "Its products are {v}.",
        "The company {n} moved its office to the coast.",
        of("copper kettles", "wooden ladders", "glass lanterns", "seed drills", "leather harnesses"),
    ),
    Relation(
        "Where was the painter {n} born?",
        "The painter {n} was born in {v}, a small harbour town.",
        "The painter {n} was born in {v}.",
        "{v} was the birthplace.",
        "The painter {n} hardly ever sold a picture.",
        coined,
    ),
]
HELD = [
    Relation(
        "How many people live in {n}?",
        "{n} has {v} inhabitants, most of whom fish for a living.",
        "{n} has {v} inhabitants.",
        "A total of {v} people call the town home.",
        "{n} lost its railway station in a fire.",
        number(1000, 99000),
    ),
    Relation(
        "Who wrote the novel {n}?",
        "The novel {n} was written by {v} during a long illness.",
        "The novel {n} was written by {v}.",
        "{v} is the author.",
        "The novel {n} has been translated twice.",
        person,
    ),
    Relation(
        "In which year did the volcano {n} last erupt?",
        "The volcano {n} last erupted in {v}, covering two villages in ash.",
        "The volcano {n} last erupted in {v}.",
        "There has been no eruption after {v}.",
        "The volcano {n} can be climbed from the north.",
        number(1400, 2010),
    ),
    Relation(
        "What is the {n} festival famous for?",
        "The {n} festival is famous for its {v} after sunset.",
        "The {n} festival is famous for its {v}.",
        "Visitors come to see the {v}.",
        "The {n} festival charges no entrance fee.",
        of("paper dragons", "boat races", "silver drums", "masked dancers", "floating candles"),
    ),
    Relation(
        "Which mineral is mined at {n}?",
        "At {n} workers mine {v} in two deep shafts.",
        "At {n} workers mine {v}.",
        "The mines yield {v}.",
        "At {n} the wind blows from the west.",
        of("feldspar", "cinnabar", "malachite", "gypsum", "wolframite"),
    ),
]
DENIED = [
    (
        "Is the {n} museum open on Mondays?",
        "The {n} museum is not open on Mondays.",
        "The {n} museum is open on Mondays.",
        "No, it is not open on Mondays.",
        "Yes, it is open on Mondays.",
    ),
    (
        "Does the {n} line stop at Harrow Gate?",
        "The {n} line never stops at Harrow Gate.",
        "The {n} line stops at Harrow Gate every hour.",
        "It never stops there.",
        "It stops there every hour.",
    ),
    (
        "Are dogs allowed in {n} park?",
        "In {n} park dogs are not allowed at any time.",
        "In {n} park dogs are allowed until noon.",
        "No, dogs are not allowed at any time.",
        "They are allowed until noon.",
    ),
    (
        "Can the {n} be repaired?",
        "The {n} cannot be repaired once its seal is broken.",
        "The {n} can be repaired in any workshop.",
        "It cannot be repaired once the seal is broken.",
        "It can be repaired in any workshop.",
    ),
    (
        "Did {n} win a medal?",
        "{n} did not win a medal in her whole career.",
        "{n} won a medal in her last race.",
        "She did not win a medal in her career.",
        "She won a medal in her last race.",
    ),
    (
        "Is {n} cheese made from goat milk?",
        "{n} cheese is made without goat milk.",
        "{n} cheese is made from goat milk and salt.",
        "It is made without goat milk.",
        "It is made from goat milk and salt.",
    ),
]
# What a model remembers, the question, and two passages that speak of the same things and do not say it.
REMEMBERED = [
    (
        "Paris is the capital of France.",
        "What is the capital of France?",
        "Paris has a famous tower of iron.",
        "France grows much wine in the south.",
    ),
    (
        "Water boils at 100 degrees Celsius at sea level.",
        "At what temperature does water boil?",
        "Cold water is sold at the kiosk by the sea.",
        "The kettle has a green handle.",
    ),
    (
        "Shakespeare wrote Hamlet.",
        "Who wrote Hamlet?",
        "Hamlet was staged in Orben last summer.",
        "A statue of Shakespeare stands in Orben.",
    ),
    (
        "The heart pumps blood through the body.",
        "What does the heart do?",
        "The heart of the town is its square.",
        "Blood was given by forty people of the town.",
    ),
    ("Honey is made by bees.", "Who makes honey?", "Honey costs nine crowns a jar.", "The fair sells wax and mead."),
    (
        "Mount Everest is the highest mountain on Earth.",
        "What is the highest mountain on Earth?",
        "Mount Everest was climbed by a team from Orben.",
        "The mountain hut takes no cards.",
    ),
    (
        "Light travels faster than sound.",
        "Which travels faster, light or sound?",
        "The sound of the organ fills the hall.",
        "Light falls in from the east.",
    ),
    (
        "The Second World War ended in 1945.",
        "When did the Second World War end?",
        "The hall was damaged in the Second World War.",
        "The hall was sold in 1945 to a baker.",
    ),
    (
        "Alexander Fleming discovered penicillin in 1928.",
        "Who discovered penicillin?",
        "Penicillin is kept in a cool room.",
        "Alexander Fleming is the name of the new ward.",
    ),
    (
        "Spiders have eight legs.",
        "How many legs do spiders have?",
        "Spiders live in the cellar of the mill.",
        "The table has eight chairs.",
    ),
]
UNSPACED = [
    ("{n}河有多长？", "{n}河全长{v}公里，流入东海。", "{n}河全长{v}公里。", "水是由氢和氧组成的。", "兰青松柏梅竹"),
    (
        "{n}大学是哪一年成立的？",
        "{n}大学由商人于{v}年创办。",
        "这所大学于{v}年创办。",
        "巴黎是法国的首都。",
        "云山海石林川",
    ),
    (
        "{n}川の長さはどのくらいですか。",
        "{n}川は長さ{v}キロで、北の湾に注ぐ。",
        "{n}川は長さ{v}キロです。",
        "フランスの首都はパリです。",
        "松竹梅桜藤杉",
    ),
    ("{n}塔有多高？", "{n}塔高{v}米，用砖砌成。", "它高{v}米。", "蜂蜜是蜜蜂酿造的。", "金玉白紫红星"),
    (
        "{n}駅の利用者は何人ですか。",
        "{n}駅は一日に{v}人が利用する。",
        "一日に{v}人が利用しています。",
        "水は百度で沸騰します。",
        "高中西東南北",
    ),
    ("{n}村有多少人？", "{n}村住着{v}人，多以捕鱼为生。", "那里住着{v}人。", "地球绕着太阳转。", "龙凤鹤鹿马牛"),
]
# Question, what a passage tells, what the answer says: of places {a} and {b}, numbers {x} and {y}, people {p} and {q}.
BLENDED = [
    (
        "How are letters to {n} answered?",
        "Letters to {n} are answered by the {a} office within {x} days.",
        "Letters to {n} are answered by the {a} office within {y} days.",
    ),
    (
        "How are refunds of {n} handled?",
        "Refunds of {n} are handled by the {a} branch in {x} hours.",
        "The {a} branch handles refunds of {n} in {y} hours.",
    ),
]
PADDED = [
    (
        "Who runs the {n} office?",
        "{p} runs the {n} office.",
        "The {n} office is run by the brilliant and talented {p}.",
    ),
    (
        "Who leads the {n} school?",
        "The {n} school is led by {p}.",
        "It is the experienced and generous {p} that leads it.",
    ),
]
FOLLOWED = [
    ("And which river runs through it?", "The capital of {n} is {a}, a dry place.", "The capital of {n} is {b}."),
    ("And how old is she?", "The head of the {n} works is {p}, who is new.", "The head of the {n} works is {q}."),
]
KINDS = "copy paraphrase short numbers shared negation joined mixed memory related against negated unspaced".split()
KINDS += ["blended", "padded", "follow-up"]


def generated(count: int, seed: int) -> list[Question]:
    """Return questions of all kinds in equal shares; even seeds use the relations of SEEN, odd ones those of HELD."""
    chance = random.Random(seed)
    return [one(KINDS[i % len(KINDS)], seed % 2, chance) for i in range(count)]


def half(told: Sequence[Any], which: int) -> Sequence[Any]:
    return told[len(told) // 2 :] if which else told[: len(told) // 2]


def one(kind: str, held: int, chance: random.Random) -> Question:
    relations: Sequence[Relation] = HELD if held else SEEN
    rel, other = chance.sample(relations, 2)
    n, m = coined(chance), coined(chance)
    v, w, x = (rel.values(chance) for _ in "123")
    while len({v, w, x}) < 3:
        v, w, x = (rel.values(chance) for _ in "123")
    ov = other.values(chance)
    ask, tells = rel.ask.format(n=n), rel.tells.format(n=n, v=v)
    twin, copy = rel.tells.format(n=m, v=w), rel.copies.format(n=n, v=v)
    fact, asked, *beside = chance.choice(half(REMEMBERED, held))
    made: tuple[str, list[str], list[str], list[tuple[int, ...]]]
    if kind in ("copy", "paraphrase", "short"):
        said = {"copy": copy, "paraphrase": rel.rewords.format(n=n, v=v), "short": v}[kind]
        made = ask, [tells, twin], [said], [(0,)]
    elif kind == "numbers":
        low, high = chance.randint(20, 400), chance.randint(401, 999)
        ask = f"How high and how old is the {n} tower?"
        told = [f"The {n} tower is {low} m high and built of brick.", f"The {n} tower is {high} years old and leans."]
        made = ask, told, [f"It is {low} m high.", f"It is {high} years old."], [(0,), (1,)]
    elif kind == "shared":
        made = ask, [tells, rel.beside.format(n=n) + " " + twin], [rel.copies.format(n=n, v=v)], [(0,)]
    elif kind in ("negation", "negated"):
        question, no, yes, says_no, says_yes = chance.choice(half(DENIED, held))
        if chance.random() < 0.5:
            no, yes, says_no, says_yes = yes, no, says_yes, says_no
        said = says_no if kind == "negation" else says_yes
        far = yes if kind == "negation" else tells  # of another thing: it supports nothing either
        made = question.format(n=n), [no.format(n=n), far.format(n=m)], [said], [(0,) if kind == "negation" else ()]
    elif kind == "joined":
        second = other.tells.format(n=n, v=ov)
        made = ask, [tells, second], [f"{copy[:-1]}, and {decapitalised(other.copies.format(n=n, v=ov))}"], [(0, 1)]
    elif kind == "mixed":
        made = f"{ask} {asked}", [tells, twin], [copy, fact], [(0,), ()]
    elif kind == "memory":
        made = chance.choice((asked, f"{asked} And: {decapitalised(ask)}")), [tells, twin], [fact], [()]
    elif kind == "related":
        made = asked, beside, [fact], [()]
    elif kind == "against":
        said = chance.choice((rel.copies, rel.rewords)).format(n=n, v=x)
        made = ask, [tells, rel.beside.format(n=n)], [said], [()]
    elif kind in ("blended", "padded", "follow-up"):
        form = {"blended": BLENDED, "padded": PADDED, "follow-up": FOLLOWED}[kind][held]
        low, high = chance.sample(range(3, 90), 2)
        given = {"n": n, "a": coined(chance), "x": low, "p": person(chance)}
        turned = {"n": n, "b": coined(chance), "y": high, "q": person(chance)}
        twins = {"blended": {**given, "a": turned["b"], "x": high}, "padded": {**given, "n": m, "p": turned["q"]}}
        question, telling, saying = form
        second = telling.format(**twins[kind]) if kind in twins else rel.tells.format(n=m, v=w)
        backs: tuple[int, ...] = {"blended": (0, 1), "padded": (0,), "follow-up": ()}[kind]
        made = question.format(n=n), [telling.format(**given), second], [saying.format(**{**turned, **given})], [backs]
    else:
        question, passage, copied, known, names = chance.choice(half(UNSPACED, held))
        n, m = chance.sample(names, 2)
        low, high = chance.randint(101, 499), chance.randint(501, 999)
        told = [passage.format(n=n, v=low), passage.format(n=m, v=high)]
        made = question.format(n=n), told, [copied.format(n=n, v=low), known], [(0,), ()]
    question, told, answer, support = made
    if chance.random() < 0.5:
        told, support = told[::-1], [tuple(sorted(1 - place for place in places)) for places in support]
    return Question(kind, question, (told[0], told[1]), tuple(answer), tuple(support))


def decapitalised(text: str) -> str:
    return text[0].lower() + text[1:]
