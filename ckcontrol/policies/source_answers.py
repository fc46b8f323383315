"""dial over sources: every source wrote an answer and has read every other; which answer do the sources support?

Sources:   memory, each passage (or group of passages) i, and all passages together.
Answers:   drafts that say the same are one answer g (`merged`); S_s(g): least surprise of source s at a draft of g.
Reading:   p_s(g) = exp(-S_s(g)) / sum over answers of exp(-S_s)          what source s makes of the answers, as shares
Bearing:   w_i = 1 where passage i bears on the question (its names stand in it) and its draft follows it (its own words
           stand there, and it is not idle); else 0: the passage is silent. The same passage twice counts once.
Support:   T(g) = sum_i w_i p_i(g)              in passages: two that say the same are two
           E(g) = T(g) + 2 p_all(g) + p_memory(g) / 2      no passage alone outvotes what reads them together
Choice:    y_all is the unmodified model's answer to all passages, in an order that their texts decide.
           alpha < 0.5: the g of greatest E, iff T(g) >= T(y_all) and E(g) - E(y_all) > 2 alpha; else y_all.
           alpha > 0.5: `dial` (dial.py) between y_all and memory's.
           adaptive:    memory's where `dial` adaptive gives it; else the g of greatest E, as at alpha 0.25.

alpha = 0.5 is the unmodified model with the passages as they were given, and alpha = 1 the closed book: nothing is
chosen there. Everything is a sum over passages, so their order does not matter. On either side of 0.5 an answer changes
once at most. Below it T of the answer given never rises with alpha; above it S_all - S_memory never falls (`dial`).
Where no passage bears, `dial` is what is left, y_all below 0.5.

Knows what was written and how it surprised; knows no model. decoding/source_drafts.py writes and reads the drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum, inf

from ..word_spans import wanted
from .dial import ADAPTIVE, Dial
from .dial import evidence as dial_evidence
from .idle_drafts import bears, follows, function_words, sentence_end, silent, written_as_names
from .idle_drafts import idle as idle_drafts

__all__ = ["CONTRADICTS", "SILENT", "SUPPORTS", "SourceDraft", "Weighed", "merged", "weigh"]

SUPPORTS, CONTRADICTS, SILENT = "supports", "contradicts", "silent"
MEMORY, ALL = 0.5, 2.0  # what memory, and all passages read together, count beside a passage's 1
MARGIN = 0.5  # lead in E that adaptive leaves the answer to all passages for, in passages


@dataclass(frozen=True)
class SourceDraft:
    """What one source wrote, and how the drafts of all surprised it.

    Attributes:
        text: Its draft.
        surprises: `surprise` of this source at each source's draft, in their order, nats.
        own: `surprise` at the first sentence of its own draft, nats.
        passages: What it had read; empty for memory.
    """

    text: str
    surprises: Sequence[float]
    own: float
    passages: Sequence[str] = ()


@dataclass(frozen=True)
class Weighed:
    """What came of it. Sources go by their place; answers by the first source that gave them.

    Attributes:
        given: The source whose draft is given.
        answers: Of each source, which answer its draft is; None where it says nothing.
        support: E of each source's draft; a passage counts 1 at most.
        backing: T of each, its share that is the passages'.
        stances: Of each source, what its own draft is beside the answer given: the same (`SUPPORTS`), another
            (`CONTRADICTS`), or one that does not count (`SILENT`).
        evidence: Of memory's answer against the one to all passages, as in `dial`.
        disputed: Passages that bear on the question give several answers, or another one than is given; or memory
            one that none of them gives and that it knows (`evidence` above the constant of adaptive).
    """

    given: int
    answers: Sequence[int | None]
    support: Sequence[float]
    backing: Sequence[float]
    stances: Sequence[str]
    evidence: float
    disputed: bool


def merged(texts: Sequence[str], question: str) -> list[int]:
    """Return which answer each draft is: the place of the first draft that says the same.

    Two drafts say the same whose first sentences add the same words to the question, in the normalisation of verdicts
    (word_spans.py), function words of the question's language apart (`function_words`; of the drafts', where it has
    none); and a longer one says what the only shorter one says that it holds. Where no draft adds a word, the question
    offers its answers, and all words count.

    Example:
        >>> merged(["Lima", "It is Lima.", "Lima, in Peru", "Cusco", "Lima or Cusco"], "What is the capital?")
        [0, 0, 0, 3, 4]
    """
    function = function_words(question, " ".join(texts))
    asked, said = _said(question), [_said(text[: sentence_end(text)], function) for text in texts]
    if any(own - asked for own in said):
        said = [own - asked for own in said]
    # By size, so that which drafts say the same does not depend on their order.
    answers: list[frozenset[str]] = []
    kinds: dict[frozenset[str], frozenset[str]] = {}
    for own in sorted(set(said), key=len):
        held = [answer for answer in answers if answer and answer < own]
        kinds[own] = held[0] if len(held) == 1 else own
        if not held:
            answers.append(own)
    named = [kinds[own] for own in said]
    return [named.index(own) for own in named]


def _said(text: str, function: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the words of a text as they are compared, `function` words apart; one that is a name keeps its capital."""
    names = written_as_names(text, function)
    forms = (word.cased if word.cased in names else word.forms[-1] for word in wanted(text))
    return frozenset(form for form in forms if form not in function)


def weigh(sources: Sequence[SourceDraft], question: str, policy: Dial) -> Weighed:
    """Weigh the drafts of a question's sources.

    Args:
        sources: Memory first, then one passage or group each, and all passages together last.
        question: What was asked.
        policy: At which alpha, or adaptive. At 0.5 all's draft is given, at 1 memory's.
    """
    memory, all_ = 0, len(sources) - 1
    passages = range(1, all_)
    answers = merged([source.text for source in sources], question)
    idle = [silent(source.text, question) for source in sources]
    shares = [_shares(source.surprises, answers) for source in sources]
    weights = [0.0] * len(sources)
    read = [" ".join(" ".join(source.passages).casefold().split()) for source in sources]
    for i in passages:
        source = sources[i]
        if not idle[i] and bears(question, source.passages) and follows(source.text, question, source.passages):
            weights[i] = 1 / read.count(read[i])
    voices = [MEMORY * (not idle[memory]), *weights[1:all_], ALL * (not idle[all_])]
    support = [fsum(weights[i] * shares[i][answer] for i in passages) for answer in answers]
    whole = [fsum(voice * share[answer] for voice, share in zip(voices, shares, strict=True)) for answer in answers]

    def draft_of(answer: int) -> int:
        """Return the draft that says an answer best, for the sources together; equals are told apart by their text."""
        same = [i for i, other in enumerate(answers) if other == answer and not idle[i]]
        cost = {i: fsum(v * s.surprises[i] for v, s in zip(voices, sources, strict=True)) for i in same}
        return min(same, key=lambda i: (cost[i], sources[i].text))

    offered = [i for i in passages if weights[i]]
    best = max(offered, key=lambda i: (whole[i], sources[i].text), default=all_)
    mind, plain = sources[memory].surprises, sources[all_].surprises  # of dial's two streams
    gain, cost = mind[all_] - mind[memory], plain[memory] - plain[all_]
    found = dial_evidence(gain, cost, sources[memory].own) if cost > -gain else 0.0
    texts = [sources[all_].text.strip(), sources[memory].text.strip()]
    nothing = idle_drafts(("unmodified", "memory"), texts, question, sources[all_].passages)[1]
    given = all_
    if (policy.adaptive or policy.position > 0.5) and policy.takes(found, nothing):
        given = memory
    elif policy.adaptive or policy.position < 0.5:
        lead = MARGIN if policy.adaptive else 2 * policy.position
        if answers[best] != answers[all_] and support[best] >= support[all_] and whole[best] - whole[all_] > lead:
            given = best
    if given not in (memory, all_):
        given = draft_of(answers[given])
    speak = [not idle[i] and (i not in passages or weights[i] > 0) for i in range(len(sources))]
    stances = [
        SILENT if not speaks else SUPPORTS if answer == answers[given] else CONTRADICTS
        for speaks, answer in zip(speak, answers, strict=True)
    ]
    told = {answers[i] for i in offered}
    knows = answers[memory] not in {*told, answers[all_]} and found > ADAPTIVE
    disputed = len(told) > 1 or knows or CONTRADICTS in [stances[i] for i in offered]
    known = [None if nothing else answer for nothing, answer in zip(idle, answers, strict=True)]
    return Weighed(given, known, whole, support, stances, found, disputed)


def _shares(surprises: Sequence[float], answers: Sequence[int]) -> dict[int, float]:
    """Return p_s(g) of every answer; equal shares where all are impossible."""
    least = dict.fromkeys(answers, inf)
    for surprise, answer in zip(surprises, answers, strict=True):
        least[answer] = min(least[answer], surprise)
    first = min(least.values())
    if first == inf:
        return dict.fromkeys(least, 1 / len(least))
    raised = {answer: exp(first - value) for answer, value in least.items()}
    total = fsum(raised.values())
    return {answer: value / total for answer, value in raised.items()}
