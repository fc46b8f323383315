"""The scheduler: random lives (fuzz.py), and the ends of pairs one by one. Real scheduler and KV manager, no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from ckcontrol import Control
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import Decision, Policy, base
from ckcontrol.vllm.contract import pair_params as params

from . import fuzz

pytestmark = [pytest.mark.usefixtures("vllm_here"), pytest.mark.filterwarnings("ignore")]

SEEDS = 170  # per kind; benchmarks of 5,000: python -m tests.vllm.fuzz --cases 5000


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_random_lives(kind: str) -> None:
    found, counts = fuzz.run_cases(kind, 0, SEEDS)
    assert not found
    assert counts["released"] > 1000 and counts["ended"] > 20 and counts["refused"] > 20 and counts["preempted"] > 0


class Engine:
    """A scheduler with its clock in hand, and what its clients were told."""

    def __init__(self, kind: str = "async0", blocks: int = 200) -> None:
        self.case = fuzz.Case(kind, 0)
        self.case.coming.clear()
        self.case.lives.clear()
        self.case.eos.clear()
        self.case.scheduler = self.scheduler = fuzz.make_scheduler(kind, blocks, 128, 8, False)
        self.now = 0.0
        self.reasons: dict = {}
        self.scheduler._ck_clock = lambda: self.now

    def add(self, name: str, pair: str | None, role: str | None, *, prompt: int = 9, longest: int = 5, **extra) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        control = extra.pop("control", Control("ck-plug", alpha=0.2))
        args = None if pair is None else params.extra_args(pair, str(role), control)
        if args is not None:
            args |= extra.pop("args", {})
        asked = SamplingParams(**{"max_tokens": longest, "temperature": 0, "extra_args": args, **extra})
        asked.update_from_generation_config({}, eos_token_id=fuzz.EOS)
        self.case.lives[name] = fuzz.Life(name, pair, role, prompt, longest, 0)
        self.scheduler.add_request(Request(name, list(range(10, 10 + prompt)), asked, None, arrival_time=self.now))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            output = self.scheduler.schedule()
            self.told = self.scheduler.update_from_output(output, self.case._work(output))
            for told in self.told.values():
                for item in told.outputs:
                    life = self.case.lives[item.request_id]
                    life.got += item.new_token_ids
                    if item.finish_reason is not None:
                        life.ended, life.ends = str(item.finish_reason), life.ends + 1
                        self.reasons[item.request_id] = item.stop_reason

    def life(self, name: str) -> fuzz.Life:
        return self.case.lives[name]

    def empty(self) -> bool:
        s = self.scheduler
        free = s.kv_cache_manager.block_pool.get_num_free_blocks()
        return not (s.requests or s._ck_pairs or s._ck_parked or s._ck_owed or self.case.wrong) and free == 199


def test_a_row_alone_is_given_up_after_a_while_and_its_client_told() -> None:
    engine = Engine()
    engine.add("c", "p1", "contextual")
    assert engine.scheduler.has_requests()
    engine.step(3)
    assert engine.life("c").ended is None
    engine.now = 61.0
    engine.step()
    assert engine.life("c").ended == "error" and "did not arrive in 60 s" in engine.reasons["c"]
    assert engine.empty() and not engine.scheduler.has_requests()


@pytest.mark.parametrize("which", ["c", "p"])
def test_the_partner_of_an_aborted_row_ends_and_is_told(which: str) -> None:
    from vllm.v1.request import RequestStatus

    engine = Engine()
    engine.add("c", "p1", "contextual", longest=50)
    engine.add("p", "p1", "parametric", longest=50)
    engine.step(4)
    engine.scheduler.finish_requests(which, RequestStatus.FINISHED_ABORTED)
    other = "p" if which == "c" else "c"
    assert engine.scheduler.has_requests()
    engine.step()
    assert engine.life(other).ended == "abort" and engine.empty()


def test_a_parked_row_can_be_aborted() -> None:
    from vllm.v1.request import RequestStatus

    engine = Engine()
    engine.add("c", "p1", "contextual")
    assert [r.request_id for r in engine.scheduler.finish_requests(["c"], RequestStatus.FINISHED_ABORTED)] == ["c"]
    assert engine.empty() and not engine.scheduler.has_requests()


def test_everything_can_be_ended_at_once() -> None:
    from vllm.v1.request import RequestStatus

    engine = Engine()
    for name, pair, role in (("c", "p1", "contextual"), ("p", "p1", "parametric"), ("d", "p2", "parametric")):
        engine.add(name, pair, role)
    engine.add("o", None, None)
    engine.step()
    ended = engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert sorted(r.request_id for r in ended) == ["c", "d", "o", "p"]
    engine.step()
    assert engine.empty()


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"role": "contextual"}, "already has this row"),
        ({"role": "parametric", "control": Control("ck-plug", alpha=0.3)}, "differ in control"),
        ({"role": "parametric", "prompt": 1}, "a prompt of 1 tokens"),
        ({"role": "parametric", "prompt": fuzz.LONGEST}, f"a prompt of {fuzz.LONGEST} tokens"),
        ({"role": "parametric", "presence_penalty": 1.0}, "presence_penalty=1.0 has no meaning"),
        ({"role": "parametric", "args": {"ck_control": "{"}}, "ck_control is not JSON"),
        ({"role": "parametric", "args": {"ck_else": 1}}, "unknown argument 'ck_else'"),
    ],
)
def test_what_cannot_be_a_pair_is_answered_and_the_engine_lives(second: dict, sentence: str) -> None:
    engine = Engine()
    engine.add("o", None, None)
    engine.add("c", "p1", "contextual")
    engine.add("p", "p1", **second)
    engine.step(8)
    assert engine.life("p").ended == "error" and sentence in engine.reasons["p"]
    engine.now = 100.0
    engine.step(2)
    assert engine.life("c").ended == "error"
    assert engine.life("o").ended == "length" and engine.empty()


@dataclass(frozen=True, eq=False)
class Unruly(Policy):
    """A policy of an installed package whose constructor raises, or that cannot be compared."""

    name: ClassVar[str] = "unruly"
    at: str = ""

    def __post_init__(self) -> None:
        if self.at == "made":
            raise LookupError("no table of taus here")

    def decide(self, signals: Signals) -> Decision:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("which is larger?")

    def __hash__(self) -> int:
        return 1


BAD_HEADS = [None, 7, "", "[[1]]", "[[1,2,3,4]]", '{"a":1}', "[[-1,0,0]]", "[[0,-2,0]]", "[[0,0,NaN]]", "[" * 5000]
BAD = [{"ckheads": heads} for heads in BAD_HEADS]


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("args", [*BAD, {"ck_control": '{"method": "unruly", "at": "made"}'}])
def test_a_row_that_cannot_be_read_ends_its_pair_at_once_and_nothing_else(
    args: dict, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever row is broken, and whichever comes first; the clock stands still, so no one waits for a deadline."""
    monkeypatch.setitem(base._REGISTRY, "unruly", Unruly)
    engine = Engine()
    engine.add("o", None, None)
    engine.add("c2", "p2", "contextual")
    engine.add("c", "p1", "contextual", args=args if first else {})
    engine.add("p", "p1", "parametric", args={} if first else args)
    engine.add("p2", "p2", "parametric")
    engine.step(8)
    sentence = "ckheads is not a packed head mask" if "ckheads" in args else "no table of taus here"
    for row in ("c", "p"):
        assert engine.life(row).ended == "error" and sentence in engine.reasons[row] and not engine.life(row).got
    assert engine.life("o").ended == "length"
    assert len(engine.life("c2").got) == len(engine.life("p2").got) == 5 and engine.empty()


def test_rows_whose_policies_cannot_be_compared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._REGISTRY, "unruly", Unruly)
    engine = Engine()
    for role in params.ROLES:
        text = '{"method": "unruly"}' if role == "contextual" else '{"method": "unruly", "at": "x"}'
        engine.add(role, "p1", role, args={"ck_control": text})
    engine.add("o", None, None)
    engine.step(8)
    assert all(engine.life(role).ended == "error" for role in params.ROLES)
    assert engine.life("o").ended == "length" and engine.empty()


def test_a_pair_that_can_never_fit_is_refused_at_once() -> None:
    engine = Engine(blocks=200)
    engine.scheduler.cache_config.num_gpu_blocks = 10
    engine.add("c", "p1", "contextual", prompt=150, longest=50)
    engine.add("p", "p1", "parametric", longest=50)
    engine.step()
    assert engine.life("c").ended == engine.life("p").ended == "error" and "KV blocks" in engine.reasons["c"]


def test_a_name_that_is_in_use_cannot_be_joined() -> None:
    engine = Engine()
    engine.add("c", "p1", "contextual", longest=9)
    engine.add("p", "p1", "parametric", longest=9)
    engine.step(3)
    engine.add("thief", "p1", "parametric")
    engine.step(20)
    assert engine.life("thief").ended == "error" and not engine.life("thief").got
    assert engine.life("c").ended == engine.life("p").ended == "length" and len(engine.life("c").got) == 9
    assert engine.empty()


def test_our_own_failure_ends_pairs_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.add("c", "p1", "contextual", longest=30)
    engine.add("p", "p1", "parametric", longest=30)
    engine.add("o", None, None, longest=12)
    engine.step(3)

    def fail(*_: object) -> None:
        raise RuntimeError("made to fail")

    monkeypatch.setattr(engine.scheduler, "_ck_after", fail)
    engine.step()
    monkeypatch.undo()
    engine.scheduler._ck_clock = lambda: 0.0
    engine.step(20)
    assert engine.life("c").ended == engine.life("p").ended == "error" and "internal error" in engine.reasons["c"]
    assert engine.life("o").ended == "length" and len(engine.life("o").got) == 12


def test_answers_are_as_long_as_the_shorter_row_allows() -> None:
    engine = Engine()
    engine.add("c", "p1", "contextual", longest=4)
    engine.add("p", "p1", "parametric", longest=50)
    engine.step(8)
    assert len(engine.life("c").got) == len(engine.life("p").got) == 4 and engine.life("p").ended == "length"
    assert engine.empty()
