"""A streamer that writes text to the terminal as tokens arrive, with everything unsafe removed.

Knows the streamer protocol (`put`, `end`) and a tokenizer; knows nothing of models or controls.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from ..decoding.token_texts import stop_at
from ..views.safe_text import clean

__all__ = ["TextStream"]


class TextStream:
    """Prints the answer of one question piece by piece; skips the prompt, which comes first.

    Args:
        tokenizer: Of the model.
        file: Where to; None is stdout.
        stop: Texts that end the answer: none of them is printed, nor what might become one.
    """

    def __init__(self, tokenizer: Any, file: TextIO | None = None, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._tokenizer = tokenizer
        self._file = file or sys.stdout
        self._ids: list[int] = []
        self._printed = ""
        self._prompt = True

    def put(self, value: Any) -> None:
        """Take the next tokens, a tensor [1] or [1, n]."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += value.reshape(-1).tolist()
        text = self._text()
        text = text[: len(text) - max((overlap(text, stop) for stop in self._stop), default=0)].lstrip()
        if not text.endswith("�"):  # the rest of the character is still to come
            self._print(text)

    def end(self) -> None:
        """Finish the line."""
        self._print(self._text().strip())
        self._file.write("\n")
        self._file.flush()

    def _text(self) -> str:
        text = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        return text[: stop_at(text, self._stop)]

    def _print(self, text: str) -> None:
        self._file.write(clean(text[len(self._printed) :], None))
        self._file.flush()
        self._printed = max(self._printed, text, key=len)


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
