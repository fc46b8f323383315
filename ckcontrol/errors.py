"""Every exception ckcontrol raises on purpose.

    CKError
    ├── ControlError (ValueError)       a control, policy or generation option that cannot be honoured
    ├── PromptError (ValueError)        a question, passage or template that cannot become a prompt pair
    │   └── PromptTooLong               the pair does not fit the model; carries both lengths
    ├── TokenizerMismatch (ValueError)  the tokenizer does not belong to the model
    ├── UnsupportedMode                 a decoding mode we refuse before the first forward
    ├── NonFiniteLogits                 NaN or +inf came out of the model; names row, step and stream
    ├── ModelUnavailable                a model name that could not be resolved or obtained
    │   └── ModelFolderBroken (ValueError)  a folder that holds no model, or not a whole one
    ├── MissingExtra (ImportError)      an optional dependency; names the extra to install
    ├── RetrievalError                  an index, embedder or retriever that cannot answer
    │   ├── NoIndex (ValueError)        there is none where one was named
    │   ├── EmptyCorpus                 an index was to be made of nothing
    │   ├── IndexMismatch               an index that is damaged, foreign or of another embedder; names the field
    │   └── IndexLocked                 another process is writing the index
    ├── HeadsError (ValueError)         a model, facts, scores or mask file that head work cannot use
    ├── WeightsError (ValueError)       pairs, an adapter or a dial that work on the weights cannot use
    ├── EvalError (ValueError)          a data set, record or run that evaluation cannot use
    └── ServingError (ValueError)       an engine setting or a request that serving cannot honour

Knows nothing of models or tensors. Every message names the offending value; `hint` names the remedy.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from typing import Any

__all__ = [
    "CKError",
    "ControlError",
    "EmptyCorpus",
    "EvalError",
    "HeadsError",
    "IndexLocked",
    "IndexMismatch",
    "MissingExtra",
    "ModelFolderBroken",
    "ModelUnavailable",
    "NoIndex",
    "NonFiniteLogits",
    "PromptError",
    "PromptTooLong",
    "RetrievalError",
    "ServingError",
    "TokenizerMismatch",
    "UnsupportedMode",
    "WeightsError",
    "did_you_mean",
]


class CKError(Exception):
    """Base of every error ckcontrol raises on purpose.

    Args:
        message: What happened, with the offending value.
        hint: What to do about it; appended to the message.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.hint = hint


class ControlError(CKError, ValueError):
    """A control, policy or generation option that cannot be honoured."""


class PromptError(CKError, ValueError):
    """A question, passage or template that cannot become a prompt pair."""


class PromptTooLong(PromptError):
    """The prompt pair plus the answer does not fit the model's context window.

    Attributes:
        context_tokens: Length of the contextual prompt.
        parametric_tokens: Length of the parametric prompt.
        limit: Longest prompt that would have fitted.
        max_new_tokens: Longest answer that was asked for.
    """

    def __init__(self, context_tokens: int, parametric_tokens: int, limit: int, max_new_tokens: int) -> None:
        self.context_tokens, self.parametric_tokens = context_tokens, parametric_tokens
        self.limit, self.max_new_tokens = limit, max_new_tokens
        super().__init__(*self.parts("max_new_tokens", ", or truncate='passages' to cut them"))

    def parts(self, answer: str, cut: str = "") -> tuple[str, str]:
        """Return message and hint in the words of the door that the user came through.

        Args:
            answer: What it calls the longest answer.
            cut: How passages are cut there, behind "Pass fewer or shorter passages"; empty where they are not.
        """
        what = (
            f"the prompts are {self.context_tokens} tokens (with passages) and {self.parametric_tokens} (without), but "
            f"the model leaves room for {self.limit} beside {answer}={self.max_new_tokens}."
        )
        if self.parametric_tokens > self.limit:
            return what, "Shorten the question or the answer: without passages it is too long already."
        return what, f"Pass fewer or shorter passages{cut}."


class TokenizerMismatch(CKError, ValueError):
    """The tokenizer does not belong to the model."""


class UnsupportedMode(CKError):
    """A decoding mode that two-stream decoding cannot honour; raised before the first forward."""


class NonFiniteLogits(CKError):
    """The model produced NaN or +inf, or every candidate was masked away.

    Attributes:
        row: Batch row, counted from 0.
        step: Generated token, counted from 0.
        stream: "contextual", "parametric" or "fused".
        partial: What was generated and traced before the failure, per row; None outside `generate`.
    """

    def __init__(self, row: int, step: int, stream: str) -> None:
        what, hint = (
            ("every candidate token was masked away", "Set candidate_ratio=0 or relax the logits processors.")
            if stream == "fused"
            else (
                "the model produced NaN, +inf or no finite logit",
                "Load the model in bfloat16 or float32; float16 overflows in many checkpoints.",
            )
        )
        super().__init__(f"row {row}, step {step}, {stream} stream: {what}.", hint)
        self.row = row
        self.step = step
        self.stream = stream
        self.partial: list[Any] | None = None


class ModelUnavailable(CKError):
    """A model name that could not be resolved or obtained."""


class ModelFolderBroken(ModelUnavailable, ValueError):
    """A folder that holds no model, or not a whole one; the network has nothing to do with it."""


class MissingExtra(CKError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        verb = "are" if " and " in package else "is"
        super().__init__(f"{package} {verb} not installed.", f"Run: pip install {installable(extra)}")


def require(extra: str, **packages: str) -> None:
    """Do nothing where an extra is installed, so that a command says what it lacks before it works.

    Args:
        extra: Its name.
        **packages: What can be imported -> what pip calls it.

    Raises:
        MissingExtra: Names all of them that are not installed.
    """
    from importlib.util import find_spec

    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        raise MissingExtra(" and ".join(missing), extra)


def installable(extra: str) -> str:
    """Return what pip takes to add an extra to this installation: the folder or file it came from, or its name."""
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        told = json.loads(distribution("ckcontrol").read_text("direct_url.json") or "{}")
        url, kept = urlsplit(told.get("url", "")), told.get("dir_info", {}).get("editable")
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return f'"ckcontrol[{extra}]"'
    path = url2pathname(url.path)
    if url.scheme == "file" and os.path.exists(path):
        return f'{"-e " if kept else ""}"{path}[{extra}]"'
    return f'"ckcontrol[{extra}]"'


class RetrievalError(CKError):
    """An index, embedder or retriever that cannot answer."""


class NoIndex(RetrievalError, ValueError):
    """There is no index where one was named."""


class EmptyCorpus(RetrievalError):
    """An index was to be made, and no passage was given or every one was left out."""

    def __init__(self) -> None:
        super().__init__("the corpus is empty.", "Give at least one passage.")


class IndexMismatch(RetrievalError):
    """An index is damaged, foreign, or belongs to another embedder.

    Attributes:
        field: What disagrees, as the manifest calls it: ``"dim"``, ``"embedder"``, a file name.
    """

    def __init__(self, field: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.field = field


class IndexLocked(RetrievalError):
    """Another process is writing the index."""


class HeadsError(CKError, ValueError):
    """A model, facts, scores or mask file that scoring or pruning of heads cannot use."""


class WeightsError(CKError, ValueError):
    """Preference pairs, an adapter or a dial of adapters that work on the weights cannot use."""


class EvalError(CKError, ValueError):
    """A data set, record or run that evaluation cannot use."""


class ServingError(CKError, ValueError):
    """An engine setting or a request that serving cannot honour. A ValueError, so that vLLM answers it with a 400.

    Attributes:
        partial: The answers of a call in which one item's method raised, that one cut; None otherwise.
    """

    partial: list[Any] | None = None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that lists the known names and, when one is close, proposes it."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(names)}."
