"""The transformers door: `model.generate` with its own options, a left-padded batch, and ckcontrol's loop inside.

    python examples/03_transformers.py [model]

transformers prepares the generation config, processors and stopping criteria as always; only its sampling loop is
replaced. Use this where code already calls `model.generate`; otherwise `ck.generate` is shorter.
"""

import sys

import ckcontrol as ck

ASKED = [
    ("What is the capital of Kenya?", ["The capital of Kenya is Lagos."]),  # false on purpose
    ("Which river flows through the town?", ["The Arda flows through the town of Orvendale.", "It has a ferry."]),
]


def main(name: str = "demo") -> None:
    model, tokenizer = ck.load(name, on_status=print)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    pairs = [ck.build_pair(tokenizer, question, passages) for question, passages in ASKED]

    def batch(prompts):
        return tokenizer.pad({"input_ids": [list(ids) for ids in prompts]}, return_tensors="pt").to(model.device)

    contextual = batch(pair.contextual for pair in pairs)
    parametric = batch(pair.parametric for pair in pairs)
    recorder = ck.Recorder()
    loop = ck.decoding_loop(
        ck.Control(alpha=0.2),
        parametric_ids=parametric["input_ids"],
        parametric_mask=parametric["attention_mask"],
        vocab_size=len(tokenizer),
        recorder=recorder,
    )
    output = model.generate(**contextual, custom_generate=loop, max_new_tokens=12, do_sample=False)
    answers = output[:, contextual["input_ids"].shape[1] :]
    print("prompt lengths with and without:", [(len(p.contextual), len(p.parametric)) for p in pairs])
    for row, (question, _) in enumerate(ASKED):
        text = tokenizer.decode(answers[row], skip_special_tokens=True)
        traces = recorder.traces(row, [""] * recorder.lengths[row])
        print(f"{question}  {text!r}  ({sum(t.switched for t in traces)} of {len(traces)} tokens switched)")


if __name__ == "__main__":
    main(*sys.argv[1:2])
