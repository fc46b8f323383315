"""Where an answer ends and what of it is the answer: stop texts, and thoughts apart from the text."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.token_texts import THOUGHTS, TextSoFar, Thoughts, pieces, said, split_thought
from ckcontrol.errors import ControlError, PromptError
from ckcontrol.models.tiny import tiny_model

QUESTIONS = ["Who did it?", "Where?", "When was that then, and why?", "How?"]
PASSAGES = [["It was the postman."], ["Here. " * 9], ["Then."], []]
CONTROLS = {
    "off": ck.Control("off"),
    "steered": ck.Control("ck-plug", alpha=0.1, gate=3.0),
    "cad": ck.Control("cad", 0.2),
}
DRAFTED = {"dial": ck.Control("dial", 0.7), "grd": ck.Control("grd")}


def stops(text: str) -> list[str]:
    """Texts of two characters, so of two tokens, that stand in a text."""
    pairs = [text[i : i + 2] for i in range(2, len(text) - 2)]
    return [pair for pair in pairs if pair.isascii() and pair.strip() == pair][:3]


# --- stop texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CONTROLS])
def test_an_answer_ends_before_its_stop_text_and_each_row_by_itself(llama, name):
    control = CONTROLS[name]
    free = ck.generate(*llama, QUESTIONS, PASSAGES, control=control, max_new_tokens=30)
    stop = [pair for answer in free for pair in stops(answer.text)]
    assert len(stop) >= 3
    batch = ck.generate(*llama, QUESTIONS, PASSAGES, control=control, max_new_tokens=30, stop=stop)
    lengths = set()
    for i, (answer, whole) in enumerate(zip(batch, free, strict=True)):
        count = len(answer.token_ids)
        assert answer.token_ids == whole.token_ids[:count], "until it ends nothing changes"
        decoded = llama[1].decode(answer.token_ids, skip_special_tokens=True)
        assert any(one in decoded for one in stop) and not any(one in answer.text for one in stop)
        assert not any(one in llama[1].decode(answer.token_ids[:-1], skip_special_tokens=True) for one in stop)
        assert answer.text == decoded[: min(p for p in map(decoded.find, stop) if p >= 0)].strip()
        assert answer.finish_reason == "stop" and len(answer.tokens) == count
        alone = ck.generate(*llama, QUESTIONS[i], PASSAGES[i], control=control, max_new_tokens=30, stop=stop)
        assert (alone.token_ids, alone.text) == (answer.token_ids, answer.text)
        lengths.add(count)
    assert len(lengths) > 1, "the case must be able to fail"


@pytest.mark.parametrize("name", [*DRAFTED])
def test_stop_texts_end_the_drafts_of_whole_answer_methods(llama, name):
    free = ck.generate(*llama, QUESTIONS, PASSAGES, control=DRAFTED[name], max_new_tokens=30)
    stop = [pair for answer in free for pair in stops(answer.text)]
    batch = ck.generate(*llama, QUESTIONS, PASSAGES, control=DRAFTED[name], max_new_tokens=30, stop=stop)
    for question, passages, answer in zip(QUESTIONS, PASSAGES, batch, strict=True):
        alone = ck.generate(*llama, question, passages, control=DRAFTED[name], max_new_tokens=30, stop=stop)
        assert answer.token_ids == alone.token_ids and answer.text == alone.text
        assert not any(one in text for one in stop for text in (answer.text, *(d.text for d in answer.drafts)))
    assert any(answer.finish_reason == "stop" and len(answer.token_ids) < 30 for answer in batch)


def test_a_stop_text_in_the_last_token_there_is_room_for_is_a_stop(llama):
    free = ck.generate(*llama, QUESTIONS[0], PASSAGES[0], max_new_tokens=30)
    (stop, *_) = stops(free.text)
    ended = ck.generate(*llama, QUESTIONS[0], PASSAGES[0], max_new_tokens=30, stop=stop)
    room = len(ended.token_ids)
    assert ck.generate(*llama, QUESTIONS[0], PASSAGES[0], max_new_tokens=room, stop=stop) == ended
    assert ended.finish_reason == "stop"


def test_the_prompt_does_not_stop_the_answer(llama):
    free = ck.generate(*llama, QUESTIONS[0], PASSAGES[0], max_new_tokens=6)
    stop = ("Question: ", "postman", "assistant: ", ": " + free.text[:1])
    assert ck.generate(*llama, QUESTIONS[0], PASSAGES[0], max_new_tokens=6, stop=stop).token_ids == free.token_ids


@pytest.mark.parametrize("where", ["loop", "generate"])
@pytest.mark.parametrize("name", ["off", "steered"])
def test_the_loop_takes_stop_texts_from_both_doors(llama, where, name):
    model, tokenizer = llama
    pair = ck.build_pair(tokenizer, QUESTIONS[0], PASSAGES[0])
    want = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=CONTROLS[name], max_new_tokens=30)
    stop = stops(want.text)
    want = ck.generate(
        model, tokenizer, QUESTIONS[0], PASSAGES[0], control=CONTROLS[name], max_new_tokens=30, stop=stop
    )
    ids = torch.tensor([pair.contextual])
    loop = ck.decoding_loop(
        CONTROLS[name], parametric_ids=torch.tensor([pair.parametric]), tokenizer=tokenizer, vocab_size=len(tokenizer),
        stop=stop if where == "loop" else (),
    )  # fmt: skip
    more = {"stop_strings": stop, "tokenizer": tokenizer} if where == "generate" else {}
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 256, "attention_mask": torch.ones_like(ids)}
    out = model.generate(ids, custom_generate=loop, **options, **more)
    assert tuple(out[0, ids.shape[1] :].tolist()) == want.token_ids and len(want.token_ids) < 30
    if name == "off":
        plain = model.generate(ids, **options, stop_strings=stop, tokenizer=tokenizer)
        assert torch.equal(out, plain), "transformers' own criterion stops at the same token"


def test_stop_texts_in_the_loop_need_its_tokenizer(llama):
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ControlError, match=r"decoding_loop\(tokenizer=\.\.\.\)"):
        llama[0].generate(ids, custom_generate=ck.decoding_loop(parametric_ids=ids), stop_strings=["x"], max_length=9)


@pytest.mark.parametrize("stop", ["", ("a", ""), 7, b"x", [b"x"], [None], {"a"}, None])
def test_stop_texts_that_are_none_are_refused(stop):
    with pytest.raises(ControlError, match="stop="):
        GenerateOptions(stop=stop)
    assert GenerateOptions(stop="a").stop == GenerateOptions(stop=["a"]).stop == ("a",)


# --- thoughts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "opened", "want"),
    [
        ("Paris", False, ("Paris", None)),
        ("<think>Hm.</think> Paris", False, ("Paris", "Hm.")),
        ("\n<think>\nHm.\n</think>\n\nParis\n", False, ("Paris", "Hm.")),
        ("<think>\n\n</think>\n\nParis", False, ("Paris", "")),
        ("Hm.</think>Paris", True, ("Paris", "Hm.")),
        ("Hm.</think>Paris", False, ("Paris", "Hm.")),
        ("<think>Hm.</think>Paris", True, ("Paris", "Hm.")),
        ("Hm, so it", True, ("", "Hm, so it")),
        ("<think>Hm, so it", False, ("", "Hm, so it")),
        ("", True, ("", "")),
        ("", False, ("", None)),
        ("<think>a</think><think>b</think>Paris", False, ("Paris", "a\n\nb")),
        ("<think>a <think> b</think>Paris", False, ("Paris", "a <think> b")),
        ("It writes <think>a</think> first.", False, ("It writes <think>a</think> first.", None)),
        ("<think>a</think>Not </think> again", False, ("Not </think> again", "a")),
        ("I think </b> so", False, ("I think </b> so", None)),
        *((f"{start}Hm.{end}Paris", False, ("Paris", "Hm.")) for start, end in THOUGHTS),
    ],
)
def test_a_thought_is_taken_out_of_the_text(text, opened, want):
    assert split_thought(text, opened=opened) == want


@pytest.fixture
def saying(monkeypatch):
    """A function text -> a model that says it, whatever it is asked, and its tokenizer."""

    def say(text: str, tokenizer=None):
        model, own = tiny_model()
        tokenizer = tokenizer or own
        script = iter([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
        ck.generate(model, own, "Who?", max_new_tokens=1)  # it is a model that two streams may run; now it gets lines
        real = model.forward

        def forward(*args, **kwargs):
            out = real(*args, **kwargs)
            out.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(next(script)), out.logits.shape[-1]) * 50.0
            return out

        monkeypatch.setattr(model, "forward", forward)
        return model, tokenizer

    return say


QWEN = (
    "<|bos|>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eot|>\n{% endfor %}assistant: "
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
OPENING = "<|bos|>{{ messages[-1]['content'] }}<|eot|>\nassistant: <think>{{ '\n' }}"


def ask(model, tokenizer, **more):
    return ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=ck.Control("off"), trace=False, **more)


def test_thinking_stands_apart_from_the_answer(saying):
    answer = ask(*saying("<think>\nHm.\n</think>\n\nParis"))
    assert (answer.text, answer.thinking, answer.finish_reason) == ("Paris", "Hm.", "stop")
    assert ask(*saying("Paris")).thinking is None


def test_a_thought_that_the_template_opened(saying, byte):
    byte.chat_template = OPENING
    pair = ck.build_pair(byte, *ASK_OPEN)
    assert pair.thinking and byte.decode(pair.contextual).endswith("<think>\n")
    answer = ask(*saying("Hm.</think>Paris", byte))
    assert (answer.text, answer.thinking) == ("Paris", "Hm.")
    cut = ask(*saying("Hm, so it may", byte), max_new_tokens=6)
    assert (cut.text, cut.thinking, cut.finish_reason) == ("", "Hm, so", "length")
    assert not ck.build_pair(byte, "<think>", ["<think>"], template=ck.PromptTemplate(chat=False)).thinking


ASK_OPEN = ("What is <think>?", ["It is </think>."])


def test_tags_that_are_special_tokens_are_found(saying, byte):
    byte.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("<think>", "</think>")])
    byte.extra_special_tokens = ["<think>", "</think>"]
    answer = ask(*saying("<think>Hm.</think>Paris", byte))
    assert 260 in answer.token_ids and (answer.text, answer.thinking) == ("Paris", "Hm.")


def test_a_stop_text_in_a_thought_ends_the_answer_there(saying):
    answer = ask(*saying("<think>Hm. STOP</think>Paris"), stop=" STOP")
    assert (answer.text, answer.thinking, answer.finish_reason) == ("", "Hm.", "stop")


def test_answers_written_before_there_was_thinking_are_read(saying):
    answer = ask(*saying("<think>Hm.</think>Paris"))
    assert ck.Answer.from_dict(json.loads(answer.to_json())) == answer
    old = answer.to_dict()
    del old["thinking"]
    assert ck.Answer.from_dict(old).thinking is None and ck.Answer.from_dict(old).text == "Paris"


# --- variables of the chat template ---------------------------------------------------------------------------


def test_template_variables_reach_the_chat_template_at_every_door(byte):
    byte.chat_template = QWEN
    closed = "assistant: <think>\n\n</think>\n\n"
    off = {"enable_thinking": False}
    for pair in (
        ck.build_pair(byte, QUESTIONS[0], PASSAGES[0], template_kwargs=off),
        ck.build_pair(byte, QUESTIONS[0], PASSAGES[0], template=ck.PromptTemplate(template_kwargs=off)),
    ):
        assert byte.decode(pair.contextual).endswith(closed) and byte.decode(pair.parametric).endswith(closed)
        assert pair.contextual[: pair.span[0]] + pair.contextual[pair.span[1] :] == pair.parametric
        assert not pair.thinking
    free = ck.build_pair(byte, QUESTIONS[0], PASSAGES[0])
    on = ck.build_pair(byte, QUESTIONS[0], PASSAGES[0], template_kwargs={"enable_thinking": True})
    assert free == on and byte.decode(free.contextual).endswith("assistant: ")

    model, _ = tiny_model()
    want = len(free.contextual) + len(byte("<think>\n\n</think>\n\n")["input_ids"])
    assert ask(model, byte, template_kwargs=off, max_new_tokens=1).context_tokens == want
    found = type("Found", (), {"search": lambda self, queries, k: [[] for _ in queries]})()
    rag = ck.Rag((model, byte), found, template_kwargs=off, max_new_tokens=1)
    assert rag.ask(QUESTIONS[0]).answer.context_tokens == want - (free.span[1] - free.span[0])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"enable_thinkin": False}, "Did you mean 'enable_thinking'"),
        ({"tokenize": True}, "'tokenize' is set by ckcontrol"),
        ({"messages": []}, "'messages' is set by ckcontrol"),
        ({"add_generation_prompt": False}, "is set by ckcontrol"),
        ({"documents": []}, "is set by ckcontrol"),
        ("enable_thinking", "does not name variables"),
        ({1: 2}, "does not name variables"),
    ],
)
def test_variables_that_the_template_cannot_use_are_refused(byte, variables, message):
    byte.chat_template = QWEN
    with pytest.raises(PromptError, match=message):
        ck.build_pair(byte, QUESTIONS[0], PASSAGES[0], template_kwargs=variables)


def test_variables_without_a_chat_template_are_refused(byte):
    with pytest.raises(PromptError, match="no chat template in use"):
        ck.build_pair(
            byte, "q", ["p"], template=ck.PromptTemplate(chat=False, template_kwargs={"enable_thinking": False})
        )


def test_a_template_with_variables_is_a_value():
    one = ck.PromptTemplate(template_kwargs={"enable_thinking": False})
    assert one == ck.PromptTemplate(template_kwargs={"enable_thinking": False}) != ck.PromptTemplate()
    assert hash(one) is not None and "template_kwargs" not in ck.PromptTemplate().to_dict()
    assert ck.PromptTemplate(**json.loads(json.dumps(one.to_dict()))) == one


WRITTEN = (
    *("", " ", "Paris", " Paris ", "<think>Hm.</think> Paris", " <think>\n a\n\nb </think>\n\nParis.\n", "<think>Hm"),
    *("<think></think>x", "<think>a</think><think> b</think>c <think>d</think>", "<thi", "<thinks", "a < b"),
    *(
        "[THINK]x</think>y[/THINK]z",
        "◁think▷Hm◁/think▷ a",
        "<think><think>a</think>b",
        "<think>a</thin",
        "<thinking>a<",
    ),
)


# That it began inside a thought, a stream cannot know by itself.
ARRIVING = [(text, False) for text in WRITTEN]
ARRIVING += [(start + text, True) for text in WRITTEN for start in ("", "Hm.</think>")]


@pytest.mark.parametrize(("text", "opened"), ARRIVING)
def test_thoughts_are_parted_alike_however_a_text_arrives(text: str, opened: bool) -> None:
    want, thought = split_thought(text, opened=opened)
    for size in (1, 2, 3, 5, 100):
        parts = Thoughts(opened=opened)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        told = [parts.feed(piece) for piece in pieces] + [parts.feed("", last=True)]
        answer, thinking = ("".join(part) for part in zip(*told, strict=True))
        assert (answer.strip(), thinking) == (want, thought or ""), size
        assert thought is not None or answer == text, "an answer without a thought is as it was"
        assert not thought or answer == want


@pytest.mark.parametrize("seed", range(60))
def test_what_each_token_added_is_told_alike_however_they_arrive(byte, seed):
    rng = random.Random(seed)
    texts = ["a", " b", "é", "中", "🙂", "\ufffd", "क्"]
    known = byte("".join(rng.choices(texts, k=6)), add_special_tokens=False)["input_ids"]
    ids = known + [rng.randrange(len(byte)) for _ in range(14)]  # then halves of characters and special tokens
    rng.shuffle(ids) if seed % 2 else None
    told: list[str] = []
    for place in sorted(rng.sample(range(len(ids)), rng.randint(0, 9))):
        told += pieces(byte, ids[:place], since=len(told), last=False)
        assert "".join(told) == "".join(pieces(byte, ids)[: len(told)])
    told += pieces(byte, ids, since=len(told))
    assert told == pieces(byte, ids)


# --- an answer that ends inside a character ---


def fallback() -> Any:
    """A tokenizer with a token for every byte, as Llama's is, whose decoder spoils a whole run of them for one half."""
    vocab = {**{f"<0x{byte:02X}>": byte for byte in range(256)}, "a": 256, "\ufffd": 257, "b": 258}
    made = Tokenizer(tokenizers.models.BPE(vocab, [], byte_fallback=True))
    made.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def merged() -> Any:
    """A byte-level tokenizer, of which one token holds a blank and the beginning of an emoji, as in GPT-2."""
    letters = {letter: place for place, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "ð"), ("Ġð", "Ł")]
    vocab = letters | {"".join(pair): len(letters) + place for place, pair in enumerate(merges)}
    made = Tokenizer(tokenizers.models.BPE(vocab, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize("kind", ["byte", "fallback", "merged"])
@pytest.mark.parametrize("text", ["aé", "éé", "a \N{SLIGHTLY SMILING FACE}", "中", "a\ufffd", "a\ufffdé", "ab"])
def test_an_answer_that_is_cut_inside_a_character_ends_before_it(byte: Any, kind: str, text: str) -> None:
    tokenizer = {"byte": lambda: byte, "fallback": fallback, "merged": merged}[kind]()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert said(tokenizer, ids).text == text, "U+FFFD that was written stays"
    sizes = [{"Ġð": 2, "ĠðŁ": 3, "\ufffd": 3}.get(name, 1) for name in tokenizer.convert_ids_to_tokens(ids)]
    assert sum(sizes) == len(text.encode())
    for count in range(len(ids) + 1):
        whole = text.encode()[: sum(sizes[:count])].decode("utf-8", "ignore")
        assert said(tokenizer, ids[:count]).text == whole.strip()
        assert "".join(pieces(tokenizer, ids[:count])) == whole
        arriving = TextSoFar(tokenizer)
        assert "".join([*(arriving.feed([token]) for token in ids[:count]), arriving.feed(last=True)]) == whole


def test_a_stray_half_inside_an_answer_stays(byte: Any) -> None:
    half, rest, letter = byte("éb", add_special_tokens=False)["input_ids"]
    ended = [letter, half, byte.eos_token_id]
    assert (
        said(byte, ended).text == TextSoFar(byte).feed(ended, last=True) == "b" != said(byte, [letter, half, rest]).text
    )
    assert said(byte, [half, letter, half]).text == "\ufffdb" == "".join(pieces(byte, [half, letter, half]))
