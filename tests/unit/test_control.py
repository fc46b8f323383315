"""Controls, options and the policy registry: what is refused, and what the refusal says."""

from __future__ import annotations

import math
import pickle  # noqa: TID251  (the library never unpickles; a Control must survive a worker process)
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.errors import CKError, ControlError
from ckcontrol.policies import Decision, Policy, build, names
from ckcontrol.policies import base as registry


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf, "0.5", True, [0.5]])
def test_alpha_outside_the_dial_is_refused(alpha):
    with pytest.raises(ControlError, match="alpha"):
        ck.Control(alpha=alpha)


def test_unknown_names_propose_the_nearest():
    with pytest.raises(ControlError, match="'ck-plug'"):
        ck.Control("ckplug")
    with pytest.raises(ControlError, match="'gate'"):
        ck.Control("ck-plug", gat=1.0)
    with pytest.raises(ControlError, match=r"'dial' has no parameter 'gate'\. Method 'ck-plug' has it: name"):
        ck.Control(alpha=0.3, gate=2.0)
    with pytest.raises(ControlError, match="'max_new_tokens'"):
        GenerateOptions.from_kwargs({"max_new_token": 3})


@pytest.mark.parametrize("method", ["off", "adacad", "coiecd", "acd", "arr"])
def test_methods_without_a_dial_refuse_alpha(method):
    with pytest.raises(ControlError, match="no alpha"):
        ck.Control(method, alpha=0.5)


def test_contradictions_are_refused():
    with pytest.raises(ControlError, match="adaptive"):
        ck.Control(alpha=0.3, adaptive=True)
    with pytest.raises(ControlError, match="cad_alpha"):
        ck.Control("cad", alpha=0.3, cad_alpha=1.0)
    for params in ({"gate": -1.0}, {"gate": "2"}, {"adaptive": "False"}, {"adaptive": 1}):
        with pytest.raises(ControlError):
            ck.Control("ck-plug", **params)


@pytest.mark.parametrize(
    "option",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": 2.0}, {"temperature": 0.0}, {"temperature": math.nan},
        {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"seed": -1}, {"seed": 1.5}, {"do_sample": 1},
        {"repetition_penalty": 0.0}, {"penalty_scope": "prompt"}, {"stop_token_ids": (-1,)}, {"trace": None},
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(option):
    with pytest.raises(ControlError, match=next(iter(option))):
        GenerateOptions(**option)


def test_control_is_a_value():
    a = ck.Control("ck-plug", alpha=0.2, gate=2.0)
    assert a == ck.Control("ck-plug", 0.2, gate=2.0) and hash(a) == hash(ck.Control("ck-plug", 0.2, gate=2.0))
    assert a != ck.Control("ck-plug", alpha=0.2)
    assert ck.Control.from_dict(a.to_dict()) == a
    assert pickle.loads(pickle.dumps(a)) == a  # noqa: S301
    assert "gate=2.0" in repr(a)
    with pytest.raises(AttributeError):
        a.alpha = 0.3  # type: ignore[misc]
    with pytest.raises(TypeError):
        a.params["gate"] = 3.0  # type: ignore[index]


def test_builtin_methods_are_listed():
    assert {"off", "ck-plug", "ck-plug-repo", "cad", "adacad", "coiecd", "acd", "arr"} <= set(names())


@dataclass(frozen=True)
class Half(Policy):
    """Third-party policy: one class."""

    name: ClassVar[str] = "half"
    weight: float = 0.5

    def decide(self, signals):
        tau = torch.full_like(signals.h_ctx, self.weight)
        return Decision(tau, tau != 1)


def test_a_third_party_adds_a_policy_by_entry_point(monkeypatch, llama):
    class Entry:
        name = "half"

        def load(self):
            return Half

    real = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()] if group == "ckcontrol.policies" else real())
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    assert "half" in names()
    assert build("half", params={"weight": 0.25}) == ck.Control("half", weight=0.25).policy() == Half(0.25)
    answer = ck.generate(*llama, "Who?", ["Ann."], control=ck.Control("half"), max_new_tokens=3)
    assert {t.tau for t in answer.tokens} == {0.5}


def test_two_policies_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    ck.register(Half)
    ck.register(Half)

    @dataclass(frozen=True)
    class Other(Half):
        name: ClassVar[str] = "half"

    with pytest.raises(ControlError, match="already registered"):
        ck.register(Other)


def test_every_error_is_ours_and_names_a_remedy():
    with pytest.raises(CKError) as caught:
        ck.Control("nope")
    assert isinstance(caught.value, ValueError) and caught.value.hint and caught.value.hint in str(caught.value)
