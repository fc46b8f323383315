"""A streamer that writes text to the terminal as tokens arrive, with everything unsafe removed.

Knows the streamer protocol (`put`, `end`) and a tokenizer; knows nothing of models or controls.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from ..decoding.token_texts import Thoughts, opens_thought, overlap, stop_at, tags_of, with_tags
from ..views.safe_text import clean

__all__ = ["TextStream"]


class TextStream:
    """Prints the answer of one question piece by piece; skips the prompt, which comes first, and thoughts.

    Args:
        tokenizer: Of the model.
        file: Where to; None is stdout.
        stop: Texts that end the answer: none of them is printed, nor what might become one.
        thinking: Print what the model thinks too, and a blank line before the answer.
    """

    def __init__(
        self, tokenizer: Any, file: TextIO | None = None, stop: Sequence[str] = (), *, thinking: bool = False
    ) -> None:
        self._stop, self._thinking = tuple(stop), thinking
        self._tokenizer, self._tags = tokenizer, tags_of(tokenizer)
        self._file = file or sys.stdout
        self._ids: list[int] = []
        self._read = 0  # characters of the answer that `_thoughts` was given
        self._thoughts: Thoughts | None = None
        self._shown = self._parted = False

    def put(self, value: Any) -> None:
        """Take the next tokens, a tensor [1] or [1, n]."""
        ids = value.reshape(-1).tolist()
        if self._thoughts is None:  # the prompt, whose last word may open a thought
            words = with_tags(self._tokenizer, ids[-16:], self._tags).split()
            self._thoughts = Thoughts(opened=opens_thought("".join(words[-1:])))
            return
        self._ids += ids
        text = self._text()
        text = text[: len(text) - max((overlap(text, stop) for stop in self._stop), default=0)]
        if not text.endswith("�"):  # the rest of the character is still to come
            self._print(text)

    def end(self) -> None:
        """Finish the line."""
        self._print(self._text(), last=True)
        self._file.write("\n")
        self._file.flush()

    def _text(self) -> str:
        text = with_tags(self._tokenizer, self._ids, self._tags)
        return text[: stop_at(text, self._stop)]

    def _print(self, text: str, *, last: bool = False) -> None:
        answer, thought = (self._thoughts or Thoughts()).feed(text[self._read :], last=last)
        self._read = max(self._read, len(text))
        if self._thinking and thought:
            self._file.write(clean(thought, None))
            self._shown = True
        answer = answer.rstrip() if last else answer
        if answer and not self._parted:  # its first piece
            answer = answer.lstrip()
            self._file.write("\n\n" if answer and self._shown else "")
            self._parted = bool(answer)
        self._file.write(clean(answer, None))
        self._file.flush()
