"""From fused scores to one token per pair: penalty, temperature, top-k, top-p and the draw, as transformers does them.

Every option is a column over the pairs, so one step costs the same number of operations for one pair and for a hundred
(except for the noise of sampled pairs, each of which has a generator of its own). Bit for bit what
`ckcontrol.generate` does with the same seed. Knows tensors; knows nothing of vLLM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from ...decoding.options import GenerateOptions
from ...fusion.distributions import first_max

__all__ = ["Noise", "Warp", "on_cpu", "sent"]

_BEST = 256  # tokens sorted for top-p on a CPU
_KEPT = 4  # generator states remembered; steps further back are replayed from the seed


def on_cpu(device: torch.device) -> bool:
    """Return whether scores live on a CPU, where what is few at a time stays in its cache and may be looked at."""
    return device.type == "cpu"


def sent(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the values as a tensor on the device, [N]; an accelerator is not waited for."""
    if not values:
        return torch.empty(0, dtype=dtype, device=device)
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    held = torch.tensor(values, dtype=dtype, pin_memory=torch.accelerator.is_available())
    return held.to(device, non_blocking=True)


class Noise:
    """The random numbers of one pair, addressed by output position, so that a step can be repeated.

    A sample may be voided after it was drawn (a preempted partner, a row that was only prefilling): the position is
    then drawn again with the same numbers.

    Args:
        seed: Of the pair.
        device: Where the scores live.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.generator = torch.Generator(device).manual_seed(seed)
        self._next = 0
        self._states: OrderedDict[int, Tensor] = OrderedDict()

    def fill(self, row: Tensor, position: int) -> None:
        """Fill `row`, [V] float32, with the exponential noise of an output position, counted from 0."""
        if position != self._next:
            self._seek(row, position)
        self._states[position] = self.generator.get_state()
        self._states.move_to_end(position)
        while len(self._states) > _KEPT:
            self._states.popitem(last=False)
        row.exponential_(1, generator=self.generator)
        self._next = position + 1

    def _seek(self, like: Tensor, position: int) -> None:
        state = self._states.get(position)
        if state is not None:
            self.generator.set_state(state)
            return
        self.generator.manual_seed(self.seed)
        spare = torch.empty_like(like)
        for _ in range(position):
            spare.exponential_(1, generator=self.generator)


class Warp:
    """Penalty, warpers and draw for a fixed list of pairs.

    Args:
        options: One per pair.
        noises: One per pair that samples, None for the others.
        device: Where the scores live.

    Attributes:
        sampled: Pairs that sample.
        penalised: Pairs with a repetition penalty.
        penalised_rows: The same as an index.
    """

    def __init__(
        self, options: Sequence[GenerateOptions], noises: Sequence[Noise | None], device: torch.device
    ) -> None:
        self.noises = [noise for noise in noises if noise is not None]
        self.sampled = [i for i, o in enumerate(options) if o.do_sample]
        chosen = [options[i] for i in self.sampled]
        self._sampled = _index(self.sampled, len(options), device)
        self._temperature = _column([o.temperature for o in chosen], device)
        self._warm = any(o.temperature != 1 for o in chosen)
        self.penalised = [i for i, o in enumerate(options) if o.repetition_penalty != 1]
        self.penalised_rows = _index(self.penalised, len(options), device)
        self._penalty = _column([options[i].repetition_penalty for i in self.penalised], device)
        self._k_rows = _index([i for i, o in enumerate(chosen) if o.top_k], len(chosen), device)
        ks = [o.top_k for o in chosen if o.top_k]
        self._k_most, self._k = max(ks, default=0), sent(ks, torch.long, device)[:, None]
        self._p_rows = _index([i for i, o in enumerate(chosen) if o.top_p < 1], len(chosen), device)
        self._p = _column([1 - o.top_p for o in chosen if o.top_p < 1], device)

    def __call__(self, scores: Tensor, seen: Tensor | None) -> Tensor:
        """Return the processed scores, [P, V]; the input is left as it is.

        Args:
            scores: Fused scores, [P, V] float32.
            seen: Tokens that are penalised, one row per entry of `penalised`, [Q, V] bool.
        """
        if self.penalised and seen is not None:
            part = scores[self.penalised_rows]
            bent = torch.where(part < 0, part * self._penalty, part / self._penalty)
            scores = _put(scores, self.penalised_rows, torch.where(seen, bent, part))
        if not self.sampled:
            return scores
        part = scores[self._sampled]
        if self._warm:
            part = part / self._temperature
        if self._k_most:
            rows = part[self._k_rows]
            best = rows.topk(min(self._k_most, rows.shape[-1]), dim=-1).values
            floor = best.gather(-1, (self._k - 1).clamp_max(best.shape[-1] - 1))
            part = _put(part, self._k_rows, rows.masked_fill(rows < floor, -torch.inf))
        if self._p.numel():
            part = _put(part, self._p_rows, _nucleus(part[self._p_rows], self._p))
        return _put(scores, self._sampled, part)

    def draw(self, scores: Tensor, positions: Sequence[int]) -> Tensor:
        """Return one token per pair, [P] int64; a row of NaN gives an arbitrary one.

        Args:
            scores: Processed scores, [P, V].
            positions: Output position of each pair that samples, in the order of `sampled`.
        """
        if not self.sampled:
            return first_max(scores)
        probs = scores[self._sampled].softmax(-1)
        noise = torch.empty_like(probs)
        for row, source, position in zip(noise, self.noises, positions, strict=True):
            source.fill(row, position)
        drawn = first_max(probs.div_(noise))  # what torch.multinomial does for one sample, without its checks
        if isinstance(self._sampled, slice):
            return drawn
        return first_max(scores).index_copy_(0, self._sampled, drawn)


def _nucleus(rows: Tensor, tail: Tensor) -> Tensor:
    """Mask the unlikely tokens that hold at most `tail`, [R, 1], of the probability, as transformers' top-p does.

    That one adds up sorted float32 probabilities from the least. On a CPU, where sorting a vocabulary takes longer than
    all the rest, only the best tokens are sorted: what is left below each is known to within the rounding of that sum,
    and a row whose bound comes closer to `tail` than that, or falls between equal scores, is sorted after all.
    """
    if not on_cpu(rows.device):
        return _sorted_nucleus(rows, tail)
    size = rows.shape[-1]
    probs = rows.softmax(-1)
    best, at = rows.topk(min(_BEST, size), dim=-1)
    above = probs.gather(-1, at).cumsum(-1, dtype=torch.float64) / probs.sum(-1, dtype=torch.float64, keepdim=True)
    over = (1 - above) - tail  # [R, K]: by how much the tokens after this one exceed what may be cut
    slack = tail * (size + 64) * 2.0**-26  # a float32 sum of V terms in 8 lanes, twice, and the terms' own rounding
    kept = (over > 0).sum(-1, keepdim=True) + 1
    last = kept.clamp_max(best.shape[-1] - 1)
    floor = best.gather(-1, last - 1)
    sure = (kept == last) & (over.abs() > slack).all(-1, keepdim=True) & (floor > best.gather(-1, last))
    masked = rows.masked_fill(rows < floor, -torch.inf)
    unsure = (~sure[:, 0]).nonzero()[:, 0]
    if len(unsure):
        masked[unsure] = _sorted_nucleus(rows[unsure], tail[unsure])
    return masked


def _sorted_nucleus(rows: Tensor, tail: Tensor) -> Tensor:
    ordered, order = torch.sort(rows, descending=False)
    cut = ordered.softmax(-1).cumsum(-1) <= tail
    cut[:, -1:] = False
    return rows.masked_fill(cut.scatter(1, order, cut), -torch.inf)


def _index(rows: Sequence[int], of: int, device: torch.device) -> Tensor | slice:
    """Return an index tensor, or the slice of everything where that is meant."""
    return slice(None) if len(rows) == of else sent(rows, torch.long, device)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return sent(values, torch.float32, device)[:, None]


def _put(whole: Tensor, rows: Tensor | slice, part: Tensor) -> Tensor:
    """Return `whole` with some rows replaced, as a new tensor unless all are."""
    if isinstance(rows, slice):
        return part
    return whole.index_copy(0, rows, part)
