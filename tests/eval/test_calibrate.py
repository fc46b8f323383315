"""calibrate: its answers are those of `generate` at every setting, and it proposes only what its interval carries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ckcontrol as ck
from ckcontrol.answer import Answer, Draft
from ckcontrol.cli.main import main
from ckcontrol.errors import EvalError
from ckcontrol.eval.calibrate import FEWEST, OFF, Question, calibrate, read_questions

PASSAGE = "The bell of Orvendale was cast in 1884 by a founder from Lyon."


def test_two_passes_give_what_generate_gives_at_every_setting(llama) -> None:
    asked = [Question(str(i), f"Who made bell number {i}?", ("x",)) for i in range(FEWEST)]

    def answer(some, control):
        passages = [[PASSAGE]] * len(some)
        return ck.generate(*llama, [q.text for q in some], passages, control=control, max_new_tokens=5)

    found = calibrate(asked, answer, batch=3)
    for setting, said in zip(found.settings, found.answers, strict=True):
        if setting.control.alpha in (0.5, 1):
            continue  # one stream alone may say ids beyond this model's tokenizer, which a pair never does
        assert list(said) == [one.text for one in answer(asked, setting.control)], setting.name
    assert len({said for said in found.answers}) > 2  # the settings differ, or nothing was shown


def answers(evidence: list[float], control: ck.Control, plain: str, other: str) -> list[Answer]:
    """What `generate` would return where the other draft has this evidence."""
    above = control.alpha == 0.75
    return [
        Answer(
            question="q",
            passages=("p",),
            control=control,
            text=plain,
            tokens=(),
            token_ids=(1,),
            finish_reason="stop",
            context_tokens=9,
            parametric_tokens=5,
            drafts=(
                Draft("unmodified", (1,), 1.0, 1.0, True, plain),
                Draft("memory", (2,), 1.0, 1.0, False, other if above else plain, value),
            ),
        )
        for value in evidence
    ]


def test_a_gain_beyond_its_interval_is_proposed_with_what_it_loses() -> None:
    asked = [Question(str(i), f"q{i}?", ("Rome",) if i else ("Oslo",)) for i in range(30)]
    found = calibrate(asked, lambda some, control: answers([1.7] * len(some), control, "Oslo.", "Rome."))
    assert found.off.share == pytest.approx(1 / 30)
    assert found.proposed.name == "alpha 0.6" and found.proposed.share == pytest.approx(29 / 30)  # 1.7 > -log(0.2)
    assert [question.text for question, _, _ in found.changed(found.proposed, lost=True)] == ["q0?"]
    assert found.unseen == pytest.approx(29 / 30)


def test_luck_is_left_off() -> None:
    asked = [Question(str(i), f"q{i}?", ("Rome",) if i == 0 else ("Oslo",) if i == 1 else ("x",)) for i in range(20)]

    def answer(some, control):
        return [a for q in some for a in answers([3.0 if q.id == "0" else 0.0], control, "Oslo.", "Rome.")]

    found = calibrate(asked, answer)
    assert found.best.share == pytest.approx(2 / 20) and found.proposed is found.off and found.proposed.name == OFF


def test_bad_rows_are_named_and_few_are_refused(tmp_path: Path) -> None:
    good = [{"question": f"q{i}?", "answers": ["Rome", "Roma"], "wrong": "Oslo"} for i in range(FEWEST)]
    bad = [{"question": " ", "answers": "a"}, {"question": "q?"}, {"question": "q?", "answers": [["a"]]}, 7]
    bad.append({"question": "q?", "answers": "The Rome", "wrong": ["Oslo", "rome"]})
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*bad, *good]), encoding="utf-8")
    kept, rejected = read_questions(path)
    assert [question.answers for question in kept] == [("Rome", "Roma")] * FEWEST and kept[0].wrong == ("Oslo",)
    assert [row.id for row in rejected] == [f"q.jsonl, row {i}" for i in range(1, 6)]
    assert "'rome' is in answers and in wrong" in rejected[-1].detail
    path.write_text("\n".join(json.dumps(row) for row in bad), encoding="utf-8")
    with pytest.raises(EvalError, match=rf"0 questions.*at least {FEWEST}"):
        read_questions(path)


def test_where_nothing_is_right_nothing_is_advised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"q{i}?", "answers": "Orvendale", "passages": "A bell."} for i in range(FEWEST)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["calibrate", "-", str(tmp_path / "q.jsonl"), "--model", "tiny", "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr().out
    assert "No answer was right at any setting" in said and "Leave it off" not in said
