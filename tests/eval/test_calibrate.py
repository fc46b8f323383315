"""calibrate: its answers are those of `generate` at every setting, and it proposes only what its evidence carries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ckcontrol as ck
from ckcontrol.answer import Answer, Draft
from ckcontrol.cli.calibrate import _print
from ckcontrol.cli.main import main
from ckcontrol.errors import EvalError
from ckcontrol.eval.calibrate import FEWEST, OFF, Calibration, Question, calibrate, read_questions
from ckcontrol.eval.figures.intervals import difference, largest_of

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


def test_a_gain_beyond_chance_is_proposed_with_what_it_loses() -> None:
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


def weighed(*kinds: tuple[int, float, bool, bool]) -> Calibration:
    """What is found of so many questions each: evidence for memory, whether it is right, and the unmodified model."""
    each = [kind[1:] for kind in kinds for _ in range(kind[0])]
    truth = {(True, True): ("Rome", "Oslo"), (True, False): ("Rome",), (False, True): ("Oslo",), (False, False): ("x",)}
    asked = [Question(str(i), f"q{i}?", truth[right]) for i, (_, *pair) in enumerate(each) for right in [tuple(pair)]]

    def answer(some, control):
        return [a for q in some for a in answers([each[int(q.id)][0]], control, "Oslo.", "Rome.")]

    return calibrate(asked, answer)


def printed(found: Calibration, capsys: pytest.CaptureFixture[str]) -> str:
    _print(found, "idx/")
    return " ".join(capsys.readouterr().out.split())


def test_four_of_four_are_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    few = weighed((4, 1.7, True, False), (16, 0.0, True, True))  # no test tells 4 from chance: 2 ** -4 = .0625
    at = next(setting for setting in few.settings if setting.name == "alpha 0.6")
    assert (at.against.up, at.against.down) == (4, 0) and at.p == at.against.p / 2 == pytest.approx(0.0625)
    assert few.proposed is few.off and few.unseen == few.off.share == pytest.approx(16 / 20)
    said = printed(few, capsys)
    ties = [s.name for s in few.settings if sum(s.right) == 20 and s.name != "alpha 0.6"]
    assert ties == ["alpha 0.7", "alpha 0.8", "alpha 0.9", "alpha 1"]
    assert "Leave it off" in said and f"The best was alpha 0.6 (as good: {', '.join(ties)}), +20 [" in said
    assert "points: 4 won and 0 lost, p = 0.062 (paired swap test, one-sided" in said
    assert "won ┃ lost ┃ p ┃" in said and "│ 4 │ 0 │ 0.062 │" in said, "p of every setting in the table"
    assert "20 questions are few:" in said and "by 80 nearly always" in said


def test_forty_propose_what_eight_of_eight_carry(capsys: pytest.CaptureFixture[str]) -> None:
    rises = [(6, 1.7, True, False), (2, 1.0, True, False), (1, 0.3, True, False), (1, 0.3, False, True)]
    found = weighed(*rises, (4, 0.0, False, True), (12, 0.0, True, True), (14, 0.0, False, False))
    told = {setting.name: (sum(setting.right), setting.against.up, setting.against.down) for setting in found.settings}
    assert told["alpha 0.6"] == (23, 6, 0) and told["alpha 0.7"] == (25, 8, 0)
    assert told[OFF] == (17, 0, 0) and told["alpha 0.9"] == (25, 9, 1) and told["alpha 1"] == (21, 9, 5)
    assert found.proposed.name == "alpha 0.7" and found.proposed.against.p / 2 < found.proposed.p < 0.05
    assert found.to_dict()["settings"][7]["p"] == found.proposed.p
    said = printed(found, capsys)
    assert "Use alpha 0.7 (as good: alpha 0.8, alpha 0.9): 62% of 40 are right, 42% with the unmodified" in said
    assert "unmodified model, +20 [+6, +34] points: 8 won" in said
    assert "8 won and 0 lost, p = 0.0" in said and "are few" not in said


def test_where_true_passages_are_good_it_is_left_off(capsys: pytest.CaptureFixture[str]) -> None:
    found = weighed((11, 0.0, False, True), (11, 0.0, True, True), (2, 0.0, False, False))
    assert found.proposed is found.off and found.settings[-2].against.down == 11 and found.settings[-2].p == 1
    assert "Leave it off" in printed(found, capsys)


def test_the_best_of_many_needs_more_than_one_setting_alone() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.choice([-1, 0, 0, 1], (12, 6)).astype(float)
    gaps[:, 0] = [1] * 7 + [-1] + [0] * 4
    alone = difference(gaps[:, 0] * (gaps[:, 0] > 0), -gaps[:, 0] * (gaps[:, 0] < 0), range(12)).p
    assert largest_of(gaps[:, :1]) == pytest.approx([alone / 2]) == [9 / 2**8]
    assert largest_of(gaps)[0] > alone / 2
    assert largest_of(np.repeat(gaps[:, :1], 6, axis=1)) == pytest.approx(
        [alone / 2] * 6
    )  # one setting six times is one


def test_chance_alone_is_seldom_proposed() -> None:
    rng, found = np.random.default_rng(1), 0
    for _ in range(400):  # the better of two equally good drafts, at settings that take ever more of them
        gap, taken = rng.choice([-1.0, 1.0], 30), np.arange(30)[:, None] < np.array([6, 9, 12, 16, 20, 30])
        found += min(largest_of(gap[:, None] * taken)) < 0.05
    assert found <= 32  # 5 % are 20; 32 is three standard errors more


def test_bad_rows_are_named_and_few_are_refused(tmp_path: Path) -> None:
    good = [{"question": f"q{i}?", "answers": ["Rome", "Roma"], "wrong": "Oslo"} for i in range(FEWEST)]
    bad = [{"question": " ", "answers": "a"}, {"question": "q?"}, {"question": "q?", "answers": [["a"]]}, 7]
    bad.append({"question": "q?", "answers": "9 Euro", "wrong": ["10 Euro", "9 Euro"]})
    bad.append({"question": "q?", "right": "a"})
    bad.append({"question": "q?", "answers": "The Rome", "wrong": ["Oslo", "rome"]})
    bad += [{"question": "q\ud83d?", "answers": "a"}, {"question": "q?", "answers": "a", "passages": ["b", "\ud83d"]}]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*bad, *good]), encoding="utf-8")
    kept, rejected = read_questions(path)
    assert [question.answers for question in kept] == [("Rome", "Roma")] * FEWEST and kept[0].wrong == ("Oslo",)
    assert [row.told.split(":")[0] for row in rejected] == [f"q.jsonl, row {i}" for i in range(1, 10)]
    assert all("half a character ('\\ud83d')" in row.detail for row in rejected[7:]), "before a model is loaded"
    assert "'9 Euro' is in answers and in wrong" in rejected[4].detail, "the user's own words"
    assert "the row has: question, right" in rejected[5].detail
    odd = [{"answers": "a"}, {"question": 5, "answers": "a"}, {"question": " ", "answers": "a"}]
    path.write_text("\n".join(json.dumps(row) for row in [*odd, *good]), encoding="utf-8")
    said = [row.detail.split(";")[0] for row in read_questions(path)[1]]
    assert said == ["question is missing", "question is 5, not text", "question is empty"]
    assert "'The Rome' of answers is the same as 'rome' of wrong" in rejected[6].detail
    for name in ("answer", "golden_answers"):
        path.write_text("\n".join(json.dumps({"question": f"q{i}?", name: "Rome"}) for i in range(FEWEST)), "utf-8")
        assert {question.answers for question in read_questions(path)[0]} == {("Rome",)}, name
    path.write_text("\n".join(json.dumps(row) for row in bad), encoding="utf-8")
    with pytest.raises(EvalError, match=rf"0 questions.*at least {FEWEST}"):
        read_questions(path)
    (tmp_path / "q.csv").write_text("question,answers\nq?,a\n", encoding="utf-8")
    with pytest.raises(EvalError, match=rf"holds 1 question with answers.*at least {FEWEST}") as few:
        read_questions(tmp_path / "q.csv")
    assert "JSON" not in str(few.value)
    with pytest.raises(EvalError, match=r"there is no '.*no\.jsonl'.*JSON lines, CSV") as missing:
        read_questions(tmp_path / "no.jsonl")
    assert "Hugging Face" not in str(missing.value)


def test_where_nothing_is_right_nothing_is_advised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"q{i}?", "answers": "Orvendale", "passages": "A bell."} for i in range(FEWEST)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["calibrate", "-", str(tmp_path / "q.jsonl"), "--model", "tiny", "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr().out
    assert "No answer was right at any setting" in said and "Leave it off" not in said


def test_faulty_rows_are_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    whole = json.dumps({"question": "q?", "answers": "Rome", "passages": "A bell."})
    bad = {1: '{"question": "no answers"}', 4: "not JSON", 10: '{"answers": "no question"}'}
    (tmp_path / "q.jsonl").write_text("\n".join(bad.get(row, whole) for row in range(FEWEST + 5)), encoding="utf-8")
    kept, rejected = read_questions(tmp_path / "q.jsonl")
    assert len(kept) == FEWEST + 2
    assert [one.told.split(":")[0] for one in rejected] == [f"q.jsonl, row {row + 1}" for row in bad]


def test_rows_are_looked_at_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"q{i}?", "answers": "Rome", "passages": "A bell."} for i in range(FEWEST)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, [{"question": "q?"}, *rows])), encoding="utf-8")
    call = ["calibrate", "-", str(tmp_path / "q.jsonl"), "--max-new-tokens", "2", "--model"]
    assert main([*call, str(tmp_path / "none")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Left out q.jsonl, row 1: answers is missing") and "none" in told[-1]
    assert main([*call, "tiny"]) == 3
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Left out q.jsonl, row 1:") and told[1] == "Answering: 0 of 8"
    assert told[2].startswith("Answering: 8 of 8 · ")
    for option, why in ((("--where", "x"), "--where 'x' is not"), (("--alpha", "1"), "No such option: --alpha. See:")):
        assert main([*call, "tiny", *option]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and why in told[0], "bad options before the rows"
