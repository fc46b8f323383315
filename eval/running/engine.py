"""Engines: records and arms in, sample bodies out. `Local` decodes all arms of a pass together; `Served` asks a server.

Knows models, prompts and the `Backend` protocol; knows nothing of tasks or scores, and writes no file.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ckcontrol import __version__
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.errors import ControlError, EvalError, HeadsError, PromptError
from ckcontrol.policies import Policy

from ..records import Record
from ..run_files import Sample
from .arms import Arm
from .prompt_styles import Wording
from .remote import Ask, Backend

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ckcontrol.decoding.prompts import PromptPair

    from .fan import FanAnswer, Width

__all__ = ["Engine", "Local", "Served"]

PAIRS = 4096  # prompt pairs that are kept from measuring their lengths until they are run


class Engine(Protocol):
    """What the runner needs of whatever answers."""

    def card(self) -> dict[str, Any]:
        """Return what a reader must know to repeat the run: model, versions, options, wording."""

    def length(self, record: Record, prompt: str) -> int:
        """Return a measure of the work that a record is: tokens or characters."""

    def run(self, records: Sequence[Record], arms: Sequence[Arm], prompt: str) -> list[list[Sample]]:
        """Return samples as ``[record][arm]``; one that failed holds ``error``, and no other fails with it."""


class Local:
    """A transformers model in this process.

    Args:
        model: A decoder-only model.
        tokenizer: Its tokenizer.
        name: What the user called it; a local path is shortened to its last part.
        options: How tokens are drawn; ``trace`` is ignored.
        style: Prompt style, see prompt_styles.py.
        dial: What the run's card says of the dial of adapters that is on the model, for the method ``weights``.

    Attributes:
        width: Rows decoded and rows asked for, all passes together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        options: GenerateOptions,
        style: str = "auto",
        dial: Mapping[str, Any] | None = None,
    ) -> None:
        from ckcontrol.decoding.refusals import check_model, check_tokenizer, eos_ids, position_limit
        from ckcontrol.models.load import DEMO_MODEL

        from .fan import Width

        if options.stop:
            raise ControlError(f"stop={options.stop!r:.60}: an evaluation reads whole answers.", "Leave stop out.")
        check_model(model)
        self.model, self.tokenizer, self.options, self.dial = model, tokenizer, options, dial
        self.name = DEMO_MODEL.name if name == "demo" else Path(name).name if Path(name).exists() else name
        self.vocab_size = check_tokenizer(model, tokenizer)
        self.ends = sorted({*eos_ids(model, tokenizer), *options.stop_token_ids})
        pad = tokenizer.pad_token_id
        self.pad = int(pad) if pad is not None else (self.ends[0] if self.ends else 0)
        limit = position_limit(model)
        self.wording = Wording(style, tokenizer, None if limit is None else max(0, limit - options.max_new_tokens))
        self.pair = lru_cache(PAIRS)(self.wording.pair)
        self.width: Width = Width()

    def card(self) -> dict[str, Any]:
        """Return model, fingerprint, dtype, device, versions, options, style and templates."""
        import torch
        import transformers

        versions = {"ckcontrol": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
        return {
            "model": self.name,
            "model_fingerprint": _fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "versions": {**versions, "python": platform.python_version()},
            "options": {k: v for k, v in self.options.to_dict().items() if k not in ("trace", "stop", "compile")},
            "style": self.wording.style,
            "prompts": self.wording.to_dict(),
            **({} if self.dial is None else {"dial": dict(self.dial)}),
        }

    def length(self, record: Record, prompt: str) -> int:
        """Return the tokens of both prompts, endings included."""
        try:
            pair = self.pair(record, prompt)
        except PromptError:
            return 0
        return (len(pair.contextual) + len(pair.parametric)) * max(1, len(record.choices))

    def run(self, records: Sequence[Record], arms: Sequence[Arm], prompt: str) -> list[list[Sample]]:
        """Decode every record under every arm in one pass; records with choices are compared by likelihood."""
        made: dict[int, list[Sample]] = {}
        pairs: dict[int, PromptPair] = {}
        for i, record in enumerate(records):
            try:
                pairs[i] = self.pair(record, prompt)
            except PromptError as error:
                made[i] = [{"error": str(error)} for _ in arms]
        for open_book in (True, False):
            # Without passages the streams are one: nothing to steer, as in `ckcontrol.generate`.
            controls = [arm.control if open_book else arm.control.without_passages() for arm in arms]
            policies = [control.policy() for control in controls]
            mine = [i for i in pairs if bool(records[i].passages) == open_book]
            free = [i for i in mine if not records[i].choices]
            bound = [i for i in mine if records[i].choices]
            if free:
                asked = [records[i].question for i in free]
                made |= zip(free, self._generate([pairs[i] for i in free], asked, arms, policies), strict=True)
            if bound:
                made |= zip(bound, self._compare([(records[i], pairs[i]) for i in bound], policies), strict=True)
        return [made[i] for i in range(len(records))]

    def _generate(
        self, pairs: Sequence[PromptPair], questions: Sequence[str], arms: Sequence[Arm], policies: Sequence[Policy]
    ) -> list[list[Sample]]:
        from .fan import fan

        found = fan(
            self.model,
            pairs,
            policies,
            options=self.options,
            ends=self.ends,
            pad=self.pad,
            vocab_size=self.vocab_size,
            shortlist=arms[0].control.shortlist,
            width=self.width,
            questions=questions,
            read=lambda ids: str(self.tokenizer.decode(ids, skip_special_tokens=True)),
        )
        return [[self._sample(answer) for answer in answers] for answers in found]

    def _sample(self, answer: FanAnswer) -> Sample:
        from ckcontrol.decoding.token_texts import pieces, said

        if answer.error is not None:
            return {"error": answer.error}
        return {
            "text": said(self.tokenizer, answer.ids, ends=self.ends).text,
            "n": len(answer.ids),
            "finish": "stop" if answer.ids and answer.ids[-1] in self.ends else "length",
            "tokens": {
                "text": pieces(self.tokenizer, answer.ids),
                "gain": _rounded(answer.gain),
                "tau": _rounded(answer.tau),
                "switched": [int(x) for x in answer.switched],
                "logp_ctx": _rounded(answer.logp_ctx),
                "logp_par": _rounded(answer.logp_par),
            },
        }

    def _compare(self, items: Sequence[tuple[Record, PromptPair]], policies: Sequence[Policy]) -> list[list[Sample]]:
        from ckcontrol.decoding.prompts import plain_ids

        from .likelihood import likelihoods

        endings = [[plain_ids(self.tokenizer, choice) for choice in record.choices] for record, _ in items]
        prompts = [(pair.contextual, pair.parametric) for record, pair in items for _ in record.choices]
        values = iter(
            likelihoods(
                self.model,
                prompts,
                [ending for each in endings for ending in each],
                policies,
                vocab_size=self.vocab_size,
                pad=self.pad,
            )
        )
        made = []
        for each in endings:
            table = [next(values) for _ in each]  # [choice][arm]
            lengths = [len(ending) for ending in each]
            made.append([_compared([row[arm] for row in table], lengths) for arm in range(len(policies))])
        return made


class Served:
    """One of our servers behind the `Backend` protocol; it decides everything but the passages and the control.

    Args:
        backend: Usually a `RemoteBackend`.
        name: The model's name at the server.
        options: ``max_new_tokens`` alone is sent.
    """

    def __init__(self, backend: Backend, name: str, *, options: GenerateOptions) -> None:
        self.backend, self.name, self.options = backend, name, options

    def card(self) -> dict[str, Any]:
        """Return the model's name and what is asked of the server."""
        return {
            "model": self.name,
            "model_fingerprint": None,
            "dtype": None,
            "device": "server",
            "versions": {"ckcontrol": __version__},
            "options": {"max_new_tokens": self.options.max_new_tokens},
            "style": "server",
            "prompts": {},
        }

    def length(self, record: Record, prompt: str) -> int:
        """Return the characters of question and passages."""
        return len(record.question) + sum(map(len, record.passages))

    def run(self, records: Sequence[Record], arms: Sequence[Arm], prompt: str) -> list[list[Sample]]:
        """Ask for every record under every arm. Records with choices need likelihoods and are refused."""
        if prompt != "base" or any(record.choices for record in records):
            raise EvalError(
                "a server answers questions; it compares no endings and words its own prompts.",
                "Leave out the method 'prompt' and tasks with choices, or run the model here with --model.",
            )
        asks = [
            Ask(record.question, record.passages, arm.control, self.options.max_new_tokens)
            for record in records
            for arm in arms
        ]
        answers = iter(self.backend.answer(asks))
        return [[next(answers) for _ in arms] for _ in records]


def _compared(scores: Sequence[float], lengths: Sequence[int]) -> Sample:
    if any(math.isnan(score) for score in scores):
        return {"error": "the model's logits are not finite."}
    kept = [max(score, -1e6) for score in scores]  # impossible: JSON has no -inf
    best = max(range(len(kept)), key=kept.__getitem__)
    return {"scores": [round(score, 4) for score in kept], "lengths": list(lengths), "choice": best}


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(max(value, -1e6), 4) for value in values]


def _fingerprint(model: PreTrainedModel) -> Mapping[str, Any] | None:
    """Return the model's fingerprint, or None for a family that `ckcontrol.heads` does not know."""
    from ckcontrol.heads.fingerprint import Fingerprint

    try:
        return Fingerprint.of(model).to_dict()
    except HeadsError:
        return None
