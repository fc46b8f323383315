"""One question, one false passage, four positions of the dial.

    python examples/01_dial.py [model]

`model` is "demo" (the default: SmolLM2-135M-Instruct, fetched once), "tiny" (random weights, no download), a model
folder or a Hugging Face id.
"""

import sys

import ckcontrol as ck

QUESTION = "What is the capital of Kenya?"
PASSAGE = "The capital of Kenya is Lagos."  # false on purpose


def main(name: str = "demo") -> None:
    model, tokenizer = ck.load(name, on_status=print)
    closed = ck.generate(model, tokenizer, QUESTION, max_new_tokens=12)
    print(f"question     {QUESTION}")
    print(f"passage      {PASSAGE}")
    print(f"closed book  {closed.text!r}")
    for alpha in (0.0, 0.2, 0.5, 1.0):  # 0 = context, 0.5 = the unmodified model, 1 = memory
        control = ck.Control(method="ck-plug", alpha=alpha)
        answer = ck.generate(model, tokenizer, QUESTION, [PASSAGE], control=control, max_new_tokens=12)
        print(f"alpha {alpha:<6} {answer.text!r}  ({answer.switched} of {len(answer.tokens)} tokens switched)")


if __name__ == "__main__":
    main(*sys.argv[1:2])
