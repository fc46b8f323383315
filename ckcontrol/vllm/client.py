"""Steered answers from a vLLM engine in this process: `SteeredLLM`, the same records as `ckcontrol.generate`.

Knows prompts, answers and vLLM's offline `LLM`; the pairs are kept in step by scheduler.py and fused by processor.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config import Control, GenerateOptions
from ..errors import ControlError, NonFiniteLogits, PromptError, ServingError
from ..prompts import PromptPair, PromptTemplate, build_pair
from ..recorder import record
from ..text import pieces
from ..trace import Answer, TokenTrace
from . import compat, params

if TYPE_CHECKING:
    from vllm import LLM

__all__ = ["SteeredLLM", "engine_arguments"]

Item = str | tuple[str, Sequence[str]] | Mapping[str, Any]


def engine_arguments(**given: Any) -> dict[str, Any]:
    """Return the arguments that make a vLLM engine one in which pairs can live.

    Args:
        **given: Further arguments of vLLM's `LLM` or `EngineArgs`; they are passed on.

    Raises:
        MissingExtra: vLLM is not installed.
        ServingError: An unknown version of vLLM, or an argument that is ours to set.
    """
    compat.probe()
    from .scheduler import PairAsyncScheduler

    ours = {
        "scheduler_cls": PairAsyncScheduler,
        "logits_processors": ["ckcontrol.vllm:PairLogitsProcessor"],
        "worker_extension_cls": "ckcontrol.vllm.CKWorker",
    }
    if taken := sorted(ours.keys() & given.keys()):
        raise ServingError(f"{', '.join(taken)} cannot be given: pairs need their own.", "Drop them.")
    return ours | given


class SteeredLLM:
    """A model in a vLLM engine whose answers are steered.

    Args:
        model: A folder or a Hugging Face id, as vLLM takes it.
        control: Policy and dial where `generate` is given none; None is ``Control()``, the unmodified model.
        template: Wording of the prompts.
        **engine: Arguments of vLLM's `LLM`, e.g. ``dtype``, ``max_model_len``, ``gpu_memory_utilization``.

    Attributes:
        llm: The engine; use it for ordinary requests as ever.

    Raises:
        MissingExtra: vLLM is not installed.
        ServingError: An unknown version of vLLM, or an engine setting that pairs cannot live with.

    Example:
        >>> llm = SteeredLLM("model", control=Control(alpha=0.2))  # doctest: +SKIP
        >>> llm.generate([("Who wrote it?", ["It was written by Ann."])])[0].text  # doctest: +SKIP
    """

    def __init__(
        self, model: str, control: Control | None = None, *, template: PromptTemplate | None = None, **engine: Any
    ) -> None:
        arguments = engine_arguments(**engine)
        from vllm import LLM

        self.control = control or Control()
        self.template = template
        self.llm: LLM = LLM(model=model, **arguments)
        self._ends = self._end_tokens()

    def generate(
        self,
        items: Sequence[Item],
        *,
        control: Control | Sequence[Control] | None = None,
        truncate: str | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answer questions, all in one continuous batch.

        Args:
            items: A question; a question and its passages; or a mapping with ``question`` and ``passages``. Without
                passages the answer is closed-book and nothing is steered.
            control: For all items, or one each. None is the control of the constructor.
            truncate: ``"passages"`` cuts passages that do not fit; None raises `PromptTooLong`.
            **options: The fields of `GenerateOptions`, ``seed`` included: each answer is what `ckcontrol.generate`
                gives for that item alone. ``trace`` is False here unless asked for.

        Returns:
            One `Answer` per item, in order.

        Raises:
            ControlError: A control or option that cannot be honoured.
            PromptError: Empty or malformed input; `PromptTooLong` if it does not fit.
            NonFiniteLogits: The model broke down; ``error.partial`` holds the answers, that one cut short.
            ServingError: The engine gave a pair up; the message names item and reason.
        """
        chosen = GenerateOptions.from_kwargs({"trace": False} | options)
        asked = [_item(i, item) for i, item in enumerate(items)]
        if not asked:
            return []
        controls = self._controls(control, len(asked))
        tokenizer = self.llm.get_tokenizer()
        limit = int(self.llm.llm_engine.model_config.max_model_len) - chosen.max_new_tokens
        pairs = [
            build_pair(
                tokenizer,
                question,
                passages,
                template=self.template,
                limit=max(0, limit),
                max_new_tokens=chosen.max_new_tokens,
                truncate=truncate,
            )
            for question, passages in asked
        ]
        names = [params.new_pair() for _ in pairs]
        made = self._run(names, pairs, controls, chosen)
        found = self._fetch(names)
        answers = []
        for i, name in enumerate(names):
            ids = made[i]
            rows = found.get(name, {}).get("rows", [])
            answers.append(
                Answer(
                    text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    tokens=_trace(ids, pieces(tokenizer, ids), rows) if chosen.trace else (),
                    token_ids=tuple(ids),
                    question=asked[i][0],
                    passages=pairs[i].passages,
                    control=controls[i],
                    finish_reason="stop" if self._stopped(ids, chosen) else "length",
                    context_tokens=len(pairs[i].contextual),
                    parametric_tokens=len(pairs[i].parametric),
                )
            )
        for i, name in enumerate(names):
            if stream := found.get(name, {}).get("broken"):
                error = NonFiniteLogits(i, max(0, len(made[i]) - 1), stream)
                error.partial = answers
                raise error
        return answers

    def _run(
        self, names: list[str], pairs: list[PromptPair], controls: list[Control], chosen: GenerateOptions
    ) -> list[list[int]]:
        prompts, asked = [], []
        stops = tuple(sorted({*self._ends, *chosen.stop_token_ids}))
        for name, pair, control in zip(names, pairs, controls, strict=True):
            # Without passages the streams are one: nothing to steer, and rounding must not look like a conflict.
            used = control if pair.passages else Control(method="off")
            seeded = params.seeded(chosen)
            for role, ids in ((params.CONTEXTUAL, pair.contextual), (params.PARAMETRIC, pair.parametric)):
                args = params.extra_args(name, role, used, seeded, trace=chosen.trace)
                prompts.append({"prompt_token_ids": list(ids)})
                asked.append(
                    params.sampling_params(
                        args, max_tokens=chosen.max_new_tokens, stop_token_ids=stops, detokenize=False
                    )
                )
        outputs = self.llm.generate(prompts, asked, use_tqdm=False)
        made: list[list[int]] = []
        for i in range(len(names)):
            ctx, par = (outputs[2 * i + k].outputs[0] for k in (0, 1))
            for row in (ctx, par):
                if row.finish_reason not in ("stop", "length"):
                    raise ServingError(
                        f"item {i} was given up ({row.finish_reason}): {row.stop_reason or 'no reason given'}",
                        "The engine is alive; ask again.",
                    )
            made.append(list(ctx.token_ids))
        return made

    def _fetch(self, names: list[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for said in self.llm.collective_rpc("ck_take_traces", args=(names,)):
            for name, known in said.items():
                if name not in found or len(known["rows"]) > len(found[name]["rows"]):
                    found[name] = known
        return found

    def _stopped(self, ids: list[int], chosen: GenerateOptions) -> bool:
        ends = {*self._ends, *chosen.stop_token_ids}
        return bool(ids) and (ids[-1] in ends or len(ids) < chosen.max_new_tokens)

    def _controls(self, control: Control | Sequence[Control] | None, count: int) -> list[Control]:
        if control is None or isinstance(control, Control):
            return [control or self.control] * count
        if len(control) != count:
            raise ControlError(f"{len(control)} controls for {count} items.", "Pass one control, or one per item.")
        return list(control)

    def _end_tokens(self) -> tuple[int, ...]:
        """Every end token: of the generation config, the model config and the tokenizer, as `ckcontrol.generate`."""
        config = self.llm.llm_engine.model_config
        generation = config.try_get_generation_config() or {}
        values = [
            generation.get("eos_token_id"),
            getattr(config.hf_config, "eos_token_id", None),
            getattr(self.llm.get_tokenizer(), "eos_token_id", None),
        ]
        found: set[int] = set()
        for value in values:
            found |= set(value) if isinstance(value, (list, tuple)) else set() if value is None else {int(value)}
        return tuple(sorted(found))


def _item(index: int, item: Item) -> tuple[str, list[str]]:
    if isinstance(item, str):
        return item, []
    if isinstance(item, Mapping):
        question, passages = item.get("question"), item.get("passages") or []
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        question, passages = item
    else:
        raise PromptError(f"item {index} is {type(item).__name__}.", "Give a question, or (question, passages).")
    if isinstance(passages, str) or not isinstance(passages, Sequence):
        raise PromptError(f"the passages of item {index} are {type(passages).__name__}.", "Pass a list of strings.")
    return question, list(passages)  # type: ignore[return-value]


def _trace(ids: list[int], texts: list[str], rows: list[list[float]]) -> tuple[TokenTrace, ...]:
    """Return the records of one answer; what the worker forgot is left out from there on."""
    return tuple(
        record(token, text, row[0], row[1:] or None) for token, text, row in zip(ids, texts, rows, strict=False)
    )
