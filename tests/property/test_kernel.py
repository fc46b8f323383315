"""The algebra of the kernel and of every policy: identities the whole library rests on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ckcontrol as ck
from ckcontrol.errors import ControlError, NonFiniteLogits
from ckcontrol.fusion.distributions import entropy, first_max, head_set, jensen_shannon, log_probs
from ckcontrol.fusion.kernel import fuse
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import TAU_MAX, tau_from_alpha

settings.register_profile("ck", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("ck")

seeds = st.integers(0, 10_000)
widths = st.sampled_from([2, 3, 17, 257, 5003])


def pair(seed: int, width: int = 257, rows: int = 3, spread: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, width, generator=g) * spread for _ in range(2))  # type: ignore[return-value]


def signals(seed: int, **kwargs) -> Signals:
    return Signals(*pair(seed), **kwargs)


def full(logp: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(logp, dtype=torch.bool)


def steer(control: ck.Control, s: Signals) -> torch.Tensor:
    d = control.policy().decide(s)
    return fuse(s.logp_ctx, s.logp_par, d.tau, head=s.head, scale=d.scale, truncate=d.truncate)


# --- exact ends -----------------------------------------------------------------------------------------------


@given(seeds, widths)
def test_ends_are_exact_copies(seed, width):
    ctx, par = map(log_probs, pair(seed, width))
    assert torch.equal(fuse(ctx, par, 1.0), ctx)
    assert torch.equal(fuse(ctx, par, 0.0), par)
    mixed = fuse(ctx, par, torch.tensor([1.0, 0.3, 0.0]))
    assert torch.equal(mixed[0], ctx[0]) and torch.equal(mixed[2], par[2])


@given(seeds, st.floats(0, 3))
def test_fused_is_a_distribution_in_float32(seed, tau):
    ctx, par = map(log_probs, pair(seed))
    out = fuse(ctx, par, tau, head=full(ctx))
    assert out.dtype == torch.float32
    assert torch.allclose(out.exp().sum(-1), torch.ones(3), atol=1e-4)


@given(seeds, st.floats(0, 1))
def test_swapping_the_streams_maps_tau_to_its_complement(seed, tau):
    ctx, par = map(log_probs, pair(seed))
    assert torch.allclose(fuse(ctx, par, tau), fuse(par, ctx, 1 - tau), atol=1e-4)


@given(seeds, st.floats(0, 5))
def test_equal_streams_are_a_fixed_point(seed, tau):
    ctx = log_probs(pair(seed)[0])
    assert torch.allclose(fuse(ctx, ctx, tau, head=full(ctx)), ctx, atol=1e-4)


@given(seeds, st.floats(0, 4), st.floats(-50, 50), st.floats(-50, 50))
def test_a_constant_added_to_either_stream_changes_nothing(seed, tau, a, b):
    ctx, par = pair(seed)
    head = full(ctx)
    assert torch.allclose(
        fuse(ctx + a, par + b, tau, head=head).softmax(-1),
        fuse(ctx, par, tau, head=head).softmax(-1),
        atol=1e-4,
    )


@given(seeds)
def test_permuting_rows_permutes_results(seed):
    ctx, par = map(log_probs, pair(seed, rows=5))
    tau, order = torch.tensor([0.0, 0.4, 1.0, 2.0, 7.0]), torch.tensor([3, 0, 4, 1, 2])
    out = fuse(ctx, par, tau, head=full(ctx))
    assert torch.equal(fuse(ctx[order], par[order], tau[order], head=full(ctx)), out[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_upcast_first_and_left_alone(dtype):
    ctx, par = (x.to(dtype) for x in pair(1))
    before = ctx.clone(), par.clone()
    assert torch.equal(fuse(ctx, par, 0.4), fuse(ctx.float(), par.float(), 0.4))
    assert torch.equal(log_probs(ctx), log_probs(ctx.float()))
    assert torch.equal(ctx, before[0]) and torch.equal(par, before[1])


# --- masks and broken numbers ---------------------------------------------------------------------------------


@given(seeds, st.floats(0, 6))
def test_masked_stays_masked_and_nothing_is_nan(seed, tau):
    ctx, par = pair(seed)
    ctx[:, 5:9] = -math.inf
    par[:, 7:12] = -math.inf
    ctx, par = log_probs(ctx), log_probs(par)
    out = fuse(ctx, par, tau, head=full(ctx))
    assert (out[:, 5:9] == -math.inf).all()
    assert not out.isnan().any() and not (out == math.inf).any()
    assert (out > -math.inf).any(-1).all()


def test_a_token_impossible_for_memory_alone():
    ctx, par = map(log_probs, pair(3))
    par[:, 0] = -math.inf
    assert (fuse(ctx, par, 0.5)[:, 0] == -math.inf).all()
    amplified = fuse(ctx, par, 3.0, head=full(ctx))
    assert torch.isfinite(amplified[:, 0]).all()


def test_an_amplified_context_needs_a_head_set():
    ctx, par = map(log_probs, pair(1))
    with pytest.raises(ControlError, match="shortlisted=Shortlist"):
        fuse(ctx, par, 1.5)
    for bad in (-0.1, math.nan):
        with pytest.raises(ControlError, match="tau"):
            fuse(ctx, par, bad)


def test_the_head_keeps_absurd_tokens_from_winning():
    """A token at 1e-9 in the context and 1e-30 in memory has the largest ratio of all; it must not win."""
    ctx, par = log_probs(torch.randn(1, 100)), log_probs(torch.randn(1, 100))
    ctx[0, 7], par[0, 7] = math.log(1e-9), math.log(1e-30)
    head = head_set(ctx, 10, 0.01) | head_set(par, 10, 0.01)
    assert fuse(ctx, par, 50.0, head=full(ctx)).argmax() == 7
    assert fuse(ctx, par, 50.0, head=head)[0, 7] == -math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stream", ["contextual", "parametric"])
def test_broken_numbers_raise_with_row_and_stream(value, stream):
    streams = dict(zip(("contextual", "parametric"), pair(1), strict=True))
    streams[stream][2, 11] = value
    with pytest.raises(NonFiniteLogits) as caught:
        fuse(streams["contextual"], streams["parametric"], 0.5)
    assert (caught.value.row, caught.value.stream) == (2, stream)


# --- signals against float64 ----------------------------------------------------------------------------------


@given(seeds, widths, st.sampled_from([0.1, 3.0, 30.0]))
def test_entropy_and_divergence_match_float64(seed, width, spread):
    a, b = pair(seed, width, spread=spread)
    p, q = (np.exp(x.double().numpy() - np.logaddexp.reduce(x.double().numpy(), -1, keepdims=True)) for x in (a, b))

    def h(x):
        return -(x * np.log(np.where(x > 0, x, 1))).sum(-1)

    assert np.allclose(entropy(log_probs(a)).numpy(), h(p), atol=2e-5)
    jsd = h((p + q) / 2) - (h(p) + h(q)) / 2
    assert np.allclose(jensen_shannon(log_probs(a), log_probs(b)).numpy(), jsd, atol=1e-5)


def test_entropy_at_the_corners():
    sure = torch.full((1, 152_000), -math.inf)
    sure[0, 3] = 0.0
    assert entropy(log_probs(sure)).item() == 0.0
    assert entropy(log_probs(torch.zeros(1, 152_000))).item() == pytest.approx(math.log(152_000), abs=1e-4)
    other = sure.roll(1, 1)
    assert jensen_shannon(log_probs(sure), log_probs(other)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_head_set_is_top_k_or_ratio_of_the_best():
    p = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]])
    assert head_set(p.log(), 2, 0.9).tolist() == [[True, True, False, False, False]]
    assert head_set(p.log(), 1, 0.15).tolist() == [[True, True, True, False, False]]
    assert head_set(p.log(), 1, 0.0).all()
    assert head_set(p.log(), 99, 0.5).all()


# --- policies: table 1.2 --------------------------------------------------------------------------------------


def test_dial_maps_one_way():
    assert [tau_from_alpha(a) for a in (0.0, 0.25, 0.5, 1.0)] == [TAU_MAX, 3.0, 1.0, 0.0]
    assert tau_from_alpha(1 / 3) == pytest.approx(2.0) and tau_from_alpha(0.4) == pytest.approx(1.5)


@given(seeds)
def test_ck_plug_ends_and_middle(seed):
    s = signals(seed)
    open_gate = {"gate": 1e6}
    assert torch.equal(steer(ck.Control("ck-plug", alpha=1.0, **open_gate), s), s.logp_par)
    assert torch.equal(steer(ck.Control("ck-plug", alpha=0.5, **open_gate), s), s.logp_ctx)
    contrast = (s.logp_ctx - s.logp_par).masked_fill(~s.head, -math.inf)
    assert torch.equal(steer(ck.Control("ck-plug", alpha=0.0, **open_gate), s).argmax(-1), contrast.argmax(-1))


@given(seeds, st.floats(0.02, 0.98))
def test_ck_plug_with_an_open_gate_is_cad_and_the_papers_formula(seed, alpha):
    """F = alpha*lp + (1-alpha)*(lc-lp) = alpha * CAD(1/alpha - 2): same distribution at temperature 1/alpha."""
    s = signals(seed, candidate_ratio=0.0)
    ours = steer(ck.Control("ck-plug", alpha=alpha, gate=1e6, candidate_ratio=0.0), s)
    assert torch.allclose(ours, steer(ck.Control("cad", alpha=alpha, candidate_ratio=0.0), s), atol=1e-3)
    paper = alpha * s.logp_par + (1 - alpha) * (s.logp_ctx - s.logp_par)
    assert torch.allclose(log_probs(ours * alpha), log_probs(paper), atol=1e-3)
    repo = steer(ck.Control("ck-plug-repo", alpha=alpha, gate=1e6, candidate_ratio=0.0), s)
    assert torch.allclose(repo, log_probs(paper), atol=1e-3)


def test_published_gate_is_the_sign_of_the_gain():
    s = signals(4)
    d = ck.Control("ck-plug", alpha=0.2).policy().decide(s)
    assert d.switched.tolist() == (s.gain < 0).tolist()
    assert torch.equal(d.tau, torch.where(s.gain < 0, 4.0, 1.0))
    assert torch.equal(steer(ck.Control("ck-plug", alpha=0.2), s)[s.gain >= 0], s.logp_ctx[s.gain >= 0])


@given(seeds, st.floats(1, 4))
def test_equation_11_as_printed_never_fires(seed, e):
    """CG < eps*|Hc| with eps <= -1 would need a negative entropy; the code's sign is the one we implement."""
    s = signals(seed)
    assert not (s.gain < -e * s.h_ctx.abs()).any()


def test_adaptive_tau_is_the_ratio_of_entropies():
    s = signals(4)
    for gate in (1.0, 2.0):
        d = ck.Control("ck-plug", adaptive=True, gate=gate).policy().decide(s)
        fired = s.h_par < gate * s.h_ctx
        assert torch.allclose(d.tau, torch.where(fired, s.h_par / s.h_ctx, 1.0))


def test_repo_adaptive_has_the_same_argmax_as_equation_10():
    s = signals(8)
    ours = steer(ck.Control("ck-plug-repo", adaptive=True, gate=1e6), s)
    h_ctx, h_par = (
        torch.special.entr(x.masked_fill(~s.head, -math.inf).softmax(-1)).sum(-1) for x in (s.logits_ctx, s.logits_par)
    )
    alpha = (h_ctx / (h_ctx + h_par))[:, None]
    paper = alpha * s.logp_par + (1 - alpha) * (s.logp_ctx - s.logp_par)
    assert torch.equal(ours.argmax(-1), paper.masked_fill(~s.head, -math.inf).argmax(-1))


def test_repo_truncates_where_the_gate_stays_closed():
    s = signals(4)
    out = steer(ck.Control("ck-plug-repo", alpha=0.5, gate=0.0), s)
    assert (out[~s.head] == -math.inf).all() and torch.equal(out.argmax(-1), s.top_ctx)


def test_cad_is_guidance_scale():
    s = signals(2, candidate_ratio=0.0)
    for g in (0.3, 2.0, 2.5):
        hf = g * (s.logp_ctx - s.logp_par) + s.logp_par
        assert torch.allclose(
            steer(ck.Control("cad", cad_alpha=g - 1, candidate_ratio=0.0), s), log_probs(hf), atol=1e-4
        )


def test_adacad_tau_is_one_plus_divergence_in_nats():
    s = signals(2)
    assert torch.allclose(ck.Control("adacad").policy().decide(s).tau, 1 + s.jsd)
    assert (ck.Control("adacad", warmup=0.69).policy().decide(s).tau >= 1.69).all()
    same = Signals(s.logits_ctx, s.logits_ctx)
    assert torch.allclose(steer(ck.Control("adacad"), same), same.logp_ctx, atol=1e-5)


def test_coiecd_splits_at_a_quarter_of_the_peak():
    p = torch.tensor([[0.5, 0.3, 0.12, 0.08], [0.9, 0.05, 0.03, 0.02]])
    s = Signals(p.log(), torch.randn(2, 4))
    tau = ck.Control("coiecd").policy().decide(s).tau
    assert tau.tolist() == [[2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    assert torch.equal(steer(ck.Control("coiecd"), s)[1], s.logp_ctx[1]), "one dominant token: plain context"


def test_acd_and_arr():
    s = signals(6)
    assert torch.allclose(ck.Control("acd").policy().decide(s).tau, s.h_par / (s.h_par + s.h_ctx))
    j = s.jsd / math.log(2)
    surer = s.logp_ctx.amax(-1) > s.logp_par.amax(-1)
    assert torch.allclose(ck.Control("arr").policy().decide(s).tau, torch.where(surer, 1 + j, 1 - j))


def test_entropy_corners_do_not_explode():
    sure, flat = torch.full((1, 50), -30.0), torch.zeros(1, 50)
    sure[0, 1] = 30.0
    for a, b in ((sure, flat), (flat, sure), (sure, sure)):
        s = Signals(a, b)
        for control in (
            ck.Control("ck-plug", adaptive=True, gate=4.0),
            ck.Control("ck-plug-repo", adaptive=True),
            ck.Control("acd"),
        ):
            d = control.policy().decide(s)
            assert torch.isfinite(d.tau).all() and (d.tau >= 0).all() and (d.tau <= TAU_MAX).all()
            assert not steer(control, s).isnan().any()


@pytest.mark.parametrize("name", ["off", "ck-plug", "ck-plug-repo", "cad", "adacad", "coiecd", "acd", "arr"])
def test_claims_of_neutrality_and_boundedness_hold(name):
    """`neutral` lets the engine skip fusion and `amplifies=False` the head set: neither may be claimed wrongly."""
    grid = [{}] if name in ("off", "adacad", "coiecd", "acd", "arr") else [{"alpha": a / 10} for a in range(11)]
    grid += [{"adaptive": True, "gate": g} for g in (1.0, 2.0)] if name.startswith("ck-plug") else []
    for params in grid:
        policy = ck.Control(name, **params).policy()
        for seed in range(20):
            tau = policy.decide(signals(seed)).tau
            assert policy.amplifies or (tau <= 1).all(), params
            assert not policy.neutral or (tau == 1).all(), params


def test_rows_of_signals_keep_what_was_computed():
    s = signals(5)
    want = s.h_ctx[[2, 0]]
    part = s.rows(torch.tensor([2, 0]))
    assert torch.equal(part.h_ctx, want) and torch.equal(part.gain, s.gain[[2, 0]])
    assert torch.equal(part.margin_par, s.margin_par[[2, 0]])


@given(seeds, st.sampled_from([64, 128, 320, 6400]), st.sampled_from([1, 2, 5, 10, 99, 100, 101]), st.booleans())
def test_selecting_by_blocks_is_selecting_from_all(seed: int, width: int, k: int, coarse: bool) -> None:
    """Rows full of equals, masked rows and NaN among them."""
    logp = pair(seed, width, rows=5)[0]
    logp = logp.round() if coarse else logp
    logp[3, width // 3 :] = -math.inf
    logp[4, seed % width] = math.nan
    assert torch.equal(first_max(logp), logp.argmax(-1))
    best = logp.topk(min(k, width), dim=-1).values
    want = logp >= torch.minimum(best[:, -1:], best[:, :1] + math.log(0.01))
    assert torch.equal(head_set(logp, k, 0.01), want)
