"""How many KV-cache blocks a pair of requests needs."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["blocks_of_pair"]


def blocks_of_pair(prompts: Sequence[int], longest: int, most: int, block: int) -> int:
    """Return the KV blocks that a pair may come to hold, for one group of layers.

    Args:
        prompts: Tokens of either prompt.
        longest: Tokens of the answer.
        most: The model's longest sequence.
        block: Tokens of a block.
    """
    return sum(-(-min(prompt + longest, most) // block) for prompt in prompts)
