"""``ckcontrol eval``: the sub-commands of benchmark runs, and ``run``, which makes one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...arguments import check_integer, check_number
from ...errors import ControlError, EvalError
from ...rates import count
from ...views.safe_text import clean
from .. import files, options
from ..bars import Bars
from ..words import TextCommand, group

if TYPE_CHECKING:
    from ...eval.items.states import StateFact
    from ...eval.running.arms import Arm
    from ...eval.running.engine import Engine
    from ...eval.running.runner import Outcome
    from ...eval.tasks.load import Task

__all__ = ["app", "run"]

app = group()
Out = Annotated[Path, typer.Option(metavar="DIR", help="The run's folder; a stopped run goes on there.")]
Tasks = Annotated[
    list[str],
    typer.Option("--tasks", metavar="TASK,...", help="Names, name=path, or paths of records; see docs/eval.md."),
]
Url = Annotated[
    str | None, typer.Option(metavar="URL", help="Ask this server instead of a model here.", show_default=False)
]


@app.command("run", cls=TextCommand)
def run(
    out: Out,
    tasks: Tasks,
    methods: Annotated[str, typer.Option(metavar="NAME,...", help="Methods to compare, or all.")] = "all",
    alpha: Annotated[str, typer.Option(metavar="X,...", help="Settings of the dial.")] = "0,0.25,0.5,0.75,1",
    imported: options.Import = [],  # noqa: B006  typer copies it
    model: options.Model = "demo",
    url: Url = None,
    weights: options.Weights = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Records per task.", show_default="all")] = None,
    max_new_tokens: options.Tokens = 24,
    style: Annotated[str, typer.Option(help="Prompts: auto, chat or completion.")] = "auto",
    sample: options.Sample = False,
    temperature: options.Temperature = None,
    seed: Annotated[int, typer.Option(help="Draws records, false answers, tokens and intervals.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Records per pass.")] = 4,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Make only every n-th pass.", show_default=False)
    ] = None,
    speed: Annotated[int, typer.Option(metavar="N", min=0, help="Then time every method alone on N questions.")] = 0,
    dirty: Annotated[bool, typer.Option("--dirty", help="Keep records that cannot be scored cleanly.")] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Answer every record under every method and alpha, and add it up.

    The methods of a pass share the prompts, and every forward until their answers part. Interrupted? The same command
    goes on where it stopped and ends with the same results.json. Rows that are no records are named, and end it with
    exit code 3.
    """
    from ...decoding.options import GenerateOptions
    from ...eval.running.arms import arms_for
    from ...eval.running.prompt_styles import check_style
    from ...eval.running.runner import SEEDS, TOLD, clock
    from ...eval.running.runner import run as evaluate
    from ...eval.tasks.load import load_task

    files.check_folder(out)
    files.import_policies(imported)
    arms = arms_for(methods.split(","), _alphas(alpha))
    _check_dial(arms, weights, url)
    part = _shard(shard)
    check_style(style)
    check_integer("seed", seed, *SEEDS)
    drawn = GenerateOptions(
        max_new_tokens=max_new_tokens, **options.drawing(sample, temperature) | {"seed": seed if sample else None}
    )
    for name, value in (("device", device), ("dtype", dtype), ("style", None if style == "auto" else style)):
        if url is not None and value is not None:
            raise EvalError(
                f"--{name} {value!r} is for a model here, and --url asks a server.", "Leave one of them out."
            )
    served = None if url is None else _served(model, url, drawn)
    loaded = [load_task(spec, limit=limit, seed=seed, clean=not dirty) for spec in split_tasks(tasks)]
    for task in loaded:
        records = count(len(task.records), "record")
        _say(f"{task.name}: {records}. {_left_out(task)}Source: {task.source} ({task.licence})")
        for line in task.unread[:TOLD]:
            _say(f"Left out {line}")
        if len(task.unread) > TOLD:
            _say(f"and {count(len(task.unread) - TOLD, 'more row')}.")
    engine = served or _local(model, drawn, style, device, dtype, weights)
    with Bars(kept=out) as bars:
        outcome = evaluate(
            engine,
            loaded,
            arms,
            out,
            seed=seed,
            batch_size=batch_size,
            shard=part,
            on_progress=bars,
            on_note=lambda text: bars.note(clean(text)),
        )
    estimated = "" if outcome.estimate is None else f"; estimated {clock(outcome.estimate)}"
    _say(f"Took {clock(outcome.seconds)}{estimated}. {_shared(engine)}")
    if speed:
        _time(engine, loaded, arms, out, speed)
    _tell(outcome)
    if any(task.unread for task in loaded):
        raise typer.Exit(3)


def _served(model: str, url: str, drawn: Any) -> Engine:
    from ...eval.running.engine import Served
    from ...eval.running.remote import RemoteBackend

    return Served(RemoteBackend(url, model), model, options=drawn)


def _check_dial(arms: Sequence[Arm], weights: Path | None, url: str | None) -> None:
    """Refuse the method ``weights`` without a dial, and a dial where none is loaded, before a model is."""
    from ...weights.manifest import Manifest

    asked = [arm.name for arm in arms if arm.control.policy().in_weights]
    if asked and weights is None and url is None:
        raise EvalError(f"{asked[0]!r} needs a dial of adapters.", "Name the folder of `weights mix`: --weights dial/")
    if weights is not None and url is not None:
        raise EvalError("--weights loads a dial here, and --url asks a server.", "Start the server with --weights.")
    if weights is not None and not asked:
        raise EvalError(f"no method uses --weights {str(weights)!r}.", "Add it: --methods off,weights.")
    if weights is not None:
        Manifest.read(weights)


def _local(
    model: str, drawn: Any, style: str, device: str | None, dtype: str | None, weights: Path | None = None
) -> Engine:
    from ...eval.running.engine import Local

    loaded = options.load(model, device, dtype)
    dial = options.load_dial(loaded[0], weights)
    card = dial.card(weights) if dial and weights else None
    return Local(*loaded, model, options=drawn, style=style, dial=card)


def _time(engine: Any, tasks: list[Task], arms: Any, out: Path, count: int) -> None:
    from ...eval.run_files import write_json
    from ...eval.running.engine import Local
    from ...eval.running.speed import measure_speed

    records = [r for task in tasks for r in task.records if not (r.choices or r.cloze)]
    if not isinstance(engine, Local) or not records:
        _say("--speed needs a model in this process and questions to answer; nothing was timed.")
        return
    records.sort(key=lambda record: (len(record.context), record.id))
    count = min(count, len(records))
    picked = [records[(2 * i + 1) * len(records) // (2 * count)] for i in range(count)]
    write_json(out / "speed.json", measure_speed(engine, picked, arms))
    _say(f"Wrote {out / 'speed.json'}")


def split_tasks(given: list[str]) -> list[str]:
    """Split lists of tasks at commas, but not inside the options of one (``facts?relations=capital,currency``)."""
    from ...eval.tasks.load import task_names

    specs: list[str] = []
    for text in given:
        for i, piece in enumerate(text.split(",")):
            name = re.split(r"[=:?]", piece, maxsplit=1)[0]
            if i and "?" in specs[-1] and name not in task_names() and not Path(piece).exists():
                specs[-1] += f",{piece}"
            else:
                specs.append(piece)
    return specs


def _alphas(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ControlError(f"--alpha {text!r} is not a list of numbers.", "Write --alpha 0,0.5,1") from None


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):  # before anything is asked of a model
        raise EvalError(f"--shard {text!r} is not a shard.", "Write --shard 1/4 for the first of four.")
    return int(found[1]), int(found[2])


def _left_out(task: Task) -> str:
    told = ", ".join(f"{count:,} {reason}" for reason, count in task.reasons.items())
    return f"Rejected: {told}. " if told else ""


def _shared(engine: Engine) -> str:
    width = getattr(engine, "width", None)
    if width is None or not width.rows:
        return ""
    return f"Tokens decoded: {width.asked:,}, in {count(width.rows, 'row')}: answers that begin alike share them."


def _tell(outcome: Outcome) -> None:
    for message, times in sorted(outcome.errors.items(), key=lambda item: -item[1])[:5]:
        _say(f"{count(times, 'answer')} failed: {message}")
    if outcome.results is None:
        _say("This shard is done. The last one in a folder adds up; shards in several folders: eval merge")
        return
    _say(f"Wrote {outcome.folder / 'results.json'}. Next: ckcontrol eval report {outcome.folder}")


def _say(text: str) -> None:
    typer.echo(clean(text, 4000), err=True)


@app.command("merge", cls=TextCommand)
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that hold one run's shards.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the whole run goes.")],
) -> None:
    """Put the shards of a run, made in several folders, into one and add them up."""
    from ...eval.running.runner import merge as put_together

    files.check_folder(out)
    put_together(folders, out)
    _say(f"Wrote {out / 'results.json'}")


@app.command("report", cls=TextCommand)
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it goes.", show_default="the first folder")
    ] = None,
    items: Annotated[int, typer.Option(min=0, help="Items shown per task; 0 leaves the data's text out.")] = 20,
) -> None:
    """Make a report of one or more runs: one HTML page that loads nothing, tables in Markdown, pictures."""
    from ...eval.report import write_report

    if out is not None:
        files.check_folder(out)
    typer.echo(str(write_report(folders, out, items=items)))


def _screen(
    facts: Sequence[StateFact],
    out: Path,
    model: str,
    samples: int,
    temperature: float,
    limit: int | None,
    batch_size: int,
    seed: int,
    device: str | None,
    dtype: str | None,
) -> tuple[dict[str, bool], frozenset[str]]:
    """Return what a model knows of some facts, and those to leave out."""
    from ...eval.running.engine import Local
    from ...eval.running.screen import screen

    loaded = options.load(model, device, dtype)
    folder = out.with_name(f"{out.name}.screen")
    with Bars(kept=folder) as bars:
        found = screen(
            facts,
            lambda drawn: Local(*loaded, model, options=drawn),
            folder,
            samples=samples,
            temperature=temperature,
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            on_progress=bars,
            on_note=lambda text: bars.note(clean(text)),
        )
    return found.known, found.uncertain


@app.command("build-conflicts", cls=TextCommand)
def build_conflicts(
    facts: Annotated[Path, typer.Argument(metavar="FACTS", help="JSON lines: relation, subject, answer, question.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the records go.")],
    types: Annotated[str, typer.Option(metavar="STATE,...", help="Which states to build.")] = (
        "conflict,agree,irrelevant,helpful,noisy"
    ),
    known: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON: fact id to true or false.", show_default="no model was asked"),
    ] = None,
    screen: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Ask this model which facts it knows.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=0, help="With --screen: answers drawn per wording.", show_default="3")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="With --screen: of those answers.", show_default="0.7")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --screen: most facts that are asked.", show_default="all")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="With --screen: questions per pass.")] = 16,
    seed: Annotated[int, typer.Option(help="Draws false answers, and what is screened.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Make a set of conflicts from your own facts: records that `eval run --tasks` reads.

    With --screen a fact counts as known if every answer of the model is right without a passage, in all wordings, the
    greedy one and all samples; as unknown if every one is wrong; the others are left out. Interrupted? The same command
    goes on where it stopped. Rows that are no facts are named, and end it with exit code 3.
    """
    from ...eval.items.states import build_states
    from ...eval.tasks.build_conflicts import build_conflicts as build
    from ...eval.tasks.facts import load_facts

    wanted = [part.strip() for part in types.split(",")]
    files.check_writable(out)
    read, rejected, _ = load_facts(facts)
    for row in rejected:
        _say(f"Left out {row.told}")
    left_out: frozenset[str] = frozenset()
    found: dict[str, bool] | None = None
    asked = {"samples": samples, "temperature": temperature, "limit": limit, "device": device, "dtype": dtype}
    if screen is None:
        for name, value in asked.items():
            if value is not None:
                raise EvalError(f"--{name} {value!r} is for --screen.", "Add --screen MODEL, or leave it out.")
    else:
        if known is not None:
            raise EvalError("--known and --screen both say what is known.", "Give one of them.")
        samples, temperature = 3 if samples is None else samples, 0.7 if temperature is None else temperature
        check_number("--temperature", temperature, 0.01, 100.0)
        build_states(read, None, wanted, seed)  # refused before a model is asked
        found, left_out = _screen(read, out, screen, samples, temperature, limit, batch_size, seed, device, dtype)
    made = build(facts, wanted, out, known=found if found is not None else known, seed=seed, leave_out=left_out)
    states = ", ".join(f"{made_of:,} {state}" for state, made_of in made.records.items())
    _say(f"{count(sum(made.records.values()), 'record')} of {count(made.facts, 'fact')} ({states}). Wrote {out}")
    if rejected:
        raise typer.Exit(3)
