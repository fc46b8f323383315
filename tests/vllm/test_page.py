"""The page and ``ck.retrieve`` in front of vLLM: the same page, told the same things, and the same passages."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from ckcontrol.cli.serve_vllm import INDEX as SET
from ckcontrol.cli.serve_vllm import command
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.errors import ServingError
from ckcontrol.models.tiny import tiny_model
from ckcontrol.retrieval import Index, Passage
from ckcontrol.serving import page
from ckcontrol.serving.limits import Limits
from ckcontrol.vllm.http.middleware import EMBEDDER, INDEX, CKMiddleware

from ..retrieval.hashes import Hashes
from ..serving.served import TURNS
from .inner import Inner

TOKENIZER = tiny_model("llama")[1]
TEXTS = ["The Tellin runs through Orvendale.", "Orvendale lies in the north.", "Quarrow has a harbour."]
ASKED = [{"role": "user", "content": "Which river runs through Orvendale?"}]


async def models(_: Any) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [{"id": "m", "max_model_len": 2048}]})


def asked(index: Any, *requests: tuple[str, str, Any]) -> tuple[list[httpx.Response], Inner]:
    async def story() -> tuple[list[httpx.Response], Inner]:
        inner = Inner()
        app = CKMiddleware(
            Starlette(routes=[Route("/v1/models", models), Mount("/", inner)]),
            Limits(passages=7),
            TOKENIZER,
            index=index,
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return [await client.request(how, path, json=body) for how, path, body in requests], inner

    return asyncio.run(story())


def test_the_page_is_that_of_serve_and_runs_nothing_else() -> None:
    files = sorted(path.name for path in Path(page.__file__).with_name("playground").iterdir())
    (start, *others, missing), _ = asked(
        None, ("GET", "/", None), *(("GET", f"/{name}", None) for name in files), ("GET", "/secret.js", None)
    )
    assert start.status_code == 200 and "<title>" in start.text
    named = re.findall(r'(?:src|href)="([\w.]+)"', start.text)
    assert named and set(named) <= set(files)
    for name, reply in zip(files, others, strict=True):
        assert reply.content == (Path(page.__file__).with_name("playground") / name).read_bytes()
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "content-security-policy" not in missing.headers  # the inner app's to answer


@pytest.mark.parametrize("mounted", [False, True])
def test_models_tell_what_the_page_asks_for(mounted: bool) -> None:
    (reply,), _ = asked(object() if mounted else None, ("GET", "/v1/models", None))
    (model,) = reply.json()["data"]
    assert model["id"] == "m" and int(reply.headers["content-length"]) == len(reply.content)
    told = model["ck"]
    assert {"dial", "ck-plug", "off"} <= set(told["methods"]) and "ck-plug" in told["dials"]
    assert (told["passages"], told["max_tokens"]) == (7, 2048) and bool(told["retrieve"]) == mounted


def test_passages_are_retrieved() -> None:
    pytest.importorskip("faiss", reason="an index is searched with faiss: pip install 'ckcontrol[retrieval]'")
    passages = [Passage(str(i), text, f"{i}.txt", {"year": 2000 + i}) for i, text in enumerate(TEXTS)]

    def body(**wanted: Any) -> dict[str, Any]:
        steered = {"retrieve": wanted, "method": "ck-plug", "alpha": 0.2}
        return {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 8, "ck": steered}

    with Index.build(passages, Hashes()) as index:
        hits = index.search(ASKED[0]["content"], 2, mode="bm25")
        bodies = [body(k=2, mode="bm25"), body(where={"year": 1900}), body(mode="magic")]
        (found, nothing, wrong), inner = asked(index, *(("POST", "/v1/chat/completions", one) for one in bodies))
    told = found.json()["ck"]
    assert [hit["source"] for hit in told["hits"]] == [hit.passage.source for hit in hits] and told["passages"] == 2
    pair = build_pair(TOKENIZER, messages=ASKED, passages=[hit.passage.text for hit in hits])
    prompts = [data["prompt"] for _, data in inner.seen[:2]]
    assert sorted(prompts) == sorted([list(pair.contextual), list(pair.parametric)])
    assert (nothing.json()["ck"]["hits"], nothing.json()["ck"]["method"]) == ([], "off")
    assert wrong.status_code == 400 and "ck.retrieve" in wrong.text
    (refused,), _ = asked(None, ("POST", "/v1/chat/completions", body()))
    assert refused.status_code == 400 and "--index" in refused.text


def test_passages_that_were_found_are_cut_to_the_model() -> None:
    pytest.importorskip("faiss", reason="an index is searched with faiss: pip install 'ckcontrol[retrieval]'")
    long = [f"Orvendale {i} " + "lies on the river " * 30 for i in range(3)]
    with Index.build([Passage(str(i), text) for i, text in enumerate(long)], Hashes()) as index:
        hits = [hit.passage.text for hit in index.search(ASKED[0]["content"], 3, mode="bm25")]
        inner = Inner()
        app = CKMiddleware(inner, Limits(), TOKENIZER, index=index)
        engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=SimpleNamespace(max_model_len=900)))
        holder = SimpleNamespace(state=SimpleNamespace(args=None, engine_client=engine))

        async def told(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "app": holder}, receive, send)

        async def story() -> httpx.Response:
            body = {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 8}
            body["ck"] = {"retrieve": {"k": 3, "mode": "bm25"}, "method": "cad", "alpha": 0.2}
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=told), base_url="http://test") as client:
                return await client.post("/v1/chat/completions", json=body)

        reply = asyncio.run(story())
    assert reply.status_code == 200, reply.text
    pair = build_pair(TOKENIZER, messages=ASKED, passages=hits, limit=892, truncate="passages")
    assert 0 < len(pair.passages) < 3 and len(reply.json()["ck"]["hits"]) == 3
    assert sorted(data["prompt"] for _, data in inner.seen) == sorted([list(pair.contextual), list(pair.parametric)])


def test_tools_stand_in_both_prompts_beside_passages() -> None:
    tokenizer = tiny_model("llama")[1]
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + TURNS
    tools = [{"type": "function", "function": {"name": "find"}}]
    inner = Inner()
    app = CKMiddleware(inner, Limits(), tokenizer, index=object())

    async def story() -> httpx.Response:
        body = {"model": "m", "messages": ASKED, "max_tokens": 4, "temperature": 0, "tools": tools}
        body["ck"] = {"passages": TEXTS, "method": "cad", "alpha": 0.2}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.post("/v1/chat/completions", json=body)

    assert asyncio.run(story()).status_code == 200
    pair = build_pair(tokenizer, messages=ASKED, passages=TEXTS, tools=tools)
    assert sorted(data["prompt"] for _, data in inner.seen) == sorted([list(pair.contextual), list(pair.parametric)])


def test_the_command_hands_the_folder_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SET == INDEX and command("m", [], index=tmp_path)[1][INDEX] == str(tmp_path.resolve())
    monkeypatch.setenv(INDEX, str(tmp_path / "none"))
    with pytest.raises(Exception, match="none"):
        CKMiddleware(Inner(), Limits(), TOKENIZER)


def test_the_command_hands_the_embedder_on(tmp_path: Path) -> None:
    made = command("m", [], index=tmp_path, embedder=str(tmp_path))[1]
    assert made[EMBEDDER] == str(tmp_path.resolve())
    assert command("m", [], index=tmp_path, embedder="some/name")[1][EMBEDDER] == "some/name"
    with pytest.raises(ServingError, match="--index"):
        command("m", [], embedder="some/name")
