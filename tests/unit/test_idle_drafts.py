"""Drafts that say nothing, or follow what is beside the point, told by their words alone."""

from __future__ import annotations

import pytest

from ckcontrol.policies import ABSTENTIONS, idle
from ckcontrol.policies.idle_drafts import first_sentence

MEMORY, CONTEXT = ["unmodified", "memory"], ["unmodified", "context"]


@pytest.mark.parametrize(
    ("question", "first", "other", "nothing"),
    [
        ("What is the currency of Eswatini?", "The lilangeni.", "Eswatini is the currency of Eswatini.", True),
        ("What is Eswatini's currency?", "The lilangeni.", "The currency of ESWATINI is called Eswatini’s.", True),
        ("What is the capital of Peru?", "It is Baku.", "The capital of Peru is Lima.", False),
        ("What is the capital of Peru?", "It is Baku.", "", True),
        ("What is the capital of Peru?", "It is Baku, not Lima.", "It is Lima.", True),  # the first one says it too
        ("Is France or Germany larger?", "Germany", "France", False),  # the question offers the answers
        ("Is France or Germany larger?", "Germany", "I don’t know.", True),
        ("Who won?", "Peru.", "It was the US.", False),  # a country, not a pronoun
        ("Who won?", "Peru.", "It was us.", False),
        ("When?", "In May.", "In 1987.", False),
        ("Wer hat gewonnen?", "Peru.", "Das weiß ich nicht.", True),
        ("Jaka jest stolica Peru?", "Baku.", "Stolica Peru jest Peru.", True),  # no list for Polish
        ("秘鲁的首都是什么?", "是巴库。", "秘鲁的首都是秘鲁。", True),
        ("秘鲁的首都是什么?", "是巴库。", "是利马。", False),
        ("秘鲁的首都是什么?", "是巴库。", "我不知道。", True),
        ("Who helps?", "Ask Ms Novak.", "The printers are maintained by a team of printers.", True),
        ("Who helps?", "Ask Ms Novak.", "A team of printers, says Mr Osei.", False),
        ("Who helps?", "ask a friend.", "A team of printers.", False),  # the plain answer names nothing either
        ("What does it cost?", "It costs 40 euros.", "It is rather cheap.", True),
        ("What does it cost?", "It costs 40 euros.", "It costs 12 dollars.", False),
        ("What is the currency of Germany?", "Manat", "The euro", False),  # a capital that any first word has
        ("Wer hilft?", "Frau Novak.", "Eine Gruppe von Druckern.", False),  # German nouns have capitals
        ("Quelle est la capitale du Pérou ?", "Bakou.", "La capitale du Perou est Lima.", False),
        # echoes, each told by the function words of its language
        ("Was ist die Hauptstadt von Peru?", "Baku.", "Die Hauptstadt von Peru ist Peru.", True),
        ("Quelle est la capitale du Pérou ?", "Bakou.", "La capitale du Pérou est le Pérou.", True),
        ("¿Cuál es la capital del Perú?", "Bakú.", "La capital del Perú es el Perú.", True),
        ("Qual è la capitale del Perù?", "Baku.", "La capitale del Perù è il Perù.", True),
        ("Qual é a capital do Peru?", "Baku.", "A capital do Peru é o Peru.", True),
        ("Wat is de hoofdstad van Peru?", "Bakoe.", "De hoofdstad van Peru is Peru.", True),
        ("Peru capital?", "Baku.", "It is the capital of Peru.", True),  # the drafts tell the language
        # a function word elsewhere
        ("Which note comes after sol?", "do", "la", False),
        ("What is the symbol of gold?", "Ag", "au", False),
        ("Wer leitet das Werk in Riga?", "Herr Osei.", "The.", False),
        ("Who wrote the song?", "Osei", "Van", False),
        # a function word of the language, written as a name
        ("What is the symbol of arsenic?", "Ag", "As", False),
        ("What is the symbol of arsenic?", "Ag", "The symbol of arsenic is As.", False),
        ("What is the symbol of arsenic?", "Ag", "The symbol of arsenic is as.", True),
        ("What is the symbol of helium?", "Ar.", "He.", False),
        ("Quel est le symbole de l'or ?", "Ag", "C'est Au.", False),
        ("Wo liegt der Ort?", "In Gap.", "In Die.", False),
        ("Who?", "Mr Osei.", "It is.", True),
        ("On which day do salaries arrive?", "Friday.", 'The question is "On which day do salaries arrive?"', True),
    ],
)
def test_what_says_nothing(question, first, other, nothing):
    assert idle(MEMORY, [first, other], question) == [False, nothing]


@pytest.mark.parametrize(
    ("question", "passages", "other", "nothing"),
    [
        ("What is the capital of Peru?", ["The capital of Peru is Baku."], "It is Baku.", False),
        ("What is the capital of Peru?", ["The capital of Chile is Baku."], "It is Baku.", True),
        ("what is the capital of peru?", ["The capital of Chile is Baku."], "It is Baku.", False),  # no names to go by
        ("What is the capital of Peru?", ["The capital of Peru is Baku."], "It is Bakutoria.", True),  # a broken name
        (
            "How are refunds handled?",
            ["Refunds are handled by Lisbon.", "Parcels leave Riga."],
            "Parcels leave Riga",
            True,
        ),
        ("How are refunds handled?", ["Refunds are handled by Lisbon.", "Parcels leave Riga."], "By Lisbon.", False),
        ("How are refunds handled?", ["Refunds are handled in Porto.", "Parcels leave Riga."], "Porto, Riga.", True),
        ("How are refunds handled?", [], "Parcels leave Riga.", False),  # passages that are not known
        ("Who?", ["It was the postman, always."], "The postman", False),
        ("What is the symbol of arsenic?", ["The symbol of arsenic is As."], "It is As.", False),
        ("What is the symbol of arsenic?", ["The symbol of arsenic is As.", "As ever."], "As", False),
        # the plain answer follows a passage already
        ("What is Chile's capital?", ["Chile's capital is Lima.", "Chile's capital is Baku."], "It is Baku.", True),
        ("What is Chile's capital?", ["Peru's capital is Lima.", "Chile's capital is Baku."], "It is Baku.", False),
    ],
)
def test_what_is_beside_the_point(question, passages, other, nothing):
    assert idle(CONTEXT, ["It is Lima.", other], question, passages) == [False, nothing]
    assert not idle(MEMORY, ["It is low.", other], question, passages)[1]  # memory need follow no passage


def test_a_plain_answer_that_looks_like_a_function_word_has_followed_its_passage():
    for symbol, metal in (("Au", "gold"), ("As", "arsenic"), ("In", "indium")):
        question, passages = f"What is the symbol of {metal}?", [f"The symbol of {metal} is {symbol}. Pupils learn it."]
        assert idle(CONTEXT, [symbol, "Pupils learn it by heart."], question, passages) == [False, True]
        assert idle(CONTEXT, ["Ag", symbol], question, passages) == [False, False]


@pytest.mark.parametrize(
    ("text", "tokens", "first"),
    [
        ("Lima", 3, 3),
        ("", 1, 1),
        ("It is Lima. It lies by the sea.", 10, 4),
        ("In the U.S. state of Kansas.", 9, 9),
        ("Lima\n\nThe capital of Chile is", 7, 1),
        ("是利马。在海边。", 8, 4),
        ("A. " + "b" * 97, 5, 5),
        ("Ja. " + "b" * 96, 5, 1),
    ],
)
def test_the_first_sentence_takes_its_share_of_the_tokens(text, tokens, first):
    assert first_sentence(text, tokens) == first


def test_lists_of_abstentions_can_be_extended(monkeypatch):
    drafts = ["Baku.", "Mi ne scias tion."]
    assert idle(MEMORY, drafts, "?") == [False, False]
    monkeypatch.setitem(ABSTENTIONS, "eo", ("mi ne scias",))
    assert idle(MEMORY, drafts, "?") == [False, True]
