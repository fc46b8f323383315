"""The processor that vLLM calls at every step: finds the pairs of the batch and lets a `BatchPlan` fuse and draw.

One class for both of vLLM's interfaces, because since 0.31 the GPU runner ("V2") has a different one from the CPU
runner ("V1"); each is built, told of requests and asked for logits in its own way. It touches neither rows of ordinary
requests nor a row whose partner is not in the batch: that one is prefilling, and its sample is thrown away. An
exception out of here would end the engine for everybody: a pair whose policy raises fails alone, with a sentence that
its request is told. Knows vLLM's interfaces; what is done to the pairs is in batch.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1Processor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from ...control import Control
from ...decoding.options import GenerateOptions
from ...errors import ServingError
from ..contract.changes import check
from ..contract.pair_params import PairParams, read
from . import compat
from .batch import BatchPlan, EngineRow, Member, PairState, make_plans, pair_up
from .sampling import Noise, sent
from .traces import TraceStore

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor
except ImportError:  # before 0.31 custom processors had one interface

    class V2Processor:  # type: ignore[no-redef]
        """Stands in for an interface this vLLM does not have."""


__all__ = ["PairLogitsProcessor"]

logger = init_logger(__name__)
# What no pair is at fault for: memory, and an accelerator that has failed and would fail at every further operation.
_FATAL = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)


class PairLogitsProcessor(V1Processor, V2Processor):  # type: ignore[misc]
    """Fuses and draws for pairs: ``LLM(logits_processors=["ckcontrol.vllm:PairLogitsProcessor"])``.

    Built by vLLM, as ``(vllm_config, device, is_pin_memory)`` by the V1 runner and ``(vllm_config, req_states)`` by V2.

    Attributes:
        v2: The V2 runner built it.
        store: Traces and failures of its pairs.
    """

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        self.v2 = len(rest) == 1
        self.store = TraceStore()
        self._requests: Any = rest[0] if self.v2 else None
        self._rows: dict[int, EngineRow] = {}  # by batch index (V1) or by slot (V2)
        self._members: list[Member] | None = None  # the complete pairs of the layout
        self._plans: list[BatchPlan] | None = None  # of the members in `_planned`
        self._planned: list[Member] = []
        self._layout: bytes | int | None = None
        self._states: OrderedDict[str, PairState] = OrderedDict()
        self._failed: OrderedDict[str, None] = OrderedDict()  # pairs that are ended as soon as both rows are there
        self._limit = 512
        self._soft = False
        self._vocab_size: int | None = None
        if vllm_config is not None:
            compat.check_engine(vllm_config)
            self._limit = max(512, 8 * vllm_config.scheduler_config.max_num_seqs)
            self._soft = str(getattr(vllm_config.model_config, "logprobs_mode", "")).startswith("processed")
            self._vocab_size = _known_ids(vllm_config.model_config)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse, in the front end, a request that claims to be a row of a pair, or to change the model, and does not.

        Raises:
            ServingError: A ValueError, which vLLM answers with a 400.
        """
        args = sampling_params.extra_args
        row = read(args)
        if row is not None:
            compat.check_row(sampling_params, row)
        if args:
            check(args)

    # --- the V1 runner --------------------------------------------------------------------------------------------

    def is_argmax_invariant(self) -> bool:
        """Return False: greedy requests must come here too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: requests removed, added, moved (vLLM's `BatchUpdate`, or None)."""
        if batch_update is None:
            return
        rows, before = self._rows, len(self._rows)
        for index in batch_update.removed:
            rows.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            row = self._row(params)
            rows.pop(index, None)
            if row is not None:
                row.prompt, row.output = prompt, output
                rows[index] = row
        for source, target, way in batch_update.moved:
            moved, other = rows.pop(source, None), rows.pop(target, None)
            if moved is not None:
                rows[target] = moved
            if other is not None and way == MoveDirectionality.SWAP:
                rows[source] = other
        if before or rows:
            self._members = None

    # --- the V2 runner --------------------------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Note what a slot now holds; return whether it is a row of a pair."""
        self._members = None
        row = self._row(sampling_params)
        if row is None:
            self._rows.pop(req_idx, None)
            return False
        row.slot = req_idx
        self._rows[req_idx] = row
        return True

    def apply_staged_writes(self) -> None:
        """Nothing is staged."""

    # --- both -----------------------------------------------------------------------------------------------------

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Give both rows of every pair its one token; all other rows stay as they are.

        Args:
            logits: [N, V] float32, changed in place.
            ctx: The V2 runner's `LogitsContext`; None from the V1 runner.
        """
        if not self._rows:
            return logits
        layout: bytes | int = logits.shape[0]
        lengths: Any = None
        if ctx is not None:
            layout, lengths = ctx.idx_mapping_np.tobytes(), ctx.seq_lens_upper_bound_np
        if self._members is None or layout != self._layout:
            slots = range(logits.shape[0]) if ctx is None else ctx.idx_mapping_np.tolist()
            there = [(place, self._rows[slot]) for place, slot in enumerate(slots) if slot in self._rows]
            self._members, self._layout, self._plans = self._paired(there, logits), layout, None
        ready = []
        for member in self._members:
            member.position = self._position(member.ctx, member.at_ctx, lengths)
            if not 0 <= member.position == self._position(member.par, member.at_par, lengths):
                continue  # both rows are there, but one is still prefilling: its sample is thrown away
            if member.ctx.ck.pair in self._failed:
                _end(member, logits)
            else:
                ready.append(member)
        self._plans = self._advance(ready, logits, self._plans if ready == self._planned else None)
        self._planned = ready
        return logits

    def _advance(self, members: list[Member], logits: Tensor, plans: list[BatchPlan] | None) -> list[BatchPlan] | None:
        """Give each pair its token; return the plans, None unless all went well. Where something raises, halve."""
        try:
            made = self._make(members, logits) if plans is None else plans
        except Exception as error:
            self._apart(members, logits, error)
            return None
        well = True
        for plan in made:
            try:
                for member in plan.members:
                    if member.state.seen is not None and member.state.seen_to != member.position:
                        self._recall(member, member.position)
                plan.step(logits, [m.position for m in plan.members], self._vocab_size, self.store)
            except Exception as error:
                self._apart(plan.members, logits, error)
                well = False
        return made if well else None

    def _apart(self, members: Sequence[Member], logits: Tensor, error: Exception) -> None:
        """Step the halves of what failed together; what fails alone is ended, and its request told."""
        if len(members) == 1:
            self._fail(members[0].ctx.ck, error, members[0].position)
            _end(members[0], logits)
            return
        if isinstance(error, _FATAL):
            raise error
        logger.warning_once("ckcontrol: a step of several pairs failed and is repeated apart: %s", type(error).__name__)
        half = len(members) // 2
        for part in (members[:half], members[half:]):
            self._advance(list(part), logits, None)

    def _fail(self, pair: PairParams, error: Exception, position: int) -> None:
        """Remember that a pair cannot be steered on, and why."""
        if isinstance(error, _FATAL):
            raise error
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        why = f"steering by {pair.control.method!r} failed at token {position}: {text}"
        logger.error("ckcontrol: %s; the pair is ended", why, exc_info=error)
        self._failed[pair.pair] = None
        while len(self._failed) > self._limit:
            self._failed.popitem(last=False)
        self.store.fail(pair.pair, why)

    def _row(self, params: Any) -> EngineRow | None:
        args: Any = getattr(params, "extra_args", None)
        try:
            found = read(args)
        except Exception as error:  # the scheduler has refused it already; never end the engine for it
            try:
                named = dict(args or {})
                found = PairParams(named.get("ck_pair", ""), named.get("ck_role", ""), Control(), GenerateOptions())
            except (ServingError, TypeError, ValueError):
                logger.exception("ckcontrol: a row with unreadable parameters was left alone")
                return None
            self._fail(found, error, 0)
        if found is None:
            return None
        ends = (*found.options.stop_token_ids, *sorted(getattr(params, "all_stop_token_ids", None) or ()))
        asked = getattr(params, "logprobs", None) is not None
        return EngineRow(found, logprobs=asked, end=ends[0] if ends else 0)

    def _paired(self, rows: Sequence[tuple[int, EngineRow]], logits: Tensor) -> list[Member]:
        members = []
        for (at_ctx, ctx), (at_par, par) in pair_up(rows):
            try:
                state = self._state(ctx, logits)
            except Exception as error:
                self._fail(ctx.ck, error, 0)
                state = PairState(None, None, None)
            members.append(Member(ctx, par, at_ctx, at_par, state))
        return members

    def _make(self, members: Sequence[Member], logits: Tensor) -> list[BatchPlan]:
        plans = make_plans(members, logits, self._soft)
        for member in members:
            if member.state.broken is not None:
                self.store.mark(member.ctx.ck.pair, member.state.broken)
        return plans

    def _position(self, row: EngineRow, place: int, lengths: Any) -> int:
        """Return how many tokens the row has put out."""
        if lengths is None:
            return len(row.output or ())
        return int(lengths[place]) - int(self._requests.prompt_len.np[row.slot])

    def _state(self, row: EngineRow, logits: Tensor) -> PairState:
        """Return what is remembered of a pair, or a new state."""
        pair, options = row.ck.pair, row.ck.options
        state = self._states.get(pair)
        if state is None:
            noise = Noise(options.seed or 0, logits.device) if options.do_sample else None
            base = None
            if options.repetition_penalty != 1:
                base = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
                if options.penalty_scope == "all":
                    base[self._prompt(row, logits.device)] = True
            state = PairState(noise, base, None if base is None else base.clone())
            self._states[pair] = state
        self._states.move_to_end(pair)
        while len(self._states) > self._limit:
            self._states.popitem(last=False)
        return state

    def _prompt(self, row: EngineRow, device: torch.device) -> Tensor:
        if row.slot < 0:
            return sent(list(row.prompt or ()), torch.long, device)
        length = int(self._requests.prompt_len.np[row.slot])
        ids: Tensor = self._requests.all_token_ids.gpu[row.slot, :length]
        return ids.to(device).long()

    def _recall(self, member: Member, position: int) -> None:
        """Rebuild the penalised tokens of a pair whose last step was void or whose state was lost."""
        state, row = member.state, member.ctx
        if state.base is None or state.seen is None:
            return
        state.seen.copy_(state.base)
        known = [state.drawn[i][0][state.drawn[i][1]] for i in range(position) if i in state.drawn]
        if known:
            state.seen[torch.stack(known)] = True
        if len(known) < position and row.slot < 0:
            ids = [t for t in list(row.output or ())[:position] if t >= 0]
            state.seen[sent(ids, torch.long, state.seen.device)] = True
        elif len(known) < position:
            first = int(self._requests.prompt_len.np[row.slot])
            ids_there = self._requests.all_token_ids.gpu[row.slot, first : first + position]
            state.seen[ids_there.to(state.seen.device).long()] = True
        state.seen_to = position


def _end(member: Member, logits: Tensor) -> None:
    """Leave both rows of a pair one token, at which vLLM ends them."""
    for place in (member.at_ctx, member.at_par):
        logits[place] = -torch.inf
        logits[place, member.ctx.end] = 0


def _known_ids(model_config: Any) -> int | None:
    """Return the number of ids the tokenizer names, or None if the engine has none."""
    if getattr(model_config, "skip_tokenizer_init", False) or not getattr(model_config, "tokenizer", None):
        return None
    try:
        from vllm.tokenizers import cached_tokenizer_from_config

        return len(cached_tokenizer_from_config(model_config))
    except Exception:  # a tokenizer we cannot load ourselves; ids beyond it are then as likely as the model finds them
        logger.warning("ckcontrol: the tokenizer could not be loaded in the worker; spare ids are not masked")
        return None
