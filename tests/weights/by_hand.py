"""An adapter in PEFT's files, written and merged by hand: what a LoRA is, without PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RANK, SCALED = 4, 8  # lora_alpha; the update is B A * SCALED / RANK
TARGETS = ("q_proj", "v_proj", "down_proj")


def write_adapter(model: Any, folder: Path, seed: int) -> Path:
    """Write an adapter with random weights for some of a Llama's matrices."""
    folder.mkdir(parents=True)
    drawn, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if name.endswith(TARGETS):
            rows, columns = module.weight.shape
            for side, shape in (("lora_A", (RANK, columns)), ("lora_B", (rows, RANK))):
                tensors[f"base_model.model.{name}.{side}.weight"] = torch.randn(shape, generator=drawn) * 0.2
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": SCALED, "bias": "none"}
    told |= {"target_modules": list(TARGETS), "base_model_name_or_path": None, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def merged(model: Any, folder: Path) -> None:
    """Add an adapter's update to a model's weights."""
    told = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    for key, a in tensors.items():
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = tensors[key.replace("lora_A", "lora_B")]
            with torch.no_grad():
                model.get_submodule(name).weight += b @ a * told["lora_alpha"] / told["r"]
