"""Does pruning heads move a model between memory and context? One table per direction, on facts no choice has seen.

Heads are ranked on the split "find" of a scores file, each method's mask is chosen on "dev", and rows are measured on
"test" and on a relation that was in neither. Every row stands beside random heads of the same layers and beside what
the mask costs off target. Outcomes are first tokens (greedy); shares come with Wilson's 95% interval.

    ckcontrol heads find --facts facts.jsonl --out heads.json --relation capital --relation currency ... --format ...
    python benchmarks/heads_table.py heads.json --facts facts.jsonl --held-out continent --out table.json

To be affordable on a CPU, prompts are run once, the residual stream that enters each upper layer is kept, and a mask is
run from its lowest layer on: the same figures, for models whose layers take `inputs_embeds` as they are (Llama, Qwen).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import ckcontrol as ck
from ckcontrol.heads.apply import pruned
from ckcontrol.heads.choosing.learn import Learned, candidates, learn
from ckcontrol.heads.choosing.panel import NEUTRAL, Panel, Result, interval
from ckcontrol.heads.choosing.select import Candidate, consistent, random_controls, select, top_k
from ckcontrol.heads.families import describe
from ckcontrol.heads.finding.conflict_prompts import ConflictRecord, build_records
from ckcontrol.heads.finding.facts import read_facts
from ckcontrol.heads.finding.find import answer_tokens
from ckcontrol.heads.finding.path_patching import capture, sweep
from ckcontrol.heads.finding.scores import HeadScores
from ckcontrol.heads.forward import Batch, pad, run
from ckcontrol.heads.mask import HeadMask


class Resumed:
    """A model that runs known prompts from any upper layer on."""

    def __init__(self, model: Any, lowest: int) -> None:
        self.model, self.layers = model, describe(model).layers
        self.levels = [0, *range(lowest, self.layers)]
        self.kept: dict[tuple[int, ...], dict[int, Tensor]] = {}

    def level(self, mask: HeadMask | None) -> int:
        """The highest kept level that every pruned head is above or at."""
        first = min((layer for layer, _ in mask.heads), default=self.layers - 1) if mask else self.layers - 1
        return max(level for level in self.levels if level <= first)

    def above(self, level: int) -> Any:
        """The model without the layers below `level`; it shares every other module."""
        outer, inner = copy.copy(self.model), copy.copy(self.model.model)
        outer._modules, inner._modules = dict(outer._modules), dict(inner._modules)
        outer.model, inner.layers = inner, torch.nn.ModuleList(list(self.model.model.layers)[level:])
        return outer

    @torch.no_grad()
    def keep(self, prompts: Sequence[tuple[int, ...]], batch_size: int = 16) -> None:
        new = sorted({p for p in prompts if p not in self.kept}, key=len)
        for start in range(0, len(new), batch_size):
            part = new[start : start + batch_size]
            seen: dict[int, Tensor] = {}
            hooks = [self._watch(level, seen) for level in self.levels]
            run(self.model, pad(part, self.model.device))
            for hook in hooks:
                hook.remove()
            for row, prompt in enumerate(part):
                self.kept[prompt] = {level: value[row, -len(prompt) :].clone() for level, value in seen.items()}

    def _watch(self, level: int, seen: dict[int, Tensor]) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[level] = args[0] if args else kwargs["hidden_states"]

        return self.model.model.layers[level].register_forward_pre_hook(hook, with_kwargs=True)

    @torch.no_grad()
    def logits(self, prompts: Sequence[tuple[int, ...]], level: int, everywhere: bool = False) -> Tensor:
        """Logits at the last position, [N, V], or at all of one prompt, [T, V]; hooks on the modules act."""
        batch = pad(prompts, self.model.device)
        width = self.kept[prompts[0]][level].shape[-1]
        rows = torch.zeros(*batch.ids.shape, width)
        for row, prompt in enumerate(prompts):
            rows[row, -len(prompt) :] = self.kept[prompt][level]
        mask = None if bool(batch.mask.all()) else batch.mask
        made = self.above(level)(
            inputs_embeds=rows,
            attention_mask=mask,
            position_ids=(batch.mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=0 if everywhere else 1,
        ).logits
        return made[0] if everywhere else made[:, -1]


class ResumedPanel(Panel):
    """`Panel` on first tokens, its prompts run from each mask's lowest layer on."""

    def __init__(
        self,
        resumed: Resumed,
        tokenizer: Any,
        records: Sequence[ConflictRecord],
        formats: Sequence[str],
        off_target: int,
        texts: int,
    ) -> None:
        super().__init__(resumed.model, tokenizer, records, formats=formats, neutral=NEUTRAL[:texts], new_tokens=0)
        few = {p.ids for r in records[:off_target] for p in self._prompts(r, formats)}
        self.prompts = [p for p in self.prompts if p.condition.startswith("conflict") or p.ids in few]
        self.resumed = resumed
        resumed.keep([p.ids for p in self.prompts] + [tuple(ids) for ids in self.neutral])

    def measure(self, mask: HeadMask | None = None) -> Result:
        self.at = self.resumed.level(mask)
        return super().measure(mask)

    def _answers(self) -> dict[str, tuple[str, ...]]:
        order = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts[i].ids))
        outcomes = [""] * len(order)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            tokens = self.resumed.logits([self.prompts[i].ids for i in part], self.at).argmax(-1).tolist()
            for i, token in zip(part, tokens, strict=True):
                outcomes[i] = self.prompts[i].outcome_of_token(token)
        found: dict[str, list[str]] = {}
        for prompt, outcome in zip(self.prompts, outcomes, strict=True):
            found.setdefault(prompt.condition, []).append(outcome)
        return {name: tuple(values) for name, values in found.items()}

    def _perplexity(self) -> float:
        loss, count = 0.0, 0
        for ids in self.neutral:
            logits = self.resumed.logits([tuple(ids)], self.at, everywhere=True)[:-1]
            loss += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
            count += len(ids) - 1
        return math.exp(loss / count) if count else math.nan


def greedy(
    resumed: Resumed,
    tokenizer: Any,
    scores: HeadScores,
    direction: str,
    records: Sequence[ConflictRecord],
    steps: int,
    base: int,
) -> list[Candidate]:
    """`select.greedy` over the heads of layer `base` and above, on prompts that are run from there on."""
    source = "memory" if direction == "context" else "context"
    layout = describe(resumed.above(base))
    pairs = []
    for record in records:
        other = (record.other_subject if source == "memory" else record.other_answer)["substitution"]
        pairs.append((tuple(tokenizer(record.conflict["substitution"]).input_ids), tuple(tokenizer(other).input_ids)))
    resumed.keep([prompt for pair in pairs for prompt in pair])
    targets = torch.tensor([answer_tokens(tokenizer, r, r.conflict["substitution"]) for r in records])
    heads: list[tuple[int, int]] = []
    found = []
    for k in range(1, steps + 1):
        mask = HeadMask(scores.model, dict.fromkeys(heads, 0.0))
        with pruned(resumed.model, mask if heads else None):
            sides = [_captured(resumed, layout, [pair[i] for pair in pairs], base) for i in (0, 1)]
        change = sweep(layout, sides[0], sides[1].heads, targets).change
        effect = (change[..., 0] - change[..., 1]).mean(0) * (-1 if source == "memory" else 1)
        layer, head = divmod(int(effect.argmax()), layout.heads)
        if effect[layer, head] <= 0:
            break
        heads.append((layer + base, head))
        found.append(
            Candidate(f"greedy {source}:{k}", HeadMask(scores.model, dict.fromkeys(heads, 0.0), {"made by": "greedy"}))
        )
    return found


def _captured(resumed: Resumed, layout: Any, prompts: Sequence[tuple[int, ...]], base: int) -> Any:
    """`capture` on resumed prompts."""
    batch = pad(prompts, resumed.model.device)
    rows = torch.zeros(*batch.ids.shape, layout.hidden)
    for row, prompt in enumerate(prompts):
        rows[row, -len(prompt) :] = resumed.kept[prompt][base]
    part = resumed.above(base)

    class Given(torch.nn.Module):
        """Ignores ids: the batch is these rows."""

        def forward(self, input_ids: Tensor, logits_to_keep: int = 1, **rest: Any) -> Any:
            return part(inputs_embeds=rows, logits_to_keep=1, **rest)

    return capture(Given(), layout, Batch(batch.ids, batch.mask))  # type: ignore[arg-type]


def show(name: str, result: Result, base: Result) -> dict[str, Any]:
    count = len(result.conflict)
    row: dict[str, Any] = {"name": name, "n": count}
    for key, value in result.row().items():
        row[key] = value
        if key in ("RM", "RC"):
            row[f"{key} interval"] = interval(value, count)
    row["RM change"], row["RC change"] = result.rm - base.rm, result.rc - base.rc
    print(
        f"  {name:28s} RM {result.rm:6.1%} ({row['RM change']:+6.1%})  RC {result.rc:6.1%} ({row['RC change']:+6.1%})"
        f" [{interval(result.rc, count)[0]:.0%}-{interval(result.rc, count)[1]:.0%}]  other {row['other']:5.1%}"
        f"  gold {row['gold']:5.1%}  irrelevant {row['irrelevant']:5.1%}  closed {row['closed book']:5.1%}"
        f"  ppl {row['perplexity']:5.1f}",
        flush=True,
    )
    return row


def controls(panel: ResumedPanel, mask: HeadMask, draws: int) -> dict[str, Any]:
    """Mean and range of RM and RC over random heads of the same layers, on the conflicts alone."""
    alone = copy.copy(panel)
    alone.prompts = [prompt for prompt in panel.prompts if prompt.condition.startswith("conflict")]
    alone.neutral, alone._kept = [], {}
    results = [alone.measure(control) for control in random_controls(mask, draws)]
    told: dict[str, Any] = {"draws": draws}
    for name, values in (("RM", [r.rm for r in results]), ("RC", [r.rc for r in results])):
        told[name] = {"mean": sum(values) / draws, "low": min(values), "high": max(values)}
    rm, rc = (f"{v['mean']:6.1%} ({v['low']:.0%}-{v['high']:.0%})" for v in (told["RM"], told["RC"]))
    print(f"    random heads, same layers    RM {rm}  RC {rc}  over {draws} draws", flush=True)
    return told


def learned(
    options: argparse.Namespace, model: Any, tokenizer: Any, scores: HeadScores, place: int, direction: str
) -> Learned:
    """Learn a mask on the substitution prompts of the split "find", or read one learned before."""
    if options.learned:
        with open(options.learned[place], encoding="utf-8") as file:
            return Learned(scores.model, direction, tuple(map(tuple, json.load(file)["keep"])), ())
    records = [
        dataclasses.replace(r, conflict={"substitution": r.conflict["substitution"]})
        for r in scores.records
        if r.split == "find"
    ]
    return learn(model, tokenizer, records, direction, steps=options.steps, rows=4, rate=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores")
    parser.add_argument("--facts", required=True)
    parser.add_argument("--held-out", required=True, help="a relation the scores do not hold")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--lowest", type=int, default=16, help="lowest layer to resume from")
    parser.add_argument("--direction", choices=("context", "memory"), nargs="+", default=["context", "memory"])
    parser.add_argument(
        "--methods", nargs="+", default=["top-k", "sign", "greedy"], help="top-k, sign, greedy, learned"
    )
    parser.add_argument("--budget", type=int, default=16, help="masks each method may measure on dev")
    parser.add_argument("--grid", type=int, nargs="+", default=[1, 3, 5, 7, 9, 12, 15])
    parser.add_argument("--dev", type=int, default=40, help="dev records")
    parser.add_argument("--limit", type=int, default=60, help="records of either test set")
    parser.add_argument("--off-target", type=int, default=60, help="of those, records measured off target too")
    parser.add_argument("--texts", type=int, default=6, help="neutral texts for the perplexity")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--greedy-records", type=int, default=24)
    parser.add_argument("--steps", type=int, default=60, help="gradient steps of the method learned")
    parser.add_argument("--learned", nargs="+", metavar="FILE", help="masks learned before, one per direction")
    parser.add_argument("--out", default="heads_table.json")
    options = parser.parse_args()

    model, tokenizer = ck.load(options.model, device="cpu", dtype="float32")
    scores = HeadScores.load(options.scores)
    scores.model.check(model, "the scores")
    facts = read_facts(options.facts)
    other = [f for f in facts if f.relation == options.held_out]
    apart = [f for f in facts if f.relation != options.held_out][:20]  # for unrelated contexts
    made, _ = build_records(model, tokenizer, [*other, *apart])
    held = [r for r in made if r.known and r.relation == options.held_out][: options.limit]
    resumed = Resumed(model, options.lowest)
    splits = {name: [r for r in scores.records if r.split == name] for name in ("find", "dev", "test")}
    print({name: len(records) for name, records in splits.items()}, options.held_out, len(held), flush=True)
    forms, off, texts = ("substitution",), options.off_target, options.texts
    dev = ResumedPanel(resumed, tokenizer, splits["dev"][: options.dev], forms, options.dev, min(texts, 2))
    tests = {
        "test facts": ResumedPanel(resumed, tokenizer, splits["test"][: options.limit], forms, off, texts),
        f"held-out relation {options.held_out}": ResumedPanel(resumed, tokenizer, held, forms, off, texts),
    }
    table: dict[str, Any] = {"settings": vars(options), "splits": {k: len(v) for k, v in splits.items()}}
    for place, direction in enumerate(options.direction):
        chosen: dict[str, tuple[Candidate | None, Candidate]] = {}
        for name in options.methods:
            if name == "top-k":
                found = top_k(scores, direction, grid=options.grid, split="find")
            elif name == "sign":
                found = consistent(scores, direction, grid=options.grid, split="find")
            elif name == "greedy":
                some = splits["find"][: options.greedy_records]
                found = greedy(resumed, tokenizer, scores, direction, some, options.budget, options.lowest)
            else:
                found = candidates(learned(options, model, tokenizer, scores, place, direction), grid=options.grid)
            tried = select(dev, direction, found, budget=options.budget)
            sound = [t for t in tried.trials if t[1].perplexity < 1.5 * tried.base.perplexity]
            strong = max(sound, key=lambda t: t[1].rate("conflict", direction))[0]
            chosen[name] = (tried.chosen, strong)
            best = tried.chosen.name if tried.chosen else "k = 0"
            print(f"{direction}, {name}: dev chooses {best}; strongest {strong.name}", flush=True)
            table[f"dev {direction} {name}"] = tried.to_dict()
            for candidate, result in ((None, tried.base), *tried.trials):
                show(f"  dev {candidate.name if candidate else 'no pruning'}", result, tried.base)
        for where, panel in tests.items():
            print(f"+{direction}, {where}")
            base = panel.measure(None)
            rows = [show("no pruning", base, base)]
            for name, (best, strong) in chosen.items():
                for kind, candidate in (("chosen", best), ("strongest", strong)):
                    if candidate is None or (kind == "strongest" and candidate == best):
                        continue
                    label = f"{name} {kind} {candidate.name.split(' ')[-1]}"
                    row = show(label, panel.measure(candidate.mask), base)
                    row["heads"] = [list(head) for head in candidate.mask.heads]
                    if kind == "strongest" or candidate == strong:
                        row["random"] = controls(panel, candidate.mask, options.draws)
                    rows.append(row)
            table[f"+{direction} {where}"] = rows
            with open(options.out, "w", encoding="utf-8") as file:
                json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
