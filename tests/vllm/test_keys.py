"""What only the holder of a key may ask, and what nobody outside the server may name: API keys and the masks' salts."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from ckcontrol.vllm.contract.changes import salt
from ckcontrol.vllm.http.guard import has_key
from ckcontrol.vllm.http.middleware import CKMiddleware

from .inner import Inner, ask
from .test_middleware import TOKENIZER, chat, run

JSON = (b"content-type", b"application/json")
GOOD = [b"Bearer one", b"bearer two"]
BAD = [
    None,
    b"",
    b"Bearer",
    b"Bearer ",
    b"Bearer onee",
    b"Bearer on",
    b"Basic one",
    b"one",
    b"Bearer \xff",
    b"Bearer one ",
]


def state(*keys: str) -> Any:
    """What vLLM keeps at ``app.state``, as far as keys go."""
    return SimpleNamespace(args=SimpleNamespace(api_key=list(keys) or None))


def scope(path: str, key: bytes | None, *keys: str, root: str = "") -> Any:
    headers = [JSON] if key is None else [JSON, (b"authorization", key)]
    app = SimpleNamespace(state=state(*keys))
    return {"type": "http", "method": "POST", "path": path, "root_path": root, "headers": headers, "app": app}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.mark.parametrize("kind", [b"application/json", b"multipart/form-data; boundary=b"])
@pytest.mark.parametrize("key", BAD)
def test_without_a_key_not_even_the_body_is_read(key: bytes | None, kind: bytes) -> None:
    inner, sent = Inner(), []

    async def receive() -> Any:
        pytest.fail("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    asked = scope("/v1/chat/completions", key, "one", "two")
    asked["headers"][0] = (b"content-type", kind)
    asyncio.run(CKMiddleware(inner, tokenizer=TOKENIZER)(asked, receive, send))
    assert sent[0]["status"] == 401 and b"Authorization: Bearer" in sent[1]["body"] and not inner.seen


@pytest.mark.parametrize("key", GOOD)
def test_a_key_is_passed_on_to_both_rows(key: bytes) -> None:
    got, inner = run(chat(), headers=(JSON, (b"authorization", key)), state=state("one", "two"))
    assert got.status == 200 and [headers[b"authorization"] for headers in inner.headers] == [key, key]


def test_the_key_of_the_environment_counts_unless_the_command_line_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "env")
    assert has_key(scope("/v1/completions", b"Bearer env")) and not has_key(scope("/v1/completions", b"Bearer x"))
    assert not has_key(scope("/v1/completions", b"Bearer env", "one"))
    assert has_key(scope("/tokenize", None)) and not has_key(scope("/mount/v1/x", None, root="/mount"))


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_our_check_is_that_of_vllm() -> None:
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def passes(asked: Any) -> bool:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(AuthenticationMiddleware(inside, ["one", "two"])(asked, None, send))
        return bool(sent[0]["status"] == 200)

    seen = set()
    for path in ("/v1/completions", "/v2/rerank", "/inference/v1/generate", "/cohere/x", "/tokenize", "/invocations"):
        for root in ("", "/root"):
            for key in (*GOOD, *BAD):
                asked = scope(root + path, key, "one", "two", root=root)
                assert has_key(asked) == passes(asked), (path, key)
                seen.add(has_key(asked))
    assert seen == {True, False}


@pytest.mark.parametrize("field", ["plain", "escaped"])
def test_an_ordinary_request_cannot_fill_the_cache_of_a_masked_one(field: str) -> None:
    """Not even one that knows the salt."""
    import json

    heads = [{"layer": 0, "head": 1}]
    known = salt(((0, 1, 0.0),))
    body = json.dumps({"model": "m", "prompt": "x", "cache_salt": known})
    raw = body.replace("ck_", "\\u0063k_").encode() if field == "escaped" else body.encode()
    got, inner = run(raw, "/v1/completions")
    assert got.status == 200 and inner.seen[0][1] == {"model": "m", "prompt": "x"}

    async def rpc(method: str, args: Any) -> list[Any]:
        return [{"layers": 2, "heads": 4}]

    workers = SimpleNamespace(engine_client=SimpleNamespace(collective_rpc=rpc))
    passages = {"passages": ["A town."]}
    _, masked = run(chat(ck=passages | {"heads": heads}, cache_salt=known), state=workers)
    _, unmasked = run(chat(ck=passages, cache_salt=known), state=workers)
    assert {data["cache_salt"] for _, data in masked.seen} == {known}
    assert not any("cache_salt" in data for _, data in unmasked.seen)
    _, mine = run(chat(ck=passages | {"heads": heads}, cache_salt="mine"), state=workers)
    assert {data["cache_salt"] for _, data in mine.seen} == {salt(((0, 1, 0.0),), "mine")} != {known}


def test_a_salt_of_the_clients_own_stays() -> None:
    async def story() -> Any:
        inner = Inner()
        await ask(CKMiddleware(inner, tokenizer=TOKENIZER), {"prompt": "ck_", "cache_salt": "mine"}, "/v1/completions")
        return inner.seen[0][1]

    assert asyncio.run(story())["cache_salt"] == "mine"
