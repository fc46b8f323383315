"""A request is read once: one policy per control, one options object, and either way of giving them means the same."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251  (the library never unpickles; a Control must survive a worker process)
from collections import Counter
from dataclasses import replace

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.options import OPTION_BOUNDS
from ckcontrol.errors import ControlError
from ckcontrol.policies import Policy, per_row
from ckcontrol.policies.per_row import PerRow

PASSAGES = ["The capital of Kenya is Lagos."]
QUESTION = "What is the capital of Kenya?"


def kinds(cls: type) -> set[type]:
    return {cls}.union(*map(kinds, cls.__subclasses__()))


@pytest.fixture
def made(monkeypatch):
    """How many objects of each class were made, policies of every kind, since the last `clear`."""
    counts: Counter[str] = Counter()

    def counted(init):
        def wrapper(self, *args, **kwargs):
            counts[type(self).__name__] += 1
            init(self, *args, **kwargs)

        return wrapper

    for cls in {*kinds(Policy), ck.GenerateOptions, ck.Control}:
        if "__init__" in vars(cls):
            monkeypatch.setattr(cls, "__init__", counted(vars(cls)["__init__"]))
    return counts


@pytest.mark.parametrize(
    "control", [{"method": "ck-plug", "alpha": 0.2}, {"method": "cad", "alpha": 0.8}, {"method": "off"}, {}]
)
def test_a_request_makes_one_policy_and_one_options_object(made, llama, control):
    ck.generate(*llama, QUESTION, PASSAGES, control=ck.Control(**control), max_new_tokens=3)
    policy = type(ck.Control(**control).policy()).__name__
    assert made == {"Control": 2, policy: 2, "GenerateOptions": 1}  # the second control is this test's own


def test_a_control_that_is_kept_makes_no_further_policy(made, llama):
    control, options = ck.Control("ck-plug", alpha=0.2), ck.GenerateOptions(max_new_tokens=3)
    made.clear()
    for _ in range(2):
        ck.generate(*llama, QUESTION, PASSAGES, control=control, options=options)
        ck.generate(*llama, QUESTION, None, control=control, options=options)
    assert not made


def test_drafts_are_made_once_per_control(made, llama):
    control = ck.Control("dial", alpha=0.2)
    made.clear()
    for _ in range(3):
        ck.generate(*llama, QUESTION, PASSAGES, control=control, max_new_tokens=3)
    assert made == {"CAD": 1, "PerRow": 3, "GenerateOptions": 3}  # the two drafts of a batch are one PerRow


def test_the_kept_policy_is_no_part_of_the_value():
    control = ck.Control("ck-plug", alpha=0.2, candidates=3)
    assert control.policy() is control.policy()
    assert control.shortlist == ck.Shortlist(3, 0.01)
    assert "policy" not in repr(control) and set(control.to_dict()) == {
        "method", "alpha", "candidates", "candidate_ratio"
    }  # fmt: skip
    again = [pickle.loads(pickle.dumps(control)), copy.copy(control), copy.deepcopy(control)]  # noqa: S301
    for other in again:
        assert other == control and hash(other) == hash(control) and other.policy() == control.policy()


def test_options_as_one_value_are_the_keywords(llama):
    options = ck.GenerateOptions(max_new_tokens=4, do_sample=True, seed=3)
    control = ck.Control("ck-plug", alpha=0.2)
    one = ck.generate(*llama, QUESTION, PASSAGES, control=control, options=options)
    assert one == ck.generate(*llama, QUESTION, PASSAGES, control=control, max_new_tokens=4, do_sample=True, seed=3)


def test_options_given_twice_are_refused(llama):
    options = ck.GenerateOptions(max_new_tokens=4)
    with pytest.raises(ControlError, match=r"seed=3.*options=dataclasses.replace\(options, seed=...\)"):
        ck.generate(*llama, QUESTION, PASSAGES, options=options, seed=3)
    with pytest.raises(ControlError, match=r"GenerateOptions"):
        ck.generate(*llama, QUESTION, PASSAGES, options={"max_new_tokens": 4})  # type: ignore[arg-type]


def test_bounds_are_those_of_the_table():
    for name, (low, high) in OPTION_BOUNDS.items():
        wrap = (lambda value: (value,)) if name == "stop_token_ids" else (lambda value: value)
        for value in (low, high):
            replace(ck.GenerateOptions(), **{name: wrap(value)})
        beyond = (low - 1, high + 1) if isinstance(low, int) else (low / 2, high * 2)
        for value in beyond:
            with pytest.raises(ControlError, match=name):
                replace(ck.GenerateOptions(), **{name: wrap(value)})


def test_older_names_of_the_shortlist_mean_the_same():
    ctx, par = torch.randn(2, 3, 64).log_softmax(-1) * 3
    signals = ck.Signals(ctx, par, shortlist=ck.Shortlist(4, 0.2))
    older = ck.Signals(ctx, par, 4, 0.2)
    assert older.shortlist == signals.shortlist and (older.candidates, older.candidate_ratio) == (4, 0.2)
    assert torch.equal(older.head, signals.shortlisted)
    both = ck.head_set(signals.logp_ctx, 4, 0.2) | ck.head_set(signals.logp_par, 4, 0.2)
    assert torch.equal(both, signals.shortlisted)
    streams = signals.logp_ctx, signals.logp_par
    assert torch.equal(ck.fuse(*streams, 3.0, head=both), ck.fuse(*streams, 3.0, shortlisted=both))


def test_rows_of_one_policy_are_decided_together_wherever_they_lie():
    ctx, par = torch.randn(2, 6, 64) * 3
    signals = ck.Signals(ctx, par)
    policies = [
        ck.Control(**c).policy()
        for c in ({"method": "ck-plug", "alpha": 0.2}, {"method": "coiecd"}, {"method": "off"}) * 2
    ]
    mixed = per_row(policies)
    assert isinstance(mixed, PerRow) and mixed.order == (0, 3, 1, 4, 2, 5) and len(mixed.parts) == 3
    assert mixed.steered_rows(ctx).tolist() == [0, 1, 3, 4]
    decision = mixed.decide(signals)
    for row, policy in enumerate(policies):
        alone = policy.decide(signals.rows(torch.tensor([row])))
        assert torch.equal(decision.tau[row], alone.tau[0].expand(64))
        assert torch.equal(decision.switched[row], alone.switched[0])
    assert per_row(policies[:1] * 3) is policies[0]
    side_by_side = per_row([policies[0], policies[0], policies[1]])
    assert isinstance(side_by_side, PerRow) and side_by_side.order is None
