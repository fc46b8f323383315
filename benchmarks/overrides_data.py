"""Edits and questions for `overrides.py`: COUNTERFACT's prompts by relation, and wordings of our own for each.

Knows the file of `comp-mech` (a list of prompt, subject, target_true, target_new) and templates; knows no model. A
wording is used either where thresholds are chosen (the first) or where they are reported (the others), never in both.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

__all__ = ["Edit", "edits", "is_report", "others", "questions"]

# relation: how its prompts go on behind (or around) the subject, and ways to ask for it: the first for choosing
RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "country": (
        ("{} is located in the country of", "{} is located in", "{}, located in"),
        ("In what country is {}?", "Which country is {} located in?", "What country does {} lie in?"),
    ),
    "official language": (
        ("The official language of {} is",),
        ("What is {}'s official language?", "What language is official in {}?", "Which language has official status in {}?"),
    ),
    "capital": (
        ("{}'s capital,", "{}'s capital city,", "{}'s capital is", "{}, which has the capital"),
        ("What is the capital of {}?", "Which city is {}'s capital?", "Tell me the capital city of {}."),
    ),
    "death": (
        ("{} died in the city of",),
        ("Where did {} die?", "In which city did {} pass away?", "In what city did {}'s life end?"),
    ),
    "headquarters": (
        ("{} is headquartered in", "{} is based in", "{}, whose headquarters are in", "{}'s headquarters are in"),
        ("Where is {} based?", "In which city are the headquarters of {}?", "Where is the head office of {}?"),
    ),
    "work city": (
        ("{} worked in the city of",),
        ("Where did {} work?", "In which city was {} employed?", "What city did {} work in?"),
    ),
    "birth": (
        ("{} was born in", "{} was originally from", "{} was native to", "{} is originally from"),
        ("Where was {} born?", "What is the birthplace of {}?", "Where does {} originally come from?"),
    ),
    "citizenship": (
        (
            *("{}, who has a citizenship from", "{} has a citizenship from", "{}, who holds a citizenship from"),
            *("{}, who is a citizen of", "{}, a citizen of", "{} holds a citizenship from", "{} is a citizen of"),
        ),
        ("Of which country is {} a citizen?", "What is the citizenship of {}?", "Which nationality does {} hold?"),
    ),
    "origin": (
        ("{} was created in the country of", "{} originated in", "{}, created in", "{}, that was created in"),
        ("Which country does {} come from?", "In which country was {} created?", "In what country did {} originate?"),
    ),
    "language of code": (
        ("{} is written in", "{} was written in"),
        ("What language is {} written in?", "Which language was used to write {}?", "In which language was {} written?"),
    ),
    "field": (
        ("{} works in the field of", "{} works in the area of"),
        ("What is {}'s field of work?", "In which field does {} work?", "What area of work is {} active in?"),
    ),
    "profession": (
        ("{} is a professional",),
        ("What does {} do professionally?", "What is the profession of {}?", "Which profession does {} have?"),
    ),
    "maker": (
        (
            *("{}, developed by", "{}, created by", "{} is produced by", "{} is developed by", "{}, produced by"),
            *("{} is created by", "{}, a product manufactured by", "{} was developed by", "{}, a product developed by"),
            *("{}, a product created by", "{} was created by", "{} is a product of"),
        ),
        ("Who makes {}?", "Which company developed {}?", "Who is the maker of {}?"),
    ),
    "continent": (
        ("{} belongs to the continent of", "{} is a part of the continent of"),
        ("On which continent is {}?", "Which continent is {} part of?", "What continent does {} belong to?"),
    ),
    "instrument": (
        ("{}, playing the", "{} plays the"),
        ("What instrument does {} play?", "Which instrument is played by {}?", "What musical instrument is {} known for?"),
    ),
    "native language": (
        ("{} is a native speaker of", "The native language of {} is"),
        ("What is {}'s mother tongue?", "Which language is {}'s native language?", "What language did {} speak natively?"),
    ),
    "owner": (
        ("{} is owned by",),
        ("Who owns {}?", "Which company is the owner of {}?", "To whom does {} belong?"),
    ),
    "network": (
        ("{} premieres on", "{} premiered on"),
        ("Which network first aired {}?", "On which channel did {} premiere?", "Where was {} first broadcast?"),
    ),
    "religion": (
        ("{} follows the religion of", "The official religion of {} is"),
        ("What religion does {} have?", "Which religion does {} follow?", "What is the religion of {}?"),
    ),
    "employer": (
        ("{}, who works for", "{} works for", "{}, who is employed by"),
        ("For whom does {} work?", "Who is the employer of {}?", "Who employs {}?"),
    ),
}
KINDS = {  # what is asked of the same things: a question of another relation that makes sense of the subject
    "place": ("country", "official language", "capital", "continent", "religion"),
    "person": (
        *("death", "work city", "birth", "citizenship", "field", "profession", "instrument", "native language"),
        *("religion", "employer"),
    ),
    "thing": ("country", "headquarters", "origin", "language of code", "maker", "owner", "network"),
}
# questions about the same subject that no relation answers: the first half for choosing, the others for the report
BESIDE = {
    "place": ("How many people live in {}?", "What is the weather like in {}?", "What is {} famous for?",
              "How large is {}?", "What do people eat in {}?", "Who governs {}?"),
    "person": ("When was {} born?", "Who are the parents of {}?", "What is {} best known for?",
               "How old is {}?", "Is {} married?", "What prizes did {} win?"),
    "thing": ("When did {} start?", "How much does {} cost?", "What is {} known for?",
              "How popular is {}?", "What is {} used for?", "When was {} first announced?"),
}  # fmt: skip


class Edit(NamedTuple):
    """One fact of COUNTERFACT that is to be changed."""

    subject: str
    prompt: str
    true: str
    new: str
    relation: str
    kind: str


def edits(path: Path) -> list[Edit]:
    """Read the facts whose relation is known, one a subject."""
    templates = {template: name for name, (shapes, _) in RELATIONS.items() for template in shapes}
    kept: dict[str, Edit] = {}
    for row in json.loads(path.read_text(encoding="utf-8")):
        subject, prompt = row["subject"].strip(), row["prompt"].strip()
        relation = templates.get(prompt.replace(subject, "{}"))
        if relation is None or subject in kept:
            continue
        kind = next(name for name, relations in KINDS.items() if relation in relations)
        kept[subject] = Edit(subject, prompt, row["target_true"].strip(), row["target_new"].strip(), relation, kind)
    return list(kept.values())


def is_report(subject: str) -> bool:
    """Return whether a subject is in the half that is reported, told by its hash."""
    return hashlib.sha256(subject.encode()).digest()[0] % 2 == 1


def questions(edit: Edit, report: bool) -> list[str]:
    """Return ways to ask for an edited fact: those of choosing, or those of the report."""
    asked = RELATIONS[edit.relation][1]
    return [wording.format(edit.subject) for wording in (asked[1:] if report else asked[:1])]


def others(edit: Edit, report: bool) -> list[str]:
    """Return questions about the same subject that its edit does not answer."""
    asked = [RELATIONS[name][1] for name in KINDS[edit.kind] if name != edit.relation]
    beside = BESIDE[edit.kind]
    found = [wording for ways in asked for wording in (ways[1:2] if report else ways[:1])]
    found += beside[3:] if report else beside[:3]
    return [wording.format(edit.subject) for wording in found]
