"""How tokens are drawn and when to stop: `GenerateOptions`, frozen and checked on construction. Knows no model."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..arguments import check_integer, check_number
from ..control import control_with
from ..errors import ControlError, did_you_mean

__all__ = ["OPTION_BOUNDS", "GenerateOptions", "new_seed", "seeded", "stop_texts"]

# Least and greatest value of each number, both allowed: what every reader of options checks against.
OPTION_BOUNDS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 1_000_000),
    "temperature": (1e-4, 100.0),
    "top_k": (0, 10_000_000),
    "top_p": (1e-6, 1.0),
    "seed": (0, 2**63 - 1),
    "repetition_penalty": (0.01, 100.0),
    "stop_token_ids": (0, 2**31),
}

_SEVERAL = "Repeat the question in a list with do_sample=True and no seed, or call once per seed."
_BEAMS = "a beam ranks continuations of one distribution, and here a policy mixes two anew at every step."
_PROCESSOR = "Pass transformers' own for it: processors=[...]."
# Options of model.generate that mean something else here or nothing: why, and what to do instead.
_ELSEWHERE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("num_beams", "num_beam_groups", "length_penalty", "early_stopping"),
        (_BEAMS, "Leave it out: draw several answers, or let Control('dial', alpha=0.7) choose between whole ones."),
    ),
    **dict.fromkeys(
        ("num_return_sequences", "n", "best_of"),
        ("a question gets one answer, so that its trace and its drafts are one answer's.", _SEVERAL),
    ),
    **dict.fromkeys(
        ("assistant_model", "prompt_lookup_num_tokens"),
        ("what is drafted ahead follows one stream only.", "Leave it out."),
    ),
    **dict.fromkeys(("sources", "combine"), ("this door decodes two streams.", "Use ckcontrol.generate.")),
    "guidance_scale": (
        "it is a second stream of its own.",
        "Control('cad', cad_alpha=guidance_scale - 1, candidate_ratio=0) is the same.",
    ),
    **dict.fromkeys(
        ("penalty_alpha", "dola_layers"),
        ("it contrasts one stream with itself.", "For contrast with memory pass control=Control('cad', alpha=0.3)."),
    ),
    **dict.fromkeys(
        ("min_p", "typical_p", "no_repeat_ngram_size", "bad_words_ids", "min_new_tokens", "sequence_bias"),
        ("it acts on scores, which here are fused ones.", _PROCESSOR),
    ),
    "logits_processor": ("processors see the fused scores here.", "Pass processors=[...]."),
    "stopping_criteria": ("it has another name here.", "Pass criteria=[...]."),
    "stop_strings": ("it has another name here.", "Pass stop=(...)."),
    "eos_token_id": ("the model's own end tokens are always in force.", "Pass further ones as stop_token_ids=(...)."),
    "generation_config": (
        "nothing is read from one, so that an answer is told by its options alone.",
        "Pass max_new_tokens=, do_sample= and the like, or options=ckcontrol.GenerateOptions(...).",
    ),
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits"),
        ("an Answer is returned, with what was scored per token in answer.tokens.", "Leave it out."),
    ),
}


@dataclass(frozen=True)
class GenerateOptions:
    r"""How tokens are drawn and when to stop. Greedy unless asked; nothing is read from generation_config.json.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        do_sample: Draw from the fused distribution instead of taking its maximum.
        temperature: Divides the fused log-probabilities; used with `do_sample`.
        top_k: Keep the k best fused tokens; 0 keeps all; used with `do_sample`.
        top_p: Nucleus mass of the fused distribution; used with `do_sample`.
        seed: Every row draws from its own generator with this seed, so an answer does not depend on its batch
            neighbours, and equals ``torch.manual_seed(seed); model.generate(...)`` on that row alone. None: torch's
            global generator, one joint draw per step, as ``model.generate`` does.
        repetition_penalty: transformers' penalty, on the fused scores.
        penalty_scope: ``"all"`` penalises prompt and generated tokens, as transformers does (and so also the
            passage's words); ``"generated"`` only what was generated.
        stop_token_ids: Further end tokens, beside those of the generation config and the tokenizer.
        trace: Record a `TokenTrace` per token.
        stop: Texts that end an answer, e.g. ``("\nQuestion:",)`` for a base model that would go on asking; one text is
            taken too. `Answer.text` ends before the first of them; the ids and the trace hold it.
        compile: How a steered decode step runs, of the same result up to rounding. None: as one CUDA graph on a GPU
            where the model is known to allow it, else kernel by kernel. True: ``torch.compile`` of the forward besides;
            the first answer takes about a minute longer, and a first of new shapes too. False: kernel by kernel. vLLM
            captures and compiles by itself, whatever is said here.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    penalty_scope: str = "all"
    stop_token_ids: tuple[int, ...] = ()
    trace: bool = True
    stop: tuple[str, ...] = ()
    compile: bool | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty"):
            check_number(name, getattr(self, name), *OPTION_BOUNDS[name])
        for name in ("max_new_tokens", "top_k", *(() if self.seed is None else ("seed",))):
            check_integer(name, getattr(self, name), *OPTION_BOUNDS[name])
        if self.penalty_scope not in ("all", "generated"):
            raise ControlError(
                f"penalty_scope={self.penalty_scope!r}.",
                did_you_mean(str(self.penalty_scope), ["all", "generated"]),
            )
        for name in ("do_sample", "trace"):
            if not isinstance(getattr(self, name), bool):
                raise ControlError(f"{name}={getattr(self, name)!r} is not True or False.")
        if self.compile is not None and not isinstance(self.compile, bool):
            raise ControlError(f"compile={self.compile!r} is not True, False or None.")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for token in self.stop_token_ids:
            check_integer("stop_token_ids", token, *OPTION_BOUNDS["stop_token_ids"])
        object.__setattr__(self, "stop", stop_texts(self.stop))

    @classmethod
    def from_kwargs(cls, options: Mapping[str, Any], base: GenerateOptions | None = None) -> GenerateOptions:
        """Build from keyword arguments; an unknown name raises `ControlError` with the nearest known one.

        Args:
            options: Fields and their values.
            base: Where the other fields come from, instead of the defaults; returned itself when nothing is set.
        """
        known = [f.name for f in fields(cls)]
        for name, value in options.items():
            if name not in known:
                if meant := control_with(name, value):
                    raise ControlError(f"{name}={value!r:.40} belongs to the control.", f"Pass control={meant}.")
                if name in _ELSEWHERE:
                    why, instead = _ELSEWHERE[name]
                    raise ControlError(f"{name}={value!r:.40}: {why}", instead)
                raise ControlError(f"unknown option {name!r}.", did_you_mean(name, known))
        if base is None:
            return cls(**options)
        return replace(base, **options) if options else base

    @classmethod
    def one_of(cls, options: GenerateOptions | None, keywords: Mapping[str, Any]) -> GenerateOptions:
        """Return the options of a call that takes them either as one value or as keyword arguments.

        Raises:
            ControlError: Both were given, so that it cannot be told which was meant; or as `from_kwargs`.
        """
        if options is None:
            return cls.from_kwargs(keywords)
        if not isinstance(options, cls):
            raise ControlError(
                f"options={options!r:.80} is not a GenerateOptions.", "Pass ckcontrol.GenerateOptions(...)."
            )
        if keywords:
            name, value = next(iter(keywords.items()))
            raise ControlError(
                f"{name}={value!r:.80} was given beside options.",
                f"Set it there: options=dataclasses.replace(options, {name}=...).",
            )
        return options

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def stop_texts(stop: Any) -> tuple[str, ...]:
    """Return the texts that end an answer as a tuple; one text is one.

    Raises:
        ControlError: What is no text, or an empty one.
    """
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise ControlError(f"stop={stop!r:.60} is not valid.", 'Give texts that are not empty, like ("\\nQuestion:",).')
    return tuple(texts)


def new_seed() -> int:
    """Return a fresh seed: 62 random bits."""
    return secrets.randbits(62)


def seeded(options: GenerateOptions) -> GenerateOptions:
    """Return the options with a seed: a fresh one where sampling was asked for without."""
    if not options.do_sample or options.seed is not None:
        return options
    return replace(options, seed=new_seed())
