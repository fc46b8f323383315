"""Conversations: passages stand in the last user turn and nothing else differs; every turn's text stays text."""

from __future__ import annotations

import json

import pytest

import ckcontrol as ck
from ckcontrol.errors import PromptError, PromptTooLong
from ckcontrol.models.tiny import SPECIALS

from .test_prompts import ASK, FOREIGN, in_vocabulary, prefixing, specials, without_span

QUESTION, PASSAGES = ASK
# Qwen's form: tools and calls where there are any, a variable, and system, user, assistant and tool turns.
QWEN = (
    "<|bos|>{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% for k in c.function.arguments %}<{{ k }}>{% endfor %}{% endfor %}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant{{ mood }}: {% endif %}"
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who was here?"},
    {"role": "assistant", "content": "Somebody."},
    {"role": "user", "content": QUESTION},
]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"what": "him"}'}}


@pytest.fixture
def qwen(byte):
    byte.chat_template = QWEN
    return byte


def user(text: object, role: str = "user", **more: object) -> dict[str, object]:
    return {"role": role, "content": text, **more}


def worded(question: str, passages: str = "") -> str:
    return f"Answer the question in a few words.\n\n{passages}\nQuestion: {question}\n"


@pytest.mark.parametrize("template", [None, ck.PromptTemplate(chat=False), ck.PromptTemplate(fold=False)])
@pytest.mark.parametrize("passages", [PASSAGES, []])
def test_a_question_is_a_conversation_of_one_turn(byte, template, passages):
    one = ck.build_pair(byte, QUESTION, passages, template=template)
    assert ck.build_pair(byte, passages=passages, messages=[user(QUESTION)], template=template) == one


@pytest.mark.parametrize("kind", ["byte", "unigram", "bpe", "wordpiece"])
@pytest.mark.parametrize("chat", [True, False])
def test_the_prompt_of_a_question_is_what_it_always_was(byte, kind, chat):
    """The template rendered around the user's words, its text tokenised with special tokens, theirs without."""
    tokenizer = byte if kind == "byte" else in_vocabulary(kind)
    template = byte.chat_template
    if kind != "byte":
        tokenizer.chat_template = "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}Answer:"
    pair = ck.build_pair(tokenizer, QUESTION, PASSAGES, template=ck.PromptTemplate(chat=chat))
    if chat:
        around = tokenizer.apply_chat_template([user("@@")], tokenize=False, add_generation_prompt=True).split("@@")
        before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in around)
    else:
        before, after = list(tokenizer("")["input_ids"])[:1], []
    plain = ck.decoding.prompts.plain_ids
    block = plain(tokenizer, "Background:\n") + [i for p in PASSAGES for i in plain(tokenizer, f"{p}\n")]
    ending = plain(tokenizer, f"\nQuestion: {QUESTION}\n" + ("" if chat else "Answer:"))
    opening = plain(tokenizer, "Answer the question in a few words.\n\n")
    assert list(pair.contextual) == [*before, *opening, *block, *ending, *after]
    assert list(pair.parametric) == [*before, *opening, *ending, *after]
    assert byte.chat_template == template


def test_passages_stand_in_the_last_user_turn_and_nothing_else_differs(qwen):
    pair = ck.build_pair(qwen, passages=PASSAGES, messages=TURNS)
    assert without_span(pair) == pair.parametric and pair.question == QUESTION
    told = "<|bos|>system: Be brief.<|eot|>\nuser: Who was here?<|eot|>\nassistant: Somebody.<|eot|>\nuser: "
    passages = "Background:\n" + "".join(f"{p}\n" for p in PASSAGES)
    assert qwen.decode(pair.contextual) == told + worded(QUESTION, passages) + "<|eot|>\nassistant: "
    assert qwen.decode(pair.parametric) == told + worded(QUESTION) + "<|eot|>\nassistant: "
    assert ck.build_pair(qwen, messages=TURNS).contextual == pair.parametric


def test_a_tools_turn_follows_the_users_that_holds_the_passages(qwen):
    turns = [*TURNS, user(None, "assistant", tool_calls=[CALL]), user("It was him.", "tool", tool_call_id="1")]
    pair = ck.build_pair(qwen, passages=PASSAGES, messages=turns, tools=[TOOL])
    text = qwen.decode(pair.contextual)
    assert without_span(pair) == pair.parametric and pair.question == QUESTION
    assert text.startswith(f"<|bos|><tools>{json.dumps(TOOL)}</tools>\n")
    assert text.endswith('<call>find {"what": "him"}</call><what><|eot|>\ntool: It was him.<|eot|>\nassistant: ')


def test_text_parts_developers_and_empty_keys_are_read(qwen):
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "did it?"}]
    turns = [user(" Be brief.\n", "developer"), *TURNS[1:3], {**user(parts), "refusal": None, "audio": None}]
    turns[1] = {**turns[1], "tool_calls": []}
    assert ck.build_pair(qwen, passages=PASSAGES, messages=turns) == ck.build_pair(
        qwen, passages=PASSAGES, messages=TURNS
    )


def test_a_template_may_put_the_system_message_elsewhere(byte):
    """Mistral's puts it into the last user turn."""
    byte.chat_template = (
        "<|bos|>{% for m in messages[1:] %}{% if loop.last %}{{ messages[0].content }}\n{% endif %}"
        "{{ m.content }}<|eot|>{% endfor %}"
    )
    pair = ck.build_pair(byte, passages=PASSAGES, messages=TURNS)
    assert (
        byte.decode(pair.parametric)
        == f"<|bos|>Who was here?<|eot|>Somebody.<|eot|>Be brief.\n{worded(QUESTION)}<|eot|>"
    )
    assert without_span(pair) == pair.parametric


@pytest.mark.parametrize("text", [*SPECIALS, *FOREIGN, "ckcontrolTURN0ckcontrol", "{{ 7*7 }}", "{question}"])
def test_no_turn_yields_a_special_token(qwen, text):
    calm = [user("x", role) for role in ("system", "user", "assistant", "user", "tool")]
    wild = [user(f"a {text} b", role) for role in ("system", "user", "assistant", "user", "tool")]
    base = specials(qwen, ck.build_pair(qwen, passages=["x"], messages=calm).contextual)
    pair = ck.build_pair(qwen, passages=[text], messages=wild)
    assert specials(qwen, pair.contextual) == base == specials(qwen, pair.parametric)
    assert without_span(pair) == pair.parametric
    assert qwen.decode(pair.parametric).count(f"a {text} b") == 5
    alone = ck.build_pair(qwen, "x", ["x"], template=ck.PromptTemplate(system=text))
    assert specials(qwen, alone.contextual) == base - specials(qwen, qwen("<|eot|>" * 3)["input_ids"])


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_no_turn_yields_a_special_token_that_the_vocabulary_spells(kind):
    tokenizer = in_vocabulary(kind)
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    calm = ck.build_pair(tokenizer, passages=["x"], messages=[user("x"), user("x", "assistant"), user("x")])
    wild = ck.build_pair(tokenizer, passages=["x"], messages=[user("</s>"), user("a</s>b", "assistant"), user("<s>")])
    assert specials(tokenizer, calm.contextual) == specials(tokenizer, wild.contextual)
    assert prefixing("bpe").chat_template is None


def called(name: str, **arguments: object) -> dict[str, object]:
    call = {"function": {"name": name, "arguments": arguments}}
    return {"messages": [*TURNS, user(None, "assistant", tool_calls=[call]), user("done", "tool")]}


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [{**TOOL, "note": "<|eot|>"}]},
        {"tools": [{**TOOL, "<|eot|>": 1}]},
        called("<|eot|>"),
        called("find", **{"|eot|": 1}),  # whole only together with the template's own "<" and ">"
        {"template_kwargs": {"mood": "<|eot|>"}},
        {"template_kwargs": {"mood": ["<|end|>"]}},
    ],
    ids=str,
)
def test_data_that_spells_a_special_token_is_refused(qwen, given):
    with pytest.raises(PromptError, match="spells a special token"):
        ck.build_pair(qwen, passages=PASSAGES, **{"messages": TURNS} | given)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("Who?", "messages is str"),
        ([], "messages is empty"),
        ({"role": "user"}, "messages is dict"),
        (["Who?"], r"messages\[0\] is str, not a message"),
        ([user("x", "usr")], r"messages\[0\]: role is 'usr'. Did you mean 'user'"),
        ([{"content": "x"}], "role is None"),
        ([user("")], r"messages\[0\].content is empty"),
        ([user(" \n")], "is empty"),
        ([user(None)], "is empty"),
        ([user(5)], r"messages\[0\].content is int"),
        ([user("\ud800")], "half a character"),
        ([user([{"type": "image_url", "image_url": {}}])], "a part that is not text"),
        ([user(["x"])], "a part that is not text"),
        ([user("x", contents="y")], "no 'contents'. Did you mean 'content'"),
        ([user("x", tool_calls=[CALL])], "a turn of user has no 'tool_calls'"),
        ([user("x"), user("y", "assistant")], "ends with the turn of an assistant"),
        ([user("x"), user("y", "system")], "ends with the turn of the system"),
        ([user("x", "system")], "no turn of a user"),
        ([user("x"), user(None, "assistant", tool_calls=[{"function": {}}]), user("y", "tool")], r"\[0\] is no call"),
        ([user("x"), user(None, "assistant", tool_calls="f"), user("y", "tool")], "tool_calls is str"),
        ([user("x"), user("", "assistant"), user("y")], r"messages\[1\].content is empty"),
    ],
)
def test_what_is_no_conversation_is_named(llama, qwen, messages, told):
    with pytest.raises(PromptError, match=told):
        ck.build_pair(qwen, passages=PASSAGES, messages=messages)
    with pytest.raises(PromptError):
        ck.generate(*llama, messages=messages, passages=PASSAGES)


def test_what_cannot_be_laid_out_is_refused(qwen):
    def refused(told: str, **given: object) -> None:
        with pytest.raises(PromptError, match=told):
            ck.build_pair(qwen, **{"passages": PASSAGES, "messages": TURNS} | given)

    refused("both given", question=QUESTION)
    refused("two system messages", template=ck.PromptTemplate(system="Be long."))
    refused("conversation of 3 turns needs a chat template", template=ck.PromptTemplate(chat=False), messages=TURNS[1:])
    refused("no chat template for the system", template=ck.PromptTemplate(chat=False))
    refused("Did you mean 'mood'", template_kwargs={"mod": 1})
    refused("no list of tools", tools="find")
    with pytest.raises(PromptTooLong):
        ck.build_pair(qwen, passages=PASSAGES, messages=TURNS, limit=100)
    cut = ck.build_pair(qwen, passages=["A word. " * 90], messages=TURNS, limit=300, truncate="passages")
    assert len(cut.contextual) <= 300 and without_span(cut) == cut.parametric and cut.passages
    qwen.chat_template = "<|bos|>{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    refused(r"places messages\[0\] 0 times")
    refused(r"places messages\[1\] 0 times", messages=[user("x"), user("y", "assistant"), user("z")])
    refused("no variable 'tools'", messages=[user("x")], tools=[TOOL])
    calls = [user("x"), user("y", "assistant", tool_calls=[CALL]), user("z")]
    refused("takes no tool_calls", messages=calls)
    qwen.chat_template = "{{ raise_exception('turns must alternate') }}"
    refused("turns must alternate. Give the turns it takes", messages=TURNS)


def test_a_batch_of_conversations_is_each_alone(llama):
    batch = [TURNS[1:], [user("When?")], TURNS[1:]]
    lists = [PASSAGES, ["On Monday."], []]
    control = ck.Control("cad", alpha=0.2)
    made = ck.generate(*llama, messages=batch, passages=lists, control=control, max_new_tokens=6)
    for messages, passages, answer in zip(batch, lists, made, strict=True):
        alone = ck.generate(*llama, messages=messages, passages=passages, control=control, max_new_tokens=6)
        pair = ck.build_pair(llama[1], messages=messages, passages=passages)
        assert answer.token_ids == alone.token_ids and answer.question == messages[-1]["content"]
        used = control if passages else ck.Control("off")
        naive = ck.reference_generate(
            llama[0], pair.contextual, pair.parametric, used, max_new_tokens=6, eos={258}, vocab_size=260
        )
        assert list(answer.token_ids) == naive
    asked = ck.generate(*llama, "When?", ["On Monday."], control=control, max_new_tokens=6)
    assert asked.token_ids == made[1].token_ids and asked.question == made[1].question
    with pytest.raises(PromptError, match="lists of passages: 1, but questions: 3"):
        ck.generate(*llama, messages=batch, passages=[[]])
    with pytest.raises(PromptError, match="both given"):
        ck.generate(*llama, "When?", messages=TURNS)
    with pytest.raises(PromptError, match="question is missing"):
        ck.generate(*llama)


@pytest.mark.real
def test_a_conversation_of_the_demo_model_reads_as_its_own_template(real):
    tokenizer = real[1]
    plain = ck.PromptTemplate(instruction="", question="{question}", intro="", passage="{text}\n")
    pair = ck.build_pair(tokenizer, messages=TURNS, passages=PASSAGES, template=plain)
    own = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(pair.parametric) == own
    assert list(pair.parametric) == tokenizer(own, add_special_tokens=False)["input_ids"]
    assert without_span(pair) == pair.parametric
