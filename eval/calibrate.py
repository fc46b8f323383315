"""Which setting of the dial suits one service: its own questions, answered at every setting, judged, and weighed.

`dial` writes at most three drafts of an answer and its evidence does not depend on alpha, so the whole dial costs two
passes over the questions (`Dial.takes` decides at every alpha). Knows questions with their answers, and what answers;
a `Rag` or a model does the rest.

A setting is proposed only where an exact paired test carries it, corrected for choosing the best of all settings: the
settings of one question are swapped with the unmodified model together, and the largest of their differences counts
(Westfall and Young, 1993). The best of many settings looks better than it is, so its share is given once more on
questions that did not choose it: each question is judged at the setting that the others would have chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ckcontrol.answer import Answer
from ckcontrol.control import Control
from ckcontrol.errors import EvalError
from ckcontrol.policies.dial import Dial
from ckcontrol.rates import count

from .figures.intervals import LEVEL, Difference, difference, largest_of
from .figures.resampling import Floats
from .items.readers import Row, read
from .judging.verdict import verdict
from .metrics import normalize
from .records import Rejected, by_row, texts

__all__ = ["ALPHAS", "FEW", "OFF", "Calibration", "Question", "Setting", "calibrate", "read_questions"]

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)
OFF = "alpha 0.5"
FEWEST = 8  # questions; fewer cannot tell any two settings apart
FEW = 80  # questions; of fewer, a gain of 20 points is often not told from chance: benchmarks/calibrate.py
_ANSWERS = ("answers", "answer", "golden_answers")


@dataclass(frozen=True)
class Question:
    """A question whose right answer is known.

    Attributes:
        id: File and row, counted from 1.
        text: What is asked.
        answers: Right answers, aliases included; an answer that names one, not negated, is right.
        wrong: Answers known to be wrong, such as what an outdated passage says; named first, they make it wrong.
        passages: To answer from; None: the index finds them.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    passages: tuple[str, ...] | None = None

    def right(self, answer: str) -> bool:
        """Tell whether a generated answer is right, as `judging.verdict` reads it."""
        return verdict(answer, self.wrong, self.answers).source in ("parametric", "both")


@dataclass(frozen=True)
class Setting:
    """One setting on all questions.

    Attributes:
        name: "alpha 0.7", "adaptive".
        control: What to pass to `generate`.
        right: [n] whether each question's answer was right.
        against: Paired difference of the share of right answers to the unmodified model's, with a 95 % interval of this
            setting alone.
        p: That chance makes a setting this much better than the unmodified model; corrected for the choice
            among all settings.
    """

    name: str
    control: Control
    right: tuple[bool, ...]
    against: Difference
    p: float

    @property
    def share(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
        questions: What was asked.
        settings: Every setting, by alpha, the adaptive one last.
        answers: [settings][n] the answers.
        proposed: The setting that is proposed: the best of those with p below 5 %, or else the unmodified model.
        unseen: Share of right answers when each question is judged at the setting the others would have chosen.
        closed_book: Questions for which no passage was found: no setting changes their answer.
    """

    questions: tuple[Question, ...]
    settings: tuple[Setting, ...]
    answers: tuple[tuple[str, ...], ...]
    proposed: Setting
    unseen: float
    closed_book: int

    @property
    def off(self) -> Setting:
        """The unmodified model."""
        return next(setting for setting in self.settings if setting.name == OFF)

    @property
    def best(self) -> Setting:
        """The setting with the most right answers, nearest 0.5 of several."""
        return max(self.settings, key=lambda setting: (sum(setting.right), -_distance(setting.control)))

    def changed(self, setting: Setting, *, lost: bool) -> list[tuple[Question, str, str]]:
        """Return the questions a setting lost, or won: each with the unmodified answer and the setting's."""
        place, plain = self.settings.index(setting), self.settings.index(self.off)
        return [
            (question, self.answers[plain][i], self.answers[place][i])
            for i, question in enumerate(self.questions)
            if (self.off.right[i], setting.right[i]) == (lost, not lost)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "n": len(self.questions),
            "closed_book": self.closed_book,
            "proposed": {"name": self.proposed.name, "control": self.proposed.control.to_dict()},
            "unseen": self.unseen,
            "settings": [
                {
                    "name": setting.name,
                    "right": sum(setting.right),
                    "share": setting.share,
                    "difference": setting.against.value,
                    "low": setting.against.low,
                    "high": setting.against.high,
                    "won": setting.against.up,
                    "lost": setting.against.down,
                    "p": setting.p,
                }
                for setting in self.settings
            ],
            "questions": [
                {
                    "id": question.id,
                    "question": question.text,
                    "answers": {setting.name: self.answers[k][i] for k, setting in enumerate(self.settings)},
                    "right": [setting.name for setting in self.settings if setting.right[i]],
                }
                for i, question in enumerate(self.questions)
            ],
        }


def read_questions(path: str | Path) -> tuple[list[Question], list[Rejected]]:
    """Read questions from JSON, JSON lines, CSV, TSV or Parquet.

    A row has ``question`` and ``answers`` (a text or a list; ``answer`` and ``golden_answers`` are the same), and may
    have ``wrong`` (likewise) and ``passages`` (likewise).

    Raises:
        EvalError: There is no such file, it cannot be read, or it holds fewer than `FEWEST` questions.
    """
    if not Path(path).exists():
        raise EvalError(
            f"there is no {str(path)!r}.", "Name a file of questions with answers: JSON lines, CSV, TSV or Parquet."
        )
    data = read(str(path))
    kept: list[Question] = []
    faulty: list[Rejected] = []
    for row in data.rows:
        try:
            kept.append(_question(row))
        except EvalError as error:
            faulty.append(Rejected(f"{row.file}:{row.number}", "malformed", str(error)))
    rejected = by_row(data.rejected, faulty)
    if len(kept) < FEWEST:
        why = f" ({rejected[0].told.rstrip('.')})" if rejected else ""
        raise EvalError(
            f"{str(path)!r} holds {count(len(kept), 'question')} with answers, too few to tell settings apart{why}.",
            f"Give at least {FEWEST}, better {FEW} or more: each a row with question and answers.",
        )
    return kept, rejected


def calibrate(
    questions: Sequence[Question],
    answer: Callable[[Sequence[Question], Control], Iterable[Answer]],
    *,
    batch: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Answer every question at every setting and propose one.

    Args:
        questions: At least `FEWEST`.
        answer: Returns one answer per question under one control, drafts included and whole: `Rag.ask`, or
            `generate`, with ``trace=True``.
        batch: Questions per call.
        on_progress: Called with how many questions are done, from 0 on, and how many there are.

    Raises:
        EvalError: Too few questions, or drafts that were stopped.
        CKError: Whatever `answer` raises.
    """
    if len(questions) < FEWEST:
        raise EvalError(f"{count(len(questions), 'question')} cannot tell settings apart.", f"Give at least {FEWEST}.")
    controls = {f"alpha {alpha:g}": Control("dial", alpha) for alpha in sorted((*ALPHAS, 0.5))}
    controls["adaptive"] = Control("dial", adaptive=True)
    dials = {name: Dial(control.alpha, **control.params) for name, control in controls.items()}
    said: dict[str, list[str]] = {name: [] for name in controls}
    closed = 0
    report = on_progress or (lambda done, total: None)
    report(0, len(questions))
    for start in range(0, len(questions), batch):
        some = questions[start : start + batch]
        pairs = (list(answer(some, Control("dial", alpha))) for alpha in (0.25, 0.75))
        for below, above in zip(*pairs, strict=True):
            closed += not above.passages
            for name, dial in dials.items():
                said[name].append(_given(above if dial.adaptive or dial.position >= 0.5 else below, dial))
        report(min(start + batch, len(questions)), len(questions))
    right = {name: [q.right(text) for q, text in zip(questions, told, strict=True)] for name, told in said.items()}
    ids, table = [str(i) for i in range(len(questions))], np.array([*right.values()], float).T
    chance, place = _chosen(table, [*controls.values()])
    settings = tuple(
        Setting(name, controls[name], tuple(hits), difference(hits, right[OFF], ids), p)
        for (name, hits), p in zip(right.items(), chance, strict=True)
    )
    return Calibration(
        tuple(questions),
        settings,
        tuple(tuple(told) for told in said.values()),
        settings[place],
        _unseen(table, [*controls.values()]),
        closed,
    )


def _question(row: Row) -> Question:
    if not isinstance(row.data, Mapping):
        raise EvalError(f"{type(row.data).__name__} is not a question.", "Write one JSON object per line.")
    text, known = row.data.get("question"), ", ".join(map(str, row.data))[:80]
    if not isinstance(text, str) or not text.strip():
        plain = "empty" if isinstance(text, str) else f"{text!r:.40}, not text"
        raise EvalError(
            f"question is {'missing' if text is None else plain}; the row has: {known}.", "Give the question's text."
        )
    listed = next((row.data[name] for name in _ANSWERS if row.data.get(name)), None)
    answers = tuple(item for item in texts(listed, "answers") if item.strip())
    if not answers:
        raise EvalError(
            f"answers is missing; the row has: {known}.", "Give the right answer, or a list of its spellings."
        )
    passages, wrong = row.data.get("passages"), texts(row.data.get("wrong"), "wrong")
    for a, w in product(answers, wrong):
        if normalize(a) == normalize(w):
            told = f"{a!r} is in answers and in wrong" if a == w else f"{a!r} of answers is the same as {w!r} of wrong"
            raise EvalError(f"{told}.", "Leave it in one of them.")
    given = None if passages is None else texts(passages, "passages")
    try:
        "".join((text, *(given or ()))).encode()
    except UnicodeEncodeError as error:
        what = f"the question or a passage holds half a character ({error.object[error.start]!r})."
        raise EvalError(what, "Write the whole one, or \\ufffd in its place.") from error
    return Question(f"{row.file}, row {row.number + 1}", text, answers, wrong, given)


def _given(answer: Answer, dial: Dial) -> str:
    """Return the text that `dial` would give of the drafts of an answer on its side of 0.5."""
    if len(answer.drafts) < 2:  # no passages: there was nothing to choose from
        return answer.text
    plain, other = answer.drafts
    if other.stopped:
        raise EvalError(
            f"the draft of {other.name} was stopped, and another alpha may give it.", "Answer with trace=True."
        )
    return (other if dial.takes(other.evidence, other.idle) else plain).text


def _distance(control: Control) -> float:
    """Return how far a setting is from the unmodified model: of equally good ones the nearest is taken."""
    return abs((0.65 if control.alpha is None else control.alpha) - 0.5)


def _chosen(right: Floats, controls: Sequence[Control]) -> tuple[list[float], int]:
    """Return p of every setting, and which to use, of [n, settings] right answers."""
    off = next(i for i, control in enumerate(controls) if control.alpha == 0.5)
    chance, counts = largest_of(right - right[:, [off]]), right.sum(axis=0)
    carried = [i for i, p in enumerate(chance) if i == off or (p < LEVEL and counts[i] > counts[off])]
    return chance, max(carried, key=lambda i: (counts[i], -_distance(controls[i])))


def _unseen(right: Floats, controls: Sequence[Control]) -> float:
    """Return the share of right answers where each question is judged at the setting that the others would choose."""
    hits = [  # where all settings agree, it does not matter which
        row[0] if (row == row[0]).all() else row[_chosen(np.delete(right, i, axis=0), controls)[1]]
        for i, row in enumerate(right)
    ]
    return float(np.mean(hits))
