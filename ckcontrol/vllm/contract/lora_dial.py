"""The dial in the weights in a vLLM engine: one ordinary request per question, with the adapter nearest to its alpha.

Offline a request names the adapter's folder; a server has each adapter as a model of its own, and a request names that.
Knows a dial's folder and vLLM's LoRA arguments; knows no pairs, and nothing of how answers are read. vLLM itself loads
the adapters, draws, and keeps prefixes of different adapters apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...control import Control
from ...decoding.options import GenerateOptions
from ...decoding.weight_rows import nearest
from ...errors import ControlError, ServingError, WeightsError
from ...heads.fingerprint import unlike
from ...policies import Weights
from ...weights.adapters import check_adapter
from ...weights.manifest import Manifest

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

__all__ = ["VARIABLE", "LoraDial", "check_options"]

VARIABLE = "CKCONTROL_VLLM_WEIGHTS"  # the folder of the dial that a server was started with
SERVED = "ck-weights-"  # and the alpha: what a server calls an adapter
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for


class LoraDial:
    """A dial's adapters as vLLM takes them.

    Args:
        folder: What `ckcontrol weights mix` wrote.

    Raises:
        WeightsError: No dial, a damaged one, or an adapter of a rank that vLLM does not take.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.manifest = Manifest.read(self.folder)
        self._numbers = {
            name: number for number, name in enumerate(filter(None, self.manifest.adapters.values()), start=1)
        }
        configs = [check_adapter(self.folder / name) for name in self._numbers]
        self.rank = max(
            int(most) for config in configs for most in (config["r"], *(config.get("rank_pattern") or {}).values())
        )
        if self.rank > RANKS[-1]:
            raise WeightsError(
                f"{str(folder)!r} has rank {self.rank}, and vLLM takes {RANKS[-1]}.", "Train a lower one."
            )

    def arguments(self, given: Mapping[str, Any], spelled: Callable[[str], str] = str) -> dict[str, Any]:
        """Return the arguments of an engine that takes the adapters; those given stay.

        Args:
            given: Of vLLM's `EngineArgs`.
            spelled: How the caller writes an argument.

        Raises:
            ServingError: The engine is to have no LoRA, none of this rank, or too few at once.
        """
        ours: dict[str, Any] = {
            "enable_lora": True,
            "max_lora_rank": next(rank for rank in RANKS if rank >= self.rank),
            # One more: vLLM 0.32 on a CPU gives rows without an adapter what lies in the last place, which stays empty.
            "max_loras": len(self._numbers) + 1,
        }
        made = {**ours, **given}
        small = (name for name, least in ours.items() if made[name] < (self.rank if name == "max_lora_rank" else least))
        if name := next(small, ""):
            raise ServingError(
                f"{spelled('weights')}={str(self.folder)!r} needs {spelled(name)}={ours[name]}, "
                f"and {given[name]!r} was given.",
                f"Leave {spelled(name)} out.",
            )
        return made

    def check(self, config: Any) -> None:
        """Refuse an engine of another model, by the shapes of vLLM's text configuration; weights are not compared.

        Raises:
            WeightsError: Names both.
        """
        if why := unlike(self.manifest.base.shape, config):
            raise WeightsError(f"{str(self.folder)!r} {why}", "Load the model that its adapters were trained on.")

    @property
    def served(self) -> dict[str, str]:
        """What a server calls each adapter -> the adapter's folder inside the dial."""
        return {f"{SERVED}{alpha:g}": name for alpha, name in self.manifest.adapters.items() if name is not None}

    def modules(self) -> list[str]:
        """Return the values of vLLM's ``--lora-modules``: each adapter under its name of `served`, as JSON."""
        return [json.dumps({"name": name, "path": str(self.folder / of)}) for name, of in self.served.items()]

    def model(self, control: Control) -> str | None:
        """Return the name of `served` that a request with this control asks; None at 0.5, the model as it is."""
        nearby = self._nearest(control)
        return next((name for name, folder in self.served.items() if folder == nearby), None)

    def request(self, control: Control) -> LoRARequest | None:
        """Return what an offline request with this control names; None at 0.5, the model without an adapter."""
        from vllm.lora.request import LoRARequest

        name = self._nearest(control)
        return None if name is None else LoRARequest(name, self._numbers[name], str(self.folder / name))

    def _nearest(self, control: Control) -> str | None:
        policy = control.policy()
        return nearest(self.manifest.adapters, policy.position) if isinstance(policy, Weights) else None


def check_options(options: GenerateOptions, control: Control) -> None:
    """Refuse what vLLM's own sampling cannot do as `ckcontrol.generate` does.

    Raises:
        ControlError: A trace, a seed, or a penalty that spares the prompt.
    """
    what = ""
    if options.trace:
        what = "trace=True"
    elif options.do_sample and options.seed is not None:
        what = f"seed={options.seed}"
    elif options.repetition_penalty != 1 and options.penalty_scope == "generated":
        what = "penalty_scope='generated'"
    if what:
        raise ControlError(
            f"{what}: Control('weights', alpha={control.alpha!r}) is an ordinary request to vLLM, without it.",
            "Leave it out, or answer with ckcontrol.generate.",
        )
