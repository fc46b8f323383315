"""What tells rows apart, and what may not: batch ids, rows with memory, padding and the scope of penalties."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache

import ckcontrol as ck
from ckcontrol.decoding.pair_cache import PairCache
from ckcontrol.decoding.streams import Stream
from ckcontrol.errors import UnsupportedMode

from .test_doors import GREEDY, padded
from .test_reference import PASSAGES, QUESTIONS

WHOLE = [ck.Control("dial", alpha=0.7), ck.Control("dial", adaptive=True), ck.Control("grd", sure=0.01)]
OFF = ck.Control("off")
ROWS = range(len(QUESTIONS))


def loop_ids(model, tokenizer, control, rows=None, new=8, scope="all", **keywords):
    """The generated ids of `decoding_loop` over these questions, padded as transformers pads."""
    (ids, mask), (par, par_mask) = (padded(tokenizer, which) for which in ("contextual", "parametric"))
    if rows is not None:
        ids, par = (x[rows][:, m[rows].bool().any(0)] for x, m in ((ids, mask), (par, par_mask)))
        mask, par_mask = (m[rows][:, m[rows].bool().any(0)] for m in (mask, par_mask))
    loop = ck.decoding_loop(
        control, parametric_ids=par, parametric_mask=par_mask, vocab_size=len(tokenizer), penalty_scope=scope
    )
    out = model.generate(
        ids, attention_mask=mask, custom_generate=loop, **({"max_new_tokens": new} | GREEDY | keywords)
    )
    return out[:, ids.shape[1] :].tolist()


def alphabet(batch, ids):
    """Question b is answered in ids that leave b when divided by 3."""
    return list(range(batch, 256, 3))


@pytest.mark.parametrize("control", WHOLE, ids=repr)
def test_every_question_is_answered_in_its_own_alphabet(llama, control):
    answers = loop_ids(*llama, control, prefix_allowed_tokens_fn=alphabet)
    assert [{token % 3 for token in answer} for answer in answers] == [{0}, {1}, {2}]
    for i in ROWS:
        alone = loop_ids(*llama, control, [i], prefix_allowed_tokens_fn=lambda b, ids, i=i: alphabet(i, ids))
        assert alone == [answers[i]]


def test_several_return_sequences_have_the_batch_ids_that_generate_gives_them(llama):
    """Row by row, as plain `model.generate` counts them: question 0 has rows 0 and 1."""
    seen = set()

    def each(batch, ids):
        seen.add(batch)
        return list(range(batch, 256, 6))

    answers = loop_ids(*llama, WHOLE[0], num_return_sequences=2, do_sample=True, top_k=1, prefix_allowed_tokens_fn=each)
    assert seen == set(range(6))
    assert [{token % 6 for token in answer} for answer in answers] == [{i} for i in range(6)]


class Alternating(LogitsProcessor):
    """Allows even and odd ids in turn, each row by a memory of its own; knows how many rows it was made for."""

    def __init__(self, rows):
        self.turns = [[] for _ in range(rows)]

    def __call__(self, input_ids, scores):
        assert input_ids.shape[0] == len(self.turns)
        for turns in self.turns:
            turns.append(len(turns) % 2)
        bad = torch.arange(scores.shape[1]) % 2 != torch.tensor([turns[-1] for turns in self.turns])[:, None]
        return scores.masked_fill(bad, -torch.inf)


class RowBudget(StoppingCriteria):
    """Row r ends after 2 + r tokens."""

    def __init__(self, rows):
        self.rows, self.calls = rows, 0

    def __call__(self, input_ids, scores, **kwargs):
        assert input_ids.shape[0] == self.rows
        self.calls += 1
        return torch.tensor([self.calls >= 2 + row for row in range(self.rows)])


@pytest.mark.parametrize("control", [*WHOLE, [OFF, WHOLE[0], ck.Control("ck-plug", alpha=0.2)]], ids=repr)
def test_a_processor_and_a_criterion_with_a_memory_of_rows(llama, control):
    answers = loop_ids(
        *llama, control, logits_processor=LogitsProcessorList([Alternating(3)]),
        stopping_criteria=StoppingCriteriaList([RowBudget(3)]),
    )  # fmt: skip
    for row, answer in enumerate(answers):
        assert [token % 2 for token in answer[: 2 + row]] == [0, 1, 0, 1][: 2 + row]
        assert answer[2 + row :] == [256] * (len(answer) - 2 - row)


def test_a_processor_that_cannot_be_copied_is_refused_by_name(llama):
    class Locked(LogitsProcessor):
        def __init__(self):
            import threading

            self.lock = threading.Lock()

        def __call__(self, input_ids, scores):
            return scores

    with pytest.raises(UnsupportedMode, match="Locked cannot be copied"):
        loop_ids(*llama, WHOLE[0], logits_processor=LogitsProcessorList([Locked()]))
    assert loop_ids(*llama, OFF, logits_processor=LogitsProcessorList([Locked()]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("penalty", [2.0, 0.7])
def test_a_penalty_does_not_count_padding(tiny, family, penalty):
    """Off on a ragged batch is `model.generate` on it, and each of its rows alone."""
    model, tokenizer = tiny(family)
    keywords = {"repetition_penalty": penalty, "max_new_tokens": 12}
    answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=OFF, **keywords)
    ids, mask = padded(tokenizer, "contextual")
    plain = model.generate(ids, attention_mask=mask, **GREEDY, **keywords)[:, ids.shape[1] :].tolist()
    for i, answer in enumerate(answers):
        assert list(answer.token_ids) == plain[i][: len(answer.token_ids)]
        alone = ck.generate(model, tokenizer, QUESTIONS[i], PASSAGES[i], control=OFF, **keywords)
        assert answer.token_ids == alone.token_ids


@pytest.mark.parametrize("scope", ["all", "generated"])
@pytest.mark.parametrize("control", [OFF, ck.Control("ck-plug", alpha=0.2), *WHOLE], ids=repr)
def test_a_penalised_batch_is_its_rows(llama, scope, control):
    answers = loop_ids(*llama, control, scope=scope, new=12, repetition_penalty=2.0)
    for i in ROWS:
        alone = loop_ids(*llama, control, [i], scope=scope, new=12, repetition_penalty=2.0)[0]
        assert alone == answers[i][: len(alone)]


NO_PENALTIES = [
    {"min_new_tokens": 3, "eos_token_id": list(range(0, 320, 2))},
    {"min_length": 190, "eos_token_id": list(range(0, 320, 2))},
    {"exponential_decay_length_penalty": (2, 3.0)},
    {"forced_eos_token_id": 258},
    {"forced_bos_token_id": 65},
    {"begin_suppress_tokens": list(range(200))},
    {"prefix_allowed_tokens_fn": lambda batch, ids: list(range((batch + len(ids)) % 3, 256, 3))},
    {"bad_words_ids": [[i, j] for i in (58, 32, 10) for j in range(200)]},
]


@pytest.mark.parametrize("keywords", NO_PENALTIES, ids=lambda k: next(iter(k)))
@pytest.mark.parametrize("control", [OFF, ck.Control("ck-plug", alpha=0.2), WHOLE[0]], ids=repr)
def test_the_scope_of_penalties_changes_nothing_else(llama, keywords, control):
    """Without a penalty both scopes are the same, and off is `model.generate`."""
    model, tokenizer = llama
    every, generated = (loop_ids(*llama, control, scope=scope, **keywords) for scope in ("all", "generated"))
    assert every == generated
    if control is OFF:
        ids, mask = padded(tokenizer, "contextual")
        plain = model.generate(ids, attention_mask=mask, **({"max_new_tokens": 8} | GREEDY | keywords))
        assert generated == plain[:, ids.shape[1] :].tolist()


class Presence(LogitsProcessor):
    """A penalty of one's own, by its attribute; it keeps what it was shown."""

    def __init__(self):
        self.presence_penalty, self.widths = 1.0, []

    def __call__(self, input_ids, scores):
        self.widths.append(input_ids.shape[1])
        return scores


def test_a_penalty_of_ones_own_is_known_by_its_attribute(llama):
    width = padded(llama[1], "contextual")[0].shape[1]
    for scope, first in (("all", width), ("generated", 0)):
        own = Presence()
        loop_ids(*llama, OFF, scope=scope, new=3, logits_processor=LogitsProcessorList([own]))
        assert own.widths == [first, first + 1, first + 2]


def test_ngrams_of_the_prompt_are_free_under_generated(llama):
    """The n-gram ban is a penalty: it sees the answer only, so the passage's words may be said again."""
    plain = loop_ids(*llama, OFF, new=12, scope="all")
    free = loop_ids(*llama, OFF, new=12, scope="generated", no_repeat_ngram_size=12)
    assert free == plain


@pytest.mark.parametrize("additive", [False, True])
def test_a_model_may_lie_on_several_devices(additive: bool) -> None:
    """Each layer's keys and masks stay on its own device, wherever the rows to keep are named; "meta" is the second."""
    devices = [torch.device("cpu"), torch.device("meta")]

    def filled(length: int) -> DynamicCache:
        cache = DynamicCache()
        for layer, device in enumerate(devices):
            cache.update(
                torch.randn(3, 2, length, 4, device=device), torch.randn(3, 2, length, 4, device=device), layer
            )
        return cache

    keep = torch.ones(3, 7, dtype=torch.bool)
    keep[1, :2] = False
    caches, masks = (filled(7), filled(5)), (keep, keep[:, :5])
    pair = PairCache(caches, masks, additive=additive, dtype=torch.float32, reserve=4)

    def step(rows: int) -> None:
        pair.begin_step()
        for layer, device in zip(pair.layers, devices, strict=True):
            new = torch.randn(2 * rows, 2, 1, 4, device=device)
            for held in layer.update(new, new):
                assert {part.device for part in held.parts} == {mask.device for mask in held.masks} == {device}
                assert [mask.shape[-1] for mask in held.masks] == [part.shape[2] for part in held.parts]

    step(3)
    pair.batch_select_indices(torch.tensor([1, 0]))
    step(2)
    pair.rewind(torch.tensor([0, 1]), [1, 2])
    step(2)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3"])
def test_what_prompts_begin_with_alike_is_run_once(tiny, family):
    """Ragged rows that share 9, 14 and 12 tokens, the last one all but its final token."""
    model, _ = tiny(family)
    draw = torch.Generator().manual_seed(0)
    sizes = [(9, 20, 6), (14, 5, 9), (12, 11, 1)]  # alike; then with the passages; then without

    def stream(part: int) -> Stream:
        rows = [torch.cat([heads[i], tails[part][i]]) for i in range(len(sizes))]
        longest = max(map(len, rows))
        ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
        mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows])
        return Stream(model, ids, mask)

    heads = [torch.randint(5, 200, (same,), generator=draw) for same, _, _ in sizes]
    tails = [[torch.randint(5, 200, (size[part],), generator=draw) for size in sizes] for part in (1, 2)]
    tails[1] = [torch.cat([(tails[0][i][:1] + 1) % 200, tail[1:]]) for i, tail in enumerate(tails[1])]  # they part here
    run: list[int] = []
    other, alone, like = stream(0), stream(1), stream(1)
    with torch.no_grad():
        other.prefill()
        wanted = [alone.prefill(), alone.step(torch.tensor([7, 8, 9])), alone.step(torch.tensor([3, 3, 3]))]
        forward = like._forward
        like._forward = lambda ids, position: run.append(ids.shape[1]) or forward(ids, position)
        made = [like.prefill(other), like.step(torch.tensor([7, 8, 9])), like.step(torch.tensor([3, 3, 3]))]
    for ours, theirs in zip(made, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    longest = max(same + without for same, _, without in sizes)
    begun = min(longest - without for _, _, without in sizes)
    assert run == [longest if family == "gemma3" else longest - begun, 1, 1]  # a window may have passed the beginning
    handle = model.register_forward_pre_hook(lambda *_: None)
    try:
        assert stream(1)._begin_like(other) == 0  # whatever listens may treat the streams differently
    finally:
        handle.remove()
