"""What a request may hold: every bound and every wrong value is a 400 with a sentence, before a tokenizer is asked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckcontrol.errors import CKError, ControlError, PromptError, ServingError
from ckcontrol.models.tiny import tiny_model
from ckcontrol.serving.limits import VARIABLE, Limits
from ckcontrol.serving.read_request import CHAT, COMPLETIONS, PATHS, read_request
from ckcontrol.vllm.contract.pair_params import new_pair
from ckcontrol.vllm.http.inner_bodies import make_bodies
from ckcontrol.vllm.http.middleware import CKMiddleware

from .inner import Answer, Inner, ask

TOKENIZER = tiny_model("llama")[1]
HUGE = "x" * 10_000_000


def good(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Who?"}], "ck": {"passages": ["A town."]}} | fields


def told(request: Any, path: str = CHAT, **limits: Any) -> Answer:
    """Send a request; it must be refused before vLLM sees anything of it."""
    inner = Inner()
    got = asyncio.run(ask(CKMiddleware(inner, Limits(**limits), TOKENIZER), request, path))
    assert not inner.seen
    return got


CK = [
    {"alpha": float("nan")},
    {"alpha": float("inf")},
    {"alpha": 1e308},
    {"alpha": True},
    {"alpha": "0.3"},
    {"alpha": [0.3]},
    {"alpha": -0.1},
    {"alpha": 10**400},
    {"method": "nothing"},
    {"method": "ck_plug"},
    {"method": 5},
    {"method": ["ck-plug"]},
    {"method": "os.system"},
    {"method": HUGE[:500_000]},
    {"method": "adacad", "alpha": 0.3},
    {"gate": -1},
    {"gate": "1"},
    {"gate": {"a": 1}},
    {"adaptive": 1},
    {"candidates": 0},
    {"candidates": 1.5},
    {"candidate_ratio": 2},
    {"self": 1},
    {"__class__": 1},
    {"passage": ["x"]},
    {"passages": "one text"},
    {"passages": {"a": 1}},
    {"passages": [5]},
    {"passages": [""]},
    {"passages": ["\ud800"]},
    {"passages": ["x"] * 65},
    {"passages": ["x" * 400_001]},
    {"passages": None},
    {"messages": good()["messages"]},
    {"passages": ["x"], "prompt": "y"},
    {"passages": ["x"], "trace": 1},
    {"template": "default"},
    {"template": ["a"]},
    {"template": {"name": "x"}},
    {"template": {"passage": "{text.__class__}"}},
    {"template": {"passage": "{text[0]}"}},
    {"template": {"passage": "{text!r}"}},
    {"template": {"passage": "{text:>999999999}"}},
    {"template": {"passage": "{0}"}},
    {"template": {"passage": "{"}},
    {"template": {"passage": "no place"}},
    {"template": {"question": "{question} {text}"}},
    {"template": {"instruction": 5}},
    {"template": {"instruction": "x" * 4001}},
    {"template": {"chat": "yes"}},
    {"template": {"fold": None}},
    {"heads": 5},
    {"heads": [5]},
    {"heads": [{"layer": 1}]},
    {"heads": [{"layer": 1, "head": 1.0}]},
    {"heads": [{"layer": 1, "head": 1, "factor": float("nan")}]},
    {"heads": [{"layer": 1, "head": 1, "factor": 1e308}]},
    {"heads": [{"layer": 1, "head": 1}] * 2},
    {"heads": [{"layer": 1, "head": 1}] * 5000},
    {"heads": {"kind": "other", "heads": []}},
    {"heads": "mask.json"},
]  # fmt: skip


@pytest.mark.parametrize("ck", CK, ids=range(len(CK)))
def test_bad_values_of_ck_are_refused_with_a_sentence(ck: dict[str, Any]) -> None:
    got = told(good(ck={"passages": ["A town."]} | ck))
    assert got.status == 400
    assert 20 < len(got.message) < 700 and got.message.endswith((".", '"', "]", "}"))


@pytest.mark.parametrize(
    ("ck", "more", "says"),
    [
        ({}, {"max_tokens": True}, "max_tokens=true is not valid"),
        ({"method": None}, {}, "ck.method=null"),
        ({}, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content is int, not text"),
        (
            {"passages": None},
            {},
            "or messages (what memory alone is asked, where the body's messages hold the passages",
        ),
    ],
)
def test_errors_name_the_field_and_its_value(ck: dict[str, Any], more: dict[str, Any], says: str) -> None:
    got = told(good(ck={"passages": ["A town."]} | ck, **more))
    assert got.status == 400 and says in got.message


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", [{"alpha": 0.2}, {"alpha": 0.7}, {"method": "dial", "adaptive": True}], ids=repr)
def test_segments_are_refused_with_value_and_remedy(how: dict[str, Any], stream: bool, path: str) -> None:
    """Before anything is streamed: a 400 is still possible."""
    ask_for = {"prompt": "Who?", "ck": {"passages": ["A town."], "segments": True} | how, "stream": stream}
    got = told(ask_for if path == COMPLETIONS else good(**{k: v for k, v in ask_for.items() if k != "prompt"}), path)
    assert got.status == 400
    assert "ck.segments=true" in got.message
    assert "Leave segments out" in got.message and "ckcontrol.generate" in got.message


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sources", ["each", [[0], [1]], "x" * 10_000], ids=["each", "groups", "long"])
def test_sources_are_refused_with_value_and_remedy(sources: Any, path: str) -> None:
    ask_for = {"prompt": "Who?"} if path == COMPLETIONS else good()
    got = told(ask_for | {"ck": {"passages": ["A town.", "A bridge."], "sources": sources}}, path)
    assert got.status == 400
    assert "ck.sources=" in got.message and "two of a pair" in got.message and len(got.message) < 700
    assert "Leave sources out" in got.message and "ckcontrol.generate" in got.message


@pytest.mark.parametrize("ck", [5, "x", [], True, {}, HUGE[:100_000]], ids=range(6))
def test_ck_is_an_object_that_says_what_to_steer_by(ck: Any) -> None:
    assert told(good(ck=ck)).status == 400


BODY = [
    {"n": 2},
    {"n": True},
    {"n": "1"},
    {"best_of": 3},
    {"use_beam_search": True},
    {"echo": True},
    {"prompt_logprobs": 1},
    {"truncate_prompt_tokens": 5},
    {"min_p": 0.1},
    {"presence_penalty": 0.5},
    {"frequency_penalty": float("nan")},
    {"priority": 1},
    {"chat_template": "{{ x }}"},
    {"tools": [{"type": "function"}]},
    {"reasoning_effort": "high"},
    {"temperature": -1},
    {"temperature": float("inf")},
    {"temperature": True},
    {"temperature": "0"},
    {"temperature": 1e308},
    {"temperature": 10**400},
    {"top_p": 0},
    {"top_p": 1.1},
    {"top_k": 5.0},
    {"top_k": -2},
    {"seed": 1.5},
    {"seed": -1},
    {"seed": 2**63},
    {"repetition_penalty": 0},
    {"max_tokens": 0},
    {"max_tokens": 1.5},
    {"max_tokens": True},
    {"max_tokens": 10**30},
    {"max_completion_tokens": "8"},
    {"stop": 5},
    {"stop": ["x"] * 17},
    {"stop": "x" * 1001},
    {"stream": "yes"},
    {"vllm_xargs": "x"},
    {"logprobs": True, "top_logprobs": "5"},
    {"messages": []},
    {"messages": "x"},
    {"messages": [5]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"messages": [{"role": "assistant", "content": "x"}]},
    {"messages": [{"role": "usr", "content": "x"}] * 3},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:etc"}}]}]},
]  # fmt: skip


@pytest.mark.parametrize("fields", BODY, ids=range(len(BODY)))
def test_what_a_pair_cannot_honour_is_refused_with_a_sentence(fields: dict[str, Any]) -> None:
    got = told(good(**fields))
    assert got.status == 400 and 20 < len(got.message) < 700


@pytest.mark.parametrize("prompt", [None, "", [], [1], ["a", "b"], [[1, 2]], [1, -1], [1, True], [1.0, 2], {"a": 1}])
def test_prompts_are_one_text_or_one_list_of_ids(prompt: Any) -> None:
    assert told({"prompt": "x y", "ck": {"prompt": prompt}}, COMPLETIONS).status == 400
    assert told({"prompt": prompt, "ck": {"prompt": "x y"}}, COMPLETIONS).status == 400


def test_a_near_miss_is_told_the_name() -> None:
    assert "Did you mean 'passages'?" in told(good(ck={"pasages": ["x"]})).message
    assert "Did you mean 'ck-plug'?" in told(good(ck={"passages": [], "method": "ck_plug"})).message
    assert "Did you mean 'question'?" in told(good(ck={"passages": [], "template": {"quesion": "x"}})).message


def test_what_asks_for_nothing_is_allowed() -> None:
    fields = {
        "n": 1,
        "echo": False,
        "min_p": 0.0,
        "presence_penalty": 0,
        "tools": [],
        "tool_choice": "auto",
        "stop": None,
    }
    request = read_request(CHAT, good(**fields), Limits())
    assert request.control.method == "dial" and request.options.do_sample


def test_a_mask_file_can_be_sent_as_it_is() -> None:
    from ckcontrol.heads import HeadMask

    mask = HeadMask.of(tiny_model("llama")[0], [(0, 1), (1, 3)]).to_dict()
    request = read_request(CHAT, good(ck={"passages": [], "heads": mask}), Limits())
    assert request.heads == ((0, 1, 0.0), (1, 3, 0.0))
    bodies = make_bodies(request, new_pair(), TOKENIZER)
    assert bodies.contextual["cache_salt"] == bodies.parametric["cache_salt"]
    other = read_request(CHAT, good(ck={"passages": [], "heads": mask["heads"][:1]}), Limits())
    assert make_bodies(other, new_pair(), TOKENIZER).contextual["cache_salt"] != bodies.contextual["cache_salt"]


def test_masks_are_refused_where_no_worker_applies_them() -> None:
    got = told(good(ck={"passages": [], "heads": [{"layer": 0, "head": 1}]}))
    assert got.status == 400 and "serve-vllm" in got.message


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b'{"ck": ' + b"[" * 100_000, 400),
        (b'{"ck": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 400),
        (b'{"ck": {"alpha": ' + b"9" * 5000 + b"}}", 400),
        (b'{"ck": {', 400),
        (b'{"ck": "\xff"}', 400),
        (b'["ck"', 400),
        (b'{"ck": {"passages": ["' + b"x" * 9_000_000 + b'"]}}', 413),
    ],
    ids=range(7),
)
def test_raw_bodies(raw: bytes, status: int) -> None:
    assert told(raw).status == status


def test_a_length_that_lies_is_not_believed() -> None:
    inner = Inner()
    app = CKMiddleware(inner, Limits(body_bytes=100), TOKENIZER)
    headers = ((b"content-length", b"99999999999999999999"),)
    assert asyncio.run(ask(app, b"{}", headers=headers)).status == 413
    assert asyncio.run(ask(app, b"x" * 200, piece=50)).status == 413
    assert not inner.seen


# --- fuzz -------------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["ck-plug", "cad", "adacad", "off", "{text}", "{question}", "user", "system", "", "\ud800"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
NAMES = ["passages", "messages", "prompt", "method", "alpha", "gate", "candidates", "template", "trace", "heads", "x"]
FIELDS = ["messages", "prompt", "n", "temperature", "top_p", "top_k", "seed", "stop", "max_tokens", "stream",
          "logprobs", "vllm_xargs", "tools", "cache_salt", "model", "min_tokens", "repetition_penalty"]  # fmt: skip
MESSAGES = st.lists(st.fixed_dictionaries({"role": SCALARS, "content": VALUES}), max_size=3)
CKS = st.dictionaries(st.sampled_from(NAMES), VALUES | MESSAGES | st.lists(st.text(max_size=9), max_size=3)) | VALUES
BODIES = st.fixed_dictionaries(
    {"ck": CKS},
    optional={name: VALUES for name in FIELDS if name != "messages"}
    | {"messages": st.just([{"role": "user", "content": "Who?"}]) | MESSAGES | VALUES},
)


@settings(max_examples=400, deadline=None)
@given(body=BODIES, path=st.sampled_from(PATHS))
def test_any_body_is_read_or_refused(body: dict[str, Any], path: str) -> None:
    try:
        request = read_request(path, body, Limits())
        bodies = make_bodies(request, new_pair(), TOKENIZER)
    except CKError as error:
        assert isinstance(error, ValueError) and 10 < len(str(error)) < 1500
    else:
        json.dumps([bodies.contextual, bodies.parametric], allow_nan=False)
        assert bodies.contextual["temperature"] == bodies.parametric["temperature"] == 0


@settings(max_examples=150, deadline=None)
@given(body=BODIES | VALUES, path=st.sampled_from([*PATHS, "/v1/responses"]), cut=st.integers(0, 400))
def test_any_bytes_are_answered(body: Any, path: str, cut: int) -> None:
    raw = json.dumps(body).encode()
    inner = Inner()
    got = asyncio.run(ask(CKMiddleware(inner, Limits(), TOKENIZER), raw[: len(raw) - cut], path))
    assert got.ended and got.status in (200, 400, 413, 422)
    assert inner.running == 0


# --- limits -----------------------------------------------------------------------------------------------------------


def test_limits_travel_through_the_environment() -> None:
    limits = Limits(passages=3, seconds=5.0)
    assert Limits.from_env({VARIABLE: limits.to_env()}) == limits
    assert Limits.from_env({}) == Limits() and Limits().to_env() == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"passage": 3}'])
def test_limits_that_cannot_be_read_are_refused_at_start(text: str) -> None:
    with pytest.raises(ServingError, match=VARIABLE):
        Limits.from_env({VARIABLE: text})


@pytest.mark.parametrize("change", [{"passages": 0}, {"seconds": float("nan")}, {"pairs": True}])
def test_limits_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        Limits(**change)


@pytest.mark.parametrize("method", ["off", "ck-plug", "adacad"])
def test_the_request_of_our_evaluation_client_is_understood(method: str) -> None:
    remote = pytest.importorskip("ckcontrol.eval.running.remote")
    from ckcontrol.control import Control
    from ckcontrol.decoding.prompts import PromptTemplate, build_pair
    from ckcontrol.eval.running.remote import Ask

    control = Control(method, 0.2 if method == "ck-plug" else None)
    template = PromptTemplate(instruction="Say it.\n")
    asked = Ask("Who?", ("A town.", "A river."), control, 7, template)
    request = read_request(CHAT, remote._body("m", asked), Limits())
    assert request.control == control and request.template == template and not request.options.do_sample
    bodies = make_bodies(request, new_pair(), TOKENIZER)
    expected = build_pair(TOKENIZER, "Who?", asked.passages, template=template)
    assert bodies.contextual["prompt"] == list(expected.contextual) and bodies.contextual["max_tokens"] == 7


def test_variables_of_the_chat_template_reach_the_prompts_made_from_passages() -> None:
    tokenizer = tiny_model("llama")[1]
    tokenizer.chat_template = "<|bos|>{{ messages[-1]['content'] }}{% if enable_thinking is false %}never{% endif %}"

    def made(**fields: Any) -> Any:
        return make_bodies(read_request(CHAT, good(**fields), Limits()), new_pair(), tokenizer)

    free, closed = made(), made(chat_template_kwargs={"enable_thinking": False})
    never = tokenizer("never", add_special_tokens=False)["input_ids"]
    for one, other in ((free.contextual, closed.contextual), (free.parametric, closed.parametric)):
        assert one["prompt"] + never == other["prompt"] and "chat_template_kwargs" not in other
    for wrong in (["x"], "x", 5, {"x": {}}, {"x": "y" * 65}, {"x": [1]}, {f"v{i}": 1 for i in range(17)}):
        with pytest.raises(ServingError, match="chat_template_kwargs"):
            made(chat_template_kwargs=wrong)
    with pytest.raises(PromptError, match="Did you mean 'enable_thinking'"):
        made(chat_template_kwargs={"enable_thinkin": False})


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who was here? <|eot|>"},
    {"role": "assistant", "content": [{"type": "text", "text": "Somebody."}]},
    {"role": "user", "content": "Who?"},
]


def test_passages_stand_in_the_last_turn_of_a_conversation() -> None:
    from ckcontrol.decoding.prompts import build_pair

    bodies = make_bodies(read_request(CHAT, good(messages=TALK), Limits()), new_pair(), TOKENIZER)
    pair = build_pair(TOKENIZER, passages=["A town."], messages=TALK)
    contextual, parametric = bodies.contextual["prompt"], bodies.parametric["prompt"]
    assert contextual == list(pair.contextual) and parametric == list(pair.parametric)
    assert contextual[: pair.span[0]] + contextual[pair.span[1] :] == parametric != contextual
    assert parametric.count(TOKENIZER.convert_tokens_to_ids("<|eot|>")) == len(TALK)
    assert "messages" not in bodies.contextual and "Somebody." in TOKENIZER.decode(parametric)


@pytest.mark.parametrize(
    "messages",
    [
        TALK[:3],
        TALK[:1],
        [*TALK, {"role": "usr", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "x", "extra": 1}],
        TALK[1:3] * 600 + TALK[3:],
        [{"role": "user", "content": "x" * 200_001}, TALK[2], {"role": "user", "content": "x" * 200_001}],
        [TALK[1], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, TALK[3]],
        [TALK[1], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, TALK[3]],
    ],
    ids=range(10),
)
def test_what_is_no_conversation_is_a_400(messages: Any) -> None:
    got = told(good(messages=messages))
    assert got.status == 400 and 20 < len(got.message) < 700


def test_a_variable_that_spells_a_special_token_is_a_400() -> None:
    tokenizer = tiny_model("llama")[1]
    tokenizer.chat_template = "<|bos|>{{ mood }}{{ messages[-1]['content'] }}"
    request = read_request(CHAT, good(chat_template_kwargs={"mood": "<|eot|>"}), Limits())
    with pytest.raises(PromptError, match="spells a special token"):
        make_bodies(request, new_pair(), tokenizer)
