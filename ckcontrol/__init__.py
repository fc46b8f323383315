"""ckcontrol: decide, per request and per token, how far a language model trusts memory against retrieved context.

Importing this package is light: torch and transformers are loaded when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it; resolved on first use.
_WHERE = {
    "Answer": ".trace",
    "CKLogitsProcessor": ".processor",
    "Control": ".config",
    "GenerateOptions": ".config",
    "Policy": ".policies",
    "PromptTemplate": ".prompts",
    "Rag": ".rag",
    "RagAnswer": ".rag",
    "Recorder": ".recorder",
    "Signals": ".gain",
    "TokenTrace": ".trace",
    "build_pair": ".prompts",
    "confidence_gain": ".gain",
    "decoding_loop": ".generation",
    "fuse": ".kernel",
    "generate": ".generation",
    "head_set": ".dist",
    "load": ".models",
    "reference_generate": ".reference",
    "register": ".policies",
}

if TYPE_CHECKING:
    from .config import Control, GenerateOptions
    from .dist import head_set
    from .gain import Signals, confidence_gain
    from .generation import decoding_loop, generate
    from .kernel import fuse
    from .models import load
    from .policies import Policy, register
    from .processor import CKLogitsProcessor
    from .prompts import PromptTemplate, build_pair
    from .rag import Rag, RagAnswer
    from .recorder import Recorder
    from .reference import reference_generate
    from .trace import Answer, TokenTrace

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
    "Signals",
    "TokenTrace",
    "build_pair",
    "confidence_gain",
    "decoding_loop",
    "fuse",
    "generate",
    "head_set",
    "load",
    "reference_generate",
    "register",
]


def __getattr__(name: str) -> Any:
    if name == "heads":  # a package, and not a light one
        return import_module(".heads", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module 'ckcontrol' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
