"""The questions that a text answers, as a language model writes them: PIKE-RAG's atomising (arXiv 2501.11551).

Knows one prompt and how to read what comes of it; what becomes of the questions is an index's matter
(`retrieval/questions.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .control import Control
from .decoding.generate import generate
from .decoding.prompts import PromptTemplate
from .retrieval.questions import MOST
from .words import words_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["question_writer", "questions_in"]

_EXAMPLES = """\
Each text is followed by three questions that it answers.

Text: The Danube rises in the Black Forest and flows through ten countries before it reaches the Black Sea. It is \
2,850 km long.
Questions:
Where does the Danube rise?
Through how many countries does the Danube flow?
How long is the Danube?

Text: Orders over 40 euros are sent free of charge. Parcels leave the warehouse in Rotterdam within two working days.
Questions:
From which amount on are orders sent free of charge?
Which city is the warehouse in?
How soon do parcels leave the warehouse?

"""
# A text to go on with, for chat models too: small ones follow examples, and repeat the text where they are told to ask.
_TEMPLATE = PromptTemplate(instruction=_EXAMPLES, question="Text: {question}\n", answer="Questions:\n", chat=False)
_NUMBERED = re.compile(r"\W*(?:\d{1,2}[.):]|[Qq]\d{0,2}[.):])?\s*")
_LONGEST = 200  # characters of a question: longer ones are the text again
_READ = 1_024  # tokens of a text that the model is shown, about
_NEW_TOKENS = 96


def questions_in(text: str) -> list[str]:
    """Return the questions that stand in what a model wrote, each once, in order, `MOST` at most.

    A question is a line, or what is left of it without number or bullet, that ends in a question mark of any script,
    has a word, and no more than 200 characters.
    """
    lines = (_NUMBERED.sub("", line, count=1).strip() for line in text.splitlines())
    fit = (line for line in lines if line[-1:] in ("?", "？", "؟") and len(line) <= _LONGEST and words_of(line))
    return list(dict.fromkeys(fit))[:MOST]


def question_writer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Sequence[str]], list[list[str]]]:
    """Return a function from texts to the questions that each of them answers, for `retrieval.write_questions`.

    The model, base or chat, is shown two worked examples and goes on greedily, in one batch per call; no passages, no
    steering. A text of which it makes no question gets an empty list; of a long one it sees about 1,024 tokens.

    Raises (the function):
        PromptError: A text is blank, or the model's window does not hold the examples and a text.
    """

    def write(texts: Sequence[str]) -> list[list[str]]:
        if not texts:
            return []
        answers = generate(
            model,
            tokenizer,
            [_beginning(tokenizer, " ".join(text.split())) for text in texts],
            control=Control("off"),
            template=_TEMPLATE,
            max_new_tokens=_NEW_TOKENS,
            stop=("\n\n", "\nText:"),
        )
        return [questions_in(answer.text) for answer in answers]

    return write


def _beginning(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    size = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return text[: len(text) * _READ // max(size, _READ)]
