"""One random case a seed: a batch through one door, against the reference, against its rows alone, and, for a neutral
control, against `model.generate` on the same batch.

A difference to `model.generate` always counts. Others count unless the reference's two best scores at the first token
that differs are less than 1e-4 apart: there, rounding may decide. Run many with

    python -m tests.fuzz --seeds 5000
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import StopStringCriteria
from transformers.generation import logits_process as lp

import ckcontrol as ck
from ckcontrol.decoding.prompts import PromptTemplate, build_pair
from ckcontrol.models.tiny import FAMILIES, tiny_model

from .keyed import VOCAB, Budget, Gaps, Presence, Tally, alphabet

PAD, EOS, TIE = 256, 258, 1e-4
SHORT = PromptTemplate(instruction="", intro="", question="\n{question}", answer=":", chat=False)
TEXTS = ["Who?", "What is it?", "Ab", "x", "The longest of all these", "Where, if not here?", "ok then", "12 34"]
CONTROLS: list[Callable[[random.Random], ck.Control]] = [
    lambda r: ck.Control("off"),
    lambda r: ck.Control("off"),
    lambda r: ck.Control("ck-plug", alpha=0.5),
    lambda r: ck.Control("ck-plug", alpha=r.choice([0.0, 0.3, 0.8, 1.0]), gate=r.choice([0.0, 2.0, 50.0])),
    lambda r: ck.Control("ck-plug", adaptive=True, gate=2.0),
    lambda r: ck.Control("ck-plug-repo", alpha=r.choice([0.2, 0.8])),
    lambda r: ck.Control("cad", alpha=r.choice([0.2, 0.7, 1.0])),
    lambda r: ck.Control("adacad", warmup=0.3),
    lambda r: ck.Control("coiecd"),
    lambda r: ck.Control("acd"),
    lambda r: ck.Control("arr"),
    lambda r: ck.Control("nwcad", k_ctx=0.02),
    lambda r: ck.Control("grd", sure=0.01),
    lambda r: ck.Control("dial", alpha=r.choice([0.3, 0.6, 1.0])),
    lambda r: ck.Control("dial", alpha=r.choice([0.2, 0.9])),
    lambda r: ck.Control("dial", adaptive=True),
]


@cache
def tiny(family: str) -> Any:
    """Return a tiny model and its tokenizer."""
    return tiny_model(family)


def run(seed: int) -> list[str]:
    """Return the differences of one case, as sentences; none is as it should be."""
    r = random.Random(seed)
    family = r.choice(list(FAMILIES))
    count, new = r.randint(1, 3), r.randint(4, 6)
    picked = [r.choice(CONTROLS)(r) for _ in range(count)]
    controls = picked if r.random() < 0.3 else [picked[0]] * count
    found = (_front if r.random() < 0.4 else _loop)(r, family, controls, new)
    return [f"seed {seed}, {family}, {[repr(c) for c in controls]}: {text}" for text in found]


def _differs(what: str, row: int, got: list[int], wanted: list[int], gaps: Gaps | None) -> list[str]:
    if got == wanted:
        return []
    step = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    if gaps is not None and gaps.least.get(step, 9.0) < TIE:
        return []
    return [f"row {row} is {got}, {what} {wanted}"]


def _neutral(control: ck.Control) -> bool:
    return control.policy().neutral


# --- ck.generate ----------------------------------------------------------------------------------------------


def _front(r: random.Random, family: str, controls: list[ck.Control], new: int) -> list[str]:
    model, tokenizer = tiny(family)
    count = len(controls)
    questions = [r.choice(TEXTS) for _ in range(count)]
    passages = [[r.choice(TEXTS) for _ in range(r.randint(1, 2))] for _ in range(count)]
    stops = tuple(r.sample(range(VOCAB), 40)) if r.random() < 0.4 else ()
    penalty, scope = r.choice([1.0, 2.0, 1.3, 0.7]), r.choice(["all", "all", "generated"])
    options: dict[str, Any] = {"repetition_penalty": penalty, "penalty_scope": scope, "stop_token_ids": stops}
    warpers: list[Any] = []
    if r.random() < 0.3:
        options |= {"do_sample": True, "seed": r.randint(0, 99), "temperature": 0.8, "top_k": 30}
        warpers = [lp.TemperatureLogitsWarper(0.8), lp.TopKLogitsWarper(30)]
    fixed: dict[str, Any] = {"template": SHORT, "max_new_tokens": new, "trace": r.random() < 0.5, **options}
    got = [list(a.token_ids) for a in ck.generate(model, tokenizer, questions, passages, control=controls, **fixed)]

    pairs = [build_pair(tokenizer, q, p, template=SHORT) for q, p in zip(questions, passages, strict=True)]
    found, single = [], r.randrange(count)
    for i, (pair, control) in enumerate(zip(pairs, controls, strict=True)):
        gaps = Gaps(len(pair.contextual))
        ignored = len(pair.contextual) if scope == "generated" else None
        bent = [lp.RepetitionPenaltyLogitsProcessor(penalty, ignored)] if penalty != 1 else []
        wanted = ck.reference_generate(
            model, pair.contextual, pair.parametric, control, max_new_tokens=new, eos={EOS, *stops},
            processors=LogitsProcessorList([*bent, *warpers, gaps]), sample=bool(warpers),
            seed=options.get("seed", 0), vocab_size=len(tokenizer),
            question=questions[i], passages=pair.passages,
            read=lambda ids: tokenizer.decode(ids[:-1] if ids and ids[-1] in stops else ids, skip_special_tokens=True),
        )  # fmt: skip
        found += _differs("the reference", i, got[i], wanted, gaps)
        if i == single:
            alone = ck.generate(model, tokenizer, questions[i], passages[i], control=control, **fixed)
            found += _differs("alone", i, got[i], list(alone.token_ids), gaps)
    if all(map(_neutral, controls)) and not warpers and (scope == "all" or penalty == 1):
        ids, mask = _padded([list(p.contextual) for p in pairs])
        plain = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=PAD,
            repetition_penalty=penalty, eos_token_id=[EOS, *stops],
        )[:, ids.shape[1] :].tolist()  # fmt: skip
        for i, row in enumerate(plain):
            found += _differs("model.generate", i, got[i], row[: len(got[i])], None)
    return found


# --- decoding_loop --------------------------------------------------------------------------------------------


def _padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def _asked(r: random.Random, new: int) -> tuple[dict[str, Any], list[str]]:
    """Return keywords of `model.generate` that rows may share, and the names of what tells rows apart."""
    choices: list[tuple[float, dict[str, Any]]] = [
        (0.4, {"repetition_penalty": r.choice([2.0, 1.3, 0.7])}),
        (0.2, {"no_repeat_ngram_size": 2}),
        (0.2, {"min_new_tokens": 3}),
        (0.1, {"min_length": 9}),
        (0.1, {"bad_words_ids": [[r.randrange(256)], [r.randrange(256), r.randrange(256)]]}),
        (0.1, {"suppress_tokens": r.sample(range(PAD), 60)}),
        (0.1, {"begin_suppress_tokens": r.sample(range(VOCAB), 150)}),
        (0.1, {"forced_eos_token_id": EOS}),
        (0.1, {"exponential_decay_length_penalty": (2, 1.5)}),
        (0.4, {"eos_token_id": [EOS, *r.sample(range(VOCAB), 40)]}),
    ]
    keywords = {name: value for odds, more in choices if r.random() < odds for name, value in more.items()}
    keyed = [name for name in ("alphabet", "tally", "budget", "presence", "stop") if r.random() < 0.25]
    return {"max_new_tokens": new, "pad_token_id": PAD, "do_sample": False} | keywords, keyed


def _keyed(names: list[str], rows: list[int]) -> dict[str, Any]:
    processors: list[Any] = [Tally(rows)] if "tally" in names else []
    processors += [Presence(0.5)] if "presence" in names else []
    criteria: list[Any] = [Budget(rows)] if "budget" in names else []
    criteria += [StopStringCriteria(tiny("llama")[1], list("abcdefghijklm ABCDEFGH"))] if "stop" in names else []
    return {
        "prefix_allowed_tokens_fn": alphabet(rows) if "alphabet" in names else None,
        "logits_processor": LogitsProcessorList(processors),
        "stopping_criteria": StoppingCriteriaList(criteria),
    }


def _prepared(model: Any, ids: torch.Tensor, keywords: dict[str, Any]) -> tuple[Any, Any]:
    """Return the processors and criteria that transformers makes of these keywords for one prompt."""
    caught: list[Any] = []

    def catch(model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, **rest: Any) -> Any:
        caught.extend([logits_processor, stopping_criteria])
        return input_ids

    model.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=catch, **keywords)
    return caught[0], caught[1]


class _Answer(lp.LogitsProcessor):
    def __init__(self, inner: Any, start: int) -> None:
        self.inner, self.start = inner, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids[:, self.start :], scores)


def _scoped(processor: Any, start: int) -> Any:
    """What `penalty_scope="generated"` means, said once more."""
    if isinstance(processor, lp.RepetitionPenaltyLogitsProcessor):
        return lp.RepetitionPenaltyLogitsProcessor(processor.penalty, prompt_ignore_length=start)
    if isinstance(processor, lp.NoRepeatNGramLogitsProcessor):
        return _Answer(processor, start)
    return Presence(processor.presence_penalty, start) if isinstance(processor, Presence) else processor


def _loop(r: random.Random, family: str, controls: list[ck.Control], new: int) -> list[str]:
    model, tokenizer = tiny(family)
    copies = 2 if r.random() < 0.2 else 1
    count = len(controls)
    ctx = [[r.randrange(256) for _ in range(r.randint(3, 14))] for _ in range(count)]
    par = [[r.randrange(256) for _ in range(r.randint(2, 9))] for _ in range(count)]
    keywords, keyed = _asked(r, new)
    scope = r.choice(["all", "generated"])
    rows = list(range(count * copies))
    policies = [c for c in controls for _ in range(copies)]
    (ids, mask), (par_ids, par_mask) = _padded(ctx), _padded(par)
    more = {"num_return_sequences": copies} if copies > 1 else {}
    if copies > 1:  # transformers refuses several greedy answers, so each row takes its maximum by a top-k of 1
        keywords |= {"do_sample": True, "top_k": 1}

    def ask(ids: Any, mask: Any, par_ids: Any, par_mask: Any, rows: list[int], by: list[ck.Control], more: Any) -> Any:
        recorder = ck.Recorder()
        loop = ck.decoding_loop(
            by, parametric_ids=par_ids, parametric_mask=par_mask, vocab_size=len(tokenizer), penalty_scope=scope,
            recorder=recorder,
        )  # fmt: skip
        out = model.generate(
            ids, attention_mask=mask, custom_generate=loop, **keywords, **more, **_keyed(keyed, rows)
        )[:, ids.shape[1] :].tolist()  # fmt: skip
        return out, [row[:length] for row, length in zip(out, recorder.lengths, strict=True)]

    whole, got = ask(ids, mask, par_ids, par_mask, rows, policies, more)
    found, single = [], r.choice(rows)
    for row in rows:
        i = row // copies
        one = torch.tensor([ctx[i]])
        processors, criteria = _prepared(model, one, keywords | _keyed(keyed, [row]))
        gaps = Gaps(len(ctx[i]))
        # min_length counts padding in a batch, as it does in model.generate: so it does here.
        for processor in processors:
            if isinstance(processor, lp.MinLengthLogitsProcessor):
                processor.min_length -= ids.shape[1] - len(ctx[i])
        shown = [
            _scoped(p, len(ctx[i])) if scope == "generated" else _alone(p, ids.shape[1], ctx[i]) for p in processors
        ]
        at = next((n for n, p in enumerate(shown) if isinstance(p, lp.TopKLogitsWarper)), len(shown))
        shown.insert(at, gaps)
        wanted = ck.reference_generate(
            model, ctx[i], par[i], policies[row], max_new_tokens=new, vocab_size=len(tokenizer),
            processors=LogitsProcessorList(shown), criteria=criteria,
        )  # fmt: skip
        found += _differs(f"{keywords} {keyed} {scope}: the reference", row, got[row], wanted, gaps)
        if row == single and keywords.get("min_length") is None and "no_repeat_ngram_size" not in keywords:
            par_one = torch.tensor([par[i]])
            _, alone = ask(one, torch.ones_like(one), par_one, torch.ones_like(par_one), [row], [policies[row]], {})
            found += _differs(f"{keywords} {keyed} {scope}: alone", row, got[row], alone[0], gaps)
    plainly = scope == "all" or not (
        {"repetition_penalty", "no_repeat_ngram_size"} & {*keywords} or "presence" in keyed
    )
    if all(map(_neutral, controls)) and plainly:
        plain = model.generate(ids, attention_mask=mask, **keywords, **more, **_keyed(keyed, rows))
        wanted = plain[:, ids.shape[1] :].tolist()
        if wanted != whole:
            found.append(f"{keywords} {keyed} {scope}: the batch is {whole}, model.generate {wanted}")
    return found


def _alone(processor: Any, width: int, prompt: list[int]) -> Any:
    """What a processor that counts padding makes of a row's padded prompt (n-grams, presence), as in model.generate."""
    if isinstance(processor, (Presence, lp.NoRepeatNGramLogitsProcessor)):
        return _Padding(processor, width - len(prompt))
    return processor


class _Padding(lp.LogitsProcessor):
    def __init__(self, inner: Any, padding: int) -> None:
        self.inner, self.padding = inner, padding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.cat([torch.full((1, self.padding), PAD), input_ids], dim=1), scores)
