"""The contract between front end, scheduler and processor: what is written is read back, everything else refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ckcontrol import Control, GenerateOptions
from ckcontrol.errors import ServingError
from ckcontrol.vllm.contract import pair_params as params


def good() -> dict[str, object]:
    return dict(params.extra_args(params.new_pair(), "contextual", Control("ck-plug", alpha=0.2)))


@pytest.mark.parametrize("method", ["off", "ck-plug", "ck-plug-repo", "cad", "adacad", "coiecd", "acd", "arr"])
def test_what_is_written_is_read_back(method: str) -> None:
    control = Control(method=method, alpha=0.2 if method in ("ck-plug", "cad") else None, candidates=3)
    options = GenerateOptions(
        do_sample=True, temperature=0.7, top_k=5, top_p=0.9, seed=7, repetition_penalty=1.1, stop_token_ids=(3,)
    )
    pair = params.new_pair()
    got = params.read(params.extra_args(pair, "parametric", control, options, trace=True))
    assert got is not None
    assert (got.pair, got.role, got.control, got.trace) == (pair, "parametric", control, True)
    assert all(getattr(got.options, name) == getattr(options, name) for name in params.SAMPLING)


def test_ordinary_requests_are_none() -> None:
    assert params.read(None) is params.read({}) is params.read({"other": 1}) is None


def test_every_value_is_one_that_http_can_carry() -> None:
    assert all(isinstance(value, (str, int)) for value in good().values())


@pytest.mark.parametrize(
    "change",
    [
        {"ck_pair": None},
        {"ck_pair": ""},
        {"ck_pair": "x" * 65},
        {"ck_pair": "a b"},
        {"ck_pair": "name\n"},
        {"ck_pair": 5},
        {"ck_role": "memory"},
        {"ck_role": ["contextual"]},
        {"ck_trace": 2},
        {"ck_trace": "1"},
        {"ck_other": 1},
        {"ck_control": None},
        {"ck_control": "{"},
        {"ck_control": "[]"},
        {"ck_control": "[" * 4000},
        {"ck_control": "{" + " " * 5000 + "}"},
        {"ck_control": '{"method": "nothing"}'},
        {"ck_control": '{"method": ["ck-plug"]}'},
        {"ck_control": '{"alpha": NaN}'},
        {"ck_control": '{"alpha": 2}'},
        {"ck_control": '{"alpha": "high"}'},
        {"ck_control": '{"gate": ' + "9" * 400 + "}"},
        {"ck_control": '{"gate": {"a": 1}}'},
        {"ck_control": '{"self": 1}'},
        {"ck_sampling": '{"temperature": 0}'},
        {"ck_sampling": '{"do_sample": true}'},
        {"ck_sampling": '{"do_sample": 1}'},
        {"ck_sampling": '{"max_new_tokens": 5}'},
        {"ck_sampling": '{"stop_token_ids": 5}'},
        {"ck_sampling": '{"stop_token_ids": ["a"]}'},
        {"ck_sampling": json.dumps({"stop_token_ids": list(range(200))})},
        {"ck_sampling": '{"penalty_scope": ["all"]}'},
    ],
)
def test_everything_else_is_refused_with_a_sentence(change: dict[str, object]) -> None:
    with pytest.raises(ServingError) as error:
        params.read(good() | change)
    assert 10 < len(str(error.value)) < 600


def test_strip_takes_every_key_of_ours() -> None:
    assert params.strip(good() | {"ck_new": 1, "mine": 2}) == {"mine": 2}
    assert params.strip(None) == {}


def test_sampling_without_a_seed_gets_one() -> None:
    options = params.seeded(GenerateOptions(do_sample=True))
    assert options.seed is not None and options != params.seeded(GenerateOptions(do_sample=True))
    assert params.seeded(GenerateOptions()).seed is None


def test_a_method_that_chooses_between_answers_is_a_pair_a_draft() -> None:
    from ckcontrol.policies import CAD, Off, draft_policies

    pair = (params.new_pair(), params.CONTEXTUAL)
    for control in (Control("dial", alpha=0.7), Control("dial", adaptive=True), Control("dial", alpha=0.2)):
        names = params.drafts(control)
        assert len(names) == 2 and len(set(names)) == 2
        for name in names:
            row = params.read(params.extra_args(*pair, control, draft=name))
            assert (row.control, row.draft) == (control, name)
            assert row.policy == draft_policies(control.policy())[name]
        made = params.extra_args(*pair, control, draft=names[0])
        for wrong in ("", "nobody", 7, None, ["memory"], names[0] * 9):
            with pytest.raises(ServingError, match=f"ck_draft.*{names[1]}"):
                params.read(made | {"ck_draft": wrong})
    for control, policy in ((Control("dial"), Off()), (Control("dial", alpha=1.0), CAD(cad_alpha=-1.0))):
        assert params.drafts(control) == ("",)
        assert params.read(params.extra_args(*pair, control)).policy == policy
    for control in (Control("dial"), Control("ck-plug", alpha=0.2)):
        with pytest.raises(ServingError, match="ck_draft"):
            params.extra_args(*pair, control, draft="memory")


@pytest.mark.parametrize("how", [{"alpha": 0.2}, {"alpha": 0.7}, {"adaptive": True}], ids=repr)
def test_segments_are_refused_with_value_and_remedy(how: dict[str, Any]) -> None:
    control = Control("dial", segments=True, **how)
    whole = params.extra_args(params.new_pair(), "contextual", Control("dial", **how), draft="unmodified")
    refused = r"segments=True .*which vLLM cannot\. Leave segments out .* or use ckcontrol\.generate\."
    with pytest.raises(ServingError, match=refused):
        params.extra_args(params.new_pair(), "contextual", control, draft="unmodified")
    with pytest.raises(ServingError, match=refused):  # a row that somebody else wrote
        params.read(whole | {"ck_control": json.dumps(control.to_dict())})
    neutral = Control("dial", alpha=0.5, segments=True)  # nothing to choose, nothing to refuse
    assert params.read(params.extra_args(params.new_pair(), "contextual", neutral)).control == neutral
