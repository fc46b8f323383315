"""Many controls on the same questions in one pass: prompts run once, answers share every forward until they part.

Two controls that have chosen the same tokens so far have the model in the same state, so a row of the batch is a
distinct beginning, not a control. Twenty controls on one question begin as one row and end as the few answers that
they really give. Knows streams, signals, policies and the kernel; knows nothing of texts, tasks or files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckcontrol.decoding.drafts import Drafts
from ckcontrol.decoding.fused_step import fuse_scores, signals_of
from ckcontrol.decoding.inputs import passages_alone, processors_for, stream_of
from ckcontrol.decoding.loop import decode, run_streams
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.pair_cache import can_share_forward
from ckcontrol.decoding.plan import DecodingPlan
from ckcontrol.decoding.prompts import PromptPair
from ckcontrol.decoding.recorder import Recorder
from ckcontrol.decoding.segments import Segments, check_segments, segmented
from ckcontrol.decoding.streams import Stream, TwoStreams
from ckcontrol.decoding.weight_rows import by_adapter
from ckcontrol.errors import NonFiniteLogits
from ckcontrol.fusion.distributions import Shortlist, first_max, nonfinite_rows
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import AnswerPolicy, Decision, Evidence, Policy, draft_policies, per_row, read_drafts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FanAnswer", "Width", "fan"]


@dataclass
class FanAnswer:
    """One answer to one question under one policy, as far as it has been decoded.

    Attributes:
        ids: Its tokens, the end token included.
        gain: Confidence gain at each token, in nats.
        tau: Exponent of the context at each token.
        switched: Whether the policy acted.
        logp_ctx: Log-probability of the token with the passages, in nats.
        logp_par: The same without them.
        evidence: For each token h_ctx, h_par, 1 if it is not memory's favourite, and that favourite's log-probability;
            kept for drafts only.
        error: Why it has no end; the other fields hold what was decoded until then.
    """

    ids: list[int] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    tau: list[float] = field(default_factory=list)
    switched: list[bool] = field(default_factory=list)
    logp_ctx: list[float] = field(default_factory=list)
    logp_par: list[float] = field(default_factory=list)
    evidence: list[tuple[float, float, int, float]] = field(default_factory=list)
    error: str | None = None


@dataclass
class Width:
    """What sharing saves: rows that were run beside rows that were asked for.

    Attributes:
        rows: Rows of all decode forwards together.
        asked: Rows that they would have had if every control had been decoded by itself.
    """

    rows: int = 0
    asked: int = 0


def fan(
    model: PreTrainedModel,
    pairs: Sequence[PromptPair],
    policies: Sequence[Policy],
    *,
    options: GenerateOptions,
    ends: Sequence[int],
    pad: int,
    vocab_size: int,
    shortlist: Shortlist | None = None,
    width: Width | None = None,
    questions: Sequence[str] = (),
    read: Callable[[Sequence[int]], str] | None = None,
) -> list[list[FanAnswer]]:
    """Answer every question under every policy.

    Each answer is the one that `ckcontrol.generate` gives with that control alone, up to rounding: a matrix product of
    another number of rows rounds differently, so an exact tie may fall the other way. A policy that chooses between
    whole answers adds its drafts, which it may share with other policies. Policies in the weights share forwards with
    those of the same adapter alone.

    Args:
        model: A decoder-only model.
        pairs: Prompt pairs of similar length; they are padded to the longest.
        policies: One per control.
        options: How tokens are drawn. With a seed, every answer draws from a generator of its own with that seed.
        ends: Ids that end an answer.
        pad: Id that fills the prompts on the left.
        vocab_size: Number of ids the tokenizer knows.
        shortlist: Of every policy; None is the default one.
        width: Added to, if given.
        questions: Their texts, for drafts that say nothing beside them to be recognised.
        read: Ids of an answer to its text; needed with `questions`.

    Returns:
        ``[question][policy]``. An answer whose logits became NaN holds an error; its neighbours go on.
    """
    if any(map(segmented, policies)):
        how: dict[str, Any] = {"options": options, "ends": ends, "pad": pad, "vocab_size": vocab_size}
        how |= {"shortlist": shortlist, "questions": questions, "read": read}
        others = [policy for policy in policies if not segmented(policy)]
        shared = fan(model, pairs, others, width=width, **how) if others else [[] for _ in pairs]
        made: list[list[FanAnswer]] = [[] for _ in pairs]
        for policy in policies:
            own = _in_segments(model, pairs, policy, **how) if segmented(policy) else [row.pop(0) for row in shared]
            for row, answer in zip(made, own, strict=True):
                row.append(answer)
        return made
    groups = by_adapter(model, policies)
    if len(groups) > 1:
        how = {"options": options, "ends": ends, "pad": pad, "vocab_size": vocab_size, "shortlist": shortlist}
        how |= {"width": width, "questions": questions, "read": read}
        found = {
            i: column
            for places in groups.values()
            for i, column in zip(
                places, zip(*fan(model, pairs, [policies[i] for i in places], **how), strict=True), strict=True
            )
        }
        return [[found[i][item] for i in range(len(policies))] for item in range(len(pairs))]
    contextual = stream_of(model, [p.contextual for p in pairs], pad)
    parametric = stream_of(model, [p.parametric for p in pairs], pad)
    if (name := next(iter(groups), None)) is not None:
        contextual.adapters = parametric.adapters = (name,) * len(pairs)
    drafted = run_streams(
        contextual, lambda: _fan(contextual, parametric, policies, options, ends, vocab_size, shortlist, width)
    )
    alone = passages_alone(model, pairs, vocab_size)
    return [
        [
            _given(policy, drafts, asked, pair.passages, read, partial(alone, item))
            for policy, drafts in zip(policies, each, strict=True)
        ]
        for item, (each, asked, pair) in enumerate(zip(drafted, questions or [""] * len(pairs), pairs, strict=True))
    ]


@torch.no_grad()
def _fan(
    contextual: Stream,
    parametric: Stream,
    policies: Sequence[Policy],
    options: GenerateOptions,
    ends: Sequence[int],
    vocab_size: int,
    shortlist: Shortlist | None,
    width: Width | None,
) -> list[list[list[FanAnswer]]]:
    """Return the drafts of every policy, [question][policy][draft]."""
    drafts = [tuple(draft_policies(policy).values()) for policy in policies]
    decoded = {draft: i for i, draft in enumerate(dict.fromkeys(draft for each in drafts for draft in each))}
    drafted = {decoded[draft] for each in drafts if len(each) > 1 for draft in each}
    device, questions = contextual.input_ids.device, range(len(contextual.input_ids))
    made = [[FanAnswer() for _ in decoded] for _ in questions]
    running = [(item, arm) for item in questions for arm in range(len(decoded))]
    row = {answer: answer[0] for answer in running}
    token_policies = list(decoded)
    choose = _NextTokens(token_policies, options, contextual)
    share = can_share_forward(contextual.model) and contextual.adapters is None
    streams = TwoStreams(contextual, parametric, share=share, reserve=options.max_new_tokens)
    logits = streams.prefill()
    for step in range(options.max_new_tokens):
        logits_ctx, logits_par = logits
        if logits_par is None:  # never: both streams were started
            break
        broken = _broken(logits_ctx, logits_par, step)
        for item, arm in running:
            made[item][arm].error = broken.get(row[item, arm])
        running = [answer for answer in running if row[answer] not in broken]
        raw = logits_ctx.clone() if vocab_size < logits_ctx.shape[1] else logits_ctx
        logits_ctx[:, vocab_size:] = logits_par[:, vocab_size:] = -torch.inf
        signals = signals_of(logits_ctx, logits_par, shortlist, vocab_size)
        decisions = {arm: token_policies[arm].decide(signals) for arm in sorted({arm for _, arm in running})}
        rows = [row[answer] for answer in running]
        tokens = choose(running, rows, raw, signals, decisions)
        _record(made, running, rows, tokens, signals, decisions, drafted)
        running, rows, tokens = _unfinished(running, rows, tokens, ends)
        if not running or step + 1 == options.max_new_tokens:
            break
        # Distinct beginnings only, in order of appearance.
        places: dict[tuple[int, int], int] = {}
        for answer, parent, token in zip(running, rows, tokens, strict=True):
            row[answer] = places.setdefault((parent, token), len(places))
        parents = [parent for parent, _ in places]
        if parents != list(range(logits_ctx.shape[0])):
            streams.select(torch.tensor(parents, device=device))
        if width is not None:
            width.rows, width.asked = width.rows + len(places), width.asked + len(running)
        logits = streams.step(torch.tensor([token for _, token in places], device=device))
    return [[[answers[decoded[d]] for d in each] for each in drafts] for answers in made]


def _in_segments(
    model: PreTrainedModel,
    pairs: Sequence[PromptPair],
    policy: Policy,
    *,
    options: GenerateOptions,
    ends: Sequence[int],
    pad: int,
    vocab_size: int,
    shortlist: Shortlist | None,
    questions: Sequence[str],
    read: Callable[[Sequence[int]], str] | None,
) -> list[FanAnswer]:
    """Return the answers of a policy that chooses at every sentence: it shares no forward with others."""
    from transformers import StoppingCriteriaList
    from transformers.generation import EosTokenCriteria

    check_segments(
        [policy],
        shared=can_share_forward(model),
        thinking=pairs[0].thinking,
        penalty=options.repetition_penalty != 1,
    )
    text = read or (lambda ids: "")
    recorder, contextual = Recorder(), stream_of(model, [p.contextual for p in pairs], pad)
    plan = DecodingPlan(
        drafts=Drafts([policy] * len(pairs), questions, text, [p.passages for p in pairs]),
        shortlist=shortlist or Shortlist(),
        contextual=contextual,
        parametric=lambda: stream_of(model, [p.parametric for p in pairs], pad),
        processors=processors_for(options, contextual.keep),
        criteria=StoppingCriteriaList([EosTokenCriteria(list(ends))] if ends else []),
        max_new_tokens=options.max_new_tokens,
        sample=options.do_sample,
        seed=options.seed,
        pad_token_id=pad,
        vocab_size=vocab_size,
        recorder=recorder,
        segments=Segments(text, frozenset(ends)),
    )
    try:
        decode(plan)
    except NonFiniteLogits as error:
        if len(pairs) == 1:
            return [FanAnswer(error=str(error))]
        how: dict[str, Any] = {"options": options, "ends": ends, "pad": pad, "vocab_size": vocab_size}
        each = zip(pairs, questions or [""] * len(pairs), strict=True)
        return [
            _in_segments(model, [pair], policy, shortlist=shortlist, questions=[asked], read=read, **how)[0]
            for pair, asked in each
        ]
    made = []
    for row in range(len(pairs)):
        _, h_par, h_ctx, tau, switched, _, _, logp_par, logp_ctx, _ = zip(*recorder.rows(row), strict=True)
        gain = [par - ctx for par, ctx in zip(h_par, h_ctx, strict=True)]
        acted = list(map(bool, switched))
        made.append(FanAnswer(recorder.token_ids(row), gain, list(tau), acted, list(logp_ctx), list(logp_par)))
    return made


def _given(
    policy: Policy,
    drafts: Sequence[FanAnswer],
    question: str,
    passages: Sequence[str],
    read: Callable[[Sequence[int]], str] | None,
    alone: Callable[[Sequence[Sequence[int]]], list[list[float]]],
) -> FanAnswer:
    """The draft that a policy gives. One with an error cannot be judged, so that it is then what is given."""
    broken = next((draft for draft in drafts if draft.error is not None), None)
    if broken is not None or len(drafts) == 1 or not isinstance(policy, AnswerPolicy):
        return broken or drafts[0]
    evidence = []
    for draft in drafts:
        h_ctx, h_par, ranks, best = list(zip(*draft.evidence, strict=True)) or [()] * 4
        evidence.append(Evidence(draft.logp_ctx, draft.logp_par, h_ctx, h_par, ranks, best))
    if policy.alone:
        logp = alone([draft.ids for draft in drafts])
        evidence = [replace(found, logp_alone=each) for found, each in zip(evidence, logp, strict=True)]
    if read is not None:
        evidence = read_drafts(evidence, list(policy.drafts), [read(d.ids) for d in drafts], question, passages)
    return drafts[policy.choose(evidence)]


def _broken(logits_ctx: Tensor, logits_par: Tensor, step: int) -> dict[int, str]:
    """Rows whose logits are not finite, with the message of `NonFiniteLogits`."""
    found: dict[int, str] = {}
    for name, logits in (("parametric", logits_par), ("contextual", logits_ctx)):
        for row in nonfinite_rows(logits).nonzero()[:, 0].tolist():
            found[row] = str(NonFiniteLogits(row, step, name))
    return found


def _unfinished(
    running: list[tuple[int, int]], rows: list[int], tokens: list[int], ends: Sequence[int]
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    kept = [i for i, token in enumerate(tokens) if token not in ends]
    return [running[i] for i in kept], [rows[i] for i in kept], [tokens[i] for i in kept]


def _record(
    made: Sequence[Sequence[FanAnswer]],
    running: Sequence[tuple[int, int]],
    rows: Sequence[int],
    tokens: Sequence[int],
    signals: Signals,
    decisions: Mapping[int, Decision],
    drafted: Collection[int],
) -> None:
    if not running:
        return
    evidence: list[tuple[float, float, int, float]] = []
    if drafted:
        columns = (signals.h_ctx, signals.h_par, signals.top_par, signals.logp_par.amax(-1))
        evidence = list(zip(*(column.tolist() for column in columns), strict=True))
    gains = signals.gain.tolist()
    places, chosen = torch.tensor(rows), torch.tensor(tokens)
    logp = [stream[places, chosen].tolist() for stream in (signals.logp_ctx, signals.logp_par)]
    for i, ((item, arm), row, token) in enumerate(zip(running, rows, tokens, strict=True)):
        tau = decisions[arm].tau[row]
        answer = made[item][arm]
        answer.ids.append(token)
        answer.gain.append(gains[row])
        answer.tau.append(float(tau[token] if tau.ndim else tau))
        answer.switched.append(bool(decisions[arm].switched[row]))
        answer.logp_ctx.append(logp[0][i])
        answer.logp_par.append(logp[1][i])
        if arm in drafted:
            h_ctx, h_par, best, logp_best = evidence[row]
            answer.evidence.append((h_ctx, h_par, int(token != best), logp_best))


# What an answer's next token is chosen from: one stream as it is, or a blend. Equal sources are computed once.
_Source = tuple[str, int] | tuple[str, int, float, float, bool] | tuple[str, int, int]


class _NextTokens:
    """Picks the next token of every running answer; fuses only what is not one stream's own distribution."""

    def __init__(self, policies: Sequence[Policy], options: GenerateOptions, prompts: Stream) -> None:
        self.policies, self.options = policies, options
        self.prompts, self.keep = prompts.input_ids, prompts.keep
        self.blend = per_row(policies)  # only asked whether a shortlist is needed
        self.plain = not options.do_sample and not processors_for(options, None)
        self.items: list[int] | None = None  # the questions that `processors` are for, a row each
        self.generators: dict[tuple[int, int], torch.Generator] = {}
        self.chosen: dict[tuple[int, int], list[int]] = {}

    def __call__(
        self,
        running: Sequence[tuple[int, int]],
        rows: Sequence[int],
        raw: Tensor,
        signals: Signals,
        decisions: Mapping[int, Decision],
    ) -> list[int]:
        """Return one token per answer; `raw` are the contextual logits as the model gave them, [R, V]."""
        sources = [self._source(arm, row, decisions[arm]) for (_, arm), row in zip(running, rows, strict=True)]
        places = {source: i for i, source in enumerate(dict.fromkeys(sources))}
        arms = dict(zip(sources, (arm for _, arm in running), strict=True))
        scores = torch.empty(len(places), raw.shape[1], device=raw.device)
        memory = signals.logits_par.masked_fill(signals.logits_ctx == -torch.inf, -torch.inf)
        for name, logits in (("raw", raw), ("contextual", signals.logits_ctx), ("parametric", memory)):
            if picked := [source for source in places if source[0] == name]:
                scores[[places[source] for source in picked]] = logits[[source[1] for source in picked]]
        if picked := [source for source in places if source[0] == "blend"]:
            blended = self._fuse([(source[1], decisions[arms[source]]) for source in picked], signals)
            scores[[places[source] for source in picked]] = blended
        index = [places[source] for source in sources]
        if self.plain:
            best = first_max(scores).tolist()
            return [best[i] for i in index]
        return self._draw(running, scores[index])

    def _source(self, arm: int, row: int, decision: Decision) -> _Source:
        if self.policies[arm].neutral:
            return "raw", row
        if decision.tau.ndim == 2:
            return "blend", row, arm
        tau = float(decision.tau[row])
        scale = 1.0 if decision.scale is None else float(decision.scale[row])
        cut = decision.truncate is not None and bool(decision.truncate[row])
        if tau in (0.0, 1.0) and scale == 1 and not cut:
            return ("parametric", "contextual")[int(tau)], row
        return "blend", row, tau, scale, cut

    def _fuse(self, blends: Sequence[tuple[int, Decision]], signals: Signals) -> Tensor:
        """Fuse row i under decision i, [K, V]."""
        device, size = signals.logits_ctx.device, signals.logits_ctx.shape[1]
        signals.gain  # noqa: B018  both streams are looked at once for all rows, then picked from
        picked = signals.rows(torch.tensor([row for row, _ in blends], device=device))
        taus = [decision.tau[row] for row, decision in blends]
        if any(tau.ndim for tau in taus):
            taus = [tau.expand(size) for tau in taus]
        one = torch.ones((), device=device)
        scale = torch.stack([one if d.scale is None else d.scale[row] for row, d in blends])
        cut = torch.stack([one < 0 if d.truncate is None else d.truncate[row] for row, d in blends])
        return fuse_scores(self.blend, picked, Decision(torch.stack(taus), torch.ones_like(cut), scale, cut))

    def _draw(self, running: Sequence[tuple[int, int]], scores: Tensor) -> list[int]:
        """Process and draw as `ckcontrol.generate` does, each answer from its own generator."""
        items = [item for item, _ in running]
        prompts = self.prompts[items]
        said = torch.tensor([self.chosen.setdefault(answer, []) for answer in running], dtype=torch.long)
        said = said.to(prompts.device)
        seen = said if self.options.penalty_scope == "generated" else torch.cat([prompts, said], dim=1)
        if items != self.items:
            self.items = items
            self.processors = processors_for(self.options, None if self.keep is None else self.keep[items])
        scores = self.processors(seen, scores)
        if not self.options.do_sample:
            tokens = first_max(scores).tolist()
        else:
            probs = scores.softmax(-1)
            tokens = [
                int(torch.multinomial(probs[i : i + 1], 1, generator=self._generator(answer)))
                for i, answer in enumerate(running)
            ]
        for answer, token in zip(running, tokens, strict=True):
            self.chosen[answer].append(token)
        return tokens

    def _generator(self, answer: tuple[int, int]) -> torch.Generator | None:
        if self.options.seed is None:
            return None
        if answer not in self.generators:
            self.generators[answer] = torch.Generator(self.prompts.device).manual_seed(self.options.seed)
        return self.generators[answer]
