"""Pairs that end early: clients that leave, partners refused or lost, engines that fail; nothing is left over."""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace
from typing import Any

import pytest

from ckcontrol.models.tiny import tiny_model
from ckcontrol.serving.limits import Limits
from ckcontrol.vllm.http.middleware import CKMiddleware

from .inner import WORDS, Answer, Inner, ask

TOKENIZER = tiny_model("llama")[1]


def body(**fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "Who?"}
    return {
        "messages": [message],
        "temperature": 0,
        "ck": {"passages": ["A town."], "method": "ck-plug", "alpha": 0.2},
    } | fields


def tell(
    inner: Inner, request: Any, limits: Limits | None = None, on_lost: str = "fail", **options: Any
) -> tuple[Answer, float]:
    """One request; afterwards nothing runs. Returns what the client got and how long it took."""

    async def story() -> tuple[Answer, float]:
        app = CKMiddleware(inner, limits or Limits(), TOKENIZER, on_lost)
        begun = asyncio.get_running_loop().time()
        got = await ask(app, request, **options)
        assert inner.running == 0 and app.pairs == 0
        assert len(asyncio.all_tasks()) == 1, "no task is left"
        return got, asyncio.get_running_loop().time() - begun

    return asyncio.run(story())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("role", ["contextual", "parametric"])
@pytest.mark.parametrize(("status", "expected"), [(400, 400), (404, 404), (500, 503)])
def test_a_refused_row_is_the_requests_answer(role: str, stream: bool, status: int, expected: int) -> None:
    inner = Inner(refuse={role: status})
    got, _ = tell(inner, body(stream=stream))
    assert got.status == expected and f"{role} is too long" in got.message
    assert ("without passages" in got.message) == (role == "parametric")
    assert inner.aborted == 1, "the other row was aborted"


@pytest.mark.parametrize("stream", [True, False])
def test_both_rows_refused_tells_the_contextual_reason(stream: bool) -> None:
    got, _ = tell(Inner(refuse={"contextual": 400, "parametric": 400}), body(stream=stream))
    assert got.status == 400 and "contextual is too long" in got.message


@pytest.mark.parametrize(("fail", "stream"), [("abort", False), ("raise", False), ("raise", True)])
def test_an_engine_that_fails_is_a_503_with_a_sentence(fail: str, stream: bool) -> None:
    got, _ = tell(Inner(fail=fail), body(stream=stream))
    assert got.status == 503 and "Try again" in got.message and "secret" not in got.message
    assert got.headers[b"retry-after"] == b"1"


@pytest.mark.parametrize("fail", ["abort", "event"])
def test_a_failure_in_the_middle_of_a_stream_is_an_event_and_the_end(fail: str) -> None:
    got, _ = tell(Inner(fail=fail), body(stream=True))
    *chunks, last = got.events
    assert got.status == 200 and got.ended and chunks and "error" not in chunks[0]
    assert last["error"]["code"] == 503 and not any("ck" in chunk for chunk in chunks)


@pytest.mark.parametrize("words", [["Orven", "dale"], ["Orvendale"]])
def test_a_method_that_raised_is_an_event_where_tokens_were_sent_and_else_a_500(words: list[str]) -> None:
    """A busy vLLM tells the first tokens and the end in one event; then nothing has been sent, and a status can be."""

    class Engine:
        async def collective_rpc(self, method: str, args: Any) -> list[Any]:
            return [{pair: {"rows": [], "broken": "", "failed": "steering failed at token 2"} for pair in args[0]}]

    inner = Inner()
    inner.texts = {"": words}
    got, _ = tell(inner, body(stream=True), state=SimpleNamespace(engine_client=Engine()))
    told = got.events[-1] if got.status == 200 else got.json
    assert told["error"]["code"] == 500 and "failed at token 2" in told["error"]["message"]
    assert got.status == (200 if len(words) > 1 else 500)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_both_rows(stream: bool) -> None:
    inner = Inner(pause=5.0)  # half a minute for an answer
    got, seconds = tell(inner, body(stream=stream), leave_after=1.0)
    assert seconds < 20 and not got.ended
    assert inner.aborted == 2


def test_a_client_that_leaves_after_the_first_piece() -> None:
    inner = Inner(pause=0.05)
    got, seconds = tell(inner, body(stream=True), leave_at=lambda answer: bool(answer.body))
    assert seconds < 60 and got.body and not got.ended and inner.aborted == 2


def test_a_client_that_leaves_while_it_sends_reaches_nobody() -> None:
    inner = Inner()

    async def story() -> None:
        app = CKMiddleware(inner, Limits(), TOKENIZER)
        sent = [{"type": "http.request", "body": b'{"ck"', "more_body": True}, {"type": "http.disconnect"}]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}

        async def receive() -> Any:
            return sent.pop(0)

        async def send(message: Any) -> None:
            raise AssertionError("nobody listens")

        await app(scope, receive, send)

    asyncio.run(story())
    assert not inner.seen


def test_the_time_of_a_request_is_bounded() -> None:
    got, seconds = tell(Inner(fail="never"), body(), Limits(seconds=0.2))
    assert got.status == 503 and "0.2 s" in got.message and seconds < 60


def test_a_client_that_does_not_read_cannot_hold_a_pair() -> None:
    inner = Inner()

    async def story() -> None:
        app = CKMiddleware(inner, Limits(seconds=0.2), TOKENIZER)
        data, forever = json.dumps(body(stream=True)).encode(), asyncio.Event()
        messages = [{"type": "http.request", "body": data, "more_body": False}]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}

        async def receive() -> Any:
            return messages.pop() if messages else await forever.wait()

        async def send(message: Any) -> None:
            await forever.wait()

        await asyncio.wait_for(app(scope, receive, send), 5)
        assert app.pairs == 0 and inner.running == 0

    asyncio.run(story())


def test_a_slow_body_is_given_up() -> None:
    got, seconds = tell(Inner(), body(), Limits(read_seconds=0.2), piece=4, slow=0.05)
    assert got.status == 408 and seconds < 60


def test_too_many_pairs_are_told_to_come_back() -> None:
    async def story() -> list[Answer]:
        app = CKMiddleware(Inner(pause=0.05), Limits(pairs=2), TOKENIZER)
        return await asyncio.gather(*(ask(app, body()) for _ in range(5)))

    answers = asyncio.run(story())
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429, 429]
    assert all(b"retry-after" in answer.headers for answer in answers if answer.status == 429)


def test_many_clients_at_once_some_of_whom_leave() -> None:
    inner = Inner(pause=0.01)
    rng = random.Random(5)

    async def story() -> list[Answer]:
        app = CKMiddleware(inner, Limits(), TOKENIZER)
        stories = []
        for i in range(60):
            leave = rng.choice([None, None, rng.uniform(0, 0.2)])
            request = body(stream=bool(i % 2)) if i % 3 else {"messages": [], "stream": bool(i % 2)}
            stories.append(ask(app, request, leave_after=leave))
        answers = await asyncio.gather(*stories)
        assert inner.running == 0 and app.pairs == 0
        assert len(asyncio.all_tasks()) == 1
        return answers

    answers = asyncio.run(story())
    whole = [answer for answer in answers if answer.ended]
    assert len(whole) > 20 and all(answer.status == 200 for answer in whole)
    assert all(len(rows) == 2 for rows in inner.pairs.values())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "trouble", [{"fail": "lost"}, {"refuse": {"parametric": 500}}, {"refuse": {"contextual": 500}}]
)
def test_a_lost_pair_is_answered_from_the_passages_alone_where_the_operator_says_so(
    trouble: dict[str, Any], stream: bool
) -> None:
    request = body(stream=stream, temperature=0.7, seed=5, top_p=0.9, repetition_penalty=1.2)
    request["ck"] |= {"trace": True, "heads": []}
    failed, _ = tell(Inner(**trouble), request)
    assert failed.status == 503
    inner = Inner(**trouble)
    got, _ = tell(inner, request, on_lost="contextual")
    assert got.status == 200
    told = got.events[-1]["ck"] if stream else got.json["ck"]
    assert told["fallback"] == "contextual" and "Try again" not in told["fallback_reason"] and "trace" not in told
    assert "row was lost" in told["fallback_reason"] or "gave the request up" in told["fallback_reason"]
    (first, second), last = [data for _, data in inner.seen[:2]], inner.seen[-1][1]
    contextual = first if first["vllm_xargs"]["ck_role"] == "contextual" else second
    assert len(inner.seen) == 3 and "vllm_xargs" not in last and last["prompt"] == contextual["prompt"]
    assert (last["temperature"], last["top_p"], last["repetition_penalty"]) == (0.7, 0.9, 1.2)
    assert "seed" not in last and "seed" not in told  # it would end the engine on a CPU; see fallback.py
    if stream:
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got.events)
        assert got.events[0]["choices"][0]["delta"]["role"] == "assistant"
    else:
        text = got.json["choices"][0]["message"]["content"]
    assert text == "".join(WORDS)


def test_a_request_that_was_never_a_pair_any_more_is_tried_once_alone() -> None:
    inner = Inner(fail="abort")
    got, _ = tell(inner, body(), on_lost="contextual")
    assert got.status == 503 and len(inner.seen) == 3


@pytest.mark.parametrize("trouble", [{"refuse": {"parametric": 400}}, {"fail": "event"}, {"fail": "raise"}])
def test_what_the_client_got_wrong_or_has_begun_to_read_does_not_fall_back(trouble: dict[str, Any]) -> None:
    inner = Inner(**trouble)
    got, _ = tell(inner, body(stream=True), on_lost="contextual")
    assert len(inner.seen) == 2 and (got.status >= 400 or got.events[-1]["error"]["code"] == 503)


def test_a_mask_stays_when_the_pair_is_lost() -> None:
    from ckcontrol.decoding.options import GenerateOptions
    from ckcontrol.vllm.contract.fallback import alone

    given = {"prompt": [1, 2], "cache_salt": "s", "vllm_xargs": {"ckheads": "[[0,1,0.0]]", "ck_pair": "x", "mine": 1}}
    got = alone(given, GenerateOptions())
    assert got["vllm_xargs"] == {"ckheads": "[[0,1,0.0]]", "mine": 1} and got["cache_salt"] == "s"
    assert got["temperature"] == 0


def engine(blocks: int | None) -> Any:
    """What a vLLM server keeps at ``app.state``, as far as the size of its cache goes."""
    cache, model = SimpleNamespace(num_gpu_blocks=blocks, block_size=16), SimpleNamespace(max_model_len=512)
    config = SimpleNamespace(cache_config=cache, model_config=model)

    async def rpc(method: str, args: Any) -> list[Any]:
        return [{}]

    return SimpleNamespace(engine_client=SimpleNamespace(vllm_config=config, collective_rpc=rpc))


def test_a_pair_that_can_never_fit_the_cache_is_a_400_before_the_engine_sees_it() -> None:
    inner = Inner()
    tell(inner, body(max_tokens=20))
    lengths = [len(data["prompt"]) for _, data in inner.seen]
    need = sum(-(-(length + 20) // 16) for length in lengths)
    for blocks, status in ((need, 400), (need + 1, 200), (None, 200)):
        inner = Inner()
        got, _ = tell(inner, body(max_tokens=20), state=engine(blocks))
        assert got.status == status and len(inner.seen) == (2 if status == 200 else 0)
    got, _ = tell(Inner(), body(max_tokens=20), state=engine(need))
    assert f"{need} KV blocks" in got.message and f"has {need - 1}" in got.message
    inner = Inner()
    got, _ = tell(inner, body(max_tokens=20), state=engine(need), on_lost="contextual")
    assert got.status == 200 and "KV blocks" in got.json["ck"]["fallback_reason"] and len(inner.seen) == 1
