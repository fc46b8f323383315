"""The fused step is the plain one, for every policy and every kind of row, whatever way it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.fused_step import fuse_all, fused_step, mask_spare_ids
from ckcontrol.fusion.distributions import Shortlist
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import Decision, Policy, draft_policies, names


@dataclass(frozen=True)
class Anything(Policy):
    """Somebody else's: reads signals that no policy here reads, scales, truncates, and is never 0 or 1."""

    name: ClassVar[str] = "anything"
    wide: bool = False

    def decide(self, signals: Signals) -> Decision:
        surprise = signals.logp_par.gather(1, signals.top_ctx[:, None])[:, 0]
        tau = 0.3 + signals.jsd + signals.margin_par.clamp_max(2) + signals.lead_ctx + signals.head.sum(-1) / 1e3
        scale = 1 + 0.1 * signals.disagree.float()
        if self.wide:
            return Decision(torch.where(signals.shortlisted, tau[:, None], 0.4), tau > 0, scale)
        return Decision(tau, surprise < -1, scale, truncate=signals.gain < 0)


@dataclass(frozen=True)
class Tau(Policy):
    """One exponent, any."""

    name: ClassVar[str] = "tau"
    tau: float = 0.5

    def decide(self, signals: Signals) -> Decision:
        tau = torch.full_like(signals.h_ctx, self.tau)
        return Decision(tau, tau != 1)


def policies() -> dict[str, Policy]:
    found: dict[str, Policy] = {}
    for name in names():
        kinds = [{}] if name not in ("ck-plug", "ck-plug-repo", "cad", "dial") else [{"alpha": a} for a in ALPHAS]
        kinds += [{"adaptive": True, "gate": 2.0}] if name.startswith("ck-plug") else []
        for params in kinds:
            for draft in draft_policies(ck.Control(name, **params).policy()).values():
                found.setdefault(f"{name} {params} {draft.name}", draft)
    return found | {"anything": Anything(), "anything wide": Anything(wide=True)}


ALPHAS = (0.0, 0.2, 0.45, 0.5, 0.7, 1.0)
POLICIES = policies()
SIZES = [(1, 320, None), (5, 1024, None), (7, 1001, 990), (6, 4096, 4001), (3, 40, 37)]
LISTS = [Shortlist(), Shortlist(3, 0.3), Shortlist(200, 0.5), Shortlist(10, 0.0)]


def streams(rows: int, size: int, seed: int, kind: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    par = torch.randn(rows, size, generator=draw) * 4
    sure = torch.tensor([0.2, 1.0, 3.0])[torch.arange(rows) % 3, None]
    ctx = par * sure + torch.randn(rows, size, generator=draw) * torch.tensor([4.0, 0.1])[torch.arange(rows) % 2, None]
    if kind == "ties":
        ctx, par = ctx.round(), par.round()
    if kind == "masked":
        ctx[:, 3:9] = par[:, 7:20] = -math.inf
        par[0, ctx[0].argmax()] = -math.inf
    if kind == "offset":
        ctx, par = ctx + 40, par - 90
    if kind == "same":
        par = ctx.clone()
    return ctx, par


def plainly(policy, ctx, par, shortlist, vocab_size):
    """Today's arithmetic, whole vocabularies at a time."""
    ctx, par = ctx.clone(), par.clone()
    if not policy.neutral:
        mask_spare_ids(policy, vocab_size, ctx, par)
    signals = Signals(ctx, par, shortlist=shortlist)
    decision = policy.decide(signals)
    return signals, decision, ctx if policy.neutral else fuse_all(policy, signals, decision)


def terms(signals: Signals, decision: Decision) -> torch.Tensor:
    """The size of what is added up in a fused score, to which its rounding is relative."""
    tau = decision.tau if decision.tau.ndim == 2 else decision.tau[:, None]
    ctx, par = (x.nan_to_num(0, 0, 0).abs() for x in (signals.logp_ctx, signals.logp_par))
    return 1 + signals.norm_ctx.nan_to_num(0, 0, 0).abs() + (1 + tau) * (ctx + par)


def check(policy, ctx, par, shortlist, vocab_size, fine=None):
    """Both ways of a step against the oracle, on the rows that are `fine`."""
    fine = torch.ones(len(ctx), dtype=torch.bool) if fine is None else fine
    signals, decision, want = plainly(policy, ctx, par, shortlist, vocab_size)
    given = ctx.clone(), par.clone()
    made = fused_step(policy, *given, shortlist=shortlist, vocab_size=vocab_size)
    assert torch.equal(given[0], signals.logits_ctx) or not fine.all()
    near = {"rtol": 1e-5, "atol": 1e-5}
    for name in ("tau", "switched", "scale", "truncate"):
        ours, theirs = getattr(made.decision, name), getattr(decision, name)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours[fine], theirs[fine], **near)
    for name in ("h_ctx", "h_par", "jsd", "norm_ctx", "norm_par", "logp_ctx", "logp_par", "top_ctx", "top_par"):
        torch.testing.assert_close(getattr(made.signals, name)[fine], getattr(signals, name)[fine], **near)
    for name in ("margin_ctx", "margin_par", "lead_ctx", "lead_par", "peak_ctx", "peak_par"):
        torch.testing.assert_close(getattr(made.signals, name)[fine], getattr(signals, name)[fine], **near)
    assert torch.equal(made.scores[fine] == -math.inf, want[fine] == -math.inf)
    finite = (want > -math.inf) & fine[:, None]
    allowed = 1e-5 * terms(signals, decision)
    assert ((made.scores - want).abs() <= allowed)[finite].all(), float(
        ((made.scores - want).abs() / allowed)[finite].max()
    )
    picked = fused_step(policy, ctx.clone(), par.clone(), shortlist=shortlist, vocab_size=vocab_size, pick=True)
    assert picked.scores is None
    assert ((picked.tokens >= 0) & (picked.tokens < ctx.shape[1])).all()
    best = want.gather(1, picked.tokens[:, None]) - want.amax(-1, keepdim=True)
    assert (best >= -allowed.gather(1, want.argmax(-1, keepdim=True)))[fine].all(), "the favourite up to rounding"
    assert torch.equal(made.broken[fine], torch.zeros_like(made.broken[fine]))
    return made, picked, want


KINDS = ["", "ties", "masked", "offset", "same"]


# The divergence of equal streams is rounding, and any tau above 1 cuts to the shortlist.
@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n in POLICIES for k in KINDS if k != "same" or not n.startswith(("adacad", "arr"))]
)
def test_every_policy_on_every_kind_of_logits(name: str, kind: str) -> None:
    for seed, (rows, size, known) in enumerate(SIZES):
        ctx, par = streams(rows, size, seed, kind)
        made, picked, want = check(POLICIES[name], ctx, par, LISTS[seed % 4], known)
        if kind not in ("same", "ties"):  # of equals, rounding chooses
            assert torch.equal(picked.tokens, want.argmax(-1))
        assert torch.equal(picked.broken, made.broken)
