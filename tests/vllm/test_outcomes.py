"""What the workers are asked when a pair has ended: its trace, were its logits finite; and whether masks can act."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ckcontrol.models.tiny import tiny_model
from ckcontrol.serving.limits import Limits
from ckcontrol.vllm.http.middleware import CKMiddleware

from .inner import WORDS, Inner, ask

TOKENIZER = tiny_model("llama")[1]
ROW = [-0.5, 1.0, 2.0, 3.0, 1.0, 4.0, 0.0, -2.0, -0.25, -1.5]


class Engine:
    """vLLM's engine client: two workers, of which the second knows the pairs."""

    def __init__(self, broken: str = "", refused: str = "", dead: bool = False) -> None:
        self.broken, self.refused, self.dead = broken, refused, dead
        self.calls: list[tuple[str, Any]] = []

    async def collective_rpc(self, method: str, timeout: Any = None, args: Any = (), kwargs: Any = None) -> list[Any]:
        self.calls.append((method, args))
        if self.dead:
            raise RuntimeError("no such method")
        await asyncio.sleep(0.01)
        if method == "ck_heads_install":
            return [{"refused": self.refused} if self.refused else {"layers": 2, "heads": 4}] * 2
        known = {pair: {"rows": [ROW] * len(WORDS), "broken": self.broken} for pair in args[0]}
        return [{}, known]


def served(engine: Engine, requests: int = 1, inner: Inner | None = None, **fields: Any) -> list[Any]:
    ck = {"passages": ["A town."], "method": "ck-plug", "alpha": 0.2} | fields.pop("ck", {})
    body = {"messages": [{"role": "user", "content": "Who?"}], "temperature": 0, "ck": ck} | fields
    inner = inner or Inner()

    async def story() -> list[Any]:
        app = CKMiddleware(inner, Limits(), TOKENIZER)
        state = SimpleNamespace(engine_client=engine)
        return await asyncio.gather(*(ask(app, body, state=state) for _ in range(requests)))

    return asyncio.run(story())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_trace_is_in_the_reply(stream: bool, wanted: bool) -> None:
    (got,) = served(Engine(), ck={"trace": True}, stream=stream, return_token_ids=wanted)
    last = got.events[-1] if stream else got.json
    trace = last["ck"]["trace"]
    assert len(trace) == len(WORDS)
    assert trace[0] | {"text": ""} == {
        "id": 5, "text": "", "logp_final": -0.5, "tau": 3.0, "switched": True, "h_par": 1.0, "h_ctx": 2.0,
        "gain": -1.0, "rank_par": 4, "rank_ctx": 0, "logp_par": -2.0, "logp_ctx": -0.25,
    }  # fmt: skip
    assert [entry["id"] for entry in trace] == list(range(5, 5 + len(WORDS)))
    told = got.events if stream else [got.json]
    assert any("token_ids" in choice for reply in told for choice in reply["choices"]) == wanted


@pytest.mark.parametrize("stream", [True, False])
def test_broken_numbers_fail_the_request(stream: bool) -> None:
    (got,) = served(Engine(broken="parametric"), stream=stream)
    error = got.events[-1]["error"] if stream else got.json["error"]
    assert error["code"] == 503 and "parametric stream" in error["message"]
    assert got.status == (200 if stream else 503)


GRAMMARS: list[dict[str, Any]] = [
    {"structured_outputs": {"grammar": "root ::= root"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("role", ["contextual", "parametric"])
@pytest.mark.parametrize("fields", GRAMMARS)
def test_a_grammar_that_allows_no_token_is_the_clients_mistake(fields: dict[str, Any], role: str, stream: bool) -> None:
    (got,) = served(Engine(broken="contextual"), inner=Inner(refuse={role: 500}), stream=stream, **fields)
    assert got.status == 400 and "grammar or schema" in got.message and "ry again" not in got.message


@pytest.mark.parametrize(("broken", "fields"), [("", GRAMMARS[0]), ("contextual", {})])
def test_a_pair_lost_for_another_reason_may_be_tried_again(broken: str, fields: dict[str, Any]) -> None:
    (got,) = served(Engine(broken=broken), inner=Inner(refuse={"contextual": 500}), **fields)
    assert got.status == 503 and "try again" in got.message


def test_many_pairs_are_asked_for_at_once() -> None:
    engine = Engine()
    assert {got.status for got in served(engine, requests=20)} == {200}
    asked = [pair for method, (pairs,) in engine.calls for pair in pairs]
    assert len(asked) == len(set(asked)) == 20 and len(engine.calls) < 10


def test_a_server_without_our_workers_answers_but_has_no_traces() -> None:
    engine = Engine(dead=True)
    assert [got.status for got in served(engine)] == [200]
    (got,) = served(engine, ck={"trace": True})
    assert got.status == 400 and "serve-vllm" in got.message


def test_masks_are_checked_against_the_model_once() -> None:
    engine = Engine()
    heads = [{"layer": 1, "head": 3}]
    answers = served(engine, requests=4, ck={"heads": heads})
    assert {got.status for got in answers} == {200} and answers[0].json["ck"]["heads"] == 1
    assert [method for method, _ in engine.calls].count("ck_heads_install") == 1
    (got,) = served(engine, ck={"heads": [{"layer": 1, "head": 4}]})
    assert got.status == 400 and "head 1.4 does not exist" in got.message


def test_a_compiled_engine_refuses_masks_with_a_sentence() -> None:
    (got,) = served(Engine(refused="this engine compiles."), ck={"heads": [{"layer": 0, "head": 0}]})
    assert got.status == 400 and "compiles" in got.message and "heads export" in got.message
