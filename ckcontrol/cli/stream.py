"""A streamer that writes text to the terminal as tokens arrive, with everything unsafe removed.

Knows the streamer protocol (`put`, `end`) and a tokenizer; knows nothing of models or controls.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

from ..views.safe_text import clean

__all__ = ["TextStream"]


class TextStream:
    """Prints the answer of one question piece by piece; skips the prompt, which comes first."""

    def __init__(self, tokenizer: Any, file: TextIO | None = None) -> None:
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
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()
        if not text.endswith("�"):  # the rest of the character is still to come
            self._print(text)

    def end(self) -> None:
        """Finish the line."""
        self._print(self._tokenizer.decode(self._ids, skip_special_tokens=True).strip())
        self._file.write("\n")
        self._file.flush()

    def _print(self, text: str) -> None:
        self._file.write(clean(text[len(self._printed) :], None))
        self._file.flush()
        self._printed = max(self._printed, text, key=len)
