"""The ``ckcontrol`` command: its sub-commands, and how every failure becomes one line and an exit code.

    0 done · 1 it failed · 2 the input was bad · 3 done, but inputs were skipped (named on stderr) · 130 interrupted

A command's file is imported when the command is called: the overview needs none. Knows typer and the error tree. No
traceback is shown unless CKCONTROL_DEBUG=1.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import CKError, UnsupportedMode
from ..views.safe_text import clean
from . import process
from .files import SURROGATE
from .words import HelpfulCommand, TextCommand, called, in_options, in_plain_words

__all__ = ["app", "main", "run"]


class Listed(NamedTuple):
    """A command as the overview names it.

    Attributes:
        place: ``module:name`` of its function or, for a group, of its `typer.Typer`.
        help: What the overview says; of a function, the first paragraph of its docstring.
        panel: Under which heading; None is the first one.
        joins: ``module:name`` of functions that belong to the group and live in files of their own.
    """

    place: str
    help: str
    panel: str | None = None
    joins: tuple[str, ...] = ()


RETRIEVAL = "With an index"
NO_PLACE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)  # a path that can be nobody's
LISTED = {
    "demo": Listed(
        "demo:demo", "Ask 12 questions over passages, some false on purpose, at every tenth of the dial and adaptively."
    ),
    "run": Listed("run:run", "Answer a question from passages, from memory, or anywhere between. Prints the answer."),
    "explain": Listed("run:explain", "Answer as `run` does and show, token by token, what memory and passages said."),
    "search": Listed(
        "search:search",
        "Find the passages nearest a question. Prints rank, score, source, metadata and the line closest to the words.",
        RETRIEVAL,
    ),
    "ask": Listed("ask:ask", "Retrieve passages and answer from them, from memory, or anywhere between.", RETRIEVAL),
    "calibrate": Listed(
        "calibrate:calibrate",
        "Ask your own questions at every setting of the dial and propose one, with what it would win and lose.",
        RETRIEVAL,
    ),
    "doctor": Listed("doctor:doctor", "Check this installation; exit 1 if a check fails."),
    "serve": Listed(
        "serve:serve",
        "Serve steered requests over the OpenAI API, and a page to try them, from one model in this process.",
    ),
    "serve-vllm": Listed(
        "serve_vllm:serve_vllm",
        "Serve steered requests with vLLM, beside ordinary ones, over the OpenAI API, and a page to try them.",
    ),
    "export-hub": Listed(
        "export_hub:export_hub",
        "Write a custom generation repository: `model.generate(custom_generate=FOLDER, trust_remote_code=True)`.",
    ),
    "index": Listed("index:index_app", "Build, update and check an index of passages.", RETRIEVAL),
    "heads": Listed(
        "heads.find:app",
        "Attention heads that speak for memory or for the context.",
        joins=("heads.show:show", "heads.tune:tune", "heads.export:export"),
    ),
    "steer": Listed("steer:app", "A direction in the model that leads from its context to its memory."),
    "weights": Listed(
        "weights.mix:app",
        "Adapters between context and memory: one stream instead of two.",
        joins=("weights.train:train", "weights.export:export"),
    ),
    "eval": Listed(
        "eval.run:app",
        "Benchmarks of conflict: every method on every task, resumable, with intervals and a report.",
        joins=("eval.compare:compare", "eval.export_pairs:export_pairs"),
    ),
}


def _found(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)


def _command(name: str, function: Any) -> Any:
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    if name == "serve-vllm":  # what it does not know is for vLLM
        unknown = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": True}
        alone.command(name, cls=HelpfulCommand, context_settings=unknown)(function)
    else:
        alone.command(name, cls=TextCommand)(function)
    return typer.main.get_command(alone)


def _made(name: str, listed: Listed) -> Any:
    """Import what is listed and make its command."""
    found = _found(listed.place)
    if not isinstance(found, typer.Typer):
        return _command(name, found)
    group = typer.main.get_group(found)
    group.name, group.help = name, listed.help
    for place in listed.joins:
        group.add_command(_command(place.split(":")[1].replace("_", "-"), _found(place)))
    return group


class _Commands(dict[str, Any]):
    """Names to what the overview shows of a command; asked for one by its name, makes it."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(super().__getitem__(name), _Overview):
            self[name] = _made(name, LISTED[name])
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default


class _Overview(TyperCommand):
    """A line of the overview."""


class _Tree(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = self._listed = _Commands(
            (name, _Overview(name, callback=None, help=listed.help, rich_help_panel=listed.panel))
            for name, listed in LISTED.items()
        )

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return dict.get(self._listed, cmd_name)  # for the overview a line is enough

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands.get(args[0])
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="ckcontrol",
    cls=_Tree,
    help="One dial per request between what a language model remembers and what it was just told.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ckcontrol {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; only CKCONTROL_DEBUG=1 lets exceptions through."""
    # Before torch loads: threads that spin while they wait make a busy machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    process.complete_streams()
    given = list(sys.argv[1:] if args is None else args)
    tree = typer.main.get_command(app)
    if broken := next((arg for arg in given if SURROGATE.search(arg)), None):
        _complain(f"{broken!a} is not UTF-8. Type it anew; a file that is called so has to be renamed.")
        return 2
    try:
        code = tree.main(args=given, prog_name="ckcontrol", standalone_mode=False)
        return process.finish(_finished(code))
    except (KeyboardInterrupt, typer.Abort):
        return _finished(130)
    except SystemExit as stop:  # what typer and rich make of a pipe that nobody reads
        if process.is_broken_pipe(stop):
            return process.finish(0)
        raise
    except Exception as error:
        if process.is_broken_pipe(error):
            return process.finish(0)
        if os.environ.get("CKCONTROL_DEBUG") == "1":
            raise
        return _report(error, called(tree, given), given)


def _finished(code: object) -> int:
    if code == 130:
        _complain("interrupted.")
    return code if isinstance(code, int) else 0


def run() -> None:
    """Entry point of the ``ckcontrol`` script."""
    process.stop_at_once(sys.argv[1:])
    sys.exit(main())


def _report(error: Exception, command: Any, given: Sequence[str] = ()) -> int:
    if isinstance(error, CKError):
        what = str(error).removesuffix(error.hint)
        _complain(in_options(what, command) + in_options(error.hint, command, hint=True))
        return 2 if isinstance(error, (ValueError, UnsupportedMode)) else 1
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own: unknown option, bad number
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "ckcontrol"
        told = (
            in_plain_words(error.format_message())
            .rstrip(".")
            .replace("Invalid value for", f"{_invalid(error, given)} for", 1)
        )
        if told:  # else no command was given, and the help has been printed
            _complain(f"{told}{'' if told.endswith('?') else '.'} See: {where} --help")
        return 2
    if isinstance(error, OSError) and error.filename:
        bad = error.errno in NO_PLACE
        _complain(f"{error.filename}: {error.strerror}.{' Name another file or folder.' if bad else ''}")
        return 2 if bad else 1
    if isinstance(error, OSError) and error.strerror:  # of a stream, which has no name: a full disk
        _complain(f"{error.strerror}.")
        with contextlib.suppress(OSError):
            process.finish(1)  # drops what is left, or the interpreter complains of it too
        return 1
    _complain(f"unexpected {type(error).__name__}: {error} Set CKCONTROL_DEBUG=1 for the traceback.")
    return 1


def _invalid(error: Any, given: Sequence[str]) -> str:
    """Return "Invalid value", with the value where the words on the command line show it."""
    for name in getattr(getattr(error, "param", None), "opts", ()):
        for place, arg in reversed(list(enumerate(given))):  # of an option given twice, the last counts
            if arg == name and given[place + 1 :]:
                return f"Invalid value {given[place + 1][:80]!r}"
            if arg.startswith(f"{name}="):
                return f"Invalid value {arg[len(name) + 1 :][:80]!r}"
    return "Invalid value"


def _complain(message: str) -> None:
    try:
        print(f"ckcontrol: {' '.join(clean(message, 2000).split())}", file=sys.stderr)
    except OSError:  # nobody listens; the exit code still speaks
        pass
