"""The scheduler that keeps the two rows of a pair in step.

While vLLM's own `schedule` runs, a row that must wait claims to have one token fewer than it has (`PairRequest.hold`).
The stock code then prefills it, in chunks and with prefix caching, up to its last token but one, and afterwards finds
nothing to do for it. A pair is released in a step in which both rows need exactly one token: so both are sampled in
the same step, at the same output position, for their whole life. What that relies on is probed in compat.py.

Knows vLLM's scheduler; knows nothing of logits. Nothing that goes wrong with a pair may surface as an exception,
which would end the engine for everybody: the pair's requests fail, with a sentence in `stop_reason`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from ...errors import ServingError
from ..contract.changes import check
from ..contract.pair_params import CONTEXTUAL, PairParams, blocks_of_pair, read, sampling_of
from . import compat

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object  # the scheduler itself is the next in the list of bases

__all__ = ["PARK_SECONDS", "PairAsyncScheduler", "PairRequest", "PairScheduler", "PairSchedulerMixin"]

logger = init_logger(__name__)
_REMEMBERED = 1024
PARK_SECONDS = 30.0  # how long a row waits for its partner; additional_config={"ck_park_seconds": ...} changes it


class PairRequest(Request):  # type: ignore[misc]
    """One row of a pair.

    Attributes:
        ck: What the row carries.
        mate: The partner; None while it has not arrived.
        hold: 1 while the row must not be sampled.
        deadline: When a row without a partner is given up, on the monotonic clock.
    """

    ck: PairParams
    mate: PairRequest | None = None
    hold: int = 0
    deadline: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output that the scheduler may know of."""
        return len(self._all_token_ids) - self.hold

    @property
    def num_tokens_with_spec(self) -> int:
        """The same, as the scheduling loop asks for it."""
        return len(self._all_token_ids) + len(self.spec_token_ids) - self.hold

    @property
    def remaining(self) -> int:
        """Tokens that have not been computed or scheduled yet."""
        done: int = self.num_computed_tokens
        return len(self._all_token_ids) + int(self.num_output_placeholders) - done


class PairSchedulerMixin(_Base):  # type: ignore[misc]
    """Pairs on top of a vLLM scheduler; put it in front of one in the list of bases.

    Attributes:
        ck_counts: How often each kind of event happened, for tests and curiosity.
    """

    running: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        compat.probe()
        compat.check_engine(self.vllm_config)
        extra = self.vllm_config.additional_config
        seconds = extra.get("ck_park_seconds", PARK_SECONDS) if isinstance(extra, dict) else PARK_SECONDS
        self._ck_park_seconds = float(seconds)
        self._ck_parked: dict[str, PairRequest] = {}
        self._ck_pairs: dict[str, tuple[PairRequest, PairRequest]] = {}  # contextual, parametric
        self._ck_refused: OrderedDict[str, str] = OrderedDict()  # pairs of which a row was refused, and why
        self._ck_gone: list[PairRequest] = []  # rows vLLM freed, whose partners must go too
        self._ck_owed: list[tuple[Request, FinishReason, str | None]] = []  # ends that no client was told of yet
        self._ck_void: dict[int, tuple[Any, set[str]]] = {}  # a step's output -> rows whose sample means nothing
        self._ck_held: list[PairRequest] = []
        self._ck_running: list[PairRequest] = []
        self._ck_in_flight = 0  # steps scheduled and not processed yet
        self._ck_clock = time.monotonic
        self.ck_counts = dict.fromkeys(("steps", "released", "preempted", "void", "unblocked", "ended", "refused"), 0)

    # --- arrival ------------------------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Take a request; the first row of a pair is parked until the second arrives, then both are queued."""
        params = request.sampling_params
        if params is None or not params.extra_args:
            super().add_request(request)
            return
        try:
            row = read(params.extra_args)
            if row is not None:
                compat.check_row(params, row)
            check(params.extra_args)
        except Exception as error:  # a ServingError; or what an installed policy raised
            return self._ck_refuse_pair(params.extra_args.get("ck_pair"), _told(error), request)
        if row is None:
            super().add_request(request)
            return
        request.__class__ = PairRequest
        request.ck = row
        try:
            self._ck_arrived(request)
        except Exception as error:  # an installed policy that cannot be compared
            self._ck_refuse_pair(row.pair, _told(error), request)

    def _ck_arrived(self, row: PairRequest) -> None:
        pair = row.ck.pair
        other = self._ck_parked.get(pair)
        if (why := self._ck_unfit(row) or self._ck_refused.get(pair)) is not None:
            return self._ck_refuse_pair(pair, why, row)
        if pair in self._ck_pairs or (other is not None and other.ck.role == row.ck.role):
            return self._ck_refuse("ckcontrol: that pair already has this row; every request needs a new pair.", row)
        if other is None:
            row.deadline = self._ck_clock() + self._ck_park_seconds
            self._ck_parked[pair] = row
            return
        del self._ck_parked[pair]
        rows = (row, other) if row.ck.role == CONTEXTUAL else (other, row)
        if why := self._ck_unequal(*rows):
            return self._ck_refuse(why, *rows)
        rows[0].mate, rows[1].mate = rows[1], rows[0]
        self._ck_pairs[pair] = rows
        for request in rows:
            super().add_request(request)

    def _ck_unfit(self, row: PairRequest) -> str | None:
        if row.resumable or row.mm_features or row.prompt_embeds is not None or row.prompt_token_ids is None:
            return "ckcontrol: pairs are made of plain token prompts."
        if row.num_prompt_tokens < 2 or row.num_prompt_tokens >= self.max_model_len:
            return f"ckcontrol: a prompt of {row.num_prompt_tokens} tokens; give 2 to {self.max_model_len - 1}."
        return None

    def _ck_unequal(self, ctx: PairRequest, par: PairRequest) -> str | None:
        a, b = ctx.ck, par.ck
        same = (a.control, a.trace, a.draft) == (b.control, b.trace, b.draft)
        if not same or (a.options is not b.options and sampling_of(a.options) != sampling_of(b.options)):
            return "ckcontrol: the rows of the pair differ in control or sampling."
        if ctx.client_index != par.client_index or ctx.request_id == par.request_id:
            return "ckcontrol: the rows of the pair come from different clients."
        # A default max_tokens depends on the prompt's length; the shorter answer holds for both.
        ctx.max_tokens = par.max_tokens = min(ctx.max_tokens, par.max_tokens)
        groups = max(1, len(self.kv_cache_config.kv_cache_groups))
        prompts = (ctx.num_prompt_tokens, par.num_prompt_tokens)
        need = groups * blocks_of_pair(prompts, ctx.max_tokens, self.max_model_len, self.block_size)
        if need > (room := self.cache_config.num_gpu_blocks - 1):
            return f"ckcontrol: the pair needs {need} KV blocks and there are {room}; shorten it or give more memory."
        return None

    def _ck_refuse_pair(self, pair: Any, why: str, row: Request) -> None:
        """Refuse a row, and its partner: now if that is parked, else when it arrives."""
        other = self._ck_parked.pop(pair, None) if isinstance(pair, str) else None
        if isinstance(pair, str) and other is None and pair not in self._ck_pairs:
            self._ck_refused[pair] = why
            while len(self._ck_refused) > _REMEMBERED:
                self._ck_refused.popitem(last=False)
        self._ck_refuse(why, *(r for r in (row, other) if r is not None))

    def _ck_refuse(self, why: str, *rows: Request) -> None:
        for row in rows:
            row.status = RequestStatus.FINISHED_ERROR
            self._ck_owed.append((row, FinishReason.ERROR, why))
        self.ck_counts["refused"] += 1

    def has_requests(self) -> bool:
        """Keep stepping while a row waits for its partner or a client for word of an end."""
        return bool(self._ck_owed or self._ck_parked) or bool(super().has_requests())

    # --- one step -----------------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Hold, let vLLM schedule, release, and repair what vLLM did to only one row of a pair."""
        self._ck_guard(self._ck_before)
        try:
            output = super().schedule(*args, **kwargs)
        finally:
            self._ck_release()
        self._ck_guard(lambda: self._ck_after(output))
        return output

    def _update_after_schedule(self, output: Any) -> None:
        self._ck_release()  # vLLM now compares what was scheduled with the whole length: held rows count as prefilling
        super()._update_after_schedule(output)

    def _ck_release(self) -> None:
        for row in self._ck_held:
            row.hold = 0
        self._ck_held = []

    def _ck_before(self) -> None:
        self._ck_sweep()
        self._ck_expire()
        self._ck_running = []
        ready: list[PairRequest] = []
        last = self.max_model_len - 1
        for rows in self._ck_pairs.values():
            running = [r for r in rows if r.status == RequestStatus.RUNNING]
            self._ck_running += running
            if len(running) == 2 and all(r.remaining == 1 and r.num_computed_tokens < last for r in rows):
                ready += rows
                continue
            for row in rows:
                if row.remaining > 0:
                    row.hold = 1
                    self._ck_held.append(row)
        self.ck_counts["steps"] += 1
        self.ck_counts["released"] += len(ready) // 2
        if ready and self.running[: len(ready)] != ready:
            # First and side by side, so that no budget can end between them and preemption meets them last.
            moved = set(map(id, ready))
            self.running = ready + [r for r in self.running if id(r) not in moved]

    def _ck_after(self, output: Any) -> None:
        void: set[str] = set()
        scheduled = output.num_scheduled_tokens
        for row in self._ck_running:
            if row.status == RequestStatus.PREEMPTED and row.mate is not None:
                self._ck_preempt(row.mate, scheduled, void)
        for rows in self._ck_pairs.values():
            sampled = [
                r for r in rows if r.request_id in scheduled and not r.is_prefill_chunk and r.request_id not in void
            ]
            if len(sampled) == 1:
                for row in rows:
                    self._ck_preempt(row, scheduled, void)
        if void:
            self._ck_void[id(output)] = (output, void)
            self.ck_counts["void"] += len(void)
        if scheduled:
            self._ck_in_flight += 1
        elif self._ck_in_flight == 0 and self.running and self.waiting:
            self._ck_unblock()

    def _ck_preempt(self, row: PairRequest, scheduled: dict[str, int], void: set[str]) -> None:
        """Take a running row back; only this step's sample is void, what is in flight from before stays good."""
        if row.status != RequestStatus.RUNNING:
            return
        if row.request_id in scheduled:
            void.add(row.request_id)
        self.running.remove(row)
        self._preempt_request(row, time.monotonic())
        self.ck_counts["preempted"] += 1

    def _ck_unblock(self) -> None:
        """Nothing can move although requests wait: half-admitted pairs hold the memory. Send the youngest back."""
        if str(getattr(self.pause_state, "name", "UNPAUSED")) != "UNPAUSED":
            return
        for row in reversed(self.running):
            if isinstance(row, PairRequest) and row.mate is not None and row.mate.status != RequestStatus.RUNNING:
                self._ck_preempt(row, {}, set())
                order = sorted(self.waiting, key=lambda r: r.arrival_time)
                self.waiting.clear()
                self.waiting.extend(order)
                self.ck_counts["unblocked"] += 1
                return

    # --- ends ---------------------------------------------------------------------------------------------------

    def update_from_output(self, output: Any, model_output: Any) -> Any:
        """Void the samples of broken steps, let vLLM process the rest, then end the partners of ended rows."""
        _, void = self._ck_void.pop(id(output), (None, ()))
        for request_id in void:
            index = model_output.req_id_to_index.get(request_id)
            if index is not None and model_output.sampled_token_ids:
                model_output.sampled_token_ids[index] = []
        self._ck_in_flight = max(0, self._ck_in_flight - bool(output.num_scheduled_tokens))
        results = super().update_from_output(output, model_output)
        self._ck_guard(self._ck_sweep)
        owed, self._ck_owed = self._ck_owed, []
        for request, reason, why in owed:
            told = results.setdefault(request.client_index, EngineCoreOutputs())
            told.outputs.append(EngineCoreOutput(request.request_id, [], finish_reason=reason, stop_reason=why))
            if self.finished_req_ids_dict is not None:  # a row that never entered vLLM's books ends here
                told.finished_requests = {*(told.finished_requests or ()), request.request_id}
        return results

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> list[Request]:
        """End requests from outside; the partners of ended rows end too, and parked rows are dropped.

        Args:
            request_ids: One id, several, or None for all.
            finished_status: vLLM's `RequestStatus`.
        """
        ids = [request_ids] if isinstance(request_ids, str) else None if request_ids is None else list(request_ids)
        dropped = [r for r in self._ck_parked.values() if ids is None or r.request_id in ids]
        for row in dropped:
            del self._ck_parked[row.ck.pair]
            row.status = finished_status
        if ids is None:
            self._ck_owed.clear()
        else:
            self._ck_owed = [item for item in self._ck_owed if item[0].request_id not in ids]
        ended: list[Request] = super().finish_requests(ids, finished_status)
        self._ck_guard(self._ck_sweep)
        return [*ended, *dropped]

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        if isinstance(request, PairRequest):
            self._ck_gone.append(request)
        return super()._free_request(request, *args, **kwargs)

    def _ck_sweep(self) -> None:
        """End the partners of the rows that vLLM freed."""
        while self._ck_gone:
            row = self._ck_gone.pop()
            mate, row.mate = row.mate, None
            if self._ck_pairs.pop(row.ck.pair, None) is None or mate is None or mate.is_finished():
                continue
            super().finish_requests(mate.request_id, row.status)
            reason = row.get_finished_reason() or FinishReason.ABORT
            why = "ckcontrol: the pair's other row failed." if reason == FinishReason.ERROR else None
            self._ck_owed.append((mate, reason, why))
            self.ck_counts["ended"] += 1

    def _ck_expire(self) -> None:
        if not self._ck_parked:
            return
        now = self._ck_clock()
        for row in [r for r in self._ck_parked.values() if r.deadline <= now]:
            del self._ck_parked[row.ck.pair]
            self._ck_refuse(f"ckcontrol: the pair's other row did not arrive in {self._ck_park_seconds:g} s.", row)

    def _ck_guard(self, action: Callable[[], None]) -> None:
        """Run a part of ours; if it fails, every pair fails and the engine lives."""
        try:
            action()
        except Exception:
            logger.exception("ckcontrol: keeping pairs in step failed; all pairs are ended")
            rows = [row for pair in self._ck_pairs.values() for row in pair]
            self._ck_pairs.clear()
            self._ck_release()
            for row in rows:
                row.hold = 0
                if not row.is_finished():
                    super().finish_requests(row.request_id, RequestStatus.FINISHED_ERROR)
                    self._ck_owed.append((row, FinishReason.ERROR, "ckcontrol: an internal error; see the log."))
            self._ck_gone.clear()


def _told(error: Exception) -> str:
    """Return what a client is told of an error, which names what was wrong with a row."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ServingError) and text else f"ckcontrol: {type(error).__name__}: {text}"


class PairAsyncScheduler(PairSchedulerMixin, AsyncScheduler):  # type: ignore[misc]
    """The default: works with and without asynchronous scheduling."""


class PairScheduler(PairSchedulerMixin, Scheduler):  # type: ignore[misc]
    """For synchronous engines only; its one advantage over `PairAsyncScheduler` is fewer moving parts."""
