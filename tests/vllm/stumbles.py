"""An installed package whose policies raise, as a third party's may: in `decide`, in a property, by their shapes.

`install` writes it as a package with an entry point, so that every process that has the folder on its path finds it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import Decision, Policy

_CALLS: Counter[Stumbles] = Counter()


@dataclass(frozen=True)
class Stumbles(Policy):
    """Answers from both streams, tau = 2, until it has been asked `patience` times; then goes wrong, for ever.

    It may be asked about a token more than once: an engine voids the samples of rows that are still prefilling.

    Attributes:
        patience: Decisions that go well.
        how: ``decide`` raises, ``neutral`` does, or the decision is of a ``shape`` that fits no batch.
        label: Tells policies apart, each of which has a patience of its own.
    """

    name: ClassVar[str] = "stumbles"
    patience: int = 3
    how: str = "decide"
    label: str = ""

    @property
    def neutral(self) -> bool:
        """False, or a blunder."""
        if self.how == "neutral":
            raise ZeroDivisionError("division of a passage by zero")
        return False

    def decide(self, signals: Signals) -> Decision:
        """tau = 2, or a blunder."""
        _CALLS[self] += 1
        rows = signals.logits_ctx.shape[0]
        if _CALLS[self] > self.patience:
            if self.how == "decide":
                raise KeyError("no such mood")
            rows += 2
        tau = torch.full((rows,), 2.0, device=signals.logits_ctx.device)
        return Decision(tau, torch.ones_like(tau, dtype=torch.bool))


def install(folder: Path) -> str:
    """Make `folder` one that holds this package, installed; return it, for ``PYTHONPATH``."""
    about = folder / "stumbles-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stumbles\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[ckcontrol.policies]\nstumbles = stumbles:Stumbles\n")
    (folder / "stumbles.py").write_text(Path(__file__).read_text())
    return str(folder)
