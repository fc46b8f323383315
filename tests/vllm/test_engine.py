"""A real engine on CPU against `ckcontrol.generate`: every policy, greedy and sampled, token by token.

Each scenario is an engine in a process of its own (live.py). The small random model runs everywhere; the demo model is
marked `real`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from contextlib import nullcontext

import pytest
import torch

from ckcontrol import Control, generate
from ckcontrol.answer import Answer
from ckcontrol.errors import HeadsError
from ckcontrol.heads import HeadMask, pruned
from ckcontrol.models.tiny import tiny_model
from ckcontrol.policies import AnswerPolicy, Weights, base, names

from . import parity, stumbles

pytestmark = [pytest.mark.usefixtures("vllm_here"), pytest.mark.filterwarnings("ignore")]

V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"  # make test-vllm-v2, where a step takes ten times as long
BASE = {"max_model_len": 2048, "block_size": 32}
SCENARIOS = {
    "small chunks, all at once": (
        {"max_num_batched_tokens": 64, "max_num_seqs": 16, "enable_prefix_caching": False},
        {},
    ),
    "prefix caching, staggered, late partners, twice": (
        {"max_num_batched_tokens": 128, "max_num_seqs": 24, "enable_prefix_caching": True},
        {"stagger": 2, "late": 3, "laps": 2},
    ),
    "an odd number of rows": ({"max_num_batched_tokens": 48, "max_num_seqs": 5, "enable_prefix_caching": False}, {}),
}


@pytest.fixture(scope="session")
def small_cases(small):
    _, model, tokenizer = small
    return parity.make_cases(model, tokenizer, 33, new_tokens=16, first=12 if V2 else None, plain=not V2)


@pytest.fixture(scope="session")
def tight_cases(small):
    _, model, tokenizer = small
    return parity.make_cases(model, tokenizer, 16, longest=200, new_tokens=60, first=7 if V2 else None)


def ordinary(cases: list[parity.Case], count: int = 4, **more: object) -> list[dict]:
    return [{"ids": c.contextual, "max": 10, "at": 3 * i, **more} for i, c in enumerate(cases[2 : 2 + count])]


def plain_answers(model, cases: list[parity.Case], count: int = 4) -> list[list[int]]:
    """What the model itself says to the ordinary requests, past end tokens as they were asked."""
    found = []
    for case in cases[2 : 2 + count]:
        ids = torch.tensor([case.contextual])
        made = model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
        found.append(made[0, ids.shape[1] :].tolist())
    return found


def check_empty(result: dict) -> None:
    assert result["runner"].startswith("vllm.v1.worker.gpu.") is V2
    assert result["left"] == 0 and result["free"] == result["blocks"] - 1
    assert not any(lap.get("stuck") for lap in result["laps"])


def test_the_cases_prove_something(small_cases: list[parity.Case]) -> None:
    """Most answers must differ from those of the context alone, or equality would show nothing."""
    assert sum(c.want != c.plain for c in small_cases) > 20
    used = {c.control.method for c in small_cases}
    assert used == {name for name in names() if not isinstance(Control(name).policy(), (AnswerPolicy, Weights))}
    assert min(len(c.contextual) for c in small_cases) < 200 and max(len(c.contextual) for c in small_cases) > 1400


@pytest.mark.parametrize("name", SCENARIOS)
def test_pairs_answer_as_generate_does(name: str, small, small_cases: list[parity.Case]) -> None:
    folder, model, tokenizer = small
    engine, more = SCENARIOS[name]
    work = parity.job(
        folder, model, tokenizer, small_cases, BASE | engine, ordinary=ordinary(small_cases), **dict(more)
    )
    result = parity.live(work)
    check_empty(result)
    want = plain_answers(model, small_cases)
    for number, lap in enumerate(result["laps"]):
        assert parity.differences(small_cases, lap, number) == []
        assert [lap["outputs"][f"{number}-o{i}"]["ids"] for i in range(4)] == want
    for i, case in enumerate(small_cases):  # the traces are those of the library
        rows = result["traces"][f"0-{i}-" + "x" * 8]["rows"]
        got, taus = torch.tensor([row[0] for row in rows]), torch.tensor([row[3] for row in rows])
        torch.testing.assert_close(got[: len(case.want)], torch.tensor(case.final), rtol=0, atol=2e-3)
        torch.testing.assert_close(taus[: len(case.want)], torch.tensor(case.taus), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.v2)])
def test_preempted_pairs_go_on_where_they_were(asynchronous: bool, small, tight_cases: list[parity.Case]) -> None:
    """The KV cache holds two pairs or three; on a CPU asynchronous scheduling is forced, one step ahead."""
    folder, model, tokenizer = small
    engine = {
        "max_model_len": 448,
        "block_size": 32,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 32,
        "enable_prefix_caching": not asynchronous,
        "num_gpu_blocks_override": 32 if asynchronous else 40,
    }
    work = parity.job(folder, model, tokenizer, tight_cases, engine, **({"async": True} if asynchronous else {}))
    result = parity.live(work)
    check_empty(result)
    assert (result["async"], result["queue"]) == ((True, 2) if asynchronous else (False, 1))
    assert result["counts"]["preempted"] > 0
    assert parity.differences(tight_cases, result["laps"][0]) == []


def test_aborted_rows_take_their_partner_and_nobody_else(small, small_cases: list[parity.Case]) -> None:
    folder, model, tokenizer = small
    aborts = [{"pair": 3, "role": "contextual", "after": 5}, {"pair": 8, "role": "parametric", "after": 3}]
    engine = BASE | {"max_num_batched_tokens": 128, "max_num_seqs": 24}
    result = parity.live(parity.job(folder, model, tokenizer, small_cases, engine, aborts=aborts, stagger=1, laps=2))
    check_empty(result)
    lap = result["laps"][0]
    wrong = {int(text.split()[1].rstrip(":")) for text in parity.differences(small_cases, lap)}
    assert wrong <= {3, 8}
    for i in (3, 8):
        for role in ("contextual", "parametric"):
            ids = lap["outputs"][f"0-{i}-{role}"]["ids"]
            assert ids == small_cases[i].want[: len(ids)]
    assert parity.differences(small_cases, result["laps"][1], 1) == []  # the next lap finds a clean engine


@pytest.mark.v2
def test_a_policy_that_raises_fails_its_own_pairs_and_nobody_else(
    small, small_cases: list[parity.Case], tmp_path
) -> None:
    folder, model, tokenizer = small
    cases = small_cases[:12]
    engine = BASE | {"max_num_batched_tokens": 128, "max_num_seqs": 24}
    aborts = [{"pair": 7, "role": "contextual", "after": 5}]
    work = parity.job(folder, model, tokenizer, cases, engine, ordinary=ordinary(cases), stagger=1, aborts=aborts)
    for i in (2, 5):
        work["pairs"][i]["control"] = {"method": "stumbles", "label": str(i)}
    result = parity.live(work, path=stumbles.install(tmp_path / "site"))
    check_empty(result)
    lap = result["laps"][0]
    wrong = {int(text.split()[1].rstrip(":")) for text in parity.differences(cases, lap)}
    assert {2, 5} <= wrong <= {2, 5, 7}
    assert [lap["outputs"][f"0-o{i}"]["ids"] for i in range(4)] == plain_answers(model, cases)
    for i in (2, 5):
        told = result["traces"][f"0-{i}-" + "x" * 8]
        rows = [lap["outputs"][f"0-{i}-{role}"] for role in ("contextual", "parametric")]
        at = len(rows[0]["ids"]) - 1
        assert told["failed"] == f"steering by 'stumbles' failed at token {at}: KeyError: 'no such mood'"
        assert rows[0]["ids"] == rows[1]["ids"] and len(told["rows"]) == at and 1 <= at <= 3
        assert rows[0]["reason"] == rows[1]["reason"] == "stop"


def test_ordinary_requests_get_the_same_bits_as_from_an_engine_without_us(
    small, small_cases: list[parity.Case]
) -> None:
    folder, model, tokenizer = small
    engine = BASE | {"max_num_batched_tokens": 64, "max_num_seqs": 8}
    work = parity.job(folder, model, tokenizer, [], engine, ordinary=ordinary(small_cases, 12, logprobs=1))
    ours, stock = parity.live(work), parity.live(work | {"stock": True})
    assert ours["laps"][0]["outputs"] == stock["laps"][0]["outputs"]


def test_ordinary_requests_beside_pairs_are_those_of_an_engine_without_us(
    small, small_cases: list[parity.Case]
) -> None:
    """Tokens; log-probabilities within what vLLM's own batches make of them."""
    folder, model, tokenizer = small
    engine = BASE | {"max_num_batched_tokens": 128, "max_num_seqs": 24, "enable_prefix_caching": False}
    others = ordinary(small_cases, 10, logprobs=5)
    found = parity.beside(folder, model, tokenizer, small_cases[:12], others, engine)
    assert found["wrong_pairs"] == 0 and found["ours beside pairs"]["same_tokens"] == found["requests"] == 10
    assert found["ours beside pairs"]["furthest"] < 1e-4, found


@pytest.fixture(scope="module")
def steered(small, tmp_path_factory):
    """The front door, in this process; its cache holds one short pair, or the longest prompt alone."""
    from ckcontrol.vllm import SteeredLLM

    site = stumbles.install(tmp_path_factory.mktemp("installed") / "site")
    with pytest.MonkeyPatch.context() as here:  # a third party's policy, for this engine's processes
        here.setenv("PYTHONPATH", os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), site])))
        here.setattr(sys, "path", [*sys.path, site])
        importlib.invalidate_caches()
        with SteeredLLM(
            small[0],
            Control("ck-plug", alpha=0.2),
            on_lost="contextual",
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            block_size=32,
            num_gpu_blocks_override=17,
        ) as llm:
            yield llm
    base._REGISTRY.pop("stumbles", None)


ITEMS = [("Who?", ["Ann wrote it in May."]), {"question": "When?", "passages": ["In June."]}, "Where?"]
ASKED = [("Who?", ["Ann wrote it in May."]), ("When?", ["In June."]), ("Where?", [])]
CONTROLS = [
    Control("ck-plug", alpha=0.2),
    Control(method="cad", alpha=0.3, candidates=4),
    Control("ck-plug", alpha=0.2),
]


@pytest.mark.v2
def test_steered_llm_gives_the_answers_of_generate(small, steered) -> None:
    from ckcontrol.errors import PromptTooLong, ServingError
    from ckcontrol.vllm import SteeredLLM

    folder, model, tokenizer = small
    for wrong in ({"scheduler_cls": "x"}, {"on_lost": "context"}):
        with pytest.raises(ServingError, match=next(iter(wrong))):
            SteeredLLM(folder, **wrong)
    for options in ({"max_new_tokens": 9}, {"max_new_tokens": 9, "do_sample": True, "seed": 5, "temperature": 0.9}):
        got = steered.generate(ITEMS, control=CONTROLS, trace=True, **options)
        for answer, (question, passages), control in zip(got, ASKED, CONTROLS, strict=True):
            want = generate(model, tokenizer, question, passages, control=control, **options)
            assert isinstance(answer, Answer)
            for name in ("text", "token_ids", "passages", "finish_reason", "context_tokens", "parametric_tokens"):
                assert getattr(answer, name) == getattr(want, name), name
            assert [t.switched for t in answer.tokens] == [t.switched for t in want.tokens]
    assert steered.generate(ITEMS[:1], max_new_tokens=3)[0].tokens == ()
    assert steered.generate([]) == [] and steered.lost == {}
    with pytest.raises(PromptTooLong):
        steered.generate([("Who?", ["x" * 600])])


@pytest.mark.v2
def test_steered_llm_says_which_item_a_policy_failed_and_keeps_the_others(small, steered) -> None:
    from ckcontrol.errors import ServingError

    _, model, tokenizer = small
    controls = [CONTROLS[0], Control("stumbles"), CONTROLS[2]]
    said = r"item 1: steering by 'stumbles' failed at token [123]: KeyError: 'no such mood'\. .*error\.partial"
    with pytest.raises(ServingError, match=said) as error:
        steered.generate(ITEMS, control=controls, max_new_tokens=9)
    assert error.value.partial is not None and 2 <= len(error.value.partial[1].token_ids) <= 4
    for i in (0, 2):
        want = generate(model, tokenizer, *ASKED[i], control=CONTROLS[i], max_new_tokens=9)
        assert error.value.partial[i].token_ids == want.token_ids
    again = steered.generate(ITEMS[:1], control=CONTROLS[0], max_new_tokens=9)
    assert again[0].token_ids == error.value.partial[0].token_ids


@pytest.mark.v2
def test_steered_llm_chooses_between_whole_answers_as_generate_does(small, steered, monkeypatch) -> None:
    """Each draft is a pair; all are in one batch with items that have none."""
    from ckcontrol.vllm.offline import jobs

    _, model, tokenizer = small
    controls = [Control("dial", alpha=a) for a in (0.3, 0.5, 0.999, 1.0)] + [Control("dial", adaptive=True)]
    controls += [Control("grd"), Control("ck-plug", alpha=0.2)]
    items = [(f"Who wrote no. {i}?", ["Ann wrote it in May."]) for i in range(len(controls))]
    given = set()
    for options in ({"trace": True}, {"do_sample": True, "seed": 5, "temperature": 0.9}, {"repetition_penalty": 1.3}):
        options["max_new_tokens"] = 9
        got = steered.generate(items, control=controls, **options)
        for answer, item, control in zip(got, items, controls, strict=True):
            want = generate(model, tokenizer, *item, control=control, **options)
            assert (answer.token_ids, answer.text, answer.control) == (want.token_ids, want.text, want.control)
            assert [(d.name, d.token_ids, d.given, d.text) for d in answer.drafts] == [
                (d.name, d.token_ids, d.given, d.text) for d in want.drafts
            ]
            for mine, other in zip(answer.drafts, want.drafts, strict=True):
                assert mine.surprise_ctx == pytest.approx(other.surprise_ctx, abs=5e-3)
                assert mine.surprise_par == pytest.approx(other.surprise_par, abs=5e-3)
            assert len(answer.tokens) == (len(answer.token_ids) if "trace" in options else 0)
            given |= {d.name for d in answer.drafts if d.given}
    assert [len(a.drafts) for a in got] == [2, 0, 2, 0, 2, 2, 0] and len(given) > 1
    monkeypatch.setattr(
        "ckcontrol.vllm.offline.steered_llm.parts", lambda own, chosen: jobs.parts(own, chosen, room=20)
    )
    assert steered.generate(items, control=controls, **options) == got, "the same, a few at a time"
    assert steered.generate(["Where?"], control=Control("dial", alpha=0.7))[0].drafts == ()


def test_steered_llm_ends_answers_at_stop_texts_as_generate_does(small, steered) -> None:
    """Both rows of a pair, and of each draft, stop at the same token; an item without passages does too."""
    _, model, tokenizer = small
    controls = [Control("ck-plug", alpha=0.1), Control("dial", 0.7), Control("cad", 0.3), Control("off")]
    items = [("Who did it?", ["It was the postman."]), ("Where?", ["Here. " * 5]), ("When?", ["Then."]), ("How?", [])]
    options = {"max_new_tokens": 24}
    free = [generate(model, tokenizer, *item, control=c, **options) for item, c in zip(items, controls, strict=True)]
    stop = [c for answer in free for c in answer.text[6:] if c.isascii() and c.isalnum()][:3]
    assert stop
    got = steered.generate(items, control=controls, stop=stop, trace=True, **options)
    for answer, item, control in zip(got, items, controls, strict=True):
        want = generate(model, tokenizer, *item, control=control, stop=stop, **options)
        assert (answer.text, answer.token_ids, answer.finish_reason) == (want.text, want.token_ids, want.finish_reason)
        assert [(d.text, d.given) for d in answer.drafts] == [(d.text, d.given) for d in want.drafts]
        assert len(answer.tokens) == len(answer.token_ids)
    assert any(len(a.token_ids) < len(b.token_ids) for a, b in zip(got, free, strict=True)) and not steered.lost


def test_steered_llm_applies_masks_as_pruned_does(small, steered) -> None:
    _, model, tokenizer = small
    masks = [HeadMask.of(model, [(0, 1)]), HeadMask.of(model, [(1, 0)], factor=2.0), None]
    plain = [answer.token_ids for answer in steered.generate(ITEMS, control=CONTROLS, max_new_tokens=12)]
    for chosen in (masks, masks[::-1], masks[0]):
        each = chosen if isinstance(chosen, list) else [chosen] * 3
        got = steered.generate(ITEMS, control=CONTROLS, heads=chosen, max_new_tokens=12)
        for i, ((question, passages), control, mask) in enumerate(zip(ASKED, CONTROLS, each, strict=True)):
            with nullcontext() if mask is None else pruned(model, mask):
                want = generate(model, tokenizer, question, passages, control=control, max_new_tokens=12)
            assert got[i].token_ids == want.token_ids
            assert (mask is None) <= (got[i].token_ids == plain[i])
        assert sum(a.token_ids != b for a, b in zip(got, plain, strict=True)) >= 2, "masks change answers"
    with pytest.raises(HeadsError, match="3 items"):
        steered.generate(ITEMS, heads=masks[:2])
    with pytest.raises(HeadsError, match="the model is"):
        steered.generate(ITEMS, heads=HeadMask.of(tiny_model("qwen2")[0], [(0, 1)]))


def test_steered_llm_answers_a_lost_pair_from_the_passages_alone(small, steered) -> None:
    """The longest pair cannot fit the cache; its contextual prompt can."""
    from ckcontrol.errors import ServingError

    _, model, tokenizer = small
    long = ("Who?", ["Ann wrote it in May. " * 18])
    mask = HeadMask.of(model, [(0, 1)])
    got = steered.generate([ITEMS[0], long], trace=True, max_new_tokens=9)
    assert set(steered.lost) == {1} and "KV blocks" in steered.lost[1]
    assert got[0].tokens and got[1].tokens == () and got[1].control == Control(method="off")
    assert (
        got[0].token_ids
        == generate(model, tokenizer, *ITEMS[0], control=Control("ck-plug", alpha=0.2), max_new_tokens=9).token_ids
    )
    assert (
        got[1].token_ids == generate(model, tokenizer, *long, control=Control(method="off"), max_new_tokens=9).token_ids
    )
    sampled = {"do_sample": True, "seed": 3, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 9}
    drawn = [steered.generate([long], **sampled)[0].token_ids for _ in range(4)]
    assert len({got[1].token_ids, *drawn}) > 2, "drawn, with random numbers of vLLM's own"
    with pruned(model, mask):
        want = generate(model, tokenizer, *long, control=Control(method="off"), max_new_tokens=9)
    assert steered.generate([long], heads=mask, max_new_tokens=9)[0].token_ids == want.token_ids != got[1].token_ids
    with pytest.raises(ServingError, match="KV blocks"):
        steered.generate([long], repetition_penalty=1.3, penalty_scope="generated", max_new_tokens=9)
    steered.on_lost = "fail"
    try:
        with pytest.raises(ServingError, match=r"item 1 .* KV blocks"):
            steered.generate([ITEMS[0], long], max_new_tokens=9)
    finally:
        steered.on_lost = "contextual"
    assert steered.generate(ITEMS[:1], max_new_tokens=9)[0].token_ids == got[0].token_ids and steered.lost == {}


def test_a_closed_engine_has_ended_and_says_so(steered) -> None:
    """The last test of `steered`: its processes are gone when `close` returns, not when the object is collected."""
    from ckcontrol.errors import ServingError

    held = multiprocessing.active_children()
    assert held or os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
    steered.close()
    steered.close()
    for process in held:
        process.join(30)
        assert not process.is_alive(), "close has told it to end, or killed it"
    with pytest.raises(ServingError, match="closed"):
        steered.generate(ITEMS)


@pytest.fixture(scope="session")
def real_cases(real):
    return parity.make_cases(*real, 33, new_tokens=16)


@pytest.mark.real
@pytest.mark.parametrize("name", ["small chunks, all at once", "prefix caching, staggered, late partners, twice"])
def test_the_demo_model_answers_as_generate_does(name: str, real, real_cases: list[parity.Case]) -> None:
    from ckcontrol.models.load import demo_path

    engine, more = SCENARIOS[name]
    more = {k: v for k, v in more.items() if k != "laps"}
    work = parity.job(str(demo_path()), *real, real_cases, BASE | engine, ordinary=ordinary(real_cases), **more)
    result = parity.live(work, seconds=1800)
    check_empty(result)
    assert parity.differences(real_cases, result["laps"][0]) == []
    want = plain_answers(real[0], real_cases)
    assert [result["laps"][0]["outputs"][f"0-o{i}"]["ids"] for i in range(4)] == want


@pytest.mark.real
def test_the_demo_model_chooses_between_whole_answers_as_generate_does(real) -> None:
    from ckcontrol.models.load import demo_path
    from ckcontrol.vllm import SteeredLLM

    controls = [Control("dial", alpha=a) for a in (0.0, 0.3, 0.6, 0.8, 1.0)] + [Control("dial", adaptive=True)]
    controls.append(Control("grd"))
    pairs = list(zip(parity.QUESTIONS, parity.FACTS, strict=False))
    items = [(question, [fact]) for question, fact in pairs for _ in controls]
    with SteeredLLM(str(demo_path()), dtype="float32", enforce_eager=True, max_model_len=1024) as llm:
        made = [llm.generate(items, control=controls * len(pairs), max_new_tokens=24) for _ in range(2)]
    wanted = generate(*real, *map(list, zip(*items, strict=True)), control=controls * len(pairs), max_new_tokens=24)
    for got in made:  # the second time from the prefix cache
        for answer, want in zip(got, wanted, strict=True):
            assert answer.token_ids == want.token_ids
            assert [(d.token_ids, d.given) for d in answer.drafts] == [(d.token_ids, d.given) for d in want.drafts]


@pytest.mark.real
def test_ordinary_requests_beside_pairs_of_the_demo_model(real) -> None:
    from ckcontrol.models.load import demo_path

    cases = parity.make_cases(*real, 8, longest=200, new_tokens=10)

    engine = BASE | {"max_num_batched_tokens": 256, "max_num_seqs": 24, "enable_prefix_caching": False}
    found = parity.beside(str(demo_path()), *real, cases, ordinary(cases, 6, logprobs=5), engine)
    assert found["wrong_pairs"] == 0 and found["ours beside pairs"]["same_tokens"] == found["requests"] == 6
    assert found["ours beside pairs"]["furthest"] < 1e-3, found
