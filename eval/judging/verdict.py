"""Which source a prediction followed: its verdict in two modes, the exact match, and the set match of several answers.

`strict` is ours: whole words, exclusive, the earliest mention that is not negated wins. `ckplug` is compatible with
the published CK-PLUG scripts: SQuAD normalisation, substrings, both sides may count. Knows strings only.

**A mention is negated** when, within its clause, one of the `REACH` words before it is a negator ("not", "never",
"isn't", "rather than", "non-"), or when it is denied right after ("Paris is not ...", "Paris isn't ...", "Paris is
wrong"). A clause ends at , ; : . ! ? brackets, a dash, a line break, and at "but", "until", "because" and their like;
"and" ends it unless the mention follows directly ("not Paris and Rome"). "Not only", "no doubt", "none other than" and
"no 5" negate nothing, and "non" only the word that it is joined to.

Limits: the words of negation are English; irony, hedges ("some say Paris"), double negation and a negator in another
clause ("It is false, I think, that it is Paris") are not seen; a short answer that is also a function word ("He", "US",
"Who") is recognised by its case alone, so it is found wrongly at the start of a sentence; a minus sign is a hyphen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ckcontrol.errors import EvalError, did_you_mean
from ckcontrol.word_spans import Word, find, fold, readings, wanted

from ..records import squad

__all__ = ["MODES", "REACH", "Verdict", "exact_match", "set_match", "verdict"]

MODES = ("ckplug", "strict")
REACH = 5

_NEGATORS = frozenset(
    """not no never neither nor without cannot non nobody nowhere hardly none aint arent cant couldnt didnt doesnt dont
    hadnt hasnt havent isnt mustnt neednt shouldnt wasnt werent wont wouldnt unlike incorrectly wrongly""".split()
)
_NEGATING_PAIRS = frozenset({("rather", "than"), ("instead", "of"), ("opposed", "to"), ("other", "than")})
# What may follow a negator that then negates nothing: "not only", "no doubt", "none other", "no later than".
_HARMLESS = frozenset(
    "only just merely simply solely least doubt question surprisingly other less fewer later earlier sooner".split()
)
_CLAUSE_WORDS = frozenset("but until till because since while whereas although though however yet so".split())
_CLAUSE_MARK = re.compile(r"[,;:.!?()\[\]\n—–…。,、;:!?]|\s-\s")
_DENIALS = frozenset("isnt arent wasnt werent doesnt didnt hasnt hadnt wouldnt cant couldnt cannot".split())
_AUXILIARIES = frozenset("is are was were does did has had would can could".split())
_DENIED = frozenset("not never neither incorrect wrong false".split())
# Words that are answers (chemical symbols, countries, bands) but far more often are not.
_FUNCTION_WORDS = frozenset(
    """all am and are as at be but by can co do down for from go had has have he her him his how i if in into is it its
    may me my no nor not now of off on one or our out she so that them then they this to two up us was we what when
    where who will with you your""".split()
)
# Thinking aloud is not an answer: <think>, <thinking>, <reasoning>, [THINK], ◁think▷, <|begin_of_thought|>, ...
_THINKING = re.compile(
    r"[<\[◁]\|?(?P<ends>/|end_of_)?(?:begin_of_)?(?:\w+:)?"
    r"(?:think|thinking|thoughts?|reasoning|reflection|reason|scratchpad|analysis)(?:\s[^<>]*)?\|?[>\]▷]",
    re.IGNORECASE,
)
_NEXT_QUESTION = re.compile(r"\n\s*(?:Q|Question)\s*\d*\s*:")


@dataclass(frozen=True)
class Verdict:
    """Which answer a prediction gives.

    Attributes:
        source: ``"parametric"``, ``"contextual"``, ``"neither"``, or ``"both"``: in strict mode only if the name that
            was given is in both lists (agreement), in ckplug mode whenever both were found.
        parametric: A parametric answer is named (strict: at least once without negation).
        contextual: The same of a contextual answer.
        span: Where the winning mention is, ``text[start:end]``; None for neither and in ckplug mode.
    """

    source: str
    parametric: bool
    contextual: bool
    span: tuple[int, int] | None = None


class _Mention(NamedTuple):
    said: Sequence[Word]  # the reading it is in
    first: int  # index of its first word, articles left out
    last: int  # index after its last word
    start: int  # in characters
    end: int


def verdict(prediction: str, ctx_answers: Sequence[str], par_answers: Sequence[str], mode: str = "strict") -> Verdict:
    """Return which source `prediction` followed.

    In strict mode a name inside a longer name of the other side does not count ("York" in "New York"), a name in both
    lists decides nothing if another mention does, and from a line that begins with "Q:" or "Question:" the text is no
    longer the answer, nor is what is thought aloud between tags (`spoken`). An answer that normalises to nothing
    ("The", "!!!") is named only by a first line that is that answer; in ckplug mode, as in the published scripts, it is
    named by every prediction.

    Args:
        prediction: The generated text, as decoded.
        ctx_answers: What the passages support, aliases included; may be empty.
        par_answers: The real-world answer, aliases included; may be empty.
        mode: "strict" or "ckplug".

    Raises:
        EvalError: `mode` is unknown.

    Example:
        >>> verdict("Not Paris but Rome.", ["Paris"], ["Rome"])
        Verdict(source='parametric', parametric=True, contextual=False, span=(14, 18))
        >>> verdict("Not Paris but Rome.", ["Paris"], ["Rome"], "ckplug").source
        'both'
    """
    prediction = spoken(prediction)
    if mode == "ckplug":
        inside = squad(prediction)
        par, ctx = (any(squad(a) in inside for a in answers) for answers in (par_answers, ctx_answers))
        return Verdict(_source(par, ctx), par, ctx)
    if mode != "strict":
        raise EvalError(f"mode={mode!r} is not a scoring mode.", did_you_mean(str(mode), MODES))
    found = _positive_mentions(prediction, ctx_answers, par_answers)
    ordered = sorted({(m.start, -m.end) for side in found for m in side})
    sides = [{(m.start, -m.end) for m in side} for side in found]  # contextual, parametric
    par, ctx = bool(sides[1]), bool(sides[0])
    telling = [at for at in ordered if (at in sides[0]) != (at in sides[1])]
    if not ordered:
        return Verdict("neither", False, False)
    start, end = (telling or ordered)[0]
    source = _source((start, end) in sides[1], (start, end) in sides[0])
    return Verdict(source, par, ctx, (start, -end))


def spoken(text: str) -> str:
    """Return `text` with what was thought aloud blanked out, so that every index stays.

    From an opening tag to its end, or to the end of the text; a closing tag alone ends what began in the prompt.

    Example:
        >>> spoken("<think>Rome?</think>Paris").strip(), spoken("It says Rome.</think> Paris").strip()
        ('Paris', 'Paris')
        >>> spoken("<think>Rome").strip()
        ''
    """
    begun, depth, blanks = 0, 0, []
    for tag in _THINKING.finditer(text):
        if tag["ends"]:
            if depth < 2:  # unpaired, it ends all that was said before
                blanks.append((begun if depth else 0, tag.end()))
            depth = max(0, depth - 1)
        else:
            begun = begun if depth else tag.start()
            depth += 1
    if depth:
        blanks.append((begun, len(text)))
    for start, end in blanks:
        text = text[:start] + " " * (end - start) + text[end:]
    return text


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    r"""Tell whether the first line of `prediction` is one of `answers`, both under SQuAD normalisation.

    Leading empty lines are skipped. An empty first line matches nothing, whatever an answer normalises to.

    Example:
        >>> exact_match("The Rome.\nQ: next", ["Rome"]), exact_match("It is Rome.", ["Rome"])
        (True, False)
    """
    line = squad(_first_line(spoken(prediction)))
    return bool(line) and any(line == squad(answer) for answer in answers)


def set_match(prediction: str, golds: Sequence[str], wrong: Sequence[str]) -> bool:
    """Tell whether `prediction` names every one of `golds` and none of `wrong`, in strict mode (RAMDocs).

    A gold is an answer, not an alias. Without golds there is nothing to match: False.
    """
    prediction = spoken(prediction)
    if not golds:
        return False
    return (
        all(_positive_mentions(prediction, wrong, [gold])[1] for gold in golds)
        and not (_positive_mentions(prediction, wrong, golds)[0])
    )


def _source(par: bool, ctx: bool) -> str:
    return {(True, True): "both", (True, False): "parametric", (False, True): "contextual"}.get((par, ctx), "neither")


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0].strip()


def _positive_mentions(
    prediction: str, ctx_answers: Sequence[str], par_answers: Sequence[str]
) -> tuple[list[_Mention], list[_Mention]]:
    """Return the un-negated mentions of both sides, without those inside a longer mention of the other side."""
    cut = _NEXT_QUESTION.search(prediction)
    text = prediction[: cut.start()] if cut else prediction
    read = readings(text)
    ctx, par = (
        [m for said in read for answer in dict.fromkeys(answers) for m in _mentions(text, said, answer)]
        for answers in (ctx_answers, par_answers)
    )
    ctx, par = _outside(ctx, par), _outside(par, ctx)
    return [m for m in ctx if not _negated(text, m)], [m for m in par if not _negated(text, m)]


def _mentions(text: str, said: Sequence[Word], answer: str) -> list[_Mention]:
    """Return every place where the words of `answer` follow one another."""
    asked = wanted(answer)
    if not asked:
        line, name = _first_line(text), answer.strip()
        start = text.find(line)
        alone = bool(name) and name in (line, line.rstrip(".").rstrip())
        return [_Mention(said, 0, len(said), start, start + len(line))] if alone else []
    as_written = len(asked) == 1 and asked[0].forms[0] in _FUNCTION_WORDS
    found = []
    for first in find(said, asked):
        here = said[first : first + len(asked)]
        if not as_written or here[0].cased == asked[0].cased:
            start, end = min(word.start for word in here), max(word.end for word in here)  # dates are read in one order
            found.append(_Mention(said, first, first + len(asked), start, end))
    return found


def _outside(mentions: Sequence[_Mention], others: Sequence[_Mention]) -> list[_Mention]:
    """Return `mentions` without those that a longer one of `others` contains."""
    return [
        m
        for m in mentions
        if not any(o.start <= m.start and m.end <= o.end and o.end - o.start > m.end - m.start for o in others)
    ]


def _negated(text: str, mention: _Mention) -> bool:
    """Tell whether a mention is denied by the words before it or right after it, as the module defines it."""

    def clause_ends(left: int) -> bool:  # between word `left` and the next
        begin = mention.end if left == mention.last - 1 else said[left].end  # a date's words stand in any order
        end = mention.start if left + 1 == mention.first else said[left + 1].start
        return bool(_CLAUSE_MARK.search(fold(text[begin:end])[0]))

    said = mention.said
    names = [word.forms[0] for word in said]
    for at in range(mention.first - 1, max(-1, mention.first - 1 - REACH), -1):
        word, after = names[at], names[at + 1]
        if clause_ends(at) or word in _CLAUSE_WORDS or (word == "and" and at != mention.first - 1):
            break
        if (word, after) in _NEGATING_PAIRS:
            return not (word == "other" and at > 0 and names[at - 1] in ("none", "no", "nothing"))
        if word in _NEGATORS and after not in _HARMLESS:
            beside = at == mention.first - 1
            if (word != "non" or beside) and not (word == "no" and beside and after[:1].isdigit()):
                return True
    behind = names[mention.last : mention.last + 2]
    if not behind or clause_ends(mention.last - 1) or set(names[mention.last + 1 : mention.last + 3]) & _HARMLESS:
        return False
    if behind[0] in _DENIALS:
        return True
    return len(behind) == 2 and behind[0] in _AUXILIARIES and behind[1] in _DENIED and not clause_ends(mention.last)
