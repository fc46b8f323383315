"""The whole server on a small model: answers over HTTP are those of the transformers engine, masks included.

Starts ``ckcontrol serve-vllm`` in a process of its own, with prefix caching on. Skipped without vLLM.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ckcontrol as ck
from ckcontrol.heads import Direction, Fingerprint, HeadMask, added, pruned

from ..browser import Page, posts, text_of
from . import stumbles

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Which river runs through Orvendale?"
PASSAGES = ["The Tellin runs through Orvendale. " * 3, "Marrowick lies on the Vess."]


@pytest.fixture(scope="module")
def direction(small: Any) -> Direction:
    """One toward the context and toward memory."""
    import torch

    torch.manual_seed(3)
    return Direction(Fingerprint.of(small[1]), 0, torch.randn(64), context=12.0, memory=8.0)


@pytest.fixture(scope="module")
def url(small: Any, direction: Direction, vllm_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server."""
    folder = tmp_path_factory.mktemp("server")
    direction.save(folder / "direction.safetensors")
    options = ["--heads", "--direction", str(folder / "direction.safetensors"), "--max-num-batched-tokens", "128"]
    with serving(small[0], folder, *options) as address:
        yield address


@contextmanager
def serving(model: str, folder: Path, *options: str) -> Iterator[str]:
    """Run ``ckcontrol serve-vllm`` and give its address; `folder` is for its log and a third party's policy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-W", "ignore", "-m", "ckcontrol", "serve-vllm", "--model", model, *options]
    line += ["--port", str(port), "--dtype", "float32", "--max-model-len", "2048", "--block-size", "32"]
    line += ["--max-num-seqs", "32", "--gpu-memory-utilization", "0.2", "--served-model-name", "m"]
    log = folder / "log"
    site = stumbles.install(folder / "site")
    given = {"PYTHONPATH": os.pathsep.join([str(ROOT), site, *filter(None, [os.environ.get("PYTHONPATH")])])}
    given |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(line, env={**os.environ, **given}, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start: {log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def post(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[int, Any]:
    status, text = raw(url, body, path)
    return status, json.loads(text)


def raw(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[int, str]:
    request = urllib.request.Request(
        url + path, json.dumps({"model": "m", **body}).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def steered(tokens: int = 24, **fields: Any) -> dict[str, Any]:
    given = {"passages": PASSAGES, "trace": True} | fields.pop("ck", {})
    message = {"role": "user", "content": QUESTION}
    return {"messages": [message], "max_tokens": tokens, "temperature": 0, "ck": given} | fields


def ids(reply: tuple[int, Any]) -> list[int]:
    assert reply[0] == 200, reply
    return [entry["id"] for entry in reply[1]["ck"]["trace"]]


def gauges(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url + "/metrics", timeout=60) as reply:
        text = reply.read().decode()
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return {n: sum(map(float, re.findall(rf"^vllm:{n}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))) for n in names}


CASES = [
    ({"method": "ck-plug", "alpha": 0.0}, {}),
    ({"method": "ck-plug", "alpha": 0.3}, {}),
    ({"method": "cad", "alpha": 0.8}, {}),
    ({"method": "adacad"}, {}),
    ({"method": "coiecd"}, {"repetition_penalty": 1.3}),
    ({"method": "off"}, {}),
    ({"method": "arr"}, {"temperature": 0.8, "seed": 7, "top_p": 0.9, "top_k": 40}),
    ({"method": "cad", "alpha": 0.2}, {"temperature": 1.0, "seed": 11}),
    ({"method": "dial", "alpha": 0.7}, {}),
    ({"method": "dial", "alpha": 0.3}, {"temperature": 0.9, "seed": 3}),
    ({"method": "dial", "alpha": 1.0}, {}),
    ({"method": "grd"}, {"repetition_penalty": 1.2}),
]


def expected(small: Any, control: dict[str, Any], drawn: dict[str, Any], tokens: int = 24) -> list[int]:
    options = {key: value for key, value in drawn.items() if key != "temperature"}
    if drawn.get("temperature"):
        options |= {"do_sample": True, "temperature": drawn["temperature"]}
    answer = ck.generate(
        small[1], small[2], QUESTION, PASSAGES, control=ck.Control.from_dict(control), max_new_tokens=tokens, **options
    )
    return list(answer.token_ids)


def test_the_page_asks_a_question(url: str, small: Any) -> None:
    with urllib.request.urlopen(url, timeout=60) as reply:
        assert b"playground.js" in reply.read() and "default-src 'none'" in reply.headers["content-security-policy"]
    with urllib.request.urlopen(url + "/v1/models", timeout=60) as reply:
        (model,) = json.load(reply)["data"]
    assert model["id"] == "m" and model["ck"]["retrieve"] is None and model["ck"]["max_tokens"] == 2048
    assert {"ck-plug", "dial", "off"} <= set(model["ck"]["methods"])
    assert ids(post(url, steered(8, ck={"method": "ck-plug", "alpha": 0.3}))) == expected(
        small, {"method": "ck-plug", "alpha": 0.3}, {}, 8
    )
    status, told = post(url, steered(8, ck={"passages": None, "retrieve": {"k": 2}}))
    assert status == 400 and "--index" in told["error"]["message"]


def test_the_page_in_a_browser(url: str, small: Any, visit: Callable[..., Page]) -> None:
    page = visit(SimpleNamespace(url=url))
    with posts(page) as bodies:
        page.ask(QUESTION, tuple(PASSAGES), tokens=12)
        page.turn("ArrowLeft")
    settings = {(body["ck"]["method"], body["ck"].get("alpha"), len(body["ck"]["passages"])) for body in bodies}
    assert {("off", None, 2), ("off", None, 0), ("dial", 0.75, 2)} < settings and len(settings) == 4
    alpha = next(alpha for method, alpha, _ in settings if method == "dial" and alpha != 0.75)
    for arm, more in {
        "chosen": {"method": "dial", "alpha": alpha},
        "plain": {"method": "off"},
        "closed": {"method": "off", "passages": []},
    }.items():
        status, reply = post(url, steered(12, ck=more))
        assert status == 200
        tokens = text_of(page, arm)
        for special in small[2].all_special_tokens:  # shown among the tokens, no part of the answer
            tokens = tokens.replace(special, "")
        assert tokens.strip() == page.shown(reply["choices"][0]["message"]["content"]) != ""
    assert page.locator("#drafts table tbody tr").count() == 2
    assert all(one.startswith(url) for one in page.asked) and not page.wrong


def test_answers_are_those_of_the_transformers_engine(url: str, small: Any) -> None:
    """All at once, so that the pairs share batches, then again from the prefix cache."""
    wanted = [expected(small, *case) for case in CASES]
    for _ in range(2):
        got: dict[int, Any] = {}

        def one(i: int, got: dict[int, Any] = got) -> None:
            got[i] = post(url, steered(ck=CASES[i][0], **CASES[i][1]))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(CASES))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [ids(got[i]) for i in range(len(CASES))] == wanted


def test_traces_are_those_of_the_transformers_engine(url: str, small: Any) -> None:
    control = ck.Control("ck-plug", alpha=0.2)
    answer = ck.generate(small[1], small[2], QUESTION, PASSAGES, control=control, max_new_tokens=16)
    status, reply = post(url, steered(16, ck={"method": "ck-plug", "alpha": 0.2}))
    assert status == 200
    for mine, theirs in zip(reply["ck"]["trace"], answer.tokens, strict=True):
        assert (mine["id"], mine["text"], mine["switched"]) == (theirs.id, theirs.text, theirs.switched)
        for name in ("h_par", "h_ctx", "logp_par", "logp_ctx", "logp_final", "tau"):
            assert mine[name] == pytest.approx(getattr(theirs, name), abs=2e-3), name


def test_masks_are_those_of_pruned_and_never_leak_through_the_cache(url: str, small: Any) -> None:
    masks = [HeadMask.of(small[1], [(0, 1)]), HeadMask.of(small[1], [(1, 0)], factor=2.0), HeadMask.of(small[1])]
    wanted = []
    for mask in masks:
        with pruned(small[1], mask):
            wanted.append(expected(small, {"method": "ck-plug", "alpha": 0.3}, {}))
    assert len({tuple(row) for row in wanted}) == 3, "the masks change the answer"
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        for i in order:
            heads = masks[i].to_dict() if i else masks[i].to_dict()["heads"]
            assert ids(post(url, steered(ck={"method": "ck-plug", "alpha": 0.3, "heads": heads}))) == wanted[i], (
                f"mask {i} in {order}"
            )


def test_the_direction_is_that_of_added_and_never_leaks_through_the_cache(
    url: str, small: Any, direction: Direction
) -> None:
    """Each alpha between requests without one, of tokens, of whole answers and beside a mask; twice."""
    mask = HeadMask.of(small[1], [(1, 0)], factor=2.0)
    asked: list[tuple[dict[str, Any], float | None, HeadMask]] = [
        (control, alpha, HeadMask.of(small[1]))
        for control in ({"method": "off"}, {"method": "cad", "alpha": 0.3}, {"method": "dial", "alpha": 0.7})
        for alpha in (0.0, None, 0.9)
    ]
    asked.append(({"method": "off"}, 0.2, mask))
    wanted = []
    for control, alpha, one in asked:
        with added(small[1], direction, 0.5 if alpha is None else alpha), pruned(small[1], one):
            wanted.append(expected(small, control, {}))
    assert len({tuple(row) for row in wanted}) >= 7, "the direction changes answers"
    for _ in range(2):
        for (control, alpha, one), want in zip(asked, wanted, strict=True):
            more = {} if alpha is None else {"direction": alpha}
            more |= {"heads": one.to_dict()["heads"]} if one is mask else {}
            reply = post(url, steered(ck=control | more))
            assert ids(reply) == want, (control, alpha)
            assert reply[1]["ck"].get("direction") == alpha


def test_drafts_are_those_of_the_transformers_engine(url: str, small: Any) -> None:
    control = ck.Control("dial", adaptive=True)
    answer = ck.generate(small[1], small[2], QUESTION, PASSAGES, control=control, max_new_tokens=16)
    status, reply = post(url, steered(16, ck={"method": "dial", "adaptive": True, "trace": False}))
    assert status == 200 and "trace" not in reply["ck"] and "token_ids" not in reply["choices"][0]
    assert reply["choices"][0]["message"]["content"].strip() == answer.text
    assert len(answer.drafts) == 2
    for mine, theirs in zip(reply["ck"]["drafts"], answer.drafts, strict=True):
        assert (mine["name"], mine["text"], mine["given"]) == (theirs.name, theirs.text, theirs.given)
        assert mine["surprise_ctx"] == pytest.approx(theirs.surprise_ctx, abs=5e-3)
        assert mine["surprise_par"] == pytest.approx(theirs.surprise_par, abs=5e-3)


@pytest.mark.parametrize("control", [{"alpha": 0.1}, {"method": "dial", "alpha": 0.7}])
def test_streams_hold_the_same_text_and_one_ck(url: str, control: dict[str, Any]) -> None:
    body = steered(ck=control | {"trace": False})
    whole = post(url, body)[1]["choices"][0]["message"]["content"]
    status, text = raw(url, {"stream": True, **body})
    events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert status == 200
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole
    assert [i for i, chunk in enumerate(chunks) if "ck" in chunk] == [len(chunks) - 1]


def test_clients_that_leave_leave_nothing_behind(url: str) -> None:
    for stream in (True, False):
        for _ in range(4):
            host, port = url.removeprefix("http://").split(":")
            data = json.dumps({"model": "m", "ignore_eos": True, **steered(1500, stream=stream)}).encode()
            with socket.create_connection((host, int(port))) as client:
                head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                client.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
                time.sleep(0.3)
    deadline = time.monotonic() + 300
    while any((now := gauges(url)).values()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert now == dict.fromkeys(now, 0.0)
    assert post(url, steered())[0] == 200


def test_refusals_of_the_engine_arrive_as_sentences(url: str) -> None:
    for body, path, said in (
        (steered(2100), "/v1/chat/completions", "max_model_len"),
        (steered(ck={"passages": ["x " * 3000]}), "/v1/chat/completions", "2048"),
        ({"prompt": "ab", "ck": {"prompt": "x " * 3000}}, "/v1/completions", "without passages"),
        (steered(ck={"heads": [{"layer": 5, "head": 0}]}), "/v1/chat/completions", "Layers are 0 to 1"),
    ):
        status, reply = post(url, body, path)
        assert status == 400 and said in reply["error"]["message"], reply


@pytest.mark.parametrize("stream", [True, False])
def test_a_grammar_without_a_way_out_is_a_400(url: str, stream: bool) -> None:
    later = [] if stream else [{"grammar": 'root ::= "a" b\nb ::= b'}]  # its first event is sent before the dead end
    for grammar in ({"grammar": "root ::= root"}, {"json": {"$ref": "#"}}, *later):
        status, reply = post(url, steered(structured_outputs=grammar, stream=stream))
        assert status == 400 and "allows no token" in reply["error"]["message"], (grammar, reply)


@pytest.mark.parametrize("stream", [False, True])
def test_a_policy_that_raises_is_a_500_that_names_it_and_the_others_are_answered(
    url: str, small: Any, stream: bool
) -> None:
    got: dict[str, Any] = {}
    body = steered(ck={"method": "stumbles", "label": str(stream)}, stream=stream)
    threads = [
        threading.Thread(target=lambda: got.update(bad=raw(url, body))),
        threading.Thread(target=lambda: got.update(good=post(url, steered(ck=CASES[1][0])))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status, text = got["bad"]
    assert re.search(r"steering by 'stumbles' failed at token [123]: KeyError: 'no such mood'", text), text
    begun = text.startswith("data:")  # not where vLLM tells the first tokens and the end in one event
    assert status == (200 if begun else 500) and '"code": 500' in text and (stream or not begun), text
    assert ids(got["good"]) == expected(small, *CASES[1])


def test_ordinary_requests_are_greedy_as_ever_even_with_arguments_of_ours(url: str, small: Any) -> None:
    import torch

    body = {"prompt": [257, 72, 105, 33], "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    body["vllm_xargs"] = {"ck_pair": "x", "ck_role": "contextual"}
    status, reply = post(url, body, "/v1/completions")
    out = small[1].generate(torch.tensor([body["prompt"]]), max_new_tokens=12, do_sample=False)
    assert status == 200 and reply["choices"][0]["token_ids"] == out[0, 4:].tolist()
