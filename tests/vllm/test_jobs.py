"""How many pairs of an offline call run at once, and which pair is the answer; no engine."""

from __future__ import annotations

import pytest

from ckcontrol import Control, GenerateOptions
from ckcontrol.errors import ControlError, ServingError
from ckcontrol.vllm.offline.jobs import Job, given_of, parts
from ckcontrol.vllm.offline.steered_llm import SteeredLLM

DIAL = Control("dial", adaptive=True)
NAMES = ("unmodified", "memory")


def row(logp_ctx: float, logp_par: float) -> list[float]:
    return [-0.5, 1.0, 2.0, 1.0, 0.0, 4.0, 0.0, logp_par, logp_ctx, -0.1]


def drafts(item: int = 0) -> list[Job]:
    """Memory's is the one both mind less."""
    minds = {"unmodified": (-0.1, -5.0), "memory": (-0.4, -0.1)}
    return [Job(item, name, ids=[5, 6], rows=[row(*minds[name])] * 2) for name in NAMES]


def test_what_is_not_recorded_runs_at_once() -> None:
    items = [[Job(i, "")] for i in range(50)]
    assert [len(part) for part in parts(items, GenerateOptions(max_new_tokens=10, trace=False), room=40)] == [50]
    assert [len(part) for part in parts([], GenerateOptions(), room=40)] == [0]


@pytest.mark.parametrize("room", [1, 20, 39, 40, 100, 10**6])
def test_what_is_recorded_fits_and_items_stay_whole(room: int) -> None:
    for trace in (True, False):
        chosen = GenerateOptions(max_new_tokens=10, trace=trace)
        items = [drafts(i) if i % 3 else [Job(i, "")] for i in range(20)]
        made = list(parts(items, chosen, room))
        assert [job for part in made for job in part] == [job for item in items for job in item]
        for part in made:
            tokens = sum(10 for job in part if trace or job.draft)
            assert tokens <= room or len({job.item for job in part if trace or job.draft}) == 1
            assert all(
                sum(job.item == item for job in part) == (2 if item % 3 else 1) for item in {j.item for j in part}
            )
        if room == 10**6:
            assert len(made) == 1


def test_the_given_pair() -> None:
    jobs = drafts()
    jobs[1].ids = [7, 8]
    given, told = given_of(jobs, DIAL, False, "Who?", [], str)
    assert given is jobs[1] and [d.given for d in told] == [False, True]
    given, told = given_of(jobs, DIAL, False, "Who? 7, 8?", [], str)
    assert given is jobs[0] and [d.given for d in told] == [True, False], "it says nothing beside the question"
    assert given_of(jobs, DIAL, True, "Who?", [], str) == (jobs[0], [])
    assert given_of(jobs[:1], Control("ck-plug", alpha=0.2), False, "Who?", [], str) == (jobs[0], [])
    jobs[1].broken = "parametric"
    assert given_of(jobs, DIAL, False, "Who?", [], str) == (jobs[1], []), "the answer shown is the one that broke"


@pytest.mark.parametrize(("ids", "rows", "words"), [([], 2, "without token ids"), ([5, 6, 7], 2, "recall 2")])
def test_a_draft_that_cannot_be_compared_is_named_with_its_item(ids: list[int], rows: int, words: str) -> None:
    jobs = drafts(item=7)
    jobs[1].ids, jobs[1].rows = ids, jobs[1].rows[:rows]
    with pytest.raises(ServingError, match=f"item 7: draft 'memory'.*{words}"):
        given_of(jobs, DIAL, False, "Who?", [], str)


def test_half_a_character_is_no_stop_text() -> None:
    """`ckcontrol.generate` would end at the token that shows it, vLLM never: refused before an engine is asked."""
    engineless = SteeredLLM.__new__(SteeredLLM)
    engineless._closed = False
    for stop in ("\ufffd", ["end", "a\ufffdb"]):
        with pytest.raises(ControlError, match=r"holds U\+FFFD.*answer with ckcontrol.generate"):
            engineless.generate(["Who?"], stop=stop)
