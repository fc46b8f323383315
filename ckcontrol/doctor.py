"""Proof that steering works on this machine: facts about the installation, and checks on a live model.

Knows the public functions of the library. Every check compares two outputs of the model, so a blend that is
silently off cannot pass. Prints nothing; `ckcontrol doctor` does.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from . import __version__
from .answer import Answer
from .control import Control
from .decoding.options import GenerateOptions
from .errors import CKError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Check", "check", "environment"]

PACKAGES = ("torch", "transformers", "numpy", "sentence-transformers", "faiss-cpu", "gguf")
QUESTION = "What is the capital of Australia?"
PASSAGE = "After the reform of 1997 the government moved, and Perth became the capital of Australia."
OPTIONS = GenerateOptions(max_new_tokens=12)


@dataclass(frozen=True)
class Check:
    """One check: what must hold, whether it does, and the figures that show it."""

    name: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def environment() -> dict[str, str]:
    """Return versions and whether the demo models are cached; absent packages say "not installed"."""
    from .models import wheels
    from .models.load import DEMO_EMBEDDER, DEMO_MODEL

    facts = {
        "ckcontrol": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    facts |= {name: _version(name) for name in PACKAGES}
    home = wheels.cache_home()
    facts["model cache"] = str(home)
    for wheel in (DEMO_MODEL, DEMO_EMBEDDER):
        there = (home / wheel.name / wheels.MANIFEST).is_file()
        facts[wheel.name] = "in the cache" if there else "not fetched yet (the demo fetches it)"
    return facts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def check(model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Check]:
    """Run every check on a model; without one, on a tiny random model that needs no download.

    A check that raises counts as failed, with the error as its detail; the others still run.
    """
    if model is None or tokenizer is None:
        from .models.load import load

        model, tokenizer = load("tiny", device="cpu")
    bench = _Bench(model, tokenizer)
    return [_run(name, test, bench) for name, test in CHECKS.items()]


def _run(name: str, test: Callable[[_Bench], tuple[bool, str]], bench: _Bench) -> Check:
    try:
        return Check(name, *test(bench))
    except (CKError, RuntimeError, ValueError, TypeError, IndexError) as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


class _Bench:
    """A model and the answers made with it so far."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._made: dict[tuple[Control, bool], Answer] = {}

    def answer(self, control: Control, passages: bool = True) -> Answer:
        """Answer the one question, once per control."""
        from .decoding.generate import generate

        key = (control, passages)
        if key not in self._made:
            given = [PASSAGE] if passages else []
            self._made[key] = generate(self.model, self.tokenizer, QUESTION, given, control=control, options=OPTIONS)
        return self._made[key]

    def plain(self) -> list[int]:
        """Return the ids that transformers' own ``model.generate`` adds to the prompt with the passage."""
        import torch

        from .decoding.prompts import build_pair
        from .decoding.refusals import eos_ids

        pair = build_pair(self.tokenizer, QUESTION, [PASSAGE])
        ids = torch.tensor([pair.contextual], device=self.model.device)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=OPTIONS.max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # a checkpoint's own generation config is no part of the comparison
            eos_token_id=list(eos_ids(self.model, self.tokenizer)) or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return [int(token) for token in out[0, ids.shape[1] :]]


def _same_as_generate(bench: _Bench) -> tuple[bool, str]:
    ours, plain = list(bench.answer(Control("off")).token_ids), bench.plain()
    same = sum(a == b for a, b in zip(ours, plain, strict=False))
    return ours == plain, f"{same} of {max(len(ours), len(plain))} tokens are equal"


def _neutral(bench: _Bench) -> tuple[bool, str]:
    half, off = bench.answer(Control("ck-plug", 0.5)), bench.answer(Control("off"))
    return half.token_ids == off.token_ids and half.switched == 0, f"{half.switched} tokens switched"


def _no_passages(bench: _Bench) -> tuple[bool, str]:
    answer = bench.answer(Control("ck-plug", 1.0), passages=False)
    largest = max((abs(token.gain) for token in answer.tokens if token.gain is not None), default=float("nan"))
    return (
        largest <= 1e-4 and answer.switched == 0,
        f"largest |gain| {largest:.1e} nats, {answer.switched} switched",
    )


def _passages_matter(bench: _Bench) -> tuple[bool, str]:
    gains = [token.gain for token in bench.answer(Control("off")).tokens if token.gain is not None]
    largest = max(map(abs, gains), default=0.0)
    return largest > 1e-4, f"largest |gain| {largest:.3f} nats over {len(gains)} tokens"


def _acts(control: Control) -> Callable[[_Bench], tuple[bool, str]]:
    def test(bench: _Bench) -> tuple[bool, str]:
        steered, plain = bench.answer(control), bench.answer(CLOSED)
        pairs = list(zip(steered.tokens, plain.tokens, strict=False))
        tokens = sum(a.id != b.id for a, b in pairs)
        moved = sum(a.id != b.id or abs(a.logp_final - b.logp_final) > 1e-4 for a, b in pairs)
        return moved > 0, f"{steered.switched} switched, {tokens} tokens differ, {moved} probabilities differ"

    return test


def _memory(bench: _Bench) -> tuple[bool, str]:
    switched = [token for token in bench.answer(ALWAYS_MEMORY).tokens if token.switched]
    favourites = sum(token.rank_par == 0 for token in switched)
    return bool(switched) and favourites == len(switched), f"{favourites} of {len(switched)} are memory's favourite"


# A gate that is always open (H_par < 1e6 * H_ctx): the checks must not depend on how a random model leans.
ALWAYS_CONTEXT = Control("ck-plug", 0.0, gate=1e6)
ALWAYS_MEMORY = Control("ck-plug", 1.0, gate=1e6)
CLOSED = Control("ck-plug", 0.0, gate=0.0)  # never acts, on the same path: what those two are compared with
CHECKS: dict[str, Callable[[_Bench], tuple[bool, str]]] = {
    "method off gives the tokens of model.generate": _same_as_generate,
    "alpha 0.5 gives the same tokens": _neutral,
    "without passages the gain is 0": _no_passages,
    "with a passage it is not": _passages_matter,
    "alpha 0 changes the answer": _acts(ALWAYS_CONTEXT),
    "alpha 1 changes the answer": _acts(ALWAYS_MEMORY),
    "at alpha 1 switched tokens are memory's favourites": _memory,
}
