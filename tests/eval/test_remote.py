"""The HTTP backend against a real server in a thread that answers, refuses, hangs and hangs up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import ckcontrol as ck
from ckcontrol.errors import ControlError, PromptError
from ckcontrol.eval.running.remote import Ask, Backend, RemoteBackend

Handle = Callable[["_Handler", dict[str, Any]], None]


def said(text: str, finish: str = "stop", n: int | None = 3) -> dict[str, Any]:
    """The sample of an answer."""
    return {"text": text, "n": n, "finish": finish}


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), body))
            script = self.server.script
            handle = script.pop(0) if script else self.server.usual
        handle(self, body)

    def send(self, status: int, data: Any, **headers: str) -> None:
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Answers with the question in capitals; `script` holds what comes before that."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.script: list[Handle] = []
        self.usual: Handle = answer
        self.over = threading.Event()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def completion(text: str, **changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"completion_tokens": 3}, "ck": {"method": "off"}} | changes


def answer(handler: _Handler, body: dict[str, Any]) -> None:
    handler.send(200, completion(f" {body['messages'][0]['content'].upper()}\n"))


def refuse(status: int, data: Any = b"", **headers: str) -> Handle:
    return lambda handler, body: handler.send(status, data, **headers)


def hang_up(handler: _Handler, body: dict[str, Any]) -> None:
    handler.connection.close()


def cut(handler: _Handler, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.close()


def hang(handler: _Handler, body: dict[str, Any]) -> None:
    handler.server.over.wait()  # type: ignore[attr-defined]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def client(server: Server, **options: Any) -> RemoteBackend:
    return RemoteBackend(server.base, "m", **{"backoff": 0.01, "timeout": 5.0, **options})


def test_answers_come_in_order_whatever_the_order_of_arrival(server: Server) -> None:
    server.usual = lambda handler, body: (
        time.sleep(0.05 * ("a" in body["messages"][0]["content"])),
        answer(handler, body),
    )[1]
    backend: Backend = client(server)
    asks = [Ask(text) for text in ("a1", "b1", "a2", "b2")]
    assert backend.answer(asks) == [said(text) for text in ("A1", "B1", "A2", "B2")]
    assert backend.answer([]) == []


def test_the_request_carries_passages_control_and_template(server: Server) -> None:
    control = ck.Control("ck-plug", 0.25, gate=2.0)
    asks = [
        Ask("Who?", ("It was Ann.", "Or Bob."), control, max_new_tokens=7),
        Ask("Who?", template=ck.PromptTemplate(instruction="Be brief. ")),
    ]
    client(server, concurrency=1).answer(asks)
    (path, headers, first), (_, _, second) = server.seen
    assert path == "/v1/chat/completions" and headers["Content-Type"] == "application/json"
    assert first["model"] == "m" and first["max_tokens"] == 7 and first["temperature"] == 0
    assert first["messages"] == [{"role": "user", "content": "Who?"}]
    assert first["ck"] == {"passages": ["It was Ann.", "Or Bob."], **control.to_dict()}
    assert second["ck"]["alpha"] is None and second["ck"]["passages"] == []
    assert ck.PromptTemplate(**second["ck"]["template"]) == asks[1].template


@pytest.mark.parametrize(
    "failure",
    [refuse(429, Retry_After="0"), refuse(503), refuse(500), hang_up, cut, refuse(200, b"<html>"), refuse(200, b"")],
    ids=["429", "503", "500", "hang-up", "cut", "not-json", "empty"],
)
def test_passing_trouble_is_tried_again(server: Server, failure: Handle) -> None:
    server.script = [failure, failure]
    assert client(server).answer([Ask("x")]) == [said("X")]
    assert len(server.seen) == 3


def test_a_silent_server_is_given_up(server: Server) -> None:
    server.script = [hang, hang]
    assert client(server, timeout=0.15, retries=1).answer([Ask("x")])[0]["error"] == (
        "no answer within 0.15 s (tried 2 times)"
    )


def test_a_dripping_server_is_given_up(server: Server) -> None:
    def drip(handler: _Handler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(8):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    server.script = [drip]
    assert "no answer within 0.15 s" in str(client(server, timeout=0.15, retries=0).answer([Ask("x")])[0]["error"])


def test_retry_after_is_honoured(server: Server) -> None:
    server.script = [refuse(429, Retry_After="1")]
    began = time.monotonic()
    assert client(server).answer([Ask("x")])[0]["text"] == "X"
    assert time.monotonic() - began >= 1


def test_one_bad_item_costs_only_itself(server: Server) -> None:
    def picky(handler: _Handler, body: dict[str, Any]) -> None:
        if body["messages"][0]["content"] == "bad":
            handler.send(400, {"error": {"message": "alpha=7 is out of range.\nGive a number."}})
        else:
            answer(handler, body)

    server.usual = picky
    good, bad, other = client(server).answer([Ask("a"), Ask("bad"), Ask("c")])
    assert (good["text"], other["text"]) == ("A", "C")
    assert bad == {"error": "HTTP 400: alpha=7 is out of range. Give a number."}
    assert len(server.seen) == 3, "a refusal for good is not tried again"


def test_no_server_at_all() -> None:
    with Server() as server:
        base = server.base
    reply = RemoteBackend(base, "m", retries=1, backoff=0.01).answer([Ask("x")])[0]
    assert set(reply) == {"error"} and reply["error"].startswith("connection failed: ConnectionRefusedError")
    assert reply["error"].endswith("(tried 2 times)")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"choices": []}, "not a chat completion"),
        ([1], "not a chat completion"),
        (None, "not a chat completion"),
        (completion("x", ck=None), "ignored the field ck"),
        (completion("x", choices=[{"message": {"content": "x"}, "finish_reason": "content_filter"}]), "content_filter"),
    ],
)
def test_a_reply_that_is_no_answer_is_an_error(server: Server, data: Any, said: str) -> None:
    server.script = [refuse(200, data)]
    assert said in client(server).answer([Ask("x")])[0]["error"]
    assert len(server.seen) == 1


def test_missing_usage_and_empty_text_are_fine(server: Server) -> None:
    choice = {"message": {"content": None}, "finish_reason": "length"}
    server.script = [refuse(200, {"choices": [choice], "ck": {}})]
    assert client(server).answer([Ask("x")]) == [said("", "length", None)]


def test_no_more_requests_at_once_than_asked_for(server: Server) -> None:
    at_once, running = [], set[int]()
    three = threading.Barrier(3, timeout=60)

    def take_a_while(handler: _Handler, body: dict[str, Any]) -> None:
        running.add(id(handler))
        at_once.append(len(running))
        three.wait()
        running.remove(id(handler))  # before the reply: with it, the client may send its next request
        answer(handler, body)

    server.usual = take_a_while
    replies = client(server, concurrency=3).answer([Ask(str(i)) for i in range(12)])
    assert [reply["text"] for reply in replies] == [str(i) for i in range(12)]
    assert max(at_once) == 3


def test_the_key_is_sent_and_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret\n")
    server.script = [refuse(401, {"error": {"message": "no such key: sk-secret"}})]
    backend = client(server, api_key_env="MY_KEY")
    assert backend.answer([Ask("x")]) == [{"error": "HTTP 401: no such key: [API key]"}]
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret"
    assert "secret" not in repr(vars(backend))
    monkeypatch.setenv("MY_KEY", "sk-sec\nret")
    with pytest.raises(ControlError, match=r"\$MY_KEY cannot be sent in an HTTP header") as raised:
        backend.answer([Ask("x")])
    assert "sk-sec" not in str(raised.value)
    monkeypatch.delenv("MY_KEY")
    backend.answer([Ask("x")])
    assert "Authorization" not in server.seen[-1][1]


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.script = [refuse(307, Location=f"{server.base}/elsewhere")]
    assert client(server).answer([Ask("x")]) == [{"error": "HTTP 307"}]
    assert len(server.seen) == 1


@pytest.mark.parametrize("url", ["host:8000/v1", "ftp://host/v1", "http://", "http://me:pw@host/v1", "http://h/v1?a=1"])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(ControlError, match="not a plain http") as raised:
        RemoteBackend(url, "m")
    assert "pw" not in str(raised.value)


def test_numbers_are_checked() -> None:
    for name in ("concurrency", "timeout", "retries", "backoff"):
        with pytest.raises(ControlError, match=name):
            RemoteBackend("http://host/v1", "m", **{name: -1})
    with pytest.raises(PromptError, match="one string"):
        Ask("Who?", "It was Ann.")  # type: ignore[arg-type]
