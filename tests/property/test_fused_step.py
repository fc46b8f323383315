"""The fused step is the plain one, for every policy and every kind of row, whatever way it takes."""

from __future__ import annotations

import itertools
import math
import shutil
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ckcontrol as ck
from ckcontrol.decoding import fused_step as steps
from ckcontrol.decoding.fused_step import fuse_all, fused_step, mask_spare_ids
from ckcontrol.fusion import look
from ckcontrol.fusion import signals as signals_module
from ckcontrol.fusion.distributions import Shortlist, nonfinite_rows
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import Decision, Policy, draft_policies, names, per_row


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


def as_on_an_accelerator(policy, ctx, par, *, shortlist, vocab_size, pick=False):
    mask_spare_ids(policy, None if policy.neutral else vocab_size, ctx, par)
    return steps._compiled(policy, ctx, par, shortlist, pick)


def uncompiled(policy, ctx, par, *, shortlist, vocab_size, pick=False):
    mask_spare_ids(policy, None if policy.neutral else vocab_size, ctx, par)
    return steps._plainly(policy, ctx, par, shortlist, pick)


def check(policy, ctx, par, shortlist, vocab_size, fine=None, fused_step=fused_step):
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
        for step in (fused_step, uncompiled if POLICIES[name].neutral else as_on_an_accelerator):
            made, picked, want = check(POLICIES[name], ctx, par, LISTS[seed % 4], known, fused_step=step)
            if kind not in ("same", "ties"):  # of equals, rounding chooses
                assert torch.equal(picked.tokens, want.argmax(-1))
            assert torch.equal(picked.broken, made.broken)


@pytest.mark.parametrize("step", [fused_step, as_on_an_accelerator, uncompiled])
def test_rows_of_many_policies_and_broken_rows_among_them(step) -> None:
    """Whole rows are copied where tau is 1 or 0; NaN, +inf and nothing finite are flagged as ever, by stream."""
    chosen = [policy for name, policy in POLICIES.items() if "wide" not in name]
    mixed = per_row([*chosen, *chosen[::-1]])
    ctx, par = streams(2 * len(chosen), 1024, 1, "")
    bad = {3: (ctx, math.nan), 8: (ctx, math.inf), 11: (par, math.nan), 17: (par, math.inf)}
    for row, (stream, value) in bad.items():
        stream[row, 99] = value
    ctx[20], par[25] = -math.inf, -math.inf
    fine = torch.ones(len(ctx), dtype=torch.bool)
    fine[[*bad, 20, 25]] = False
    made, picked, want = check(mixed, ctx, par, Shortlist(), 1000, fine, fused_step=step)
    flags = torch.where(nonfinite_rows(ctx), 1, nonfinite_rows(par).to(torch.uint8) * 2)
    assert torch.equal(made.broken, flags) and torch.equal(picked.broken, flags)
    assert torch.equal(picked.tokens[fine], want.argmax(-1)[fine])
    tau = made.decision.tau
    for value, stream in ((1, made.signals.logits_ctx), (0, made.signals.logits_par)):
        copied = fine & made.decision.plain() & (tau == value if tau.ndim == 1 else (tau == value).all(-1))
        assert copied.any() and torch.equal(made.scores[copied], stream[copied])


def test_nothing_left_to_choose_from_is_flagged_as_fused() -> None:
    ctx, par = torch.full((2, 128), -math.inf), torch.full((2, 128), -math.inf)
    ctx[:, 3] = par[0, 3] = par[1, 5] = 1.0
    for step in (fused_step, as_on_an_accelerator, uncompiled):
        made = step(Tau(tau=0.5), ctx.clone(), par.clone(), shortlist=Shortlist(), vocab_size=None, pick=True)
        assert made.broken.tolist() == [0, 3] and made.tokens[0] == 3


VIEWS = {"view", "slice", "select", "unsqueeze", "squeeze", "expand", "as_strided", "split", "detach", "alias"}


class Count(TorchDispatchMode):
    """Operations, of which views cost nothing, and those whose shape depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", POLICIES)
def test_an_accelerator_is_never_asked(name: str, monkeypatch) -> None:
    """On tensors without data nothing can be read, and no shape can depend on them: so a step can be captured."""
    ctx, par = torch.empty(2, 4, 640, device="meta")
    for compiled, pick in itertools.product((False, True), (False, True)):
        monkeypatch.setattr(steps, "compiles", lambda device, answer=compiled: answer)
        with Count() as count:
            made = fused_step(POLICIES[name], ctx, par, vocab_size=600, pick=pick)
        assert not {"nonzero", "_local_scalar_dense", "item", "masked_select"} & set(count.names)
        assert made.broken.shape == (4,) and (made.tokens if pick else made.scores).device.type == "meta"


def test_where_nothing_is_compiled_a_step_takes_the_fewer_operations(monkeypatch) -> None:
    """On such a device each is a launch, and what is written to be compiled is longer as it stands."""
    ctx, par = torch.empty(2, 4, 640, device="meta")
    counted = {}
    for compiled in (False, True):
        monkeypatch.setattr(steps, "compiles", lambda device, answer=compiled: answer)
        with Count() as count:
            fused_step(POLICIES["ck-plug {'alpha': 0.2} ck-plug"], ctx, par, pick=True)
        counted[compiled] = len([name for name in count.names if name not in VIEWS])
    assert counted[False] < counted[True] and counted[False] <= 95, counted


def test_a_compiler_that_fails_is_tried_once(monkeypatch, caplog) -> None:
    """No triton, no C compiler: the answer is the same, with one line in the log, and it is the plain way later."""
    tried = []

    def broken(function):
        tried.append(function.__name__)
        return lambda *args: (_ for _ in ()).throw(RuntimeError("no compiler here"))

    monkeypatch.setattr(look, "_failed", set())
    monkeypatch.setattr(look, "compiled", broken)
    like = SimpleNamespace(device=torch.device("cuda"))
    scores = torch.randn(2, 64)
    for _ in range(3):
        for ours, theirs in zip(look.quickly(look.look, like, scores, 3, 0.1), look.look(scores, 3, 0.1), strict=True):
            assert torch.equal(ours, theirs)
    assert not look.compiles(like.device) and len(caplog.records) == 1 and tried == ["look", "look"]


@pytest.fixture(scope="module")
def inductor() -> None:
    """Torch's compiler, tried on an addition first: where that fails, this is not the place to test it."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler: apt-get install g++")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        try:
            torch.compile(lambda x: x + 1)(torch.ones(3))
        except Exception as error:
            pytest.skip(f"torch.compile does not work in this environment: {error}")


@pytest.mark.filterwarnings("ignore:The distutils package is deprecated:DeprecationWarning")  # the compiler's own
@pytest.mark.usefixtures("inductor")
@pytest.mark.parametrize("pick", [True, False])
def test_compiled_it_is_the_same_in_few_kernels(pick: bool, monkeypatch) -> None:
    """What a CUDA device runs, compiled for this one: operations that are left are launches there."""
    from torch._inductor import metrics

    used: set[str] = set()

    def compiled(function, like, *args):
        used.add(function.__name__)
        return look.compiled(function)(*args)

    metrics.reset()
    for module in (signals_module, steps):
        monkeypatch.setattr(module, "quickly", compiled)
    for rows in (3, 5):
        ctx, par = streams(rows, 1024, rows, "")
        made = as_on_an_accelerator(
            POLICIES["ck-plug {'alpha': 0.2} ck-plug"], ctx, par, shortlist=Shortlist(), vocab_size=1000, pick=pick
        )
        _, _, want = plainly(POLICIES["ck-plug {'alpha': 0.2} ck-plug"], ctx, par, Shortlist(), 1000)
        if pick:
            assert torch.equal(made.tokens, want.argmax(-1))
        else:
            torch.testing.assert_close(made.scores, want, rtol=1e-5, atol=1e-4)
    assert used == {"look", "_finish"}
    assert metrics.generated_kernel_count <= 24, metrics.generated_kernel_count
