"""What is recorded about a generation: one `TokenTrace` per token, one `Answer` per question.

Knows plain Python values only (no tensors, no model). Decoding fills these records in; views draw them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .citations import Sentence, cite
from .control import Control

__all__ = ["Answer", "Draft", "SourceTold", "SourceTrace", "TokenTrace"]

SCHEMA = 1


@dataclass(frozen=True)
class SourceTrace:
    """What one of several sources made of one token, as `TokenTrace` tells it of two streams; in nats.

    Attributes:
        weight: Its exponent w_i at this token, or its share where probabilities are averaged.
        h: Its entropy.
        gain: Confidence gain over memory, ``h_par - h``.
        logp: Log-probability of the token.
        rank: Rank of the token; 0 is the favourite.
    """

    weight: float
    h: float
    gain: float
    logp: float
    rank: int


@dataclass(frozen=True)
class TokenTrace:
    """Why one token was chosen. Entropies and log-probabilities are in nats, over the full vocabulary.

    The signals are those of the raw model distributions, before processors and warpers; they are None when the
    parametric stream was not run (`trace=False` with a neutral control).

    Attributes:
        id: Token id.
        text: The text this token added to the answer.
        h_par: Entropy without the passages.
        h_ctx: Entropy with the passages.
        gain: Confidence gain, ``h_par - h_ctx`` (CK-PLUG, Eq. 4). Negative: the passages confused the model.
        tau: Exponent of the contextual stream at this token: 1 = plain context, 0 = memory, > 1 = amplified context.
        switched: The policy acted on this token.
        rank_par: Rank of the token in the parametric distribution; 0 is the favourite.
        rank_ctx: Rank of the token in the contextual distribution; 0 is the favourite.
        logp_par: Log-probability in the parametric distribution.
        logp_ctx: Log-probability in the contextual distribution.
        logp_final: Log-probability in the distribution it was drawn from (after processors and warpers).
        sources: Of several sources each, in the order of `Answer.sources`; then `tau` is 1 less memory's weight, and
            the contextual stream the one with all passages.
    """

    id: int
    text: str
    logp_final: float
    tau: float = 1.0
    switched: bool = False
    h_par: float | None = None
    h_ctx: float | None = None
    gain: float | None = None
    rank_par: int | None = None
    rank_ctx: int | None = None
    logp_par: float | None = None
    logp_ctx: float | None = None
    sources: tuple[SourceTrace, ...] = ()


@dataclass(frozen=True)
class Draft:
    """One of the answers that a method like ``dial`` chose from.

    Attributes:
        name: Who wrote it: ``"unmodified"``, ``"memory"`` or ``"context"``.
        token_ids: Its ids, the end token included; of a draft that was `stopped` those written until then.
        surprise_ctx: Length of the contextual stream's surprises at its tokens, ``sqrt(sum(log p ** 2))``, in nats.
        surprise_par: The same for the parametric stream.
        given: This draft became the answer.
        text: As `Answer.text`.
        evidence: What the method's rule finds for it against the first draft, e.g. E of ``dial``; None for the first,
            where the method has no such number, and where it was `stopped`.
        idle: It says nothing, or follows what is beside the point, so that ``dial`` does not take it.
        segment: Which segment of the answer it is a draft of, from 0, where segments are decided one by one.
        stopped: It was not written to its end, as it could no longer be given whatever followed. Its text and surprises
            are those of what there is, and whether it is `idle` is not told. Never so with ``trace=True``.
    """

    name: str
    token_ids: tuple[int, ...]
    surprise_ctx: float
    surprise_par: float
    given: bool
    text: str = ""
    evidence: float | None = None
    idle: bool = False
    segment: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class SourceTold:
    """One of several sources, and what it says of the answer that was given, where whole answers were weighed.

    Attributes:
        name: ``"memory"``, ``"passage 1"`` or ``"passages 1+3"`` (counted from 1), and ``"all"``.
        passages: Places of its passages in the question's, from 0.
        stance: What the answer it wrote by itself is, beside the one given: ``"supports"``: the same;
            ``"contradicts"``: another; ``"silent"``: not counted, since it says nothing, is not in the passage's words,
            or no name of the question stands in the passage. Nothing is said of the passage itself: one beside the
            point may have led to another answer, and one that answers to none. Empty where tokens were fused.
        text: That answer; likewise.
        surprise: Length of its surprises at the answer given, ``sqrt(sum(log p ** 2))``, in nats; None likewise.
        surprise_own: The same at its own answer.
    """

    name: str
    passages: tuple[int, ...]
    stance: str = ""
    text: str = ""
    surprise: float | None = None
    surprise_own: float | None = None


@dataclass(frozen=True)
class Answer:
    """One steered answer and the reasons for it.

    Attributes:
        text: The generated text, special tokens removed, without its thought, and up to the first stop text.
        tokens: One record per generated token, the end token included; empty with ``trace=False``.
        token_ids: The generated ids, the end token included.
        question: The question as asked.
        passages: The passages the contextual prompt held, after any truncation.
        control: The control that was in force.
        finish_reason: ``"stop"`` (an end token, a stop text or a stop criterion) or ``"length"``.
        context_tokens: Length of the contextual prompt, in tokens.
        parametric_tokens: Length of the parametric prompt, in tokens.
        drafts: What the answer was chosen from, where the method chooses between whole answers; else empty.
        thinking: What the model thought before it answered (``<think>...</think>``, also where it ran out of tokens
            before it closed); None where it did not think.
        sources: What it was decoded from with `sources=`: with a method of whole answers what every source says of this
            answer, else their names and passages; empty without.
        disputed: Passages that bear on the question give several answers or another one than this, or memory knows
            another; False where whole answers were not weighed across sources.
    """

    text: str
    tokens: tuple[TokenTrace, ...]
    token_ids: tuple[int, ...]
    question: str
    passages: tuple[str, ...]
    control: Control
    finish_reason: str
    context_tokens: int
    parametric_tokens: int
    drafts: tuple[Draft, ...] = ()
    thinking: str | None = None
    sources: tuple[SourceTold, ...] = ()
    disputed: bool = False

    @property
    def switched(self) -> int:
        """Number of tokens on which the policy acted."""
        return sum(token.switched for token in self.tokens)

    @property
    def cited(self) -> tuple[Sentence, ...]:
        """The sentences of the text, each with the places in `passages` of those that support it; see `cite`."""
        return cite(self.text, self.passages, self.question)

    def summary(self) -> dict[str, float | int | str | None]:
        """Return counts and means over the answer: tokens, switched, mean gain and how often each stream agreed.

        ``follows_context`` and ``follows_memory`` are the shares of tokens that were the favourite of that stream.
        """
        traced = [t for t in self.tokens if t.gain is not None]
        count = len(traced)

        def mean(values: Iterable[float | bool]) -> float | None:
            return sum(values) / count if count else None

        return {
            "tokens": len(self.token_ids),
            "switched": self.switched,
            "mean_gain": mean(t.gain for t in traced if t.gain is not None),
            "follows_context": mean(t.rank_ctx == 0 for t in traced),
            "follows_memory": mean(t.rank_par == 0 for t in traced),
            "finish_reason": self.finish_reason,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON-ready values."""
        data: dict[str, Any] = {"schema": SCHEMA, "summary": self.summary()}
        data["cited"] = [sentence.to_dict() for sentence in self.cited]
        data |= {f.name: getattr(self, f.name) for f in fields(self)}
        tokens = [plain_trace(token) for token in self.tokens]
        drafts = [{name: _finite(value) for name, value in asdict(draft).items()} for draft in self.drafts]
        sources = [plain_source(source) for source in self.sources]
        return data | {"control": self.control.to_dict(), "tokens": tokens, "drafts": drafts, "sources": sources}

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the answer as one JSON object (one line unless `indent` is given, so answers append to JSONL)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Answer:
        """Rebuild an answer from `to_dict`."""
        values = {k: v for k, v in data.items() if k not in ("schema", "summary", "cited")}
        values["tokens"] = tuple(
            TokenTrace(**{**token, "sources": tuple(SourceTrace(**source) for source in token.get("sources", ()))})
            for token in values["tokens"]
        )
        drafts = [{**draft, "token_ids": tuple(draft["token_ids"])} for draft in values.get("drafts", ())]
        values["drafts"] = tuple(Draft(**draft) for draft in drafts)
        sources = [{**source, "passages": tuple(source["passages"])} for source in values.get("sources", ())]
        values["sources"] = tuple(SourceTold(**source) for source in sources)
        values["control"] = Control.from_dict(values["control"])
        for name in ("token_ids", "passages"):
            values[name] = tuple(values[name])
        return cls(**values)

    def show(self) -> None:
        """Print the answer token by token, coloured by confidence gain."""
        from .views.terminal import print_answer

        print_answer(self)

    def _repr_html_(self) -> str:
        from .views.html import answer_html

        return answer_html(self)


def plain_source(source: SourceTold) -> dict[str, Any]:
    """Return what a source says as JSON-ready values."""
    return {name: _finite(value) for name, value in asdict(source).items()}


def plain_draft(draft: Draft, text: str) -> dict[str, Any]:
    """Return what a reply tells of a draft, as JSON-ready values.

    Args:
        draft: Without its text.
        text: As the client is given it.
    """
    kept = ("name", "surprise_ctx", "surprise_par", "evidence", "idle", "stopped", "given")
    return {name: getattr(draft, name) for name in kept} | {"text": text}


def plain_trace(token: TokenTrace) -> dict[str, Any]:
    """Return a token's record as JSON-ready values; its sources only where there are several."""
    values = {name: _finite(value) for name, value in asdict(token).items() if name != "sources"}
    each = [{name: _finite(value) for name, value in asdict(source).items()} for source in token.sources]
    return values | ({"sources": each} if each else {})


def _finite(value: Any) -> Any:
    """JSON has no infinity: the log-probability of an impossible token becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_jsonl(answers: Iterable[Answer], path: str | Path) -> None:
    """Append answers to a JSONL file, one per line, UTF-8."""
    with open(path, "a", encoding="utf-8") as file:
        for answer in answers:
            file.write(answer.to_json() + "\n")


def read_jsonl(path: str | Path) -> list[Answer]:
    """Read answers written by `write_jsonl`; a half-written last line (a crash) is dropped."""
    answers = []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            answers.append(Answer.from_dict(json.loads(line)))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
    return answers
