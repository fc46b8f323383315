"""`ckcontrol serve` before the real OpenAI client: its answers are those of `generate`, whatever else is under way."""

from __future__ import annotations

import ctypes
import gc
import json
import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

import ckcontrol as ck
from ckcontrol.control import overriding
from ckcontrol.decoding.running import RunningBatch
from ckcontrol.decoding.streams import TwoStreams
from ckcontrol.errors import ControlError
from ckcontrol.heads import Direction, Fingerprint, HeadMask, added, fingerprint, pruned
from ckcontrol.models.tiny import tiny_model
from ckcontrol.retrieval import Index, Passage
from ckcontrol.serving.batcher import Batcher
from ckcontrol.serving.jobs import End, Job
from ckcontrol.serving.prompt_pairs import BARE

from ..retrieval.hashes import Hashes
from .served import TURNS, Held, Served, alike, serve

QUESTION = "Which river runs through Orvendale?"
PASSAGES = ["The Tellin runs through Orvendale.", "Orvendale lies in the north, " * 3]
ASKED = [{"role": "user", "content": QUESTION}]
JSON = {"Content-Type": "application/json"}
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who was here? <|eot|>"},
    {"role": "assistant", "content": "Somebody."},
    *ASKED,
]


def case(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request of its own, as keywords of the client and of `generate`."""
    rng = random.Random(number)
    method = rng.choice(["ck-plug", "ck-plug", "cad", "adacad", "coiecd", "off", "dial", "grd"])
    more = {"alpha": rng.choice([0, 0.2, 0.8, 1])} if method in ("ck-plug", "cad", "dial") else {}
    passages = [] if rng.random() < 0.15 else [f"{rng.randint(0, 9)} {text}" for text in PASSAGES[: rng.randint(1, 2)]]
    options: dict[str, Any] = {"max_tokens": rng.randint(1, 40)}
    ours: dict[str, Any] = {"max_new_tokens": options["max_tokens"]}
    if rng.random() < 0.5:
        options |= {"temperature": 0.8, "top_p": 0.9, "seed": number}
        ours |= {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": number}
    else:
        options["temperature"] = 0
    if rng.random() < 0.3:
        options["stop"] = ours["stop"] = ["a", "\n"]
    extra = {"ck": {"passages": passages, "method": method, **more}, "return_token_ids": True}
    messages = rng.choice([ASKED, CONVERSATION])
    return (
        {"model": "tiny", "messages": messages, "extra_body": extra, **options},
        {"messages": messages, "passages": passages, "control": ck.Control(method, **more), **ours},
    )


def ids_of(reply: Any) -> list[int]:
    return list(reply.choices[0].model_extra["token_ids"])


@pytest.mark.parametrize("number", range(6))
def test_an_answer_is_that_of_generate(model, served: Served, number: int) -> None:
    asked, ours = case(number)
    asked["extra_body"]["ck"]["trace"] = True
    reply, answer = served.client.chat.completions.create(**asked), ck.generate(*model, **ours)
    assert ids_of(reply) == list(answer.token_ids)
    assert reply.choices[0].finish_reason == answer.finish_reason
    assert reply.choices[0].message.content.strip() == answer.text
    assert reply.usage.prompt_tokens == answer.context_tokens
    told = reply.model_extra["ck"]
    assert alike(told["trace"], answer.to_dict()["tokens"])
    drafts = [{"name": d.name, "given": d.given, "text": d.text} for d in answer.drafts]
    assert [{name: d[name] for name in ("name", "given", "text")} for d in told.get("drafts", ())] == drafts


def test_answers_in_mixed_batches_are_those_of_generate(model, served: Served) -> None:
    before = served.figures()
    cases = [case(number) for number in range(100, 124)]
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda one: served.client.chat.completions.create(**one[0]), cases))
    for reply, (_, ours) in zip(replies, cases, strict=True):
        assert ids_of(reply) == list(ck.generate(*model, **ours).token_ids)
    assert served.figures()["ckcontrol_answers_total"] == before["ckcontrol_answers_total"] + 24


@pytest.mark.parametrize("method", ["dial", "grd"])
def test_a_draft_that_can_no_longer_be_given_is_stopped_without_a_trace(model, served: Served, method: str) -> None:
    """What passages beside the point leave to amplify, and what a gate has decided against; the answer is the same."""
    own = {"method": method, "passages": ["Parcels go by the train."]} | ({"alpha": 0.2} if method == "dial" else {})
    asked = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 20}
    whole, cut = (
        served.client.chat.completions.create(**asked, extra_body={"ck": own | more, "return_token_ids": True})
        for more in ({"trace": True}, {})
    )
    assert ids_of(whole) == ids_of(cut)
    for draft, short in zip(whole.model_extra["ck"]["drafts"], cut.model_extra["ck"]["drafts"], strict=True):
        assert not draft["stopped"] and short["stopped"] != short["given"] and short["given"] == draft["given"]
        assert draft["text"].startswith(short["text"].rstrip("\ufffd"))
        assert short["text"] == draft["text"] or (short["evidence"] is None and short["stopped"])


def test_short_prompts_that_wait_are_run_together(model, monkeypatch) -> None:
    """Of one kind and of like lengths, in few forwards; one that cannot be planned fails alone."""
    prefills, plain = [], TwoStreams.prefill
    monkeypatch.setattr(
        TwoStreams, "prefill", lambda self: prefills.append(len(self.contextual.position)) or plain(self)
    )
    lengths = [1, 2, 1, 80, 2, 1]
    pairs = [ck.build_pair(model[1], f"Who is {i}?", ["Ada. " * n]) for i, n in enumerate(lengths)]
    options = ck.GenerateOptions(max_new_tokens=8, trace=False)
    controls = [ck.Control(alpha=0.2)] * 6
    told: list[list[Any]] = [[] for _ in pairs]
    ended = [threading.Event() for _ in pairs]

    def teller(place: int) -> Any:
        def tell(what: Any) -> None:
            told[place].append(what)
            if not isinstance(what, int):
                ended[place].set()

        return tell

    batcher = Batcher(*model, rows=6)
    with batcher._changed:
        for i, pair in enumerate(pairs):
            held = {"regex": "("} if i == 5 else {}
            batcher.submit(Job(pair, controls[i], options, held, tell=teller(i)))
    assert all(event.wait(120) for event in ended)
    batcher.close()
    assert sorted(prefills) == [1, 4]
    assert batcher.counts["steps"] == 7 and batcher.counts["tokens"] == 40  # all five in every step
    assert isinstance(told[5][-1], ControlError)
    for i, of in enumerate(told[:5]):
        want = ck.generate(*model, f"Who is {i}?", ["Ada. " * lengths[i]], control=controls[i], options=options)
        assert of[:-1] == list(want.token_ids) and isinstance(of[-1], End)


@pytest.mark.parametrize("number", [1, 3, 8, 9])
def test_a_stream_says_what_the_whole_answer_says(served: Served, number: int) -> None:
    asked, _ = case(number)
    whole = served.client.chat.completions.create(**asked)
    chunks = list(served.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert not last.choices and last.usage == whole.usage
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert [token for part in parts for token in part.choices[0].model_extra["token_ids"]] == ids_of(whole)
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert alike(parts[-1].model_extra["ck"], whole.model_extra["ck"]) and len({part.id for part in chunks}) == 1


def test_without_ck_the_model_answers_unmodified(model, served: Served) -> None:
    plain, tokenizer = model
    reply = served.client.chat.completions.create(
        model="tiny", messages=CONVERSATION, temperature=0, max_tokens=12, extra_body={"return_token_ids": True}
    )
    answer = ck.generate(plain, tokenizer, messages=CONVERSATION, template=BARE, max_new_tokens=12)
    assert ids_of(reply) == list(answer.token_ids) and "ck" not in reply.model_extra
    for prompt in ("Once upon", [257, 79, 110, 99, 101]):
        done = served.client.completions.create(
            model="tiny", prompt=prompt, temperature=0, max_tokens=12, extra_body={"return_token_ids": True}
        )
        ids = torch.tensor([tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt])
        made = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert ids_of(done) == made[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("number", range(6))
def test_logprobs_are_those_of_the_trace(model, served: Served, number: int) -> None:
    asked, ours = case(number)
    asked |= {"logprobs": True, "top_logprobs": 4}
    reply, answer = served.client.chat.completions.create(**asked), ck.generate(*model, **ours)
    told = reply.choices[0].logprobs.content
    assert ids_of(reply) == list(answer.token_ids) and "trace" not in reply.model_extra["ck"]
    assert [one.token for one in told] == [token.text for token in answer.tokens]
    assert [one.logprob for one in told] == pytest.approx([token.logp_final for token in answer.tokens], abs=1e-5)
    for one in told:
        tops = [top.logprob for top in one.top_logprobs]
        assert 0 < len(tops) <= 4 and tops == sorted(tops, reverse=True)
        assert bytes(one.bytes).decode() == one.token
        if not ours.get("do_sample"):
            assert one.logprob == tops[0] and one.token == one.top_logprobs[0].token
    chunks = list(served.client.chat.completions.create(**asked, stream=True))
    streamed = [one for part in chunks if part.choices[0].logprobs for one in part.choices[0].logprobs.content]
    assert [(one.token, one.bytes) for one in streamed] == [(one.token, one.bytes) for one in told]
    for one, other in zip(streamed, told, strict=True):
        assert alike([one.logprob], [other.logprob])
        assert alike(*([top.logprob for top in each.top_logprobs] for each in (one, other)))


def test_the_favourites_are_those_of_the_model(model, served: Served) -> None:
    plain, tokenizer = model
    done = served.client.completions.create(model="tiny", prompt="Once upon", temperature=0, max_tokens=5, logprobs=3)
    told, ids = done.choices[0].logprobs, tokenizer("Once upon")["input_ids"]
    made = plain.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)
    logp = plain(made).logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
    assert told.token_logprobs == pytest.approx(logp.amax(-1).tolist(), abs=1e-4)
    for step, top in zip(logp, told.top_logprobs, strict=True):
        best = step.topk(3)
        assert max(top.values()) == pytest.approx(best.values[0].item(), abs=1e-4)
        named = {tokenizer.decode([token]) for token in best.indices.tolist()}
        assert len(top) == len(named)
    assert "".join(told.tokens).startswith(done.choices[0].text)
    assert told.text_offset == [len("".join(told.tokens[:place])) for place in range(5)]
    bare = served.client.completions.create(model="tiny", prompt="Once upon", temperature=0, max_tokens=5, logprobs=0)
    assert alike(bare.choices[0].logprobs.token_logprobs, told.token_logprobs)
    assert bare.choices[0].logprobs.top_logprobs == [None] * 5
    plainly = served.client.completions.create(model="tiny", prompt="Once upon", temperature=0, max_tokens=5)
    assert plainly.choices[0].logprobs is None and plainly.choices[0].text == done.choices[0].text


def test_tools_and_variables_reach_the_chat_template() -> None:
    model, tokenizer = tiny_model("llama")
    told = (
        "{% if tools %}{% for t in tools %}{{ t.function.name }}: {{ t.function.description }} {% endfor %}{% endif %}"
    )
    tokenizer.chat_template = told + TURNS
    options: dict[str, Any] = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 8}
    with serve(model.float(), tokenizer) as server:
        for ck_object, more in (({"passages": PASSAGES, "alpha": 0.2}, {}), (None, {"template": BARE})):
            for choice, tools in ((None, [TOOL]), ("auto", [TOOL]), ("none", None)):
                extra = {"return_token_ids": True, "chat_template_kwargs": {"mood": "Brisk."}}
                extra |= {} if ck_object is None else {"ck": ck_object}
                extra |= {} if choice is None else {"tool_choice": choice}
                reply = server.client.chat.completions.create(**options, tools=[TOOL], extra_body=extra)
                answer = ck.generate(
                    model,
                    tokenizer,
                    messages=ASKED,
                    passages=(ck_object or {}).get("passages"),
                    control=ck.Control(alpha=0.2) if ck_object else None,
                    tools=tools,
                    template_kwargs={"mood": "Brisk."},
                    max_new_tokens=8,
                    **more,
                )
                assert ids_of(reply) == list(answer.token_ids)
                assert reply.usage.prompt_tokens == answer.context_tokens


def test_what_the_client_got_wrong_is_not_in_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    bad = {"model": "tiny", "messages": ASKED, "max_tokens": 3, "top_logprobs": 4}
    assert served.post(bad).status_code == 400
    assert (
        served.post({**bad, "response_format": schema, "ck": {"passages": ["x"], "segments": True}}).status_code == 400
    )
    assert not [record for record in caplog.records if record.name.startswith("ckcontrol")]


def test_hand_made_pairs(model, served: Served) -> None:
    plain, tokenizer = model
    other = [{"role": "user", "content": "Which river?"}]
    extra = {"ck": {"messages": other, "method": "cad", "alpha": 0.2}, "return_token_ids": True}
    said = served.client.chat.completions.create(
        model="tiny", messages=CONVERSATION, temperature=0, max_tokens=12, extra_body=extra
    )
    extra = {"ck": {"prompt": "Which river?", "method": "cad", "alpha": 0.2}, "return_token_ids": True}
    done = served.client.completions.create(
        model="tiny", prompt="It is the Tellin. Which river?", temperature=0, max_tokens=12, extra_body=extra
    )
    chats = [ck.build_pair(tokenizer, messages=one, template=BARE).contextual for one in (CONVERSATION, other)]
    texts = [tokenizer(one)["input_ids"] for one in ("It is the Tellin. Which river?", "Which river?")]
    for reply, prompts in ((said, chats), (done, texts)):
        made = ck.reference_generate(
            plain, *prompts, ck.Control("cad", 0.2), max_new_tokens=12, eos=[258, 259], vocab_size=len(tokenizer)
        )
        assert ids_of(reply) == made


def test_what_is_wrong_is_an_error_of_the_client(served: Served) -> None:
    chat = served.client.chat.completions
    with pytest.raises(openai.NotFoundError, match="no model 'other' here"):
        chat.create(model="other", messages=ASKED)
    for fields, sentence in [
        ({"n": 2}, "n=2: one request gets one answer here. Send it once per answer"),
        ({"logprobs": 3}, "logprobs=3"),
        ({"top_logprobs": 3}, "top_logprobs=3 without logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "from 0 to 20"),
        ({"logprobs": True, "extra_body": {"include_reasoning": False}}, "logprobs tell"),
        ({"tools": [TOOL], "tool_choice": "required"}, "nothing here makes a model call a tool"),
        ({"tools": [TOOL]}, "no variable 'tools'"),
        ({"tools": ["f"]}, "tools is a list"),
        ({"max_tokens": 5000}, "max_tokens=5000 .*from 1 to 1024"),
        ({"max_tokens": 0}, "max_tokens=0 .*from 1 to 1024"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens=5000 .*from 1 to 1024"),
        ({"extra_body": {"temprature": 0}}, "Did you mean 'temperature'.*Known: .*ck, .*seed.*top_p"),
        ({"extra_body": {"sources": "each"}}, "sources='each'.*belongs in ck"),
        ({"extra_body": {"segments": True}}, "segments=true.*belongs in ck"),
        ({"extra_body": {"ck": {"passages": ["x"], "foo": 0.3}}}, "ck.foo is unknown.*Known: .*sources"),
        ({"extra_body": {"max_token": 5}}, "Did you mean 'max_tokens'"),
        ({"extra_body": {"ck": {"passages": ["x"], "heads": [{"layer": 9, "head": 0}]}}}, r"head 9\.0|9"),
        ({"extra_body": {"ck": {"retrieve": {"k": 2}}}}, "--index"),
        (
            {"extra_body": {"ck": {"passages": ["x"], "method": "dial", "alpha": 0.7, "segments": True}}},
            "segments.*Leave segments out",
        ),
        ({"extra_body": {"ck": {"passages": ["x"], "method": "dial", "sigments": 1}}}, r"Known: (?!.*segments)"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "It"}]}, "cannot be continued"),
        ({"messages": [{"role": "user", "content": "x" * 5000}], "max_tokens": 7}, r"beside max_tokens=7\. Shorten"),
        ({"max_tokens": 7, "extra_body": {"ck": {"passages": ["x" * 5000]}}}, r"^(?!.*truncate).*=7\. Pass fewer"),
        ({"messages": "Who?"}, r'not a list of messages\. Like "messages": \['),
        ({"extra_body": {"ck": {"passages": ["x"], "method": "weights"}}}, "has none.*--weights FOLDER"),
        ({"response_format": {"type": "yaml"}}, "response_format.type='yaml'"),
        ({"extra_body": {"ck": {"passages": ["x"], "alpha": 3}}}, r"(?<!\w)ck\.alpha=3 is out of range\. Give"),
        (
            {"extra_body": {"ck": {"passages": ["x"], "adaptive": True, "alpha": 0.3}}},
            r"ck\.alpha=0\.3 would be ignored",
        ),
        ({"extra_body": {"ck": {"passages": ["x"], "template": {"question": "?"}}}}, r"ck\.template\.question='\?'"),
    ]:
        with pytest.raises(openai.BadRequestError, match=sentence):
            chat.create(**{"model": "tiny", "messages": ASKED, **fields})
    with pytest.raises(openai.BadRequestError, match="The model knows 0 to"):
        served.client.completions.create(model="tiny", prompt=[1, 100_000])
    for body, place in [
        ({"messages": [{"role": "user", "content": "caf\ud83d"}]}, "messages[0].content"),
        ({"messages": ASKED, "ck": {"passages": ["x", "\udce9"]}}, "ck.passages[1]"),
        ({"messages": ASKED, "ck": {"passages": ["x"], "a\udce9": 1}}, r"'a\udce9'"),
    ]:
        reply = httpx.post(f"{served.url}/v1/chat/completions", content=json.dumps(body), headers=JSON)
        assert reply.status_code == 400 and place in reply.text.replace("\\\\", "\\") and r"\ufffd" in reply.text
    assert served.post({}, headers={"Content-Type": "text/plain"}).status_code == 400
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    told = served.client.models.retrieve("tiny").model_extra["ck"]
    assert told["retrieve"] is None and "weights" not in told["methods"] and "dial" in told["methods"]


def test_another_method_than_a_path_takes_is_405_and_says_which_it_takes(served: Served) -> None:
    chat, models = "/v1/chat/completions", "/v1/models"
    for method, path, taken in [
        *((method, path, "POST") for path in (chat, "/v1/completions") for method in ("GET", "PUT", "OPTIONS")),
        *(("POST", path, "GET, HEAD") for path in (models, f"{models}/tiny", "/health", "/metrics", "/")),
    ]:
        reply = httpx.request(method, served.url + path)
        assert reply.status_code == 405 and {*reply.headers["allow"].split(", ")} == {*taken.split(", ")}, (
            method,
            path,
        )
        error = reply.json()["error"]
        assert error["code"] == 405 and repr(path) in error["message"] and repr(method) in error["message"]
        assert taken.split(", ")[-1] in error["message"]
    assert httpx.head(served.url + chat).status_code == 405
    assert {httpx.head(served.url + path).status_code for path in (models, "/health", "/")} == {200}
    for path in ("/v1/embeddings", "/v1/chat/completions/", "/nothing"):
        for method in ("GET", "HEAD"):
            assert httpx.request(method, served.url + path).status_code == 404
        assert repr(path) in httpx.get(served.url + path).json()["error"]["message"]


def test_a_passage_that_was_cut_or_left_out_is_told(model) -> None:
    texts = ["The Tellin runs through Orvendale.", "Orvendale lies " + "north " * 1000, "Orvendale has a harbour."]
    passages = [Passage(str(place), text) for place, text in enumerate(texts)]
    with Index.build(passages, Hashes()) as index, serve(*model, index=index) as server:
        extra = {"ck": {"retrieve": {"k": 3, "mode": "bm25"}, "alpha": 0.2}}
        reply = server.client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=4, extra_body=extra)
        long = next(hit["rank"] for hit in reply.ck["hits"] if len(hit["text"]) > 1000)
        assert re.search(rf"passages? {long} .*(cut|left out)", reply.ck["notice"])


def test_a_key_is_asked_for_before_a_body_is_read(model) -> None:
    with serve(*model, key="secret") as server:
        assert server.client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=2).choices
        with pytest.raises(openai.AuthenticationError):
            server.client.with_options(api_key="wrong").chat.completions.create(model="tiny", messages=ASKED)
        with socket.create_connection(("127.0.0.1", server.port), 60) as line:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
            line.sendall(head.encode())  # and no body, ever
            assert line.recv(100).startswith(b"HTTP/1.1 401")


def test_passages_are_retrieved(model) -> None:
    texts = ["The Tellin runs through Orvendale.", "Orvendale lies in the north.", "Quarrow has a harbour."]
    passages = [Passage(str(i), text, f"{i}.txt", {"year": 2000 + i}) for i, text in enumerate(texts)]
    with Index.build(passages, Hashes()) as index, serve(*model, index=index) as server:

        def ask(**wanted: Any) -> Any:
            extra = {"ck": {"retrieve": wanted, "alpha": 0.2}, "return_token_ids": True}
            return server.client.chat.completions.create(
                model="tiny", messages=CONVERSATION, temperature=0, max_tokens=12, extra_body=extra
            )

        reply = ask(k=2, mode="bm25")
        hits = index.search(QUESTION, 2, mode="bm25")
        told = reply.model_extra["ck"]
        assert told["hits"] == json.loads(json.dumps([hit.to_dict() for hit in hits])) and told["passages"] == 2
        given = [hit.passage.text for hit in hits]
        answer = ck.generate(
            *model, messages=CONVERSATION, passages=given, control=ck.Control(alpha=0.2), max_new_tokens=12
        )
        assert ids_of(reply) == list(answer.token_ids)
        assert told["cited"] == [sentence.to_dict() for sentence in answer.cited] != []
        floor = (hits[0].score + hits[1].score) / 2
        assert [hit["id"] for hit in ask(k=2, mode="bm25", min_score=floor).ck["hits"]] == [hits[0].passage.id]
        assert [hit["source"] for hit in ask(k=1, query="harbour Quarrow", mode="bm25").ck["hits"]] == ["2.txt"]
        assert [hit["source"] for hit in ask(where={"year": 2001}).ck["hits"]] == ["1.txt"]
        nothing = ask(where={"year": 1900})
        assert (nothing.ck["hits"], nothing.ck["method"]) == ([], "off")
        assert nothing.ck["notice"].endswith("from memory alone.") and "notice" not in told
        for wanted in (
            {"k": 0},
            {"k": 65},
            {"mode": "magic"},
            {"min_score": "0.3"},
            {"where": {"year": {"$no": 1}}},
            {"limit": 1},
        ):
            with pytest.raises(openai.BadRequestError, match=r"ck\.retrieve"):
                ask(**wanted)


def test_an_override_of_the_index_outranks_what_is_found(model) -> None:
    fact = {"id": "moved", "question": QUESTION, "answer": "The Ostrin."}
    with Index.build([Passage("a", PASSAGES[0])], Hashes(), overrides=[fact]) as index:
        with serve(*model, index=index) as server:

            def ask(question: str) -> Any:
                turns = [{"role": "user", "content": question}]
                extra = {"ck": {"retrieve": {"k": 1}, "alpha": 0.9}, "return_token_ids": True}
                return server.client.chat.completions.create(
                    model="tiny", messages=turns, temperature=0, max_tokens=8, extra_body=extra
                )

            reply = ask(QUESTION)
            assert reply.ck["override"] == "moved" and reply.ck["method"] == "cad"
            given = [f"{QUESTION} The Ostrin."]
            assert [hit["text"] for hit in reply.ck["hits"]] == given
            turns = [{"role": "user", "content": QUESTION}]
            answer = ck.generate(*model, messages=turns, passages=given, control=overriding(), max_new_tokens=8)
            assert ids_of(reply) == list(answer.token_ids)
            other = ask("Something else?")
            assert "override" not in other.ck and other.ck["hits"][0]["text"] == PASSAGES[0]


def test_a_client_who_leaves_frees_its_row(model, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)  # so that the answer is under way for as long as it takes
    held.let(20)
    with serve(*model, limits={"pairs": 1}) as server:
        extra = {"ck": {"passages": PASSAGES, "method": "ck-plug", "alpha": 0.2}}
        long: dict[str, Any] = {"model": "tiny", "messages": ASKED, "seed": 1, "max_tokens": 1000, "extra_body": extra}
        stream = server.client.chat.completions.create(**long, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as full:
            server.client.chat.completions.create(**long)
        assert full.value.response.headers["retry-after"] == "1"
        stream.close()
        server.until("requests_running", 0)
        held.open = True
        server.until("left_total", 1)
        assert 1 < server.figures()["ckcontrol_tokens_total"] <= 22
        assert server.client.chat.completions.create(**long | {"max_tokens": 2}).choices


def test_a_server_that_is_idle_holds_no_keys_and_values(served: Served) -> None:
    def held() -> set[int]:
        return {id(one) for one in gc.get_objects() if type(one) in (RunningBatch, TwoStreams)}

    before = held()  # by other tests
    served.client.chat.completions.create(**case(1)[0])
    end = time.monotonic() + 120
    while held() - before:
        assert time.monotonic() < end, "an answer is over, and its batch is held"
        gc.collect()
        time.sleep(0.05)


def test_a_server_that_is_idle_gives_memory_back(served: Served) -> None:
    """What the C library holds in holes below a block that is in use."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("the C library of this machine is not glibc")
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    status = Path("/proc/self/status")

    def resident() -> int:
        return int(re.findall(r"VmRSS:\s+(\d+)", status.read_text(encoding="ascii"))[0])

    *holes, last = [libc.malloc(60_000) for _ in range(4000)]
    for block in holes:
        ctypes.memset(block, 1, 60_000)
    full = resident()
    for block in holes:
        libc.free(block)
    served.client.chat.completions.create(**case(1)[0])
    end = time.monotonic() + 120
    while resident() > full - 150_000:
        assert time.monotonic() < end
        time.sleep(0.05)
    libc.free(last)


def test_an_answer_has_its_time(model, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    with serve(*model, limits={"seconds": 0.3}) as server:
        with pytest.raises(openai.InternalServerError, match=r"no answer within 0\.3 s") as late:
            server.client.chat.completions.create(model="tiny", messages=ASKED, seed=1, max_tokens=1000)
        assert late.value.status_code == 503
        server.until("requests_running", 0)
        held.open = True


def test_what_fails_one_row_fails_no_other() -> None:
    model, tokenizer = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        (at,) = tokenizer("@", add_special_tokens=False)["input_ids"]
        model.get_input_embeddings().weight[at] = torch.nan
        model.lm_head.weight[at] = 0  # so that no other row comes to say it
    texts = [f"{'@' if i == 5 else i} is what?" for i in range(12)]
    with serve(model, tokenizer) as server:

        def ask(text: str) -> Any:
            messages, extra = [{"role": "user", "content": text}], {"ck": {"passages": PASSAGES[:1], "alpha": 0.2}}
            extra["return_token_ids"] = True
            try:
                return server.client.chat.completions.create(
                    model="tiny", messages=messages, temperature=0, max_tokens=16, extra_body=extra
                )
            except openai.APIStatusError as error:
                return error

        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(ask, texts))
    assert replies[5].status_code == 503 and "NaN" in replies[5].message
    for text, reply in zip(texts, replies, strict=True):
        if "@" not in text:
            answer = ck.generate(model, tokenizer, text, PASSAGES[:1], control=ck.Control(alpha=0.2), max_new_tokens=16)
            assert ids_of(reply) == list(answer.token_ids)


def test_head_masks_are_each_requests_own(model, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    read, sample = [], fingerprint._sample
    monkeypatch.setattr(fingerprint, "_sample", lambda matrix: read.append(matrix) or sample(matrix))
    masks = [[], [(0, 1)], [(0, 1)], [(1, 0), (1, 2)], []]

    def ask(mask: list[tuple[int, int]]) -> Any:
        heads = [{"layer": layer, "head": head} for layer, head in mask]
        extra = {
            "ck": {"passages": PASSAGES, "alpha": 0.2, "method": "ck-plug", "heads": heads},
            "return_token_ids": True,
        }
        return served.client.chat.completions.create(
            model="tiny", messages=ASKED, temperature=0, max_tokens=24, extra_body=extra
        )

    with ThreadPoolExecutor(5) as pool:
        replies = list(pool.map(ask, masks))
    assert len(read) <= 1 + model[0].config.num_hidden_layers  # once, for the server: no step reads the weights
    made = []
    for mask, reply in zip(masks, replies, strict=True):
        with pruned(model[0], HeadMask.of(model[0], mask)):
            answer = ck.generate(
                *model, messages=ASKED, passages=PASSAGES, control=ck.Control("ck-plug", 0.2), max_new_tokens=24
            )
        made.append(list(answer.token_ids))
        assert ids_of(reply) == made[-1]
        assert reply.model_extra["ck"].get("heads", 0) == len(mask)
    assert made[0] != made[1] != made[3]


def test_drafts_are_read_under_the_mask_that_they_were_written_under(model, served: Served) -> None:
    """Also where they are read once more, after the passages alone."""
    mask = [(0, 1), (1, 2)]
    heads = [{"layer": layer, "head": head} for layer, head in mask]
    reply = served.client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        temperature=0,
        max_tokens=12,
        extra_body={"ck": {"passages": PASSAGES, "method": "trustmargin", "heads": heads}, "return_token_ids": True},
    )
    with pruned(model[0], HeadMask.of(model[0], mask)):
        answer = ck.generate(
            *model, messages=ASKED, passages=PASSAGES, control=ck.Control("trustmargin"), max_new_tokens=12
        )
    told = [draft["evidence"] for draft in reply.model_extra["ck"]["drafts"]]
    assert ids_of(reply) == list(answer.token_ids)
    assert told == [None, pytest.approx(answer.drafts[1].evidence, rel=1e-4)]


def test_directions_are_each_requests_own(model) -> None:
    """One direction of the server, an alpha per request; beside a policy, beside a mask, and with none."""
    torch.manual_seed(0)
    width = model[0].config.hidden_size
    direction = Direction(Fingerprint.of(model[0]), 1, torch.randn(width), context=8.0, memory=6.0)
    alphas = [None, 0.0, 0.5, 0.0, 0.9, 1]

    def ask(lean: Any, **more: Any) -> Any:
        ck_ = {"passages": PASSAGES, "method": "off", **more, **({} if lean is None else {"direction": lean})}
        return server.client.chat.completions.create(
            model="tiny", messages=ASKED, temperature=0, max_tokens=12, extra_body={"ck": ck_, "return_token_ids": True}
        )

    def wanted(lean: float | None, **more: Any) -> list[int]:
        with added(model[0], direction, 0.5 if lean is None else lean):
            answer = ck.generate(
                *model, messages=ASKED, passages=PASSAGES, control=ck.Control(**more), max_new_tokens=12
            )
        return list(answer.token_ids)

    plug = {"method": "ck-plug", "alpha": 0.2}
    with serve(*model, direction=direction) as server:
        with ThreadPoolExecutor(6) as pool:
            replies = list(pool.map(ask, alphas))
            steered = list(pool.map(lambda lean: ask(lean, **plug), alphas))
        masked = ask(0.0, heads=[{"layer": 0, "head": 1}])
        for bad in (-0.1, 1.5, True, "0", [0]):
            with pytest.raises(openai.BadRequestError, match=r"ck\.direction"):
                ask(bad)
    made = [wanted(lean, method="off") for lean in alphas]
    assert [ids_of(reply) for reply in replies] == made
    assert made[0] == made[2] != made[1] and made[5] not in (made[0], made[1])
    assert [ids_of(reply) for reply in steered] == [wanted(lean, **plug) for lean in alphas]
    assert [reply.model_extra["ck"].get("direction") for reply in replies] == alphas
    with pruned(model[0], HeadMask.of(model[0], [(0, 1)])):
        assert ids_of(masked) == wanted(0.0, method="off")


def test_a_server_without_a_direction_says_so(served: Served) -> None:
    extra = {"ck": {"passages": PASSAGES, "direction": 0.2}}
    with pytest.raises(openai.BadRequestError, match=r"this server has none.*--direction FILE"):
        served.client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=2, extra_body=extra)


def test_a_schema_holds_answers(served: Served, model) -> None:
    pytest.importorskip("xgrammar")
    schema = {"type": "object", "properties": {"river": {"enum": ["Tellin", "Vess"]}}, "required": ["river"]}
    form = {"type": "json_schema", "json_schema": {"name": "river", "schema": schema}}
    extra = {"ck": {"passages": PASSAGES, "alpha": 0.2}, "return_token_ids": True}
    reply = served.client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, max_tokens=60, response_format=form, extra_body=extra
    )
    assert json.loads(reply.choices[0].message.content)["river"] in ("Tellin", "Vess")
    ours = {"passages": PASSAGES, "control": ck.Control(alpha=0.2), "max_new_tokens": 60, "json_schema": schema}
    assert ids_of(reply) == list(ck.generate(*model, messages=ASKED, **ours).token_ids)


BITS: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2.5,
    1e308,
    10**30,
    "",
    "x",
    "\ud800",
    "@" * 300,
    [],
    ["x"],
    {},
    {"a": 1},
    [[1]],
]
FIELDS = "model messages prompt stream stream_options max_tokens temperature top_p top_k seed stop n ck tools logprobs"
CK = "passages messages prompt retrieve method alpha template trace heads direction candidates gate x"


def test_random_bodies_get_a_sentence_or_an_answer(served: Served) -> None:
    rng = random.Random(7)
    counts = {"4xx": 0, "answer": 0}
    for number in range(200):
        path, body = rng.choice([("chat/completions", {"messages": ASKED}), ("completions", {"prompt": QUESTION})])
        body = {"model": "tiny", "max_tokens": 2, **body}
        if rng.random() < 0.6:
            body["ck"] = {"passages": PASSAGES[:1], "alpha": 0.2}
            if rng.random() < 0.7:
                body["ck"][rng.choice(CK.split())] = rng.choice(BITS)
        for _ in range(rng.randint(0, 2)):
            body[rng.choice([*FIELDS.split(), "response_format", "chat_template_kwargs"])] = rng.choice(BITS)
        data = json.dumps(body).encode()
        if number % 20 == 0:
            data = data[: rng.randint(0, len(data))]
        reply = httpx.post(
            f"{served.url}/v1/{path}", content=data, headers={"Content-Type": "application/json"}, timeout=120
        )
        if reply.status_code == 200:
            counts["answer"] += 1
            assert "data: [DONE]" in reply.text or reply.json()["choices"][0]["finish_reason"] in ("stop", "length")
        else:
            counts["4xx"] += 1
            assert 400 <= reply.status_code < 500, (body, reply.text)
            assert len(reply.json()["error"]["message"]) > 20
    assert min(counts.values()) > 30, counts
