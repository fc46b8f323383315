"""The ``ckcontrol`` command: its sub-commands, and how every failure becomes one line and an exit code.

    0 done · 1 it failed · 2 the input was bad · 3 done, but inputs were skipped (named on stderr) · 130 interrupted

Knows typer and the error tree. No traceback is shown unless CKCONTROL_DEBUG=1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import CKError, UnsupportedMode
from ..views.safe_text import clean
from . import process
from .ask import ask
from .demo import demo
from .doctor import doctor
from .eval.compare import compare as eval_compare
from .eval.run import app as eval_app
from .heads.export import export as heads_export
from .heads.find import app as heads
from .heads.show import show as heads_show
from .heads.tune import tune as heads_tune
from .index import index_app
from .run import explain
from .run import run as run_command
from .search import search
from .serve_vllm import serve_vllm
from .words import TextCommand, called, in_options

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="ckcontrol",
    help="One dial per request between what a language model remembers and what it was just told.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
RETRIEVAL = "With an index"
app.command("demo", cls=TextCommand)(demo)
app.command("run", cls=TextCommand)(run_command)
app.command("explain", cls=TextCommand)(explain)
app.add_typer(index_app, name="index", rich_help_panel=RETRIEVAL)
app.command("search", rich_help_panel=RETRIEVAL, cls=TextCommand)(search)
app.command("ask", rich_help_panel=RETRIEVAL, cls=TextCommand)(ask)
app.command("doctor", cls=TextCommand)(doctor)
app.command(
    "serve-vllm",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": True},
)(serve_vllm)
heads.command("show", cls=TextCommand)(heads_show)
heads.command("tune", cls=TextCommand)(heads_tune)
heads.command("export", cls=TextCommand)(heads_export)
app.add_typer(heads, name="heads")
eval_app.command("compare", cls=TextCommand)(eval_compare)
app.add_typer(eval_app, name="eval")


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
        return _report(error, called(tree, given))


def _finished(code: object) -> int:
    if code == 130:
        _complain("interrupted.")
    return code if isinstance(code, int) else 0


def run() -> None:
    """Entry point of the ``ckcontrol`` script."""
    process.stop_at_once(sys.argv[1:])
    sys.exit(main())


def _report(error: Exception, command: Any) -> int:
    if isinstance(error, CKError):
        what = str(error).removesuffix(error.hint)
        _complain(in_options(what, command) + in_options(error.hint, command, hint=True))
        return 2 if isinstance(error, (ValueError, UnsupportedMode)) else 1
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own: unknown option, bad number
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "ckcontrol"
        told = error.format_message().rstrip(".")
        if told:  # else no command was given, and the help has been printed
            _complain(f"{told}{'' if told.endswith('?') else '.'} See: {where} --help")
        return 2
    if isinstance(error, OSError) and error.filename:
        _complain(f"{error.filename}: {error.strerror}.")
        return 1
    if isinstance(error, OSError) and error.strerror:  # of a stream, which has no name: a full disk
        _complain(f"{error.strerror}.")
        return 1
    _complain(f"unexpected {type(error).__name__}: {error} Set CKCONTROL_DEBUG=1 for the traceback.")
    return 1


def _complain(message: str) -> None:
    try:
        print(f"ckcontrol: {' '.join(clean(message, 2000).split())}", file=sys.stderr)
    except OSError:  # nobody listens; the exit code still speaks
        pass
