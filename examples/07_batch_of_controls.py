"""One batch, one control per question: every row is decided by its own policy, in the same forwards.

    python examples/07_batch_of_controls.py [model]

An answer does not depend on its neighbours, but for ties: rounding may differ with the size of a batch.
"""

import sys

import ckcontrol as ck

QUESTION = "What is the capital of Kenya?"
PASSAGE = "The capital of Kenya is Lagos."  # false on purpose
CONTROLS = [
    ck.Control("off"),
    ck.Control("ck-plug", alpha=0.2),
    ck.Control("ck-plug", alpha=1.0),
    ck.Control("ck-plug", adaptive=True),
    ck.Control("cad", cad_alpha=0.5),
    ck.Control("adacad"),
    ck.Control("coiecd"),
    ck.Control("acd"),
    ck.Control("arr"),
]


def main(name: str = "demo") -> None:
    model, tokenizer = ck.load(name, on_status=print)
    count = len(CONTROLS)
    answers = ck.generate(
        model, tokenizer, [QUESTION] * count, [[PASSAGE]] * count, control=CONTROLS, max_new_tokens=12
    )
    for control, answer in zip(CONTROLS, answers, strict=True):
        params = " ".join(f"{name}={value}" for name, value in control.params.items())
        dial = "" if control.alpha is None else f"alpha={control.alpha}"
        print(f"{control.method:8} {dial or params:15} switched {answer.switched:2}  {answer.text!r}")

    alone = ck.generate(model, tokenizer, QUESTION, [PASSAGE], control=CONTROLS[1], max_new_tokens=12)
    print("alone as in the batch:", alone.token_ids == answers[1].token_ids)


if __name__ == "__main__":
    main(*sys.argv[1:2])
