"""The words of the command line: positional texts that begin with a dash, and messages said in options.

Errors of the library name Python arguments; whoever came through the command line knows options. Knows the tree of
commands; knows no command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from ..errors import ControlError

__all__ = ["HelpfulCommand", "TextCommand", "called", "group", "in_options", "in_plain_words", "size"]

VALUE = r"""(?:=(?P<value>'[^']*'|"[^"]*"|[-+\w][-+\w.]*(?<!\.)|))"""  # of name=value; empty in "with text_field=."

QUOTED_WORD = r"""(['"])[\w.:/-]+\1"""

PLAIN = (  # what typer passes on of pydantic, which checks the values of options
    (r"Value error, ", ""),
    (r" \(Possible options: --help\)", ""),  # all that it finds like --alpha where there is none
    (r"Input should be a valid integer.*", "it is not a whole number"),
    (r"Input should be a valid number.*", "it is not a number"),
    (r"Input should be greater than or equal to (.*)", r"give \1 or more"),
    (r"Input should be less than or equal to (.*)", r"give \1 or less"),
    (r"Input should be ", "it should be "),
)


def group() -> typer.Typer:
    """Return a group of commands, as yet without any."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


class HelpfulCommand(TyperCommand):
    """A command in whose help only an empty line ends a line; typer breaks paragraphs where the source does."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.help = re.sub(r"(?<!\n)\n(?!\n)", " ", self.help or "") or None


class TextCommand(HelpfulCommand):
    """A command whose positional texts may begin with a dash: ``search INDEX "-5 degrees"``.

    A dash and a digit, or a name with a space in it, is no option's. An option's own value is never looked at.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put positional arguments behind ``--`` where one of them would pass for an option."""
        takes_value = {
            name: not getattr(option, "is_flag", False) and not getattr(option, "count", False)
            for option in self.get_params(ctx)
            if option.param_type_name == "option"
            for name in (*option.opts, *option.secondary_opts)
        }
        options: list[str] = []
        texts: list[str] = []
        rest = iter(args)
        odd = False
        for arg in rest:
            if arg == "--":
                texts += rest
            elif _is_text(arg, takes_value):
                odd |= arg.startswith("-") and arg != "-"
                texts.append(arg)
            else:
                options.append(arg)
                if takes_value.get(arg):
                    options += [value for value in [next(rest, None)] if value is not None]
        unset = "." not in args and any(arg == "" or arg.endswith("=") for arg in args)
        parsed: list[str] = super().parse_args(ctx, [*options, "--", *texts] if odd else args)
        if unset:
            for name, value in ctx.params.items():  # "$FOLDER" of a variable that is not set is no folder
                if Path() in (value if isinstance(value, (list, tuple)) else [value]):
                    raise ControlError(
                        f"{_shown(self, ctx, name)} '' is an empty path.", "Name a file or a folder; . is this one."
                    )
        return parsed


def _shown(command: TyperCommand, ctx: Any, name: str) -> str:
    parameter = next(each for each in command.get_params(ctx) if each.name == name)
    return str(parameter.metavar if parameter.param_type_name == "argument" else max(parameter.opts, key=len))


def _is_text(arg: str, takes_value: dict[str, bool]) -> bool:
    if not arg.startswith("-") or arg == "-":
        return True
    name = arg.partition("=")[0]
    if name in takes_value:
        return False
    if not arg.startswith("--") and takes_value.get(arg[:2]) and arg[2:3].strip():  # -qWho is it?
        return False
    return arg[1:2].isdigit() or any(letter.isspace() for letter in name)


def called(tree: Any, args: Sequence[str]) -> Any:
    """Return the command of the tree that `args` call, as far down as they name one."""
    for arg in args:
        if not getattr(tree, "commands", None):
            break
        tree = tree.commands.get(arg, tree)
    return tree


def in_options(text: str, command: Any, *, hint: bool = False) -> str:
    """Return what the library says in the words of a command.

    ``max_new_tokens=0`` becomes ``--max-new-tokens 0`` and ``truncate='passages'`` becomes ``--truncate``, for every
    parameter that the command spells differently. ``alpha=2.0`` is the option's name already: it stays, except in a
    hint, which is there to be typed.
    """
    for option in getattr(command, "params", ()):
        if option.param_type_name != "option":
            continue
        long = max(option.opts, key=len)
        flag = bool(getattr(option, "is_flag", False))
        if hint or flag or option.name != long.lstrip("-"):
            text = re.sub(rf"(?<![\w.\-]){re.escape(option.name)}{VALUE}", partial(_spelled, long, flag), text)
    return text


def in_plain_words(text: str) -> str:
    """Return what the option parser says of a bad value without the words of its own types.

    Example:
        >>> in_plain_words("Input should be a valid number, unable to parse string as a number")
        'it is not a number'
    """
    for theirs, ours in PLAIN:
        text = re.sub(theirs, ours, text)
    return text


def _spelled(option: str, flag: bool, found: re.Match[str]) -> str:
    value = found["value"]
    if flag:
        return f"no {option}" if value in ("False", "None") else option
    return f"{option} {value[1:-1] if re.fullmatch(QUOTED_WORD, value) else value}".rstrip()


def size(number: int) -> str:
    """Return a number of bytes in its largest unit: ``1.2 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number} bytes"
