"""Steered answers from a vLLM engine in this process: `SteeredLLM`, the same records as `ckcontrol.generate`.

Knows prompts, answers and vLLM's offline `LLM`; the pairs are kept in step and fused by ckcontrol.vllm.engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...answer import Answer, TokenTrace
from ...arguments import check_number
from ...control import Control, check_control
from ...decoding.options import GenerateOptions
from ...decoding.prompts import PromptPair, PromptTemplate, build_pair
from ...decoding.recorder import record
from ...decoding.token_texts import pieces, said
from ...errors import ControlError, HeadsError, NonFiniteLogits, PromptError, ServingError, WeightsError
from ...serving.json_values import DIRECTION
from ..contract import changes, fallback
from ..contract import pair_params as params
from ..contract.lora_dial import LoraDial, check_options
from ..engine import compat
from .jobs import Job, given_of, parts

if TYPE_CHECKING:
    from vllm import LLM

    from ...heads.directions.direction import Direction
    from ...heads.mask import HeadMask

__all__ = ["SteeredLLM", "engine_arguments"]

Item = str | tuple[str, Sequence[str]] | Mapping[str, Any]
Change = tuple[dict[str, Any], dict[str, dict[str, str]]]  # what rows carry of it; role -> what goes with a prompt


def engine_arguments(**given: Any) -> dict[str, Any]:
    """Return the arguments that make a vLLM engine one in which pairs can live.

    Args:
        **given: Further arguments of vLLM's `LLM` or `EngineArgs`; they are passed on.

    Raises:
        MissingExtra: vLLM is not installed.
        ServingError: An unknown version of vLLM, or an argument that is ours to set.
    """
    compat.probe()
    ours: dict[str, Any] = {
        "scheduler_cls": "ckcontrol.vllm.PairAsyncScheduler",
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
        control: Policy and position where `generate` is given none; None is ``Control()``, the unmodified model.
        template: Wording of the prompts.
        template_kwargs: Variables of the chat template, e.g. ``{"enable_thinking": False}``.
        heads: Mask where `generate` is given none; runs the model in eager mode unless told otherwise. Masks act on
            both rows, as in `heads.pruned`.
        direction: What `generate` may lead along; runs the model in eager mode likewise, and acts on both rows, as in
            `heads.added`. The model is told by its shape: weights are not compared.
        weights: A dial, the folder that `ckcontrol weights mix` wrote: ``Control("weights", alpha=...)`` is then one
            request with the adapter nearest to its alpha, beside pairs of other methods; vLLM draws, without a trace.
        on_lost: What happens when the engine gives a pair up: ``"fail"``, an error; or ``"contextual"``, the
            prompt with the passages is answered alone, by vLLM's own sampling, and `lost` says so.
        **engine: Arguments of vLLM's `LLM`, e.g. ``dtype``, ``max_model_len``, ``gpu_memory_utilization``.

    Attributes:
        llm: The engine; use it for ordinary requests as usual.
        lost: Of the last `generate`: item -> why its pair was given up, where it was answered alone. The control of
            such an `Answer` is ``off`` and it has no trace.

    Raises:
        MissingExtra: vLLM is not installed.
        ServingError: An unknown version of vLLM, a setting that pairs or adapters cannot live with, or an unknown
            `on_lost`.
        WeightsError: `weights` is no dial, or one for another model.
        HeadsError: `direction` is for another model, or cannot act in such an engine.

    Example:
        >>> with SteeredLLM("model", control=Control(alpha=0.2)) as llm:  # doctest: +SKIP
        ...     llm.generate([("Who wrote it?", ["It was written by Ann."])])[0].text
    """

    def __init__(
        self,
        model: str,
        control: Control | None = None,
        *,
        template: PromptTemplate | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        heads: HeadMask | None = None,
        direction: Direction | None = None,
        weights: str | Path | None = None,
        on_lost: str = "fail",
        **engine: Any,
    ) -> None:
        from ...heads.directions.direction import Direction

        if not (direction is None or isinstance(direction, Direction)):
            raise HeadsError(f"direction={direction!r} is none.", "Read it from its file: Direction.load(FILE).")
        self.heads, self.direction, self.on_lost = heads, direction, fallback.choice(on_lost)
        self.dial = None if weights is None else LoraDial(weights)
        given = engine if self.dial is None else self.dial.arguments(engine)
        arguments = engine_arguments(**({"enforce_eager": True} if heads or direction else {}) | given)
        from vllm import LLM

        self.control = check_control(control)
        self.template, self.template_kwargs = template, template_kwargs
        self.lost: dict[int, str] = {}
        self.llm: LLM = LLM(model=model, **arguments)
        self._closed = False
        try:
            if self.dial is not None:
                self.dial.check(self.llm.llm_engine.model_config.hf_text_config)
            if direction is not None:
                self._install(direction)
        except (WeightsError, HeadsError):
            self.close()
            raise
        self._ends = self._end_tokens()

    def __enter__(self) -> SteeredLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine, its processes included, and free its memory; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self.llm.llm_engine.engine_core.shutdown()

    def generate(
        self,
        items: Sequence[Item],
        *,
        control: Control | Sequence[Control] | None = None,
        heads: HeadMask | Sequence[HeadMask | None] | None = None,
        direction_alpha: float | Sequence[float | None] | None = None,
        truncate: str | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answer questions, all in one continuous batch.

        Args:
            items: A question; a question and its passages; or a mapping with ``question`` and ``passages``. Without
                passages the answer is closed-book and nothing is steered.
            control: For all items, or one per item. None is the control of the constructor.
            heads: A mask for all items, or one or None per item. None is the mask of the constructor.
            direction_alpha: How far along the constructor's direction, from 0, toward the context, to 1, toward memory,
                for all items, or one or None per item. None and 0.5 add nothing.
            truncate: ``"passages"`` cuts passages that do not fit; None raises `PromptTooLong`.
            **options: The fields of `GenerateOptions`, ``seed`` included: each answer is what `ckcontrol.generate`
                gives for that item alone. ``trace`` is False here unless asked for.

        Returns:
            One `Answer` per item, in order.

        Raises:
            ControlError: A control or option that cannot be honoured; the method ``weights`` without a dial.
            HeadsError: A mask for another model, or an engine in which masks cannot act. An alpha without a direction,
                or on a side to which it does not lead.
            PromptError: Empty or malformed input; `PromptTooLong` if it does not fit.
            NonFiniteLogits: The logits became NaN or infinite; ``error.partial`` holds the answers, that one cut.
            ServingError: A method raised while it steered; the message names it, and ``error.partial`` holds the
                answers, that one cut. Or the engine gave a pair up; the message names item and reason. Or the engine
                was closed.
        """
        if self._closed:
            raise ServingError("this engine was closed.", "Make another SteeredLLM.")
        chosen = GenerateOptions.from_kwargs({"trace": False} | options)
        params.check_stop(chosen.stop)
        asked = [_item(i, item) for i, item in enumerate(items)]
        if not asked:
            return []
        controls = self._controls(control, len(asked))
        changed = self._changes(heads, direction_alpha, len(asked))
        tokenizer = self.llm.get_tokenizer()
        limit = int(self.llm.llm_engine.model_config.max_model_len) - chosen.max_new_tokens
        pairs = [
            build_pair(
                tokenizer,
                question,
                passages,
                template=self.template,
                template_kwargs=self.template_kwargs,
                limit=max(0, limit),
                max_new_tokens=chosen.max_new_tokens,
                truncate=truncate,
                ends=self._ends,
            )
            for question, passages in asked
        ]
        used = [c if p.passages else c.without_passages() for c, p in zip(controls, pairs, strict=True)]
        single = [i for i, control in enumerate(used) if control.policy().in_weights]
        self._check_single([used[i] for i in single], chosen)
        own = [
            [] if i in single else [Job(i, draft) for draft in params.drafts(control)] for i, control in enumerate(used)
        ]
        self.lost = {}
        alone = self._run_single(single, pairs, used, changed, chosen) if single else {}
        for part in parts(own, chosen):
            alone |= self._run(part, pairs, used, changed, chosen)
            self._fetch(part)
        answers = []
        for i, pair in enumerate(pairs):
            job, drafts = given_of(
                own[i] or [Job(i, "", ids=alone[i])],
                used[i],
                i in self.lost,
                asked[i][0],
                pair.passages,
                lambda ids: said(tokenizer, ids, ends=self._ends, thinking=pairs[0].thinking).text,
            )
            ids = alone.get(i, job.ids)
            say = partial(said, tokenizer, stop=chosen.stop, ends=self._ends, thinking=pair.thinking)
            told = say(ids)
            answers.append(
                Answer(
                    text=told.text,
                    tokens=_trace(ids, pieces(tokenizer, ids), job.rows) if chosen.trace and i not in self.lost else (),
                    token_ids=tuple(ids),
                    question=asked[i][0],
                    passages=pair.passages,
                    control=Control(method="off") if i in self.lost else controls[i],
                    finish_reason="stop" if told.stopped or self._stopped(ids, chosen) else "length",
                    context_tokens=len(pair.contextual),
                    parametric_tokens=len(pair.parametric),
                    drafts=tuple(replace(d, text=say(d.token_ids).text) for d in drafts),
                    thinking=told.thinking,
                )
            )
        for job in chain.from_iterable(own):
            if job.item not in self.lost and (job.broken or job.failed):
                error = (
                    ServingError(f"item {job.item}: {job.failed}.", "The other answers are complete: error.partial.")
                    if job.failed
                    else NonFiniteLogits(job.item, max(0, len(job.ids) - 1), job.broken)
                )
                error.partial = answers
                raise error
        return answers

    def _run(
        self,
        jobs: list[Job],
        pairs: list[PromptPair],
        controls: list[Control],
        changed: list[Change],
        chosen: GenerateOptions,
    ) -> dict[int, list[int]]:
        """Run some pairs; return what was answered alone, by item."""
        prompts, asked = [], []
        ending = self._ending(chosen)
        seeded = {job.item: params.seeded(chosen) for job in jobs}  # one for all drafts of an item
        for job in jobs:
            i, (extra, salted) = job.item, changed[job.item]
            args = params.extra_args(
                job.name, params.CONTEXTUAL, controls[i], seeded[i], trace=chosen.trace, draft=job.draft
            )
            for role, ids in ((params.CONTEXTUAL, pairs[i].contextual), (params.PARAMETRIC, pairs[i].parametric)):
                prompts.append({"prompt_token_ids": list(ids)} | salted[role])
                row = args | {"ck_role": role} | extra
                asked.append(params.sampling_params(row, max_tokens=chosen.max_new_tokens, **ending))
        outputs = [output.outputs[0] for output in self.llm.generate(prompts, asked, use_tqdm=False)]
        lost: dict[int, str] = {}
        first: dict[int, int] = {}  # item -> its first row
        for k, job in enumerate(jobs):
            job.ids = list(outputs[2 * k].token_ids)
            first.setdefault(job.item, 2 * k)
            if why := _given_up(*outputs[2 * k : 2 * k + 2]):
                lost.setdefault(job.item, why)
        if lost and (self.on_lost == "fail" or _only_generated(chosen)):
            i, why = next(iter(lost.items()))
            raise ServingError(f"item {i} was given up {why}", "The engine is alive; ask again.")
        if not lost:
            return {}
        self.lost |= lost
        rows = [
            params.sampling_params(
                params.strip(asked[first[i]].extra_args),
                max_tokens=chosen.max_new_tokens,
                **ending | fallback.vllm_sampling(chosen),
            )
            for i in lost
        ]
        alone = self.llm.generate([prompts[first[i]] for i in lost], rows, use_tqdm=False)
        return _by_item(lost, alone)

    def _check_single(self, controls: list[Control], chosen: GenerateOptions) -> None:
        """Refuse controls in the weights without a dial, and options that their requests cannot have."""
        if controls and self.dial is None:
            raise ControlError(
                f"Control('weights', alpha={controls[0].alpha!r}) met an engine without a dial.",
                'Make it with one: SteeredLLM(model, weights="dial/").',
            )
        for control in controls:
            check_options(chosen, control)

    def _run_single(
        self,
        items: list[int],
        pairs: list[PromptPair],
        controls: list[Control],
        changed: list[Change],
        chosen: GenerateOptions,
    ) -> dict[int, list[int]]:
        """Answer items whose control is in the weights, each as one request; return their tokens."""
        how = self._ending(chosen) | fallback.vllm_sampling(chosen)
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(pairs[i].contextual)} | changed[i][1][params.CONTEXTUAL] for i in items],
            [params.sampling_params(changed[i][0], max_tokens=chosen.max_new_tokens, **how) for i in items],
            lora_request=[self.dial.request(controls[i]) for i in items],  # type: ignore[union-attr]
            use_tqdm=False,
        )
        return _by_item(items, outputs)

    def _ending(self, chosen: GenerateOptions) -> dict[str, Any]:
        """Return where an answer ends, in vLLM's fields; only stop texts need the engine to turn tokens into text."""
        ending: dict[str, Any] = {"stop_token_ids": tuple(sorted({*self._ends, *chosen.stop_token_ids}))}
        return ending | ({"detokenize": True, "stop": list(chosen.stop)} if chosen.stop else {"detokenize": False})

    def _fetch(self, jobs: list[Job]) -> None:
        """Bring what the workers know of the pairs into the jobs."""
        for told in self.llm.collective_rpc("ck_take_traces", args=([job.name for job in jobs],)):
            for job in jobs:
                known = told.get(job.name, {"rows": [], "broken": ""})
                job.rows = max(job.rows, known["rows"], key=len)
                job.broken = job.broken or known["broken"]
                job.failed = job.failed or known.get("failed", "")

    def _stopped(self, ids: list[int], chosen: GenerateOptions) -> bool:
        ends = {*self._ends, *chosen.stop_token_ids}
        return bool(ids) and (ids[-1] in ends or len(ids) < chosen.max_new_tokens)

    def _controls(self, control: Control | Sequence[Control] | None, count: int) -> list[Control]:
        if not isinstance(control, (list, tuple)):
            return [self.control if control is None else check_control(control)] * count
        if len(control) != count:
            raise ControlError(f"{len(control)} controls for {count} items.", "Pass one control, or one per item.")
        return [check_control(one, f"control[{i}]") for i, one in enumerate(control)]

    def _changes(
        self,
        heads: HeadMask | Sequence[HeadMask | None] | None,
        alpha: float | Sequence[float | None] | None,
        count: int,
    ) -> list[Change]:
        """Return what each item changes in the model; drafts of an item share its salts, and nobody else."""
        made: list[Change] = []
        for (extra, salted), push in zip(self._masks(heads, count), self._pushes(alpha, count), strict=True):
            salts = {role: {"cache_salt": changes.own_salt()} if push else salted for role in params.ROLES}
            made.append((extra | ({DIRECTION: push} if push else {}), salts))
        return made

    def _pushes(self, alpha: float | Sequence[float | None] | None, count: int) -> list[float]:
        """Return what the direction is multiplied by for each item; 0 adds nothing."""
        given: list[Any] = list(alpha) if isinstance(alpha, (list, tuple)) else [alpha] * count
        if len(given) != count:
            what = f"{len(given)} alphas of the direction for {count} items."
            raise HeadsError(what, "Pass one, or one or None per item.")
        if self.direction is None and (asked := [one for one in given if one is not None]):
            raise HeadsError(
                f"direction_alpha={asked[0]!r} met an engine without a direction.",
                "Make it with one: SteeredLLM(model, direction=Direction.load(FILE)).",
            )
        name = "direction_alpha"
        return [
            0.0 if self.direction is None or one is None else self.direction.coefficient(check_number(name, one, 0, 1))
            for one in given
        ]

    def _install(self, direction: Direction) -> None:
        from ..engine.hooks import LED_HINT

        for refused in self.llm.collective_rpc("ck_direction_install", args=changes.installed(direction)):
            if refused:
                raise HeadsError(refused, LED_HINT)

    def _masks(
        self, heads: HeadMask | Sequence[HeadMask | None] | None, count: int
    ) -> list[tuple[dict[str, str], dict[str, str]]]:
        """Return what each item's mask adds to a row's arguments and to its prompt."""
        from ...heads.mask import HeadMask
        from ..engine.hooks import HINT, masked

        given: list[HeadMask | None]
        if heads is None or isinstance(heads, HeadMask):
            given = [self.heads if heads is None else heads] * count
        else:
            given = list(heads)
        if len(given) != count:
            raise HeadsError(f"{len(given)} masks for {count} items.", "Pass one mask, or one or None per item.")
        if not any(given):
            return [({}, {})] * count
        config = self.llm.llm_engine.model_config.hf_text_config
        for told in self.llm.collective_rpc("ck_heads_install"):
            if "refused" in told:
                raise HeadsError(told["refused"], HINT)
            for mask in filter(None, given):
                here = (config.model_type, told["layers"], told["heads"])
                if (made := (mask.model.family, mask.model.layers, mask.model.heads)) != here:
                    raise HeadsError(f"the mask is for {made}, and the model is {here} (family, layers, heads).")
        found = [masked(mask) if mask is not None else ({}, "") for mask in given]
        return [(extra, {"cache_salt": salt} if salt else {}) for extra, salt in found]

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


def _by_item(items: Iterable[int], outputs: Sequence[Any]) -> dict[int, list[int]]:
    """Return the tokens of requests that were answered alone, by item; raise for one that the engine gave up."""
    for i, output in zip(items, outputs, strict=True):
        if why := _given_up(output.outputs[0]):
            raise ServingError(f"item {i} was given up {why}", "The engine is alive; ask again.")
    return {i: list(output.outputs[0].token_ids) for i, output in zip(items, outputs, strict=True)}


def _given_up(*rows: Any) -> str:
    """Return how the engine gave up one of the rows; empty if it did not."""
    for row in rows:
        if row.finish_reason not in ("stop", "length"):
            return f"({row.finish_reason}): {row.stop_reason or 'no reason given'}"
    return ""


def _only_generated(chosen: GenerateOptions) -> bool:
    """Whether the penalty spares the prompt, which vLLM's own cannot."""
    return chosen.repetition_penalty != 1 and chosen.penalty_scope == "generated"


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
