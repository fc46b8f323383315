"""Why each token was chosen: the coloured view, the table, and the record as JSONL.

    python examples/02_explain.py [model]

Gain is H_par - H_ctx in nats: negative where the passages made the model less sure. With alpha=1 and the published
gate, exactly those tokens are taken from memory.
"""

import sys
import tempfile
from pathlib import Path

import ckcontrol as ck
from ckcontrol.answer import read_jsonl, write_jsonl
from ckcontrol.views.terminal import print_table

QUESTION = "What is the capital of Kenya?"
PASSAGE = "The capital of Kenya is Lagos."  # false on purpose


def main(name: str = "demo") -> None:
    model, tokenizer = ck.load(name, on_status=print)
    control = ck.Control(alpha=1.0)
    answer = ck.generate(model, tokenizer, QUESTION, [PASSAGE], control=control, max_new_tokens=12)
    answer.show()  # in a notebook, `answer` alone draws the same
    print_table(answer, summary=False)

    for token in answer.tokens:
        if token.switched:  # every figure is a plain attribute
            print(f"{token.text!r}: gain {token.gain:+.2f} nats, tau {token.tau:g}, rank in memory {token.rank_par}")

    path = Path(tempfile.mkdtemp()) / "answers.jsonl"
    write_jsonl([answer], path)  # appends: one line per answer
    print(f"wrote {path}; read back equal: {read_jsonl(path) == [answer]}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
