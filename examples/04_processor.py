"""The convenience door: a logits processor, for pipelines that take nothing else. And what it cannot do.

    python examples/04_processor.py [model]

Where you can choose, prefer `ck.generate` or `ck.decoding_loop`: one forward per token instead of two.
"""

import sys

import torch

import ckcontrol as ck
from ckcontrol.errors import UnsupportedMode


def main(name: str = "demo") -> None:
    model, tokenizer = ck.load(name, on_status=print)
    control = ck.Control("ck-plug", alpha=0.4)
    pair = ck.build_pair(tokenizer, "What is the capital of Kenya?", ["The capital of Kenya is Lagos."])
    contextual = torch.tensor([pair.contextual], device=model.device)
    parametric = torch.tensor([pair.parametric], device=model.device)
    options = {
        "attention_mask": torch.ones_like(contextual),
        "max_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": tokenizer.eos_token_id,
    }

    def by_processor(**more):
        processor = ck.CKLogitsProcessor(model, parametric, control=control, vocab_size=len(tokenizer))
        return model.generate(contextual, logits_processor=[processor], **options, **more)

    def by_loop(**more):
        loop = ck.decoding_loop(control, parametric_ids=parametric, vocab_size=len(tokenizer))
        return model.generate(contextual, custom_generate=loop, **options, **more)

    processed, looped = by_processor(), by_loop()
    print("answer:", repr(tokenizer.decode(processed[0, contextual.shape[1] :], skip_special_tokens=True)))
    print("same tokens as the loop:", torch.equal(processed, looped))

    # Limit 1: transformers runs its penalties before custom processors, so the two doors then differ in what they
    # fuse: here the loop fuses raw distributions, the processor a penalised contextual one with a raw parametric one.
    processed, looped = by_processor(repetition_penalty=1.5), by_loop(repetition_penalty=1.5)
    print("same with a repetition penalty:", torch.equal(processed, looped))

    # Limit 2: beams reorder the rows, which a second stream cannot follow.
    try:
        by_processor(num_beams=2)
    except UnsupportedMode as error:
        print("beams:", error)


if __name__ == "__main__":
    main(*sys.argv[1:2])
