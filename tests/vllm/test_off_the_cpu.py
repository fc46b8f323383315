"""What the processor does where logits are not on a CPU, without an accelerator: on the meta device, which computes
nothing and refuses to be read. The accelerator's branches run on a CPU in test_processor.py, where values are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ckcontrol import Control, GenerateOptions
from ckcontrol.policies import AnswerPolicy, Weights, names
from ckcontrol.vllm.contract import pair_params as params
from ckcontrol.vllm.engine import batch
from ckcontrol.vllm.engine.sampling import Noise, Warp

from .test_processor import CPU, OPTIONS, Pair, V, context, v1_processor, v2_processor

pytestmark = [pytest.mark.usefixtures("vllm_here"), pytest.mark.filterwarnings("ignore")]
META = torch.device("meta")


def test_no_ready_pair_needs_no_plan_on_any_device() -> None:
    """Every engine on a GPU once ended here, at its first steered request."""
    for device in ("cpu", "meta"):
        assert batch.make_plans([], torch.zeros(1, 320, device=device), False) == []


def test_v1_rows_without_a_complete_pair_are_left_alone_off_the_cpu() -> None:
    processor, pair = v1_processor(META), Pair(0)
    logits = torch.empty(3, V, device=META)
    processor.update_state(SimpleNamespace(removed=[], added=[(1, pair.sampling("contextual"), [1], [])], moved=[]))
    assert processor.apply(logits) is logits
    rows = [(2, pair.sampling("parametric"), [1], [5])]  # here, but a token ahead: the other is still prefilling
    processor.update_state(SimpleNamespace(removed=[], added=rows, moved=[]))
    assert processor.apply(logits) is logits


def test_v2_rows_without_a_complete_pair_are_left_alone_off_the_cpu() -> None:
    processor, _ = v2_processor(8, 50, META)
    pair, logits = Pair(0), torch.empty(2, V, device=META)
    assert processor.add_request(5, pair.sampling("contextual"))
    assert processor.apply(logits, context([7, 5], [9, 9])) is logits
    assert processor.add_request(7, pair.sampling("parametric"))
    assert processor.apply(logits, context([7, 5], [9, 8])) is logits


class HostTensors(TorchDispatchMode):
    """Counts operations that take or give a tensor on the host: in a steady step each is a transfer or a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs, made))
        if any(isinstance(one, torch.Tensor) and one.device.type == "cpu" for one in flat):
            self.seen.append(str(func))
        return made


class Reads(TorchDispatchMode):
    """Refuses what an accelerator would have to be waited for: reading a value, or counting some."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.item):
            raise RuntimeError(f"{func} reads the device")
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            if any(i is not None and i.dtype == torch.bool for i in args[1]):
                raise RuntimeError(f"{func} counts a mask")
        return func(*args, **(kwargs or {}))


def methods() -> list[Control]:
    found = [Control(name) for name in names() if not isinstance(Control(name).policy(), (AnswerPolicy, Weights))]
    return [
        *found,
        Control("ck-plug", alpha=0.2),
        Control("ck-plug", alpha=0.8, candidates=4, candidate_ratio=0.1),
        Control("ck-plug", adaptive=True),
    ]


def pairs_of(controls: list[Control]) -> Iterator[Pair]:
    for i, control in enumerate(controls):
        pair = Pair(0)
        pair.control, pair.options = control, (OPTIONS[0], OPTIONS[2], OPTIONS[4])[i % 3]
        yield pair


def one_by_one() -> tuple[Any, Callable[[torch.Tensor, int], torch.Tensor], list[Pair]]:
    """A V1 processor off the CPU with a pair of every method: greedy, penalised, traced; and one step of it."""
    processor, pairs = v1_processor(META), list(pairs_of(methods()))
    outputs = [[[], []] for _ in pairs]
    rows = [
        (2 * i + k, pair.sampling(role), pair.prompt[role], outputs[i][k])
        for i, pair in enumerate(pairs)
        for k, role in enumerate(params.ROLES)
    ]
    processor.update_state(SimpleNamespace(removed=[], added=rows, moved=[]))

    def step(logits: torch.Tensor, number: int) -> torch.Tensor:
        after = processor.apply(logits)
        for both in outputs:
            for ids in both:
                ids.append(-1)  # as vLLM notes what is still in flight
        return after

    return processor, step, pairs


@pytest.mark.parametrize("soft", [False, True])
def test_a_step_off_the_cpu_reads_nothing_and_a_steady_one_sends_nothing(soft: bool) -> None:
    processor, step, pairs = one_by_one()
    processor._soft, processor._vocab_size = soft, V - 3
    for row in processor._rows.values():
        row.logprobs = soft
    wide = torch.empty(2 * len(pairs), V + 20, device=META)  # a slice of it is not contiguous, as vLLM's may be
    for number in range(4):
        with HostTensors() as host:
            step(wide[:, :V], number)
        assert not processor._failed, "anything that reads the meta device raises"
        assert number == 0 or host.seen == []
    assert {len(rows) for rows in processor.store._traces.values()} == {4}


def test_a_v2_step_off_the_cpu_reads_nothing() -> None:
    pairs = list(pairs_of(methods()))
    processor, state = v2_processor(2 * len(pairs), 60, META)
    lengths = []
    for i, pair in enumerate(pairs):
        for k, role in enumerate(params.ROLES):
            state.prompt_len.np[2 * i + k] = len(pair.prompt[role])
            lengths.append(len(pair.prompt[role]))
            assert processor.add_request(2 * i + k, pair.sampling(role))
    slots = list(range(2 * len(pairs)))[::-1]
    for number in range(3):
        at = context(slots, [lengths[s] + number for s in slots])
        with HostTensors() as host:
            processor.apply(torch.empty(len(slots), V, device=META), at)
        assert not processor._failed
        assert number == 0 or host.seen == []


def test_drawing_off_the_cpu_reads_nothing(off_the_cpu: None) -> None:
    """On a CPU, because only generators of real devices make noise."""
    every = [GenerateOptions(do_sample=True, seed=i, **o) for i, o in enumerate(({}, {"top_k": 5}, {"top_p": 0.8}))]
    for chosen in (every, [*every, GenerateOptions(repetition_penalty=1.3)], every[:1], every[2:]):
        warp = Warp(chosen, [Noise(i, CPU) if o.do_sample else None for i, o in enumerate(chosen)], CPU)
        scores = torch.randn(len(chosen), V)
        with Reads():
            seen = torch.zeros(len(warp.penalised), V, dtype=torch.bool)
            tokens = warp.draw(warp(scores, seen), [0] * len(warp.sampled))
        assert tokens.shape == (len(chosen),)
    with pytest.raises(RuntimeError, match="reads"), Reads():
        bool(scores.sum() > 0)
