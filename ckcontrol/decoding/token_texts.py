"""Token ids to the text each of them added. Knows tokenizers; nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer_text", "pieces"]

_WINDOW = 6  # tokens re-decoded before the new one, so that spaces and multi-token characters come out right


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of a whole answer, special tokens and outer white space removed."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text each id added; special tokens by their name.

    A character spread over several tokens is attributed to the last of them, the earlier ones get "".
    """
    special = set(tokenizer.all_special_ids)
    texts = []
    start = done = 0
    for i, token in enumerate(ids):
        if token in special:
            texts.append(str(tokenizer.convert_ids_to_tokens(token)))
            start = done = i + 1
            continue
        before = tokenizer.decode(ids[start:done], skip_special_tokens=False)
        now = tokenizer.decode(ids[start : i + 1], skip_special_tokens=False)
        if now.endswith("�") and i + 1 < len(ids) and i + 1 - done < 8:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        done = i + 1
        start = max(start, done - _WINDOW)
    return texts
