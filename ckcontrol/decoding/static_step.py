"""A decode step of both streams that is the same every time: as one CUDA graph, compiled, or plain.

The step is a forward of 2B rows over static buffers (static_cache.py); mask, position and place of the fed token are
tensors that it moves on itself. On CUDA its first step runs as usual on a stream of its own, its second is captured,
and from then on a step is one replay; when a bucket is outgrown or rows are picked this begins again. Fusion,
processors and draw follow outside the graph: they may be anybody's, and the host queues them while the forward runs.
Where a capture fails, the same step goes on as plain kernels, with one warning.

Knows CUDA graphs, torch.compile and streams; knows nothing of fusion or sampling.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .matmul import is_lent
from .pair_cache import can_share_forward
from .static_cache import StaticPair
from .streams import Stream, TwoStreams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CAPTURING", "StaticStreams", "leave_capture", "static_streams", "why_no_graph"]

WORTH = 4  # steps that must be left for a capture to pay
COMPILER: dict[str, Any] = {}  # what torch.compile is told
FORCED = False  # a test's switch: static steps also where they are not the default

# One capture at a time, and none while another thread of ours draws from torch's global generator, which a capture
# takes for itself.
CAPTURING = threading.RLock()
_SIDE: dict[torch.device, Any] = {}  # one stream to capture on: every other stream would have workspaces of its own
_AWAY = threading.local()  # `.now`: the graph this thread captures, if any, and the stream it comes from
_FAILED: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # models, and why their capture failed


def static_streams(
    contextual: Stream, parametric: Stream, *, reserve: int, compile: bool | None = None
) -> StaticStreams | None:
    """Return the streams of a steered answer with static steps, or None where they are not the way to go.

    Args:
        contextual: The prompts with passages.
        parametric: The prompts without.
        reserve: Longest answer.
        compile: True compiles the forward, on any device; False asks for the steps of `TwoStreams`; None takes CUDA
            graphs where they are known to work.
    """
    model = contextual.model
    if compile is False or not (compile or FORCED or contextual.input_ids.device.type == "cuda"):
        return None
    unknown = _unknown_code(model) if can_share_forward(model) else "its family shares no forward"
    if unknown is None:
        graph = _no_graph_here(model) is None
        if graph or compile or FORCED:
            return StaticStreams(contextual, parametric, reserve=reserve, graph=graph, compile=bool(compile))
    elif compile:
        _warn(f"compile=True changes nothing for {type(model).__name__}: {unknown}.")
    return None


def why_no_graph(model: PreTrainedModel) -> str | None:
    """Return why decode steps of the model are not captured in CUDA graphs, as a clause; None where they are.

    What a graph replays is what ran when it was captured. So all code of a forward must be known: torch's and
    transformers' modules without hooks, other than the head masks of `ckcontrol.heads`, and without state that follows
    the position.
    """
    return _no_graph_here(model) or _unknown_code(model)


def _no_graph_here(model: PreTrainedModel) -> str | None:
    if model in _FAILED:
        return f"capturing failed before ({_FAILED[model]})"
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return f"it is on {', '.join(sorted(map(str, devices)))}, not on one CUDA GPU"
    if torch.version.hip is not None:
        return "graphs on ROCm are not tested"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    if torch.cuda.is_current_stream_capturing():
        return "a graph is being captured already"
    return None


def _unknown_code(model: PreTrainedModel) -> str | None:
    """Return which part of a forward neither a graph nor compiled code might repeat, as a clause, or None."""
    for name, module in model.named_modules():
        code = {type(module).__module__, getattr(type(module).forward, "__module__", "")}
        replaced = "forward" in vars(module) and not is_lent(module)
        if replaced or any(not of.startswith(("torch.", "transformers.")) for of in code):
            return f"the forward of {name or 'the model'} is not torch's or transformers' own"
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if any(not getattr(hook, "repeats_itself", False) for hook in hooks):
            return f"{name or 'the model'} has forward hooks"
        rope = getattr(module, "rope_type", None)
        kinds = set(rope.values()) if isinstance(rope, dict) else {rope}
        if kinds & {"dynamic", "longrope"}:
            return f"its rotary embedding is {' and '.join(sorted(map(str, kinds)))}, which follows the position"
    if torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "torch has global module hooks"
    return None


class StaticStreams(TwoStreams):
    """Both streams in static steps.

    Args:
        contextual: The prompts with passages.
        parametric: The prompts without.
        reserve: Longest answer.
        graph: Capture the step, on CUDA.
        compile: Compile the forward.
    """

    def __init__(self, contextual: Stream, parametric: Stream, *, reserve: int, graph: bool, compile: bool) -> None:
        super().__init__(contextual, parametric, share=True, reserve=reserve)
        self._capture, self._compile = graph, compile
        self._left = reserve
        self._forward: Callable[..., Any] = contextual.model
        self._warm = False  # a step has run with the present buffers
        self._graph: Any = None
        self._logits: Tensor
        if compile:
            # What is compiled is kept by torch with the code of the forward, so later answers find it.
            self._forward = torch.compile(contextual.model.forward, **COMPILER)

    def _join(self, first: Stream, second: Stream) -> None:
        model = first.model
        self._pair = StaticPair(
            first.cache,
            second.cache,
            (first.keep, second.keep),
            plain=str(model.config._attn_implementation).endswith("eager"),
            dtype=model.dtype,
            reserve=self.reserve,
        )
        first.cache = second.cache = None
        self._position = torch.cat([first.position[:, -1:], second.position[:, -1:]]) + 1
        self._token = torch.zeros_like(self._position)
        self._nothing = self._token.new_zeros(len(self._token), 1, 1, 1, dtype=model.dtype)

    def _shared_step(self, tokens: Tensor, parametric: Stream) -> Tensor:
        if self._pair.make_room():
            self._begin_again()
        self._token.copy_(torch.cat([tokens, tokens])[:, None])
        logits = self._captured() if self._capture else self._step()
        self._pair.count_step()
        self._left -= 1
        return logits

    def select(self, rows: Tensor) -> None:
        """See `TwoStreams.select`."""
        super().select(rows)
        if self._pair is not None:
            both = torch.cat([rows, rows + len(self._token) // 2])
            self._position, self._token = self._position[both], self._token[both]
            self._nothing = self._nothing[both]
            self._begin_again()

    def join(self, others: Sequence[TwoStreams]) -> None:
        """See `TwoStreams.join`."""
        self._left = max(streams.reserve for streams in (self, *others))
        super().join(others)
        self._begin_again()

    @property
    def wasteful(self) -> bool:
        """No: what was captured would have to be captured anew."""
        return False

    def _part(self) -> None:
        if self._pair is not None and self.parametric is not None:
            for stream, position in zip((self.contextual, self.parametric), self._position.chunk(2), strict=True):
                behind = int((position - 1 - stream.position[:, -1:])[0, 0])  # steps that the stream has not followed
                stream.position = position - 1
                if stream.keep is not None:
                    stream.keep = F.pad(stream.keep, (0, behind), value=True)
        super()._part()

    def _begin_again(self) -> None:
        self._warm, self._graph = False, None

    def _step(self) -> Tensor:
        """Run a step; compiled where it can be.

        Nothing is moved on before the forward is through, so that one that failed may be run again.
        """
        self._pair.begin_step()
        inputs = {"input_ids": self._token, "position_ids": self._position, "attention_mask": self._nothing}
        try:
            logits = self._shared_forward(self._forward, **inputs)
        except Exception as error:
            if not self._compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            _warn(f"{type(self.contextual.model).__name__} is not compiled: {_reason(error)}.")
            self._compile, self._forward = False, self.contextual.model
            logits = self._shared_forward(self._forward, **inputs)
        self._pair.end_step()
        self._position.add_(1)
        return logits

    def _captured(self) -> Tensor:
        """Run a step: by itself where nothing is captured yet or little is left, else by the graph."""
        if self._graph is None:
            device = self._token.device
            if not self._warm:
                self._warm = True
                return _on_side_stream(self._step, device)
            if self._left < WORTH:
                return self._step()
            try:
                self._graph, self._logits = _capture(self._step, device)
            except RuntimeError as error:
                model = self.contextual.model
                self._capture = False
                if not isinstance(error, torch.OutOfMemoryError):
                    _FAILED[model] = _reason(error)
                _warn(f"decode steps of {type(model).__name__} are not captured in a CUDA graph: {_reason(error)}.")
                return self._step()
        self._graph.replay()
        return self._logits

    def _products(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._compile else super()._products()


def _on_side_stream(run: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Run once on the stream that captures, so that libraries have there what they make on first use."""
    now = torch.cuda.current_stream(device)
    with CAPTURING:
        side = _side_stream(device)
        side.wait_stream(now)
        _AWAY.now = None, now
        try:
            torch.cuda.set_stream(side)
            made = run()
        finally:
            leave_capture()
        now.wait_stream(side)
    made.record_stream(now)
    return made


def _capture(run: Callable[[], Tensor], device: torch.device) -> tuple[Any, Tensor]:
    """Return the graph of a run, and the tensor its replays write.

    The capture is of this thread alone: other threads go on launching and allocating.

    Raises:
        RuntimeError: A kernel or call that cannot be captured; nothing has run, and torch is as it was.
    """
    with CAPTURING, torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        _AWAY.now = graph, torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(graph, stream=_side_stream(device), capture_error_mode="thread_local"):
                made = run()
        except RuntimeError:
            leave_capture()
            _renew_generator(device)
            raise
        finally:
            leave_capture()
    return graph, made


def leave_capture() -> None:
    """End what this thread captures, and take it back to its stream. Does no harm where it is there."""
    graph, stream = getattr(_AWAY, "now", (None, None))
    if stream is None:
        return
    if graph is not None:
        with contextlib.suppress(RuntimeError):  # a broken capture is ended by that
            if torch.cuda.is_current_stream_capturing():
                graph.capture_end()
    torch.cuda.set_stream(stream)
    _AWAY.now = None, None


def _renew_generator(device: torch.device) -> None:
    """Take torch's global generator out of a failed capture, which up to torch 2.11 goes on claiming it."""
    with contextlib.suppress(RuntimeError):
        generator = torch.cuda.default_generators[device.index or 0]
        generator.graphsafe_set_state(generator.clone_state())


def _side_stream(device: torch.device) -> Any:
    if device not in _SIDE:
        _SIDE[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _SIDE[device]


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _warn(text: str) -> None:
    warnings.warn(f"{text} Answers are the same, and slower.", RuntimeWarning, stacklevel=2)
