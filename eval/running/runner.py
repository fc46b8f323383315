"""A run: probe what the model knows, build the records, run every pass that is not done, and add it all up.

Killed at any point and started again with the same arguments, it goes on where it stopped and ends with the same
results.json. Knows engines, passes and the run's files; knows no figures but times.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ckcontrol.arguments import check_integer
from ckcontrol.control import Control
from ckcontrol.errors import ControlError, EvalError
from ckcontrol.rates import count

from ..figures.aggregate import aggregate, results_bytes
from ..items.states import FIVE, build_states
from ..judging.verdict import verdict
from ..records import Record
from ..run_files import (
    SampleFile,
    check_same,
    items,
    read_card,
    sample_files,
    samples,
    whole_passes,
    write_bytes,
    write_json,
)
from ..tasks.load import Task
from .arms import Arm, arms_for
from .engine import Engine
from .passes import Pass, in_measuring_order, passes, shard_of

__all__ = ["SEEDS", "Outcome", "merge", "run"]

SEEDS = (0, 2**63 - 1)  # what numpy's generators, which draw the intervals, and torch's take
TOLD = 5  # rows that could not be read, in run.json; the rest is counted

OnProgress = Callable[[str, int, int], None]
OnNote = Callable[[str], None]


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        folder: Where it is.
        results: What results.json holds; None while other shards are missing.
        passes: Number of passes of this run, or of its shard.
        resumed: How many of those were there already.
        seconds: Time that the other passes took.
        estimate: The same as estimated after the measuring passes; None when nothing was left to estimate.
        errors: How many samples of the folder failed, by message.
    """

    folder: Path
    results: dict[str, Any] | None
    passes: int
    resumed: int
    seconds: float
    estimate: float | None
    errors: dict[str, int] = field(default_factory=dict)


def run(
    engine: Engine,
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    out: Path,
    *,
    seed: int = 0,
    batch_size: int = 4,
    shard: tuple[int, int] | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
    on_note: OnNote = lambda text: None,
) -> Outcome:
    """Run every arm on every record and write the folder that run_files.py describes.

    Arms that the folder's run lacks are added to it: they alone are answered, and the figures are those of one run with
    all arms, up to the rounding of a batch.

    Args:
        engine: What answers.
        tasks: From `load_task`; a task of facts is probed closed-book first and becomes the five states.
        arms: From `arms_for`; those that the folder holds already need not be among them if others are added.
        out: The run's folder; made if missing, continued if it holds the same run.
        seed: Draws false answers and the bootstrap of intervals.
        batch_size: Records per pass. Part of the run's identity, since batches of different sizes round differently.
        shard: (i, n): make every n-th pass, into a file of its own. See `merge`.
        on_progress: Receives (stage, done, total).
        on_note: Receives what is worth a line: what was probed, and the estimate.

    Raises:
        EvalError: The folder holds another run, or a damaged one; an arm cannot be added to it; or two tasks have one
            name.
        ControlError: `seed` is negative, or has more than 63 bits.
    """
    names = [task.name for task in tasks]
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise EvalError(f"two tasks are called {twice[0]!r}.", "Rename one file, or run into two folders.")
    if not tasks or not arms:
        raise EvalError("there is no task, or no method, to run.", "Name some with --tasks and --methods.")
    check_integer("seed", seed, *SEEDS)
    out.mkdir(parents=True, exist_ok=True)
    part = "" if shard is None else f"-{shard[0]}of{shard[1]}"
    waves = _waves(out, _card(engine, tasks, arms, seed, batch_size), arms)
    known = _probe(engine, tasks, out / f"probe{part}.jsonl", batch_size, on_progress, on_note)
    records = [(task.name, _records(task, known, seed)) for task in tasks]
    _write_items(out / "items.jsonl", records)
    whole = [each for wave in waves for each in passes(records, wave, engine.length, batch_size=batch_size)]
    mine = whole if shard is None else shard_of(whole, shard)
    with SampleFile(out / f"samples{part}.jsonl") as store:
        resumed = sum(each.key in store.done for each in mine)
        seconds, estimate = make(engine, mine, store, on_progress, on_note)
    closed, errors = _read_through(out, whole)
    results = _add_up(out) if closed >= {each.key for each in whole} else None  # whichever shard made them
    return Outcome(out, results, len(mine), resumed, seconds, estimate, errors)


def merge(parts: Sequence[Path], out: Path) -> dict[str, Any]:
    """Put the shards of one run, made in several folders, into one and add them up.

    Returns:
        What results.json holds.

    Raises:
        EvalError: The folders hold different runs, or passes are missing.
    """
    cards = [read_card(folder) for folder in parts]
    out.mkdir(parents=True, exist_ok=True)
    for folder, told in zip(parts, cards, strict=True):
        check_same(out, told)
        records_there = (folder / "items.jsonl").read_bytes()
        if (out / "items.jsonl").exists() and (out / "items.jsonl").read_bytes() != records_there:
            raise EvalError(f"{folder} has other items than the rest.", "Other facts were known there: run it again.")
        write_bytes(out / "items.jsonl", records_there)
        for path in sample_files(folder):
            if folder.resolve() != out.resolve():
                if (out / path.name).exists():
                    raise EvalError(f"{path.name} is in two folders.", "Give every shard its own --shard i/n.")
                shutil.copyfile(path, out / path.name)
    card = read_card(out)
    records: dict[str, list[Record]] = {}
    for item in items(out):
        records.setdefault(item["task"], []).append(Record.from_dict(item))
    # Every record under every arm is there, or some shard is missing.
    wanted = {arm["name"]: arm["prompt"] for arm in card["arms"]}
    found = {(s["task"], s["id"], s["arm"]) for s in samples(out)}
    for task, each in records.items():
        for record in each:
            for arm, prompt in wanted.items():
                if prompt != "base" and (record.cloze or record.choices):
                    continue
                if (task, record.id, arm) not in found:
                    raise EvalError(f"{task}/{record.id} was not answered by {arm}.", "A shard is missing.")
    return _add_up(out)


def _card(engine: Engine, tasks: Sequence[Task], arms: Sequence[Arm], seed: int, batch_size: int) -> dict[str, Any]:
    unread = {task.name: list(task.unread[:TOLD]) for task in tasks if task.unread}
    return {
        "schema": 1,
        "started": date.today().isoformat(),
        **engine.card(),
        "seed": seed,
        "batch_size": batch_size,
        "tasks": {
            task.name: {
                "source": task.source,
                "licence": task.licence,
                "sha256": task.sha256,
                "kind": task.kind,
                "settings": dict(task.settings),
                "records": len(task.records),
                "rejected": task.reasons,
            }
            for task in tasks
        },
        **({"unread": unread} if unread else {}),
        "arms": [arm.to_dict() for arm in arms],
    }


def _probe(
    engine: Engine, tasks: Sequence[Task], path: Path, batch_size: int, on_progress: OnProgress, on_note: OnNote
) -> dict[str, bool]:
    """Ask every fact closed-book: known is what the answer names (strict scoring). Answers are kept as samples are."""
    facts = {fact.id: fact for task in tasks for fact in task.facts}
    if not facts:
        return {}
    records = [fact.asked(_cloze(task)) for task in tasks for fact in task.facts]
    work = passes([("probe", records)], arms_for(["off"]), engine.length, batch_size=4 * batch_size)
    with SampleFile(path) as store:
        make(engine, work, store, lambda _, done, total: on_progress("Probing", done, total), lambda text: None)
    known: dict[str, bool] = {}
    for _, _, answers in whole_passes(path):
        for line in answers:
            if line["id"] not in facts:
                raise EvalError(f"{path} asks for {line['id']!r}, which is no fact here.", "Run into another folder.")
            known[line["id"]] = verdict(line.get("text") or "", (), facts[line["id"]].answers).parametric
    if missing := facts.keys() - known.keys():
        raise EvalError(f"{path} lacks an answer to {min(missing)!r}.", "Run into another folder.")
    on_note(f"Facts known closed-book: {sum(known.values()):,} of {len(known):,}.")
    return known


def _records(task: Task, known: Mapping[str, bool], seed: int) -> Sequence[Record]:
    if not task.facts:
        return task.records
    asked = [state for state in str(task.settings.get("states", "")).split(",") if state]
    return build_states(task.facts, known, asked or FIVE, seed, cloze=_cloze(task))


def _cloze(task: Task) -> bool:
    return task.settings.get("cloze") not in (None, "", "0")


def _write_items(path: Path, records: Sequence[tuple[str, Sequence[Record]]]) -> None:
    rows = [{"task": task, **record.to_dict()} for task, each in records for record in each]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    raw = data.encode("utf-8", errors="surrogatepass")
    if path.exists() and path.read_bytes() != raw:
        raise EvalError(f"{path} holds other records.", "Other facts are known now: run into another folder.")
    write_bytes(path, raw)


def make(
    engine: Engine, work: Sequence[Pass], store: SampleFile, on_progress: OnProgress, on_note: OnNote
) -> tuple[float, float | None]:
    """Run what is not done; return the seconds it took and the estimate that was given."""
    left = [each for each in work if each.key not in store.done]
    order, measuring = in_measuring_order(left)
    done = len(work) - len(left)
    answers = sum(len(each.records) * len(each.arms) for each in left)
    spent = 0.0
    estimate: float | None = None
    measured: dict[tuple[str, str], tuple[float, float]] = {}
    on_progress("Answering", done, len(work))
    for i, each in enumerate(order):
        started = time.perf_counter()
        made = engine.run(each.records, each.arms, each.prompt)
        seconds = time.perf_counter() - started
        spent += seconds
        answered = [
            {"task": each.task, "id": record.id, "arm": arm.name, **sample}
            for record, row in zip(each.records, made, strict=True)
            for arm, sample in zip(each.arms, row, strict=True)
        ]
        store.append(each.key, answered, seconds=round(seconds, 3), answers=len(answered))
        if i < measuring:
            had = measured.get((each.task, each.prompt), (0.0, 0.0))
            measured[each.task, each.prompt] = (had[0] + seconds, had[1] + each.work)
            if i == measuring - 1:
                estimate = spent + sum(_cost(rest, measured) for rest in order[measuring:])
                on_note(
                    f"{count(answers, 'answer')}: about {clock(estimate)} "
                    f"(measured on {measuring} of {len(left):,} passes)."
                )
        on_progress("Answering", done + i + 1, len(work))
    return spent, estimate


def _cost(each: Pass, measured: Mapping[tuple[str, str], tuple[float, float]]) -> float:
    seconds, work = measured.get((each.task, each.prompt)) or [sum(x) for x in zip(*measured.values(), strict=True)]
    return seconds / work * each.work


def clock(seconds: float) -> str:
    """Return a time as people say it: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _waves(out: Path, card: dict[str, Any], arms: Sequence[Arm]) -> list[list[Arm]]:
    """Write or compare the folder's card, and return the arms of each wave: those it began with, those added later.

    Passes are cut within a wave, so that what is done stays done.
    """
    there = read_card(out) if (out / "run.json").exists() else {**card, "waves": [len(arms)]}
    held = {arm["name"]: arm for arm in there["arms"]}
    added = [arm for arm in arms if arm.name not in held]
    sizes = there.get("waves") or [len(held)]
    if not isinstance(sizes, list) or not all(type(n) is int and n > 0 for n in sizes) or sum(sizes) != len(held):
        raise EvalError(f"{out / 'run.json'} holds wrong waves.", "Run into another folder.")
    mine = {arm.name: arm for arm in arms}
    missing = [name for name in held if name not in mine]
    # Either what the call asks for is added, or it is the call that added it (or made them all), given again.
    if added or missing in [list(held)[: sum(sizes[:count])] for count in range(len(sizes))]:
        mine = {name: mine.get(name) or _arm(out, arm) for name, arm in held.items()} | {a.name: a for a in added}
    if there.get("dial") and "dial" not in card:
        raise EvalError(
            f"{out} holds arms of a dial of adapters, and this call loads none.",
            "Give the dial again: --weights FOLDER, and weights among --methods. What is answered is not asked again.",
        )
    if added:
        begun = {key: value for key, value in card.items() if key != "dial" or key in there}  # a dial may come later
        check_same(out, {**begun, "arms": [arm.to_dict() for arm in mine.values() if arm.name in held]})
        if len({arm.control.shortlist for arm in mine.values()}) > 1:
            raise EvalError(f"{out} holds arms of other candidates or candidate_ratio.", "Run into another folder.")
        sizes = [*sizes, len(added)]
    card = {**card, "arms": [arm.to_dict() for arm in mine.values()], "waves": sizes}
    if added:
        write_json(out / "run.json", {**card, "started": there.get("started", card["started"])})
    check_same(out, card)
    ordered, waves = list(mine.values()), []
    for size in sizes:
        waves.append(ordered[:size])
        ordered = ordered[size:]
    return waves


def _arm(out: Path, held: Mapping[str, Any]) -> Arm:
    """Return an arm that a run card holds."""
    control = held.get("control")
    try:
        made = Control.from_dict(control if isinstance(control, dict) else {})
    except (ControlError, TypeError) as error:
        hint = "Name its method in --methods as well, or run into another folder."
        raise EvalError(f"{out} holds the arm {held['name']!r}, which is not known here: {error}", hint) from error
    return Arm(held["name"], held["method"], held["alpha"], made, held["prompt"])


def _read_through(out: Path, whole: Sequence[Pass]) -> tuple[set[str], dict[str, int]]:
    """Return the keys of all passes in a folder, and how many of its samples failed, by message."""
    wanted = {each.key: each for each in whole}
    closed: set[str] = set()
    errors: Counter[str] = Counter()
    for path in sample_files(out):
        for _, closing, made in whole_passes(path):
            key = closing["pass"]
            closed.add(key)
            errors.update(line["error"] for line in made if line.get("error") is not None)
            if each := wanted.get(key):
                asked = {(each.task, record.id, arm.name) for record in each.records for arm in each.arms}
                if asked != {(line["task"], line["id"], line["arm"]) for line in made}:
                    raise EvalError(
                        f"{path}: the pass {key} holds samples of another.",
                        "Restore the file, or run into another folder.",
                    )
    return closed, dict(errors)


def _add_up(out: Path) -> dict[str, Any]:
    """Write results.json from what is in a folder, and return what it holds."""
    results: dict[str, Any] = aggregate(read_card(out), items(out), samples(out))
    write_bytes(out / "results.json", results_bytes(results))
    return results
