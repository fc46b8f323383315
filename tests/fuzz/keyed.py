"""Processors and criteria that tell rows apart, for a batch or for one of its rows.

Each is given `rows`: row i of what it is shown is row `rows[i]` of the batch that was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

VOCAB = 320


def alphabet(rows: Sequence[int]) -> Callable[[int, Tensor], list[int]]:
    """For `prefix_allowed_tokens_fn`: every row has every third id, and which depends on its newest token too."""
    return lambda batch, ids: list(range((rows[batch] + int(ids[-1])) % 3, VOCAB, 3))


class Tally(LogitsProcessor):
    """Remembers, per row, what it was shown, and bends the scores by how much and by whose it was; checks the batch."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = list(rows)
        self.seen: list[list[int]] = [[] for _ in rows]
        self.bias = torch.stack([torch.randn(VOCAB, generator=torch.Generator().manual_seed(r)) for r in rows])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[0] != len(self.rows):
            raise ValueError(f"{input_ids.shape[0]} rows instead of {len(self.rows)}")
        for seen, row in zip(self.seen, input_ids.tolist(), strict=True):
            seen.append(row[-1])
        turns = torch.tensor([len(seen) + sum(seen[1:]) % 5 for seen in self.seen])
        return scores + self.bias.roll(int(turns[0] * 0) + 1, 1) * (turns[:, None] % 4)


class Presence(LogitsProcessor):
    """A presence penalty of one's own; `start` hides the ids before it."""

    def __init__(self, presence_penalty: float, start: int = 0) -> None:
        self.presence_penalty, self.start = presence_penalty, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter_add(1, ids := input_ids[:, self.start :], torch.full(ids.shape, -self.presence_penalty))


class Budget(StoppingCriteria):
    """Ends row r after 1 + r % 4 calls."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows, self.calls = list(rows), 0

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        if input_ids.shape[0] != len(self.rows):
            raise ValueError(f"{input_ids.shape[0]} rows instead of {len(self.rows)}")
        self.calls += 1
        return torch.tensor([self.calls > 1 + row % 4 for row in self.rows])


class Gaps(LogitsProcessor):
    """Comes last; keeps, per step, how far apart the two best scores were. Copies share what is kept."""

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.least: dict[int, float] = {}

    def __deepcopy__(self, memo: object) -> Gaps:
        return self

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        best = scores[0].topk(2).values
        self.least[step] = min(self.least.get(step, 9.0), float(best[0] - best[1]))
        return scores
