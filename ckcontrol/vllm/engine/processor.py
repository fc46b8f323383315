"""The processor that vLLM calls at every step: finds the pairs of the batch and lets a `BatchPlan` fuse and draw.

One class for both of vLLM's interfaces, because since 0.31 the GPU runner ("V2") has a different one from the CPU
runner ("V1"); each is built, told of requests and asked for logits in its own way. It touches neither rows of ordinary
requests nor a row whose partner is not in the batch: that one is prefilling, and its sample is thrown away. Knows
vLLM's interfaces; what is done to the pairs is in batch.py.
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

from ..contract.pair_params import read
from . import compat
from .batch import BatchPlan, EngineRow, Member, PairState, make_plans, pair_up
from .sampling import Noise
from .traces import TraceStore

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor
except ImportError:  # before 0.31 custom processors had one interface

    class V2Processor:  # type: ignore[no-redef]
        """Stands in for an interface this vLLM does not have."""


__all__ = ["PairLogitsProcessor"]

logger = init_logger(__name__)


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
        self._plans: list[BatchPlan] | None = None
        self._layout: bytes | None = None
        self._states: OrderedDict[str, PairState] = OrderedDict()
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
        """Refuse, in the front end, a request that claims to be a row of a pair and is not.

        Raises:
            ServingError: A ValueError, which vLLM answers with a 400.
        """
        row = read(sampling_params.extra_args)
        if row is not None:
            compat.check_row(sampling_params, row)

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
            self._plans = None

    # --- the V2 runner --------------------------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Note what a slot now holds; return whether it is a row of a pair."""
        self._plans = None
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
        if ctx is None:
            if self._plans is None:
                self._plans = self._make([(i, row) for i, row in self._rows.items() if i < logits.shape[0]], logits)
            lengths: Any = None
        else:
            layout = ctx.idx_mapping_np.tobytes()
            if self._plans is None or layout != self._layout:
                slots = ctx.idx_mapping_np.tolist()
                self._plans = self._make([(i, self._rows[s]) for i, s in enumerate(slots) if s in self._rows], logits)
                self._layout = layout
            lengths = ctx.seq_lens_upper_bound_np
        plans = self._plans
        members = [member for plan in plans for member in plan.members]
        fit = [
            m
            for m in members
            if 0 <= self._position(m.ctx, m.at_ctx, lengths) == self._position(m.par, m.at_par, lengths)
        ]
        if len(fit) < len(members):  # both rows are there, but one is still prefilling: its sample is thrown away
            self._plans = None
            plans = make_plans(fit, logits, self._soft)
        for plan in plans:
            positions = [self._position(m.ctx, m.at_ctx, lengths) for m in plan.members]
            for member, position in zip(plan.members, positions, strict=True):
                if member.state.seen is not None and member.state.seen_to != position:
                    self._recall(member, position)
            plan.step(logits, positions, self._vocab_size, self.store)
        return logits

    def _row(self, params: Any) -> EngineRow | None:
        try:
            found = read(getattr(params, "extra_args", None))
        except ValueError:  # the scheduler has refused it already; never end the engine for it
            logger.exception("ckcontrol: a row with unreadable parameters was left alone")
            return None
        if found is None:
            return None
        ends = (*found.options.stop_token_ids, *sorted(getattr(params, "all_stop_token_ids", None) or ()))
        asked = getattr(params, "logprobs", None) is not None
        return EngineRow(found, logprobs=asked, end=ends[0] if ends else 0)

    def _make(self, rows: Sequence[tuple[int, EngineRow]], logits: Tensor) -> list[BatchPlan]:
        members = [
            Member(ctx, par, at_ctx, at_par, self._state(ctx, logits)) for (at_ctx, ctx), (at_par, par) in pair_up(rows)
        ]
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
            return torch.tensor(list(row.prompt or ()), dtype=torch.long, device=device)
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
            state.seen[torch.tensor(ids, dtype=torch.long, device=state.seen.device)] = True
        elif len(known) < position:
            first = int(self._requests.prompt_len.np[row.slot])
            ids_there = self._requests.all_token_ids.gpu[row.slot, first : first + position]
            state.seen[ids_there.to(state.seen.device).long()] = True
        state.seen_to = position


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
