"""The dial on whole answers: what was written, how much either side minds it, and which alpha turns the answer.

    python examples/10_whole_answers.py [model]

`dial` has two answers written side by side and gives one of them, so nothing breaks in the middle of a name. The drafts
are the same at every alpha on one side of 0.5: one run tells where the answer would turn.
"""

import sys

import ckcontrol as ck

FACTS = {
    "What is the capital of Peru?": "The capital of Peru is Baku.",  # false, and well known
    # true; the demo model is sure of nonsense
    "What is the currency of Eswatini?": "The currency of Eswatini is the Lilangeni.",
    "What is the capital of Norway?": "The Tellin is a river of forty miles.",  # beside the question
}


def main(name: str = "demo") -> None:
    model, tokenizer = ck.load(name, on_status=print)
    control = ck.Control("dial", adaptive=True)  # no knob: both sides count alike
    answers = ck.generate(
        model, tokenizer, list(FACTS), [[passage] for passage in FACTS.values()], control=control, max_new_tokens=16
    )
    for answer in answers:
        print(f"\n{answer.question}  ({answer.passages[0]})")
        for draft in answer.drafts:
            mark = "->" if draft.given else "  "
            print(f"{mark} {draft.name:10} {draft.text!r:50} minded by the context {draft.surprise_ctx:.1f}, ", end="")
            print(f"by memory {draft.surprise_par:.1f}")
        plain, memory = answer.drafts
        stake_par = plain.surprise_par - memory.surprise_par
        stake_ctx = memory.surprise_ctx - plain.surprise_ctx
        if (
            stake_par > 0 and stake_par + stake_ctx > 0
        ):  # (1 - tau) stake_par > tau stake_ctx, tau = (1 - alpha) / alpha
            tau = stake_par / (stake_par + max(stake_ctx, 0.0))
            print(f"   memory's answer from alpha {1 / (1 + tau):.2f} on")


if __name__ == "__main__":
    main(*sys.argv[1:2])
