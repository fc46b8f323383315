"""dial over sources: every source wrote an answer and has read every other; which answer do the sources support?

Sources:   memory, each passage (or group of passages) i, and all passages together.
Answers:   drafts that say the same are one answer g (`merged`); S_s(g): least surprise of source s at a draft of g.
Reading:   p_s(g) = exp(-S_s(g)) / sum over answers of exp(-S_s)          what source s makes of the answers, as shares
Bearing:   w_i = 1 where passage i bears on the question (its names stand in it) and its draft follows it (its own words
           stand there, and it is not idle); else 0: the passage is silent. The same passage twice counts once.
Support:   T(g) = sum_i w_i p_i(g)              in passages: two that say the same are two
           E(g) = T(g) + p_all(g) / 2 + p_memory(g) / 2      what reads them together, and memory, decide between equals
Choice:    y_all is the unmodified model's answer to all passages, in an order that their texts decide.
           alpha < 0.5: the g of greatest E, among those with T(g) >= T(y_all), iff
                        E(g) - E(y_all) > 2 alpha * (W + 1), W = sum_i w_i; else y_all.
           alpha > 0.5: memory's iff its evidence > -log(2 alpha - 1), as in `dial` (dial.py), where the other stream is
                        the mean over the passages that bear; else y_all.
           adaptive:    the g of greatest E, or memory's where its evidence against g is above 1.5.

alpha = 0.5 is the unmodified model with the passages as they were given, and alpha = 1 the closed book: nothing is
chosen there. Everything is a sum over passages, so their order does not matter. On either side of 0.5 an answer changes
once at most, and T of the answer given never rises with alpha below 1. Where no passage bears, y_all stands below 0.5.

Knows what was written and how it surprised; knows no model. decoding/source_drafts.py writes and reads the drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum, inf

from ..word_spans import wanted
from .dial import ADAPTIVE, Dial
from .dial import evidence as dial_evidence
from .idle_drafts import FUNCTION_WORDS, bears, follows, sentence_end, silent
from .idle_drafts import idle as idle_drafts

__all__ = ["CONTRADICTS", "SILENT", "SUPPORTS", "SourceDraft", "Weighed", "merged", "weigh"]

SUPPORTS, CONTRADICTS, SILENT = "supports", "contradicts", "silent"
VOICE = 0.5  # what memory, and all passages read together, count beside a passage's 1


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
        stances: Of each source, what it says of the answer given: `SUPPORTS`, `CONTRADICTS` or `SILENT`.
        evidence: Of memory's answer against the one it would replace, as in `dial`.
        disputed: Passages that bear on the question give several answers, or memory one that none of them gives and
            that it knows (`evidence` above the constant of adaptive).
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
    (word_spans.py), function words apart; and a longer one says what the only shorter one says that it holds. Where no
    draft adds a word, the question offers its answers, and all words count.

    Example:
        >>> merged(["Lima", "It is Lima.", "Lima, in Peru", "Cusco", "Lima or Cusco"], "What is the capital?")
        [0, 0, 0, 3, 4]
    """
    asked, plain = _said(question), frozenset(word for words in FUNCTION_WORDS.values() for word in words)
    said = [_said(text[: sentence_end(text)]) - plain for text in texts]
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


def _said(text: str) -> frozenset[str]:
    return frozenset(word.forms[-1] for word in wanted(text))


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
    voices = [VOICE * (not idle[memory]), *weights[1:all_], VOICE * (not idle[all_])]
    support = [fsum(weights[i] * shares[i][answer] for i in passages) for answer in answers]
    whole = [fsum(voice * share[answer] for voice, share in zip(voices, shares, strict=True)) for answer in answers]

    def against(plain: int) -> float:
        """Return the evidence of memory's draft against another, as `dial` finds it."""
        bearing = [i for i in passages if weights[i]] or [all_]
        total = fsum(weights[i] for i in bearing) or 1.0
        cost = fsum((weights[i] or 1.0) * (sources[i].surprises[memory] - sources[i].surprises[plain]) for i in bearing)
        gain = sources[memory].surprises[plain] - sources[memory].surprises[memory]
        return dial_evidence(gain, cost / total, sources[memory].own) if cost / total > -gain else 0.0

    def draft_of(answer: int) -> int:
        """Return the draft that says an answer best, for the sources together; equals are told apart by their text."""
        same = [i for i, other in enumerate(answers) if other == answer and not idle[i]]
        cost = {i: fsum(v * s.surprises[i] for v, s in zip(voices, sources, strict=True)) for i in same}
        return min(same, key=lambda i: (cost[i], sources[i].text))

    offered = [i for i in passages if weights[i]]
    best = max(offered, key=lambda i: (whole[i], sources[i].text), default=all_)
    if policy.adaptive:
        given = best if idle[all_] or whole[best] > whole[all_] else all_
    else:
        given = all_
        room = fsum(weights) + 2 * VOICE
        leans = support[best] >= support[all_] and whole[best] - whole[all_] > 2 * policy.position * room
        if policy.position < 0.5 and answers[best] != answers[all_] and leans:
            given = best
    if policy.position == 1 and not policy.adaptive:
        given = memory
    found = against(given)
    if policy.adaptive or policy.position > 0.5:
        texts = (sources[given].text, sources[memory].text)
        nothing = idle[memory] or idle_drafts(("unmodified", "memory"), texts, question)[1]
        rises = not policy.adaptive and support[memory] > support[given]
        if answers[memory] != answers[given] and not rises and policy.takes(found, nothing):
            given = memory
    if given not in (memory, all_):
        given = draft_of(answers[given])
    speak = [not idle[i] and (i not in passages or weights[i] > 0) for i in range(len(sources))]
    stances = [
        SILENT if not speaks else SUPPORTS if answer == answers[given] else CONTRADICTS
        for speaks, answer in zip(speak, answers, strict=True)
    ]
    told = {answers[i] for i in offered}
    disputed = len(told) > 1 or (answers[memory] not in {*told, answers[all_]} and found > ADAPTIVE)
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
