"""Exports of the demo model compared with the hooks on 64 prompts; optionally left in a folder, to be served.

python benchmarks/heads_export.py [--out FOLDER] [--heads 18.8,5.2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import ckcontrol as ck
from ckcontrol.eval.items.shipped_facts import load_capitals
from ckcontrol.heads import HeadMask, pruned
from ckcontrol.heads.export import export_checkpoint, export_lora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to leave the exports and the tokens")
    parser.add_argument("--heads", default="5.2,18.8,18.0,24.5,29.1", help="layer.head, by commas")
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    model, tokenizer = ck.load("demo", device="cpu")
    mask = HeadMask.of(model, [tuple(map(int, name.split("."))) for name in options.heads.split(",")])
    texts = [f"{fact.passage_false} {fact.question}" for fact in load_capitals()[:64]]
    prompts = [list(tokenizer(text).input_ids) for text in texts]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary) / "exports"
        kept = {"tokenizer": tokenizer, "prompts": prompts, "new_tokens": options.new_tokens}
        print(mask)
        print("checkpoint:", export_checkpoint(model, mask, folder / "checkpoint", **kept))
        print("LoRA:      ", export_lora(model, mask, folder / "lora", **kept))
        if options.out is not None:
            import torch

            def continuation(prompt: list[int]) -> list[int]:
                ids = torch.tensor([prompt])
                made = model.generate(ids, max_new_tokens=options.new_tokens, do_sample=False)
                return made[0, len(prompt) :].tolist()

            with pruned(model, mask):
                hooked = [continuation(prompt) for prompt in prompts]
            plain = [continuation(prompt) for prompt in prompts]
            (folder / "tokens.json").write_text(json.dumps({"prompts": prompts, "hooked": hooked, "plain": plain}))


if __name__ == "__main__":
    main()
