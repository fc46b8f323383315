"""One reading of everything: each process makes one control, one policy and one options object per request.

Constructions are counted, not calls: whoever writes or reads a row's arguments in one process shares what was made.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckcontrol import Control, GenerateOptions
from ckcontrol.models.tiny import tiny_model
from ckcontrol.policies import Policy
from ckcontrol.serving.limits import Limits
from ckcontrol.vllm.contract import pair_params as params
from ckcontrol.vllm.http.middleware import CKMiddleware

from .inner import Inner, ask
from .test_drafting import MEMORY, OTHER, Engine

TOKENIZER = tiny_model("llama")[1]
ONE_EACH = {"Control": 1, "Policy": 1, "GenerateOptions": 1}


def kinds(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many controls, policies and options were constructed, in a process that has read nothing yet."""
    counts: Counter[str] = Counter()

    def count(kind: type, name: str) -> None:
        begin = kind.__init__  # type: ignore[misc]

        def counted(self: Any, *args: Any, **kwargs: Any) -> None:
            counts[name] += 1
            begin(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", counted)

    count(Control, "Control")
    count(GenerateOptions, "GenerateOptions")
    for kind in set(kinds(Policy)):
        if "__init__" in vars(kind) and kind.__name__ != "PerRow":  # which joins policies, per batch
            count(kind, "Policy")
    monkeypatch.setattr(params, "_KEPT", {})
    return counts


def rows_as_text(control: Control, options: GenerateOptions) -> list[dict[str, Any]]:
    """The arguments of both rows as another process gets them: equal texts, of which nothing was kept here."""
    args = [params.extra_args("p", role, control, options) for role in params.ROLES]
    params._KEPT.clear()
    return json.loads(json.dumps(args))  # type: ignore[no-any-return]


def served(inner: Inner, engine: Any, *bodies: dict[str, Any], made: Counter[str]) -> None:
    """Ask one after the other; `made` is then what the last one made."""

    async def story() -> None:
        app = CKMiddleware(inner, Limits(), TOKENIZER)
        for body in bodies:
            made.clear()
            got = await ask(app, body, state=SimpleNamespace(engine_client=engine))
            assert got.status == 200, got.body

    asyncio.run(story())


def body(temperature: float, **ck: Any) -> dict[str, Any]:
    told = {"passages": ["A town."], **ck}
    return {"messages": [{"role": "user", "content": "Who?"}], "temperature": temperature, "ck": told}


@pytest.mark.parametrize("temperature", [0, 0.7])  # 0.7 draws a seed
def test_an_http_request_is_read_once(temperature: float, made: Counter[str]) -> None:
    inner = Inner()
    served(inner, None, *(body(temperature, method="ck-plug", alpha=a) for a in (0.2, 0.3)), made=made)
    assert made == ONE_EACH
    first, other = (data["vllm_xargs"] for _, data in inner.seen[-2:])
    assert {**first, "ck_role": ""} == {**other, "ck_role": ""} and first["ck_role"] != other["ck_role"]
    for row in (first, other):  # as vLLM's front end lets us check each row, in the same process
        read = params.read(row)
        assert read is not None and read.policy is read.control.policy()
    assert made == ONE_EACH


def test_an_http_request_with_drafts_is_read_once(made: Counter[str]) -> None:
    inner = Inner()
    inner.texts = {"memory": OTHER}
    first, last = body(0, method="dial", alpha=0.7), body(0, method="dial", alpha=0.6)
    served(inner, Engine(inner, MEMORY), first, last, made=made)
    assert made == ONE_EACH, "the policies of these drafts are constants"
    for _, data in inner.seen[-4:]:
        read = params.read(data["vllm_xargs"])
        assert read is not None and read.draft in ("unmodified", "memory")
    assert made == ONE_EACH


@pytest.mark.parametrize("control", [Control("ck-plug", alpha=0.2), Control("dial", alpha=0.7)])
def test_what_is_written_is_not_read_back(control: Control, made: Counter[str]) -> None:
    options = GenerateOptions(do_sample=True, seed=3, max_new_tokens=5)
    draft = params.drafts(control)[-1]
    made.clear()
    rows = [params.read(params.extra_args("p", role, control, options, draft=draft)) for role in params.ROLES]
    assert not made
    assert all(row is not None and row.control is control and row.options is options for row in rows)


def test_another_process_makes_each_once(made: Counter[str]) -> None:
    args = rows_as_text(Control("ck-plug", alpha=0.2), GenerateOptions(do_sample=True, seed=3))
    made.clear()
    rows = [params.read(row) for row in args * 3]
    assert made == ONE_EACH
    assert len({id(row.policy) for row in rows if row is not None}) == 1


def test_what_is_kept_is_bounded_and_rows_agree_without_it(made: Counter[str]) -> None:
    options = GenerateOptions(do_sample=True, seed=10**6, max_new_tokens=5)
    args = params.extra_args("p", "contextual", Control("ck-plug", alpha=0.2), options)
    first = params.read(args)
    for seed in range(params._MOST_KEPT + 10):
        params.extra_args("p", "contextual", Control("ck-plug", alpha=0.2), GenerateOptions(do_sample=True, seed=seed))
    assert len(params._KEPT) == params._MOST_KEPT
    second = params.read(args)
    assert first is not None and second is not None and first.options is not second.options
    assert first.control == second.control
    assert params.sampling_of(first.options) == params.sampling_of(second.options)


@pytest.mark.usefixtures("vllm_here")
@pytest.mark.filterwarnings("ignore")
def test_scheduler_and_processor_read_a_pair_once(made: Counter[str]) -> None:
    from vllm import SamplingParams
    from vllm.v1.request import Request
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    from ckcontrol.vllm import PairLogitsProcessor

    from . import fuzz

    args = rows_as_text(Control("ck-plug", alpha=0.2), GenerateOptions(do_sample=True, seed=3))
    scheduler = fuzz.make_scheduler("async0", 200, 128, 8, False)
    processor = PairLogitsProcessor(None, torch.device("cpu"), False)
    asked = [SamplingParams(max_tokens=5, temperature=0, extra_args=row) for row in args]
    made.clear()
    for i, one in enumerate(asked):
        PairLogitsProcessor.validate_params(one)
        scheduler.add_request(Request(f"row{i}", list(range(10, 19)), one, None, arrival_time=0.0))
    assert len(scheduler._ck_pairs) == 1
    added = [(i, one, list(range(10, 19)), []) for i, one in enumerate(asked)]
    processor.update_state(BatchUpdate(batch_size=2, removed=[], added=added, moved=[]))
    for _ in range(3):  # plans are made anew when the batch changes
        processor.apply(torch.randn(2, 50))
        processor.update_state(BatchUpdate(batch_size=2, removed=[], added=[], moved=[]))
    assert made == ONE_EACH
