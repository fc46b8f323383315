"""ckcontrol: decide, per request and per token, how far a language model trusts memory against retrieved context.

Importing this package is light: torch and transformers are loaded when a name that needs them is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from os import path as files

TYPE_CHECKING = False  # typing's own is imported by nothing here: before the command line answers Ctrl-C, less is more
__version__ = "0.2.0"

# name -> module that defines it; resolved on first use.
_WHERE = {
    "Answer": ".answer",
    "CKLogitsProcessor": ".decoding.logits_processor",
    "Control": ".control",
    "GenerateOptions": ".decoding.options",
    "Policy": ".policies",
    "PromptTemplate": ".decoding.prompts",
    "Rag": ".rag",
    "RagAnswer": ".rag",
    "Recorder": ".decoding.recorder",
    "Shortlist": ".fusion.distributions",
    "Signals": ".fusion.signals",
    "Source": ".decoding.sources",
    "TokenTrace": ".answer",
    "agenerate": ".decoding.asynchronous",
    "astream": ".decoding.asynchronous",
    "build_pair": ".decoding.prompts",
    "confidence_gain": ".fusion.signals",
    "decoding_loop": ".decoding.transformers_loop",
    "fuse": ".fusion.kernel",
    "generate": ".decoding.generate",
    "head_set": ".fusion.distributions",
    "load": ".models.load",
    "question_writer": ".atomic_questions",
    "reference_generate": ".decoding.reference",
    "register": ".policies",
}

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from .answer import Answer, TokenTrace
    from .atomic_questions import question_writer
    from .control import Control
    from .decoding.asynchronous import agenerate, astream
    from .decoding.generate import generate
    from .decoding.logits_processor import CKLogitsProcessor
    from .decoding.options import GenerateOptions
    from .decoding.prompts import PromptTemplate, build_pair
    from .decoding.recorder import Recorder
    from .decoding.reference import reference_generate
    from .decoding.sources import Source
    from .decoding.transformers_loop import decoding_loop
    from .fusion.distributions import Shortlist, head_set
    from .fusion.kernel import fuse
    from .fusion.signals import Signals, confidence_gain
    from .models.load import load
    from .policies import Policy, register
    from .rag import Rag, RagAnswer

__all__ = [
    "Answer",
    "CKLogitsProcessor",
    "Control",
    "GenerateOptions",
    "Policy",
    "PromptTemplate",
    "Rag",
    "RagAnswer",
    "Recorder",
    "Shortlist",
    "Signals",
    "Source",
    "TokenTrace",
    "agenerate",
    "astream",
    "build_pair",
    "confidence_gain",
    "decoding_loop",
    "fuse",
    "generate",
    "head_set",
    "load",
    "question_writer",
    "reference_generate",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in ("heads", "weights"):  # packages, and not light ones
        return import_module(f".{name}", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module 'ckcontrol' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Beside:
    """Finds `ckcontrol.eval` and `ckcontrol.retrieval` in a clone, where they lie beside this package, not in it."""

    clone = files.dirname(files.dirname(files.abspath(__file__)))

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the module is; None if it is another, or not there."""
        folder = files.join(cls.clone, name.removeprefix("ckcontrol."))
        if name not in ("ckcontrol.eval", "ckcontrol.retrieval") or not files.isdir(folder):
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, files.join(folder, "__init__.py"), submodule_search_locations=[folder])


if files.isfile(files.join(_Beside.clone, "pyproject.toml")):
    sys.meta_path.append(_Beside)  # last: an installation knows better
