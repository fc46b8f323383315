"""Own facts, five states, every alpha: what the dial wins in conflicts and what it costs elsewhere.

    python examples/09_eval.py [model]

Run and report are left in a temporary folder.
"""

import json
import sys
import tempfile
from pathlib import Path

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.eval.report import write_report
from ckcontrol.eval.running.arms import arms_for
from ckcontrol.eval.running.engine import Local
from ckcontrol.eval.running.runner import run
from ckcontrol.eval.tasks.load import load_task

FACTS = [
    ("the Louvre", "Paris"),
    ("the Colosseum", "Rome"),
    ("the Kremlin", "Moscow"),
    ("the Prado", "Madrid"),
    ("the Reichstag", "Berlin"),
]


def main(name: str = "demo") -> None:
    model, tokenizer = ck.load(name, on_status=print)
    folder = Path(tempfile.mkdtemp())
    lines = [
        {
            "relation": "stands in",
            "subject": subject,
            "answer": city,
            "question": f"In which city is {subject}?",
            "context_template": "Visitors of {subject} travel to {answer}.",
        }
        for subject, city in FACTS
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = load_task(f"facts={folder / 'facts.jsonl'}")
    engine = Local(model, tokenizer, name, options=GenerateOptions(max_new_tokens=12))
    arms = arms_for(["off", "closed-book", "ck-plug", "cad"], [0, 0.5, 1])
    outcome = run(engine, [task], arms, folder / "run", on_note=print)
    for cell in outcome.results["cells"]:
        figure = cell["metrics"]["accuracy"]
        told = f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"
        print(f"{cell['state']:10} {cell['arm']:12} names the truth {told}  n={cell['n']}")
    print("report:", write_report([folder / "run"]).name)


if __name__ == "__main__":
    main(*sys.argv[1:2])
