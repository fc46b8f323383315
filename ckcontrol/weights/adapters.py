"""Adapter folders onto a model, through PEFT: plain LoRA in safetensors, every weight accounted for, or refused.

Knows PEFT's files and its `PeftModel`; knows no dial and no alpha.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..decoding.refusals import bare
from ..decoding.weight_rows import DIALS
from ..errors import WeightsError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["attach", "check_adapter", "check_unadapted", "trainable_as_before"]

# What a LoRA of PEFT's may have beside two matrices per layer.
_MORE = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_bdlora",
    "arrow_config",
)


def check_adapter(folder: Path) -> Mapping[str, Any]:
    """Return an adapter's `adapter_config.json`.

    Raises:
        WeightsError: The folder holds no LoRA as PEFT writes it, in safetensors, or a file that was cut.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{str(folder)!r} holds no adapter: {error}", "Give a folder that PEFT wrote.") from error
    if kind != "LORA":
        raise WeightsError(f"{str(folder)!r} is {kind!r:.20}.", "Train a plain LoRA.")
    if more := [name for name in _MORE if config.get(name)]:
        raise WeightsError(f"{str(folder)!r} has {more[0]}={config[more[0]]!r:.60}.", "Train a plain LoRA without it.")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise WeightsError(
            f"{str(folder)!r} holds no {weights.name}.", "Save it with safe_serialization=True: no pickle."
        )
    try:
        with safe_open(weights, framework="numpy"):
            pass  # its header fits its length
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{str(folder)!r} is damaged: {error}.", "Copy or make it anew.") from error
    return dict(config)


def check_unadapted(model: PreTrainedModel) -> None:
    """Refuse a model that has a dial or adapters already.

    Raises:
        WeightsError: It has.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if bare(model) in DIALS or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise WeightsError(
            "the model has a dial or adapters already.",
            "Take them off: a dial by ckcontrol.weights.unload(model), adapters of PEFT by PeftModel.unload().",
        )


def attach(model: PreTrainedModel, folders: Mapping[str, Path]) -> Any:
    """Return a `PeftModel` of a model and some adapters; the model itself then holds their layers.

    Args:
        model: The base; after an error it is as it was.
        folders: Name of each adapter -> its folder.

    Raises:
        WeightsError: A folder that is no adapter, an adapter of another model, or a model that has adapters already.
        MissingExtra: PEFT is not installed.
    """
    require("weights", peft="peft")
    from peft import PeftConfig, PeftModel

    check_unadapted(model)
    wrapped: Any = None
    with trainable_as_before(model):
        try:
            for name, folder in folders.items():
                check_adapter(folder)
                try:
                    config = PeftConfig.from_pretrained(str(folder))
                    config.inference_mode = True
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", ".*gradient_checkpointing. is deprecated", FutureWarning)
                        if wrapped is None:
                            wrapped = PeftModel(model, config, adapter_name=name)
                        else:
                            wrapped.add_adapter(name, config)
                        read = wrapped.load_adapter(str(folder), adapter_name=name, use_safetensors=True)
                except (RuntimeError, ValueError, KeyError) as error:
                    raise _of_another(folder, " ".join(str(error).split())[:200]) from error
                if lost := [*read.missing_keys, *read.unexpected_keys]:
                    raise _of_another(folder, f"{len(lost)} weights such as {lost[0]!r} have no counterpart.")
        except BaseException:
            if wrapped is not None:
                wrapped.unload()
            raise
    return wrapped


@contextmanager
def trainable_as_before(model: PreTrainedModel) -> Iterator[None]:
    """Let each weight of a model ask for gradients afterwards where it did before.

    PEFT freezes the base, and torch multiplies a slice of hidden states with a frozen matrix by copying the matrix once
    per row: the first logits of 16 prompts would cost 16 output matrices of memory.
    """
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for weight, asked in before:
            weight.requires_grad_(asked)


def _of_another(folder: Path, why: str) -> WeightsError:
    return WeightsError(
        f"{str(folder)!r} is an adapter of another model: {why}", "Give the model that it was trained on."
    )
