"""What two drafts cost: whole answers under `dial` beside token policies and the unmodified model, in one run.

The shipped capitals with their false passages, padded by neutral sentences to about `--context` tokens, in batches;
every control has its turn in every round, `dial` also with drafts that are written whole, as beside a trace. Prints
median seconds of CPU time a batch (on a GPU take gpu.py), and the ratios to the unmodified model. Answers differ in
length between controls: each ratio is also given per token of the answers, drafts that were not given left out.

    python benchmarks/dial_speed.py --batch 1 8 --context 64 512
    python benchmarks/dial_speed.py --first 12      when a streamed answer's first sentence is there, in CPU time
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import ckcontrol as ck
from ckcontrol.decoding import loop
from ckcontrol.decoding.segments import segment
from ckcontrol.eval.items.shipped_facts import load_capitals
from ckcontrol.policies import sentence_end

CONTROLS = {
    "off": ck.Control("off"),
    "ck-plug": ck.Control("ck-plug", alpha=0.25),
    "dial": ck.Control("dial", alpha=0.6),
    "dial, segments": ck.Control("dial", alpha=0.6, segments=True),
    "dial, alpha 0.3": ck.Control("dial", alpha=0.3),
    "grd": ck.Control("grd"),
    "trustmargin": ck.Control("trustmargin"),
}
WHOLE = ", whole drafts"
CONTROLS |= {name + WHOLE: control for name, control in CONTROLS.items() if control.method in ("dial", "grd")}
SEGMENTS = {
    "dial, segments": CONTROLS["dial, segments"],
    "segments, alpha 0.3": ck.Control("dial", alpha=0.3, segments=True),
}
SEGMENTS |= {name + WHOLE: control for name, control in SEGMENTS.items()}
FILLER = "The region is known for its hills, its rivers and its long winters. "


@contextmanager
def drafting(name: str) -> Iterator[None]:
    """Write drafts whole where the name of a control says so."""
    stops = loop._stops
    if name.endswith(WHOLE):
        loop._stops = lambda plan: False
    try:
        yield
    finally:
        loop._stops = stops


def measure(
    model: Any, tokenizer: Any, batch: int, context: int, rounds: int, new: int
) -> dict[str, tuple[float, int]]:
    """Median seconds of CPU time of a batch and the tokens of its answers, by control."""
    facts = load_capitals()[:batch]
    room = len(tokenizer(FILLER)["input_ids"])
    passages = [[fact.passage_false + " " + FILLER * max(0, context // room - 2)] for fact in facts]
    taken: dict[str, list[float]] = {name: [] for name in CONTROLS}
    tokens: dict[str, int] = {}
    for turn in range(rounds + 1):
        for name, control in CONTROLS.items():
            start = time.process_time()
            with drafting(name):
                answers = ck.generate(
                    model,
                    tokenizer,
                    [fact.question for fact in facts],
                    passages,
                    control=control,
                    max_new_tokens=new,
                    trace=False,
                )
            if turn:
                taken[name].append(time.process_time() - start)
            tokens[name] = sum(len(answer.token_ids) for answer in answers)
    return {name: (median(values), tokens[name]) for name, values in taken.items()}


class First:
    """A streamer that notes the CPU time at which the first sentence of an answer has ended, or the answer has."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids, self._prompt = tokenizer, list[int](), True
        self.at: float | None = None
        self.text = ""

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
            return
        self._ids += value.flatten().tolist()
        if self.at is None and segment(self._ids, self._tokenizer.decode)[1]:
            self.at = time.process_time()

    def end(self) -> None:
        self.text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        self.at = time.process_time() if self.at is None else self.at


def first(model: Any, tokenizer: Any, count: int, rounds: int, new: int) -> None:
    """Print the CPU time to the first sentence of answers in two sentences, over the unmodified model's."""
    facts = load_capitals()[:count]
    ratios: dict[str, list[float]] = {name: [] for name in SEGMENTS}
    several = dict.fromkeys(SEGMENTS, 0)
    for fact in facts:
        question = f"{fact.question} Answer in one sentence, and say in a second one what the region is known for."
        taken: dict[str, list[float]] = {name: [] for name in ("off", *SEGMENTS)}
        said: dict[str, str] = {}
        for _ in range(rounds):
            for name, seconds in taken.items():
                streamer, start = First(tokenizer), time.process_time()
                with drafting(name):
                    ck.generate(
                        model,
                        tokenizer,
                        question,
                        [fact.passage_false + " " + FILLER],
                        control=SEGMENTS.get(name, CONTROLS["off"]),
                        max_new_tokens=new,
                        streamer=streamer,
                        trace=False,
                    )
                seconds.append((streamer.at or start) - start)
                said[name] = streamer.text
        for name in SEGMENTS:
            several[name] += sentence_end(said[name]) is not None and len(said[name].split(". ")) > 1
            ratios[name].append(min(taken[name]) / min(taken["off"]))
    for name, each in ratios.items():
        row = {"control": name, "questions": count, "of two sentences": several[name], "median": round(median(each), 2)}
        print(json.dumps(row | {"all": [round(ratio, 2) for ratio in sorted(each)]}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--first", type=int, metavar="N", help="time the first sentence of this many answers instead")
    given = parser.parse_args()
    model, tokenizer = ck.load(given.model)
    if given.first:
        first(model, tokenizer, given.first, given.rounds, given.new_tokens)
        return
    for batch in given.batch:
        for context in given.context:
            found = measure(model, tokenizer, batch, context, given.rounds, given.new_tokens)
            seconds, tokens = found["off"]
            for name, (took, made) in found.items():
                row = {"batch": batch, "context": context, "control": name, "seconds": round(took, 3), "tokens": made}
                row |= {"to off": round(took / seconds, 2), "per token": round(took / made * tokens / seconds, 2)}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
