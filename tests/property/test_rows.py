"""A step in which few rows are acted on computes those alone, to the same bits."""

from __future__ import annotations

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.fused_step import fuse_all, fuse_scores
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import per_row

CONTROLS = [
    ck.Control("ck-plug", alpha=0.2),
    ck.Control("ck-plug", alpha=0.8),
    ck.Control("ck-plug", adaptive=True),
    ck.Control("ck-plug-repo", alpha=0.3),
    ck.Control("cad", alpha=1.0),
    ck.Control("coiecd"),
    ck.Control("off"),
]


def few_conflicts(seed: int) -> Signals:
    """Eight rows, most of them surer with the passages, some tokens masked."""
    draw = torch.Generator().manual_seed(seed)
    par = torch.randn(8, 300, generator=draw)
    ctx = par * torch.tensor([3.0, 3, 3, 0.2, 3, 3, 0.5, 3])[:, None] + torch.randn(8, 300, generator=draw) * 0.1
    ctx[:, 290:] = par[:, 290:] = -torch.inf
    return Signals(ctx, par)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_rows_left_alone_cost_nothing_and_change_nothing(control, seed):
    signals = few_conflicts(seed)
    policy = control.policy()
    decision = policy.decide(signals)
    whole = fuse_all(policy, signals, decision)
    assert torch.equal(fuse_scores(policy, signals, decision), whole)
    still = ~decision.acting()
    assert torch.equal(whole[still], signals.logits_ctx[still])


@pytest.mark.parametrize("seed", range(5))
def test_also_where_rows_have_policies_of_their_own(seed):
    signals = few_conflicts(seed)
    policy = per_row([c.policy() for c in [*CONTROLS, ck.Control("off")]])
    decision = policy.decide(signals)
    assert torch.equal(fuse_scores(policy, signals, decision), fuse_all(policy, signals, decision))


def test_a_decision_on_some_rows_is_the_decision_on_those():
    signals = few_conflicts(0)
    for control in CONTROLS:
        decision = control.policy().decide(signals)
        part, alone = decision.rows(torch.tensor([3, 6])), control.policy().decide(signals.rows(torch.tensor([3, 6])))
        for name in ("tau", "switched", "scale", "truncate"):
            ours, theirs = getattr(part, name), getattr(alone, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)
