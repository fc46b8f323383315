"""A policy of your own: one class, registered by name, usable through every door.

    python examples/05_own_policy.py [model]

A package can register it without an import, by an entry point in its pyproject.toml:

    [project.entry-points."ckcontrol.policies"]
    truce = "my_package.truce:Truce"
"""

import sys
from dataclasses import dataclass

import torch

import ckcontrol as ck
from ckcontrol.arguments import check_number
from ckcontrol.policies import Decision, Policy, register


@register
@dataclass(frozen=True)
class Truce(Policy):
    """Where the two favourites differ, meet between them; elsewhere leave the contextual stream as it is."""

    name = "truce"
    share: float = 0.5  # of the context, where they differ; a field called `alpha` would be the dial

    def __post_init__(self) -> None:
        check_number("share", self.share, 0.0, 1.0)

    @property
    def amplifies(self) -> bool:
        """Never: tau does not exceed 1, so no shortlist is needed."""
        return False

    def decide(self, signals: ck.Signals) -> Decision:
        """Return tau per row, [B]."""
        tau = torch.where(signals.disagree, self.share, 1.0)  # no .item(): nothing waits for the device
        return Decision(tau, signals.disagree)


def main(name: str = "demo") -> None:
    model, tokenizer = ck.load(name, on_status=print)
    for share in (1.0, 0.5, 0.0):
        control = ck.Control("truce", share=share)
        question, passage = "What is the capital of Kenya?", "The capital of Kenya is Lagos."  # false on purpose
        answer = ck.generate(model, tokenizer, question, [passage], control=control, max_new_tokens=12)
        print(f"{control}  {answer.text!r}  (favourites differed at {answer.switched} of {len(answer.tokens)})")


if __name__ == "__main__":
    main(*sys.argv[1:2])
