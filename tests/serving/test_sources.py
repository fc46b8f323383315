"""`ck.sources` of `ckcontrol serve`: answers, and what sources say of them, are those of `generate(sources=...)`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import openai
import pytest

import ckcontrol as ck
from ckcontrol.decoding.running import RunningBatch
from ckcontrol.decoding.source_streams import SourceStreams
from ckcontrol.heads import HeadMask, pruned
from ckcontrol.retrieval import Index, Passage

from ..retrieval.hashes import Hashes
from .served import Served, alike, serve

QUESTION = "Which river runs through Orvendale?"
PASSAGES = ["The Tellin runs through Orvendale.", "Orvendale lies in the north.", "The Vess runs through Orvendale."]
ASKED = [{"role": "user", "content": QUESTION}]
DIALS: list[dict[str, Any]] = [{"alpha": 0.1}, {"alpha": 0.5}, {"alpha": 0.8}, {"alpha": 1}, {"adaptive": True}]


def ask(served: Served, passages: list[str], dial: dict[str, Any], sources: Any = "each", **more: Any) -> Any:
    extra = {"ck": {"passages": passages, "method": "dial", "sources": sources, **dial}, "return_token_ids": True}
    return served.client.chat.completions.create(
        **{"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 12, "extra_body": extra, **more}
    )


def same(reply: Any, wanted: ck.Answer) -> None:
    told, plain = reply.model_extra["ck"], json.loads(json.dumps(wanted.to_dict()))
    assert reply.choices[0].model_extra["token_ids"] == list(wanted.token_ids)
    assert reply.choices[0].finish_reason == wanted.finish_reason
    assert alike(told["sources"], plain["sources"]) and told["disputed"] == wanted.disputed
    if "trace" in told:
        assert alike(told["trace"], plain["tokens"])
    kept = ("name", "text", "given", "evidence", "surprise_ctx")
    drafts = [
        [{name: one[name] for name in kept} for one in each] for each in (told.get("drafts", []), plain["drafts"])
    ]
    assert alike(*drafts)


@pytest.mark.parametrize("dial", DIALS, ids=repr)
@pytest.mark.parametrize("sources", ["each", [[0], [1, 2]]], ids=["each", "groups"])
def test_an_answer_is_that_of_generate(model: Any, served: Served, dial: dict[str, Any], sources: Any) -> None:
    how: dict[str, Any] = {"messages": ASKED, "control": ck.Control("dial", **dial), "max_new_tokens": 12}
    for count in (3,) if sources != "each" else (3, 1, 0):
        passages = PASSAGES[:count]
        reply = ask(served, passages, {"trace": True, **dial}, sources)
        same(reply, ck.generate(*model, passages=passages, sources=sources, **how))
        assert [one["name"] for one in reply.ck["sources"]][:1] == ["memory"] * bool(count)
    seeded = {"temperature": 0.8, "top_p": 0.9, "seed": 3}
    reply = ask(served, PASSAGES, dial, sources, **seeded)
    same(reply, ck.generate(*model, passages=PASSAGES, sources=sources, do_sample=True, **how, **seeded))


def test_sources_take_turns_with_other_answers(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several such questions one runs at a time; the batches beside it go on between its forwards."""
    order: list[str] = []
    step, forward = RunningBatch.step, SourceStreams.step
    monkeypatch.setattr(RunningBatch, "step", lambda self: (order.append("batch"), step(self))[1])
    monkeypatch.setattr(SourceStreams, "step", lambda self, ids: (order.append("sources"), forward(self, ids))[1])
    dials = [DIALS[0], DIALS[1], DIALS[4]] * 2
    extra = {"ck": {"passages": PASSAGES, "method": "cad", "alpha": 0.2}, "return_token_ids": True}

    def other(_: int) -> Any:
        more: dict[str, Any] = {"messages": ASKED, "temperature": 0, "max_tokens": 60, "extra_body": extra}
        return server.client.chat.completions.create(model="tiny", **more)

    with serve(*model) as server, ThreadPoolExecutor(10) as pool:
        plain = pool.map(other, range(3))
        weighed = pool.map(lambda dial: ask(server, PASSAGES, dial), dials)
        others, replies = list(plain), list(weighed)
    want = ck.generate(*model, messages=ASKED, passages=PASSAGES, control=ck.Control("cad", 0.2), max_new_tokens=60)
    for one in others:
        assert one.choices[0].model_extra["token_ids"] == list(want.token_ids)
    for reply, dial in zip(replies, dials, strict=True):
        how = {"control": ck.Control("dial", **dial), "sources": "each", "max_new_tokens": 12}
        same(reply, ck.generate(*model, messages=ASKED, passages=PASSAGES, **how))
    assert sum(a != b for a, b in pairwise(order)) > 10


def test_a_stream_tells_sources_at_its_end(served: Served) -> None:
    for dial in DIALS[:3]:
        whole, parts = ask(served, PASSAGES, dial), list(ask(served, PASSAGES, dial, stream=True))
        told = [token for part in parts for token in part.choices[0].model_extra["token_ids"]]
        assert told == whole.choices[0].model_extra["token_ids"]
        assert alike(parts[-1].ck["sources"], whole.ck["sources"]) and len(whole.ck["sources"]) == 5


def test_passages_that_are_found_are_sources(model: Any) -> None:
    passages = [Passage(str(i), text, f"{i}.txt") for i, text in enumerate(PASSAGES)]
    with Index.build(passages, Hashes()) as index, serve(*model, index=index) as server:
        extra = {"ck": {"retrieve": {"k": 3}, "method": "dial", "alpha": 0.1, "sources": "each"}}
        reply = ask(server, [], {}, extra_body=extra | {"return_token_ids": True})
        found = [hit["text"] for hit in reply.ck["hits"]]
        how = {"control": ck.Control("dial", 0.1), "sources": "each", "max_new_tokens": 12}
        assert len(found) == 3
        same(reply, ck.generate(*model, messages=ASKED, passages=found, **how))


def test_a_head_mask_changes_what_sources_write(model: Any, served: Served) -> None:
    reply = ask(served, PASSAGES, {"alpha": 0.1, "heads": [{"layer": 0, "head": 1, "factor": 0}]})
    how = {"control": ck.Control("dial", 0.1), "sources": "each", "max_new_tokens": 12}
    with pruned(model[0], HeadMask.of(model[0], [(0, 1)])):
        same(reply, ck.generate(*model, messages=ASKED, passages=PASSAGES, **how))


def test_a_client_who_leaves_ends_its_sources(model: Any) -> None:
    with serve(*model, limits={"seconds": 0.5}) as server:
        with pytest.raises(openai.InternalServerError, match=r"no answer within 0\.5 s"):
            ask(server, PASSAGES * 3, DIALS[0], [[0], [1], [2], [3], [4], [5]], max_tokens=1000, seed=1, temperature=1)
        server.until("requests_running", 0)
        server.until("left_total", 1)


def test_what_cannot_be_weighed_is_refused_with_value_and_remedy(served: Served) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    for passages, dial, sources, more, sentence in [
        (PASSAGES, {"method": "cad"}, "each", {}, 'ck.method=\'cad\'.*"method": "dial".*leave ck.sources out'),
        (PASSAGES, {}, "all", {}, "ck.sources='all'.*each"),
        (PASSAGES, {}, [[0], 1], {}, r"ck.sources=\[\[0\], 1\].*each"),
        (PASSAGES, {}, [[0], [9]], {}, "passage 9, and places are 0 to 2"),
        (PASSAGES, {}, [[0], [1.5]], {}, "passage 1.5, and places are 0 to 2"),
        ([f"{i} lies there." for i in range(17)], {}, "each", {}, "17 sources, and at most 16.*fewer"),
        (PASSAGES, {}, "each", {"logprobs": True}, "logprobs stands beside ck.sources.*Drop one"),
        (PASSAGES, {}, "each", {"response_format": schema}, "response_format stands beside ck.sources.*Drop one"),
    ]:
        with pytest.raises(openai.BadRequestError, match=sentence):
            ask(served, passages, dial, sources, **more)
    body = {"model": "tiny", "messages": ASKED, "ck": {"messages": ASKED, "method": "dial", "sources": "each"}}
    reply = served.post(body)
    assert reply.status_code == 400 and "ck.sources stands beside ck.messages" in reply.text
