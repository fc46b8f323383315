"""Requests whose method chooses between whole answers: one pair per draft, one reply; and every way this can end."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from ckcontrol.models.tiny import tiny_model
from ckcontrol.serving.limits import Limits
from ckcontrol.vllm.http.middleware import CKMiddleware

from .inner import WORDS, Answer, Inner, ask

TOKENIZER = tiny_model("llama")[1]
OTHER = ["Mar", "row", "ick", "."]
NAMES = ["unmodified", "memory"]


def trace(logp_ctx: float, logp_par: float, count: int) -> list[list[float]]:
    """What the workers recorded of an answer, the same at every token; the order is that of recorder.py."""
    return [[-0.5, 1.0, 2.0, 1.0, 0.0, 4.0, 0.0, logp_par, logp_ctx, -0.1]] * count


class Engine:
    """vLLM's engine client. It looks up, in what the inner app has seen, which draft a pair is."""

    def __init__(
        self, inner: Inner, minds: dict[str, tuple[float, float]], more: int = 0, dead: bool = False, broken: str = ""
    ) -> None:
        self.inner, self.minds, self.more, self.dead, self.broken = inner, minds, more, dead, broken

    async def collective_rpc(self, method: str, args: Any) -> list[Any]:
        if self.dead:
            raise RuntimeError("no such method")
        found = {}
        for _, data in self.inner.seen:
            given = data["vllm_xargs"]
            if given.get("ck_pair") in args[0] and "ck_draft" in given:
                words = self.inner.texts.get(given["ck_draft"], WORDS)
                rows = trace(*self.minds[given["ck_draft"]], len(words) + self.more)
                broken = "parametric" if given["ck_draft"] == self.broken else ""
                found[given["ck_pair"]] = {"rows": rows, "broken": broken}
        return [{}, found]


# memory minds what the passages say, the passages hardly mind what memory says; and the other way round
MEMORY = {"unmodified": (-0.1, -5.0), "memory": (-0.4, -0.1)}
CONTEXT = {"unmodified": (-0.1, -0.4), "memory": (-5.0, -0.1)}


def body(**fields: Any) -> dict[str, Any]:
    ck = {"passages": ["Orvendale is a town."], "method": "dial", "alpha": 0.6} | fields.pop("ck", {})
    return {"messages": [{"role": "user", "content": "Where?"}], "temperature": 0, "ck": ck} | fields


def tell(
    request: Any,
    minds: dict[str, tuple[float, float]] = MEMORY,
    limits: Limits | None = None,
    on_lost: str = "fail",
    trouble: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Answer, Inner]:
    """One request; afterwards nothing runs."""
    inner = Inner(**(trouble or {}))
    inner.texts = {"memory": OTHER}
    known = Engine(inner, minds, **(engine or {}))

    async def story() -> Answer:
        app = CKMiddleware(inner, limits or Limits(), TOKENIZER, on_lost)
        got = await ask(app, request, state=SimpleNamespace(engine_client=known), **options)
        assert inner.running == 0 and app.pairs == 0
        assert len(asyncio.all_tasks()) == 1, "no task is left"
        return got

    return asyncio.run(story()), inner


def said(got: Answer, stream: bool) -> tuple[str, dict[str, Any]]:
    """The text and `ck` of a chat reply."""
    if not stream:
        return got.json["choices"][0]["message"]["content"], got.json["ck"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got.events)
    return text, got.events[-1]["ck"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("minds", "given"), [(MEMORY, 1), (CONTEXT, 0)])
def test_the_draft_that_both_streams_mind_least_is_the_reply(minds: Any, given: int, stream: bool) -> None:
    got, inner = tell(body(stream=stream), minds)
    assert got.status == 200
    text, told = said(got, stream)
    assert text == "".join([WORDS, OTHER][given])
    assert [(d["name"], d["text"], d["given"]) for d in told["drafts"]] == [
        (name, "".join(words), i == given) for i, (name, words) in enumerate(zip(NAMES, [WORDS, OTHER], strict=True))
    ]
    for draft, words in zip(told["drafts"], [WORDS, OTHER], strict=True):
        assert draft["surprise_ctx"] == pytest.approx(-minds[draft["name"]][0] * len(words) ** 0.5)
        assert draft["surprise_par"] == pytest.approx(-minds[draft["name"]][1] * len(words) ** 0.5)
    assert "trace" not in told and b"token_ids" not in got.body
    rows = [data["vllm_xargs"] for _, data in inner.seen]
    assert sorted((row["ck_draft"], row["ck_role"]) for row in rows) == [
        (name, role) for name in sorted(NAMES) for role in ("contextual", "parametric")
    ]
    assert len({row["ck_pair"] for row in rows}) == 2 and len({row["ck_control"] for row in rows}) == 1
    assert len({tuple(data["prompt"]) for _, data in inner.seen}) == 2


def test_what_the_workers_recorded_beyond_a_stop_text_counts_for_nothing() -> None:
    got, _ = tell(body(ck={"trace": True}), engine={"more": 3})
    told = got.json["ck"]
    assert told["drafts"] == tell(body())[0].json["ck"]["drafts"] and len(told["trace"]) == len(OTHER)


def test_the_trace_is_that_of_the_given_draft() -> None:
    got, _ = tell(body(ck={"trace": True}))
    assert [entry["logp_ctx"] for entry in got.json["ck"]["trace"]] == [-0.4] * len(OTHER)


def test_hand_made_messages_have_drafts_too() -> None:
    ck = {"method": "dial", "alpha": 0.6, "messages": [{"role": "user", "content": "Where?"}]}
    for stream in (True, False):
        got, inner = tell(body(stream=stream) | {"ck": ck})
        text, told = said(got, stream)
        assert text == "".join(OTHER) and told["drafts"][1]["text"] == text
        assert {path for path, _ in inner.seen} == {"/v1/chat/completions"}


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_an_end_of_the_dial_is_one_pair(alpha: float) -> None:
    got, inner = tell(body(ck={"alpha": alpha}))
    assert got.status == 200 and len(inner.seen) == 2 and "drafts" not in got.json["ck"]
    assert not any("ck_draft" in data["vllm_xargs"] for _, data in inner.seen)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("minds", [MEMORY, CONTEXT])
def test_one_request_keeps_the_clients_id_and_the_reply_has_it_whoever_is_given(minds: Any, stream: bool) -> None:
    headers = ((b"content-type", b"application/json"), (b"x-request-id", b"mine"))
    got, inner = tell(body(request_id="mine", stream=stream), minds, headers=headers)
    assert {chunk["id"] for chunk in (got.events if stream else [got.json])} == {"chatcmpl-mine"}
    kept = [data["vllm_xargs"] for i, (_, data) in enumerate(inner.seen) if b"x-request-id" in inner.headers[i]]
    assert [(row["ck_draft"], row["ck_role"]) for row in kept] == [("unmodified", "contextual")]
    assert [data.get("request_id") for _, data in inner.seen].count("mine") == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("trouble", "status", "words"),
    [
        ({"refuse": {"contextual": 400}}, 400, "contextual is too long"),
        ({"refuse": {"parametric": 400}}, 400, "without passages"),
        ({"refuse": {"parametric": 500}}, 503, "gave the request up"),
        ({"fail": "abort"}, 503, "Try again"),
        ({"fail": "raise"}, 503, "Try again"),
        ({"fail": "event"}, 503, "stumbled"),
    ],
)
def test_a_draft_that_fails_fails_the_request(trouble: Any, status: int, words: str, stream: bool) -> None:
    got, _ = tell(body(stream=stream or trouble.get("fail") == "event"), trouble=trouble)
    assert got.status == status and words in got.message, "a stream has not begun: nothing was passed on"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "trouble", [{"fail": "lost"}, {"refuse": {"parametric": 500}}, {"refuse": {"contextual": 500}}]
)
def test_a_lost_draft_is_answered_from_the_passages_alone_where_the_operator_says_so(
    trouble: dict[str, Any], stream: bool
) -> None:
    got, inner = tell(body(stream=stream), trouble=trouble, on_lost="contextual")
    text, told = said(got, stream)
    assert text == "".join(WORDS) and told["fallback"] == "contextual" and "drafts" not in told
    assert b"token_ids" not in got.body
    assert len(inner.seen) == 5 and "vllm_xargs" not in inner.seen[-1][1]


@pytest.mark.parametrize(
    ("engine", "fail", "status", "words"),
    [
        ({"more": -1}, "", 503, "recall"),
        ({"dead": True}, "", 400, "serve-vllm"),
        ({}, "mute", 503, "without token ids"),
        ({"broken": "memory"}, "", 503, "in the parametric stream"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_without_evidence_nothing_is_chosen(
    engine: dict[str, Any], fail: str, status: int, words: str, stream: bool
) -> None:
    for on_lost in ("fail", "contextual"):
        got, _ = tell(body(stream=stream), engine=engine, trouble={"fail": fail}, on_lost=on_lost)
        assert got.status == status and words in got.message


def test_what_hides_token_ids_is_refused_where_they_are_needed() -> None:
    for ck, status in (({}, 400), ({"trace": True, "method": "cad"}, 400), ({"method": "cad"}, 200)):
        got, inner = tell(body(include_reasoning=False, ck=ck))
        assert got.status == status and bool(inner.seen) == (status == 200)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_all_rows(stream: bool) -> None:
    got, inner = tell(body(stream=stream), trouble={"pause": 60.0}, leave_after=1.5)
    assert not got.status and inner.aborted == len(inner.seen) == 4


def test_the_time_of_all_drafts_is_bounded() -> None:
    got, inner = tell(body(), trouble={"fail": "never"}, limits=Limits(seconds=1.5))
    assert got.status == 503 and "1.5 s" in got.message and inner.aborted == 4


def test_every_draft_counts_as_a_pair() -> None:
    got, inner = tell(body(), limits=Limits(pairs=1))
    assert got.status == 400 and "takes 2 pairs" in got.message and not inner.seen, "it never could"

    async def story() -> list[Answer]:
        inner = Inner(pause=0.2)
        state = SimpleNamespace(engine_client=Engine(inner, MEMORY))
        app = CKMiddleware(inner, Limits(pairs=3), TOKENIZER)
        return await asyncio.gather(*(ask(app, body(), state=state) for _ in range(2)))

    first, second = sorted(asyncio.run(story()), key=lambda answer: answer.status)
    assert (first.status, second.status) == (200, 429) and "2 pairs are under way" in second.message
    assert b"retry-after" in second.headers


def test_many_requests_with_drafts_some_of_whose_clients_leave() -> None:
    inner = Inner(pause=0.01)
    inner.texts = {"memory": OTHER}
    rng = random.Random(7)

    async def story() -> list[Answer]:
        app = CKMiddleware(inner, Limits(), TOKENIZER)
        state = SimpleNamespace(engine_client=Engine(inner, MEMORY))
        leaves = [rng.choice([None, None, rng.uniform(0, 0.3)]) for _ in range(40)]
        asked = [ask(app, body(stream=bool(i % 2)), state=state, leave_after=when) for i, when in enumerate(leaves)]
        answers = await asyncio.gather(*asked)
        assert inner.running == 0 and app.pairs == 0 and len(asyncio.all_tasks()) == 1
        return answers

    whole = [answer for answer in asyncio.run(story()) if answer.ended]
    assert len(whole) > 15 and all(answer.status == 200 and b"Mar" in answer.body for answer in whole)
