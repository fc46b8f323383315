"""A streamer that writes text to the terminal as tokens arrive, with everything unsafe removed.

Knows the streamer protocol (`put`, `end`) and a tokenizer; knows nothing of models or controls.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from ..decoding.token_texts import TextSoFar, Thoughts, opens_thought, tags_of, with_tags
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
        self._tokenizer, self._thinking = tokenizer, thinking
        self._text = TextSoFar(tokenizer, stop)
        self._file = file or sys.stdout
        self._thoughts: Thoughts | None = None
        self._shown = self._parted = False

    def put(self, value: Any) -> None:
        """Take the next tokens, a tensor [1] or [1, n]."""
        ids = value.reshape(-1).tolist()
        if self._thoughts is None:  # the prompt, whose last word may open a thought
            words = with_tags(self._tokenizer, ids[-16:], tags_of(self._tokenizer)).split()
            self._thoughts = Thoughts(opened=opens_thought("".join(words[-1:])))
            return
        self._print(self._text.feed(ids))

    def end(self) -> None:
        """Finish the line."""
        self._print(self._text.feed(last=True), last=True)
        self._file.write("\n")
        self._file.flush()

    def _print(self, text: str, *, last: bool = False) -> None:
        answer, thought = (self._thoughts or Thoughts()).feed(text, last=last)
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
