"""The dial in the weights: two LoRA adapters, one toward context and one toward memory, mixed by alpha by PEFT.

from ckcontrol import weights
weights.train(model, tokenizer, "pairs.jsonl", "context/", toward="context")  # and one toward="memory"
weights.mix(model, "context/", "memory/", "dial/", steps=9)
weights.load(model, "dial/")
ck.generate(model, tokenizer, question, passages, control=ck.Control("weights", alpha=0.25))
weights.export(model, "dial/", 0.25, "model/", tokenizer=tokenizer)  # the same as one plain model
"""

from __future__ import annotations

from .dial import load, unload
from .fold import export
from .mix import METHODS, mix, shares
from .train import train

__all__ = ["METHODS", "export", "load", "mix", "shares", "train", "unload"]
