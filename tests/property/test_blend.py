"""The algebra of several sources: two are `fuse`, unit weights are copies, order does not matter, nothing is NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ckcontrol as ck
from ckcontrol.errors import ControlError, NonFiniteLogits
from ckcontrol.fusion.distributions import Shortlist, log_probs
from ckcontrol.fusion.kernel import average, blend, fuse, regauge, regauge_sources
from ckcontrol.fusion.signals import Signals
from ckcontrol.fusion.source_signals import SourceSignals
from ckcontrol.policies.sources import AvgEntropy, Lifted, MinEntropy, shares_of

settings.register_profile("ck", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("ck")

seeds = st.integers(0, 10_000)
counts = st.integers(1, 6)


def sources(seed: int, count: int, rows: int = 3, width: int = 257) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, rows, width, generator=g) * 4


def weights_of(seed: int, count: int, rows: int = 3) -> torch.Tensor:
    w = torch.randn(count, rows, generator=torch.Generator().manual_seed(seed + 1))
    return torch.cat([w[:-1], 1 - w[:-1].sum(0, keepdim=True)])


def listed(logp: torch.Tensor) -> torch.Tensor:
    return torch.stack([Shortlist().mask(one) for one in logp]).any(0)


@given(seeds, st.lists(st.floats(0, 40), min_size=3, max_size=3), st.booleans(), st.booleans())
def test_two_sources_are_fuse_bit_for_bit(seed, taus, masked, shaped):
    logits = sources(seed, 2)
    if masked:
        logits[0, :, 5:9], logits[1, :, 7:12] = -math.inf, -math.inf
    tau = torch.tensor([*taus[:2], (0.0, 1.0)[seed % 2]])
    scale = torch.tensor([0.5, 1.0, 2.0]) if shaped else None
    truncate = torch.tensor([True, False, True]) if shaped else None
    par, ctx = logp = log_probs(logits)
    keep = listed(logp)
    made = blend(logp, torch.stack([1 - tau, tau]), shortlisted=keep, scale=scale, truncate=truncate)
    wanted = fuse(ctx, par, tau, shortlisted=keep, scale=scale, truncate=truncate)
    assert torch.equal(made, wanted)
    norm, plain = logits[1].logsumexp(-1, keepdim=True), torch.tensor([True, True, not shaped])
    assert torch.equal(
        regauge_sources(made, logits, norm, torch.stack([1 - tau, tau]), plain),
        regauge(wanted, logits[1], logits[0], norm, tau, plain),
    )


@given(seeds)
def test_weights_may_differ_between_tokens_as_tau_may(seed):
    par, ctx = logp = log_probs(sources(seed, 2))
    tau = torch.rand(3, 257, generator=torch.Generator().manual_seed(seed)) * 3
    keep = listed(logp)
    made = blend(logp, torch.stack([1 - tau, tau]), shortlisted=keep)
    assert torch.equal(made, fuse(ctx, par, tau, shortlisted=keep))


@given(seeds, counts)
def test_a_unit_weight_is_a_copy(seed, count):
    logp = log_probs(sources(seed, count))
    for way in (blend, average):
        for i in range(count):
            weights = torch.zeros(count, 3)
            weights[i] = 1
            assert torch.equal(way(logp, weights), logp[i])


@given(seeds, counts)
def test_it_is_a_distribution_and_never_nan(seed, count):
    logits = sources(seed, count)
    mask = torch.rand(count, 3, 257, generator=torch.Generator().manual_seed(seed)) < 0.2
    mask[-1] &= mask[0]
    logits = logits.masked_fill(mask, -math.inf)
    logp, weights = log_probs(logits), weights_of(seed, count)
    out = blend(logp, weights, shortlisted=torch.ones_like(mask[0]))
    assert out.dtype == torch.float32 and not out.isnan().any() and not (out == math.inf).any()
    assert (out[logp[-1] == -math.inf] == -math.inf).all()
    for part, one in zip(weights, logp, strict=True):
        assert (out[(one == -math.inf) & (part > 0)[:, None]] == -math.inf).all()
    some = (out > -math.inf).any(-1)
    torch.testing.assert_close(out[some].exp().sum(-1), torch.ones(int(some.sum())), atol=1e-4, rtol=0)
    shares = weights.abs() / weights.abs().sum(0)
    mean = average(logp, shares)
    assert not mean.isnan().any()
    torch.testing.assert_close(mean.exp().sum(-1), torch.ones(3), atol=1e-4, rtol=0)


@given(seeds, st.integers(2, 6))
def test_the_order_of_sources_does_not_matter(seed, count):
    """The last one leads, so it stays; what comes before may come in any order, up to the rounding of a sum."""
    logp, weights = log_probs(sources(seed, count)), weights_of(seed, count)
    order = [*torch.randperm(count - 1, generator=torch.Generator().manual_seed(seed)).tolist(), count - 1]
    keep = listed(logp)
    out = blend(logp, weights, shortlisted=keep)
    torch.testing.assert_close(blend(logp[order], weights[order], shortlisted=keep), out, atol=1e-4, rtol=1e-4)
    shares = weights.abs() / weights.abs().sum(0)
    torch.testing.assert_close(average(logp[order], shares[order]), average(logp, shares), atol=1e-4, rtol=1e-4)


@given(seeds, counts)
def test_equal_sources_are_a_fixed_point(seed, count):
    logp = log_probs(sources(seed, 1)).expand(count, -1, -1)
    weights = weights_of(seed, count)
    out = blend(logp, weights, shortlisted=torch.ones(3, 257, dtype=torch.bool))
    torch.testing.assert_close(out, logp[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(average(logp, weights.abs() / weights.abs().sum(0)), logp[0], atol=1e-4, rtol=1e-4)


def test_a_source_of_weight_nought_takes_no_part():
    logits = sources(1, 3)
    logits[1] = -math.inf
    logits[1, :, 0] = 0.0
    logp = log_probs(logits)
    out = blend(logp, torch.tensor([0.4, 0.0, 0.6])[:, None].expand(3, 3))
    torch.testing.assert_close(out, blend(logp[[0, 2]], torch.tensor([0.4, 0.6])[:, None].expand(2, 3)))


def test_a_source_turned_away_from_leaves_where_it_is_impossible():
    """(0.8, 1.2, -1) with the last-but-one at -inf on token 0: there the weights are (0.4, 0.6)."""
    logp = log_probs(sources(2, 3))[[1, 0, 2]]
    logp[1, :, 0] = -math.inf
    weights = torch.tensor([0.8, -1.0, 1.2])[:, None].expand(3, 3)
    out = blend(logp, weights, shortlisted=torch.ones(3, 257, dtype=torch.bool))
    raw = 0.8 * logp[0] - logp[1] + 1.2 * logp[2]
    raw[:, 0] = 0.4 * logp[0, :, 0] + 0.6 * logp[2, :, 0]
    torch.testing.assert_close(out, log_probs(raw))


def test_what_cannot_be_is_refused():
    logp = log_probs(sources(1, 3))
    with pytest.raises(ControlError, match=r"sum to 0\.6"):
        blend(logp, torch.full((3, 3), 0.2))
    with pytest.raises(ControlError, match="without a shortlist"):
        blend(logp, torch.tensor([0.5, -0.5, 1.0])[:, None].expand(3, 3))
    with pytest.raises(ControlError, match="without a shortlist"):
        average(logp, torch.tensor([0.5, -0.5, 1.0])[:, None].expand(3, 3))
    with pytest.raises(ControlError, match="sum to nan"):
        blend(logp, torch.full((3, 3), math.nan))
    logp[1, 2, 7] = math.nan
    with pytest.raises(NonFiniteLogits, match="row 2, step 0, source 1 stream"):
        blend(logp, torch.full((3, 3), 1 / 3))


# --- weights ----------------------------------------------------------------------------------------------------------


def step(seed: int, count: int) -> SourceSignals:
    """Return three rows of memory, `count` sources of uneven shares, and all."""
    logits = sources(seed, count + 2)
    shares = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) + 0.1
    none = torch.zeros(1, 3)
    there = torch.ones(count + 2, 3, dtype=torch.bool)
    return SourceSignals(logits, torch.cat([none, shares / shares.sum(0), none]), there)


@given(seeds, counts, st.sampled_from(["cad-0.3", "cad-0.8", "arr", "acd", "adacad", "ck-plug-0.7", "coiecd"]))
def test_a_control_over_sources_is_the_equation(seed, count, named):
    method, _, alpha = named.rpartition("-") if named[-1].isdigit() else (named, "", None)
    policy = ck.Control(method, alpha=None if alpha is None else float(alpha)).policy()
    signals = step(seed, count)
    made = Lifted(policy).weigh(signals)
    weights = made.weights if made.weights.ndim == 3 else made.weights[..., None]
    logp = log_probs(signals.logits)
    wanted = torch.zeros(3, 257)
    for i in range(1, count + 1):
        tau = policy.decide(Signals(signals.logits[i], signals.logits[0])).tau
        tau, v = tau if tau.ndim == 2 else tau[:, None], signals.shares[i][:, None]
        low, high = tau.clamp_max(1), (tau - 1).clamp_min(0)
        wanted += v * (low * logp[-1] + (1 - low) * logp[0] + high * (logp[i] - logp[0]))
    torch.testing.assert_close((weights * logp).sum(0), wanted, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]), atol=1e-4, rtol=0)


@given(seeds, counts)
def test_the_ends_of_the_dial_are_all_passages_and_memory_bit_for_bit(seed, count):
    signals = step(seed, count)
    for alpha, place in ((0.5, -1), (1.0, 0)):
        weights = Lifted(ck.Control("cad", alpha=alpha).policy()).weigh(signals).weights
        wanted = torch.zeros_like(weights)
        wanted[place] = 1
        assert torch.equal(weights, wanted)


@given(seeds, counts)
def test_order_of_sources_moves_weights_along(seed, count):
    signals = step(seed, count)
    order = [0, *(1 + torch.randperm(count, generator=torch.Generator().manual_seed(seed))).tolist(), count + 1]
    moved = SourceSignals(signals.logits[order], signals.shares[order], signals.present)
    for policy in (Lifted(ck.Control("arr").policy()), MinEntropy(), AvgEntropy()):
        torch.testing.assert_close(
            policy.weigh(moved).weights, policy.weigh(signals).weights[order], atol=1e-5, rtol=1e-4
        )


def test_entropy_rules_take_the_surest_and_leave_out_what_is_not_there():
    signals = step(3, 3)
    signals.logits[2, 1] *= 9
    h = torch.stack([-(p.exp() * p).sum(-1) for p in log_probs(signals.logits)])
    made = MinEntropy().weigh(signals).weights
    assert made.argmax(0).tolist() == h.argmin(0).tolist() and made[2, 1] == 1
    torch.testing.assert_close(AvgEntropy().weigh(signals).weights, (-h).softmax(0), atol=1e-4, rtol=1e-4)
    signals.present[2, 1] = False
    assert MinEntropy().weigh(signals).weights[2, 1] == 0 and AvgEntropy().weigh(signals).weights[2, 1] == 0


def test_shares_are_a_softmax_of_scores_or_even():
    assert shares_of([(0,), (1,)], [None, 2.0]) == [0.5, 0.5]
    e = math.e
    assert shares_of([(0,), (1,)], [1.0, 2.0]) == pytest.approx([1 / (1 + e), e / (1 + e)])
    assert shares_of([(0, 1), (2,)], [0.0, 0.0, 0.0]) == pytest.approx([2 / 3, 1 / 3])
    assert shares_of([(0,), (1,)], [1000.0, -1000.0]) == [1.0, 0.0]
