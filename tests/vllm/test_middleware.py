"""Steered requests through the middleware: what vLLM is sent, what the client gets, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from ckcontrol.control import Control
from ckcontrol.decoding.prompts import PromptTemplate, build_pair
from ckcontrol.models.tiny import tiny_model
from ckcontrol.serving.limits import Limits
from ckcontrol.vllm.contract import pair_params as params
from ckcontrol.vllm.http.middleware import CKMiddleware

from .inner import WORDS, Inner, ask

TOKENIZER = tiny_model("llama")[1]
QUESTION = [{"role": "user", "content": "What is Orvendale?"}]
TEXT = "".join(WORDS)


def served(inner: Inner | None = None, **limits: Any) -> tuple[Inner, CKMiddleware]:
    inner = inner or Inner()
    return inner, CKMiddleware(inner, Limits(**limits), TOKENIZER)


def run(body: Any, path: str = "/v1/chat/completions", inner: Inner | None = None, **options: Any) -> Any:
    """One request; returns what the client got and what vLLM saw."""

    async def story() -> Any:
        app = served(inner)
        got = await ask(app[1], body, path, **options)
        assert app[0].running == 0 and app[1].pairs == 0
        return got, app[0]

    return asyncio.run(story())


def chat(**fields: Any) -> dict[str, Any]:
    ck = {"passages": ["Orvendale is a town."], "method": "ck-plug", "alpha": 0.3}
    return {"model": "m", "messages": QUESTION, "temperature": 0, "max_tokens": 8, "ck": ck} | fields


def rows(inner: Inner) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contextual and the parametric body, in that order."""
    found = {data["vllm_xargs"]["ck_role"]: data for _, data in inner.seen}
    assert len(inner.seen) == 2
    return found["contextual"], found["parametric"]


def test_passages_become_a_pair_of_token_prompts_in_our_wording() -> None:
    got, inner = run(chat())
    contextual, parametric = rows(inner)
    expected = build_pair(TOKENIZER, "What is Orvendale?", ["Orvendale is a town."])
    assert contextual["prompt"] == list(expected.contextual)
    assert parametric["prompt"] == list(expected.parametric)
    assert {path for path, _ in inner.seen} == {"/v1/completions"}
    assert got.status == 200
    assert got.json["object"] == "chat.completion"
    assert got.json["choices"][0]["message"] == {"role": "assistant", "content": TEXT}
    assert got.json["choices"][0]["finish_reason"] == "stop"
    told = got.json["ck"]
    assert (told["method"], told["alpha"], told["source"], told["passages"]) == ("ck-plug", 0.3, "passages", 1)


def test_both_rows_carry_one_control_and_differ_in_role_and_prompt_only() -> None:
    _, inner = run(chat(temperature=0.7, seed=5, top_p=0.9, top_k=40, repetition_penalty=1.2, logit_bias={"5": 2}))
    contextual, parametric = rows(inner)
    extra = contextual["vllm_xargs"]
    assert parametric["vllm_xargs"] == extra | {"ck_role": "parametric"}
    read = params.read(extra)
    assert read is not None and read.control.alpha == 0.3
    assert read.options.do_sample and read.options.seed == 5 and read.options.temperature == 0.7
    assert (read.options.top_p, read.options.top_k, read.options.repetition_penalty) == (0.9, 40, 1.2)
    for body in (contextual, parametric):
        assert body["temperature"] == 0 and "seed" not in body and body["logit_bias"] == {"5": 2}
        assert (body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, 0, 1.0)
    assert {k: v for k, v in contextual.items() if k not in ("prompt", "vllm_xargs", "stream")} == {
        k: v for k, v in parametric.items() if k not in ("prompt", "vllm_xargs", "stream")
    }


def test_pairs_have_fresh_names_nobody_can_guess() -> None:
    names = {rows(run(chat())[1])[0]["vllm_xargs"]["ck_pair"] for _ in range(3)}
    assert len(names) == 3 and all(len(name) == 32 for name in names)


def test_a_request_without_temperature_samples_at_one_and_tells_its_seed() -> None:
    body = chat()
    del body["temperature"]
    got, inner = run(body)
    read = params.read(rows(inner)[0]["vllm_xargs"])
    assert read is not None and read.options.do_sample and read.options.temperature == 1.0
    assert got.json["ck"]["seed"] == read.options.seed


def test_hand_made_messages_go_to_the_chat_endpoint_as_they_are() -> None:
    context = [{"role": "user", "content": "Orvendale is a town. What is Orvendale?"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"model": "m", "messages": context, "tools": tools, "stop": ["\n"], "logprobs": True}
    got, inner = run(body | {"ck": {"messages": QUESTION, "method": "adacad"}})
    contextual, parametric = rows(inner)
    assert contextual["messages"] == context and parametric["messages"] == QUESTION
    assert {path for path, _ in inner.seen} == {"/v1/chat/completions"}
    assert contextual["tools"] == parametric["tools"] == tools
    assert contextual["stop"] == ["\n"] and "stop" not in parametric and "logprobs" not in parametric
    assert got.json["ck"]["method"] == "adacad" and got.json["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("prompt", ["What is Orvendale?", [5, 6, 7]])
def test_hand_made_prompts_at_the_completions_endpoint(prompt: Any) -> None:
    body = {"model": "m", "prompt": "A town. What is it?", "ck": {"prompt": prompt}}
    got, inner = run(body, "/v1/completions")
    contextual, parametric = rows(inner)
    assert (contextual["prompt"], parametric["prompt"]) == ("A town. What is it?", prompt)
    assert got.json["choices"][0]["text"] == TEXT and got.json["ck"]["source"] == "prompt"


def test_passages_at_the_completions_endpoint() -> None:
    got, inner = run({"model": "m", "prompt": "Who?", "ck": {"passages": []}}, "/v1/completions")
    contextual, parametric = rows(inner)
    assert contextual["prompt"] == parametric["prompt"] == list(build_pair(TOKENIZER, "Who?", []).contextual)
    assert got.json["choices"][0]["text"] == TEXT


@pytest.mark.parametrize("control", [{"alpha": 0.1}, {"method": "dial", "alpha": 0.7}])
def test_without_passages_there_is_nothing_to_steer(control: dict[str, Any]) -> None:
    """As in `ckcontrol.generate`: equal streams that differ by rounding must not look like a conflict."""
    got, inner = run(chat(ck={"passages": []} | control))
    assert (got.json["ck"]["method"], got.json["ck"]["alpha"]) == ("off", None)
    assert params.read(rows(inner)[0]["vllm_xargs"]).control == Control(method="off")


def test_the_wording_is_the_requests() -> None:
    wording = {"instruction": "Say it. ", "passage": "* {text}\n", "question": "Q: {question}\n", "fold": False}
    _, inner = run(chat(ck={"passages": ["A  town."], "template": wording}))
    expected = build_pair(TOKENIZER, "What is Orvendale?", ["A  town."], template=PromptTemplate(**wording))
    assert rows(inner)[0]["prompt"] == list(expected.contextual)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_streaming(path: str) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    if path == "/v1/completions":
        body = {"model": "m", "prompt": "Who?", "stream": True, "stream_options": {"include_usage": True}} | {
            "ck": body["ck"]
        }
    got, inner = run(body, path)
    contextual, parametric = rows(inner)
    assert contextual["stream"] is True and parametric["stream"] is False and "stream_options" not in parametric
    *chunks, usage = got.events
    assert usage["choices"] == [] and usage["usage"] == {"prompt_tokens": 3}
    if path == "/v1/completions":
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    else:
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == TEXT
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert [chunk for chunk in chunks if "ck" in chunk] == [chunks[-1]]
    assert chunks[-1]["ck"]["alpha"] == 0.3 and chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_come_back_in_the_form_of_the_endpoint() -> None:
    got, inner = run(chat(logprobs=True, top_logprobs=2))
    contextual, parametric = rows(inner)
    assert contextual["logprobs"] == 2 and "logprobs" not in parametric
    first = got.json["choices"][0]["logprobs"]["content"][0]
    assert (first["token"], first["logprob"], first["bytes"]) == ("Orven", -0.5, list(b"Orven"))
    assert [top["token"] for top in first["top_logprobs"]] == ["Orven", "x"]


def test_a_system_message_is_in_both_prompts_and_needs_a_chat_template() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    _, inner = run(chat(messages=messages))
    expected = build_pair(
        TOKENIZER, "What is Orvendale?", ["Orvendale is a town."], template=PromptTemplate(system="Be brief.")
    )
    assert [body["prompt"] for body in rows(inner)] == [list(expected.contextual), list(expected.parametric)]
    got, inner = run(chat(messages=messages, ck={"passages": [], "template": {"chat": False}}))
    assert got.status == 400 and "chat template" in got.message and not inner.seen


def test_passages_cannot_become_special_tokens() -> None:
    special = TOKENIZER.all_special_tokens[0]
    got, inner = run(chat(ck={"passages": [f"a {special} b"]}))
    if got.status == 200:
        ids = rows(inner)[0]["prompt"]
        assert not set(ids[1:]) & set(TOKENIZER.all_special_ids)
    else:
        assert got.status == 400


# --- requests that are not ours ---------------------------------------------------------------------------------------


def test_ordinary_requests_pass_unchanged_to_the_byte() -> None:
    body = b'{"model": "m",  "messages": [], "seed": 1.50}'
    for method, path in (("POST", "/v1/chat/completions"), ("POST", "/v1/embeddings"), ("GET", "/health")):
        got, inner = run(body, path, method=method)
        assert got.status == 200
        assert not inner.seen or inner.seen == [(path, json.loads(body))]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/inference/v1/generate", "/invocations"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "escaped"])
def test_arguments_of_ours_are_taken_out_of_every_request(path: str, encoding: str) -> None:
    body = {
        "prompt": "x",
        "ck_pair": "1",
        "vllm_xargs": {"ck_pair": "1", "ck_role": "contextual", "ckheads": "[]", "mine": 2},
        "sampling_params": {"extra_args": {"ck_pair": "1", "other": 3}, "ck_kept": 4},
        "response_format": {"properties": {"ck_field": {"type": "string"}}},
    }
    text = json.dumps(body)
    raw = text.replace("ck_", "\\u0063k_").encode() if encoding == "escaped" else text.encode(encoding)
    got, inner = run(raw, path)
    assert got.status == 200
    seen = inner.seen[0][1]
    assert "ck_pair" not in seen and seen["vllm_xargs"] == {"mine": 2}
    assert seen["sampling_params"] == {"extra_args": {"other": 3}, "ck_kept": 4}
    assert seen["response_format"] == body["response_format"]


def test_a_client_cannot_name_the_pair_of_a_steered_request() -> None:
    _, inner = run(chat(vllm_xargs={"ck_pair": "stranger", "ck_role": "parametric", "mine": 1}, ck_pair="stranger"))
    contextual, _ = rows(inner)
    assert contextual["vllm_xargs"]["ck_pair"] != "stranger" and contextual["vllm_xargs"]["mine"] == 1


@pytest.mark.parametrize("carrier", [True, False])
def test_forms_pass_unless_they_carry_our_arguments(carrier: bool) -> None:
    reached: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RuntimeError("the client is gone")
            body += message["body"]
            if not message["more_body"]:
                break
        reached.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    value = b'{"\\u0063k_pair": "x"}' if carrier else b'{"mine": 1}'
    body = b"--b\r\nname=vllm_xargs\r\n\r\n" + value + b"\r\n" + b"\x00\xff" * 5000 + b"--b--"
    headers = ((b"content-type", b"multipart/form-data; boundary=b"),)
    got = asyncio.run(ask(CKMiddleware(app, Limits()), body, "/v1/audio/transcriptions", headers=headers, piece=7))
    assert (got.status, reached) == ((400, []) if carrier else (200, [body]))


FORM, JSON = b"multipart/form-data; boundary=b", b"application/json"


@pytest.mark.parametrize("kinds", [(JSON, FORM), (FORM, JSON), ()])
def test_a_second_content_type_makes_no_form_of_a_json_body(kinds: tuple[bytes, ...]) -> None:
    """vLLM reads by the first of several; a form's bytes are looked at more coarsely than JSON's."""
    inner = Inner()
    body = rb'{"prompt": "x", "vllm\u005fxargs": {"\u0063kdirection": 5.0, "\u0063k_pair": "p", "mine": 1}}'
    headers = tuple((b"content-type", kind) for kind in kinds)
    asyncio.run(ask(CKMiddleware(inner, Limits()), body, "/v1/completions", headers=headers))
    assert [sent for _, sent in inner.seen] == [{"prompt": "x", "vllm_xargs": {"mine": 1}}]


def test_a_form_in_another_charset_is_refused() -> None:
    """Starlette decodes a form's names and values by it: in UTF-7 they need no letter of ours."""
    for charset, status in ((b"; charset=utf-7", 400), (b'; charset="utf-16"', 400), (b'; charset="UTF-8"', 200)):
        inner = Inner()
        headers = ((b"content-type", FORM + charset),)
        got = asyncio.run(ask(CKMiddleware(inner, Limits()), {"mine": 1}, "/v1/audio/transcriptions", headers=headers))
        assert got.status == status and bool(inner.seen) == (status == 200)
        assert status == 200 or ("charset is not UTF-8" in got.message and "Leave charset out" in got.message)


def test_ck_elsewhere_is_refused_not_ignored() -> None:
    got, inner = run({"input": "x", "ck": {"passages": ["y"]}}, "/v1/responses")
    assert got.status == 400 and "/v1/responses" in got.message and not inner.seen


def test_other_connections_pass() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(CKMiddleware(app, Limits())({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    asyncio.run(CKMiddleware(app, Limits())({"type": "websocket", "path": "/"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan", "websocket"]


THOUGHT = ["<th", "ink>\n", "Is it ", "Rome?\n", "</thi", "nk>\n\n", "Orvendale", " is a town."]


@pytest.mark.parametrize("source", ["passages", "messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_stands_beside_the_content_of_a_chat(source: str, stream: bool) -> None:
    inner = Inner()
    inner.texts[""] = THOUGHT
    given = {"passages": ["Orvendale is a town."]} if source == "passages" else {"messages": QUESTION}
    got, _ = run(chat(ck=given | {"method": "ck-plug", "alpha": 0.3}, stream=stream), inner=inner)
    parts = [event["choices"][0]["delta"] for event in got.events] if stream else [got.json["choices"][0]["message"]]
    told = {
        name: "".join(part.get(name) or "" for part in parts) for name in ("content", "reasoning_content", "reasoning")
    }
    assert told == {"content": "Orvendale is a town.", "reasoning_content": "Is it Rome?", "reasoning": "Is it Rome?"}
    hidden, _ = run(chat(include_reasoning=False), inner=inner)
    assert hidden.json["choices"][0]["message"] == {"role": "assistant", "content": "Orvendale is a town."}


def test_a_server_with_a_reasoning_parser_parts_its_own_chats_and_we_those_with_passages() -> None:
    inner, state = Inner(), SimpleNamespace(args=SimpleNamespace(reasoning_parser="qwen3"))
    inner.texts[""] = THOUGHT
    theirs, _ = run(chat(ck={"messages": QUESTION, "method": "ck-plug", "alpha": 0.3}), inner=inner, state=state)
    assert theirs.json["choices"][0]["message"] == {"role": "assistant", "content": "".join(THOUGHT)}
    ours, _ = run(chat(), inner=inner, state=state)
    assert ours.json["choices"][0]["message"]["reasoning_content"] == "Is it Rome?"


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_that_the_chat_template_opened_is_known_as_one(stream: bool) -> None:
    tokenizer = tiny_model("llama")[1]
    tokenizer.chat_template = "{{ messages[-1]['content'] }}{% if enable_thinking is not false %}<think>\n{% endif %}"
    inner = Inner()
    inner.texts[""] = THOUGHT[2:]
    for source in ({"passages": ["It is a town."]}, {"messages": QUESTION}):
        body = chat(ck=source | {"method": "ck-plug", "alpha": 0.3}, stream=stream)
        got = asyncio.run(ask(CKMiddleware(inner, Limits(), tokenizer), body))
        parts = [e["choices"][0]["delta"] for e in got.events] if stream else [got.json["choices"][0]["message"]]
        assert "".join(part.get("content") or "" for part in parts) == "Orvendale is a town."
        assert "".join(part.get("reasoning_content") or "" for part in parts) == "Is it Rome?"
