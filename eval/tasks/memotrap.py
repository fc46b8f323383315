"""MemoTrap: an instruction against a text that the model knows by heart; two endings, compared by likelihood.

Liu and Liu, 2023, "The memotrap dataset"; split as in CAD (Shi et al., 2023, arXiv 2305.14739): the instruction is
the passage and the text to complete the question, so that the parametric stream sees the text without instruction.
The strings are raw, nothing is stripped: ``passage + question`` is the published prompt, and each choice begins with
its space.
Contains hate speech (sub-task 3).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from ckcontrol.errors import EvalError

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, row_id, text

__all__ = ["ADAPTER", "split_prompt"]

# Where the instruction ends, tried in turn: before lettered options, after "to:", after a quoted demand, after a colon.
_ENDS = (r"\n(?=A\. .*\nB\. )", r"\nto:\n", r'": ', r": ")


def split_prompt(prompt: str) -> tuple[str, str]:
    """Return a prompt's instruction and its text to complete; the first is empty if there is no instruction.

    Example:
        >>> split_prompt('Write a quote that ends in the word "heavy": Absence makes the heart grow')
        ('Write a quote that ends in the word "heavy": ', 'Absence makes the heart grow')
    """
    for end in _ENDS:
        found = re.search(end, prompt)
        if found and found.end() < len(prompt):
            return prompt[: found.end()], prompt[found.end() :]
    return "", prompt


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data = row.data
        instruction, question = split_prompt(text(data, "prompt"))
        classes = ast.literal_eval(text(data, "classes"))
        wanted = int(data["answer_index"])
        if not isinstance(classes, list) or len(classes) != 2 or wanted not in (0, 1):
            raise EvalError(f"classes={classes!r}, answer_index={wanted} are not two endings and one of them.")
        yield Record(
            id=row_id(row),
            question=question,
            passages=(instruction,) if instruction else (),
            ctx_answers=(classes[wanted],),
            par_answers=(classes[1 - wanted],),
            choices=tuple(classes),
            answer_index=wanted,
            cloze=True,
            meta={
                "subtask": PurePosixPath(row.file).name.split(".")[0],
                "roles": ["contextual" if index == wanted else "parametric" for index in (0, 1)],
                "join": "",  # between instruction and text: the instruction ends with its own space or line break
            },
        )

    return converted(rows, convert)


ADAPTER = Adapter(
    name="memotrap",
    convert=_records,
    source="GitHub liujch1998/memo-trap",
    licence="repository MIT; rights in the texts unsettled: not to be redistributed; sub-task 3 is hate speech",
    hub="Albertmade/memo-trap",
    pattern="*.csv",
)
