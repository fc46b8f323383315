"""Reads the imports of the whole library; draws docs/architecture.svg and writes the layout table of AGENTS.md.

    python docs/architecture.py             write both
    python docs/architecture.py --check     exit 1 when either is not what the code says

Everything is read with `ast`, nothing of the library is run. Lazy imports and those under TYPE_CHECKING count like any
other. `tests/unit/test_repository.py` holds the same imports against `FLOORS`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TREES = {"ckcontrol": ROOT / "ckcontrol", "ckcontrol.retrieval": ROOT / "retrieval", "ckcontrol.eval": ROOT / "eval"}

# Which room of ckcontrol stands on which, from the ground up: a room imports from lower floors, never from its own
# floor or above. A file directly in ckcontrol/ is a room of its own here.
FLOORS = [
    ["errors"],
    ["arguments", "child_python", "hub", "rates", "tables", "word_spans", "words"],
    ["citations", "fusion", "views"],
    ["policies"],
    ["control"],
    ["answer"],
    ["decoding", "models"],
    ["heads", "retrieval"],
    ["atomic_questions", "rag", "weights"],
    ["eval", "integrations", "serving"],
    ["demo", "doctor", "vllm"],
    ["cli"],
    ["__main__"],
]


class Import(NamedTuple):
    """One import of one module by another, by dotted names."""

    source: str
    target: str
    lazy: bool
    where: str


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything that is installed."""
    found = {}
    for prefix, folder in TREES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([prefix, *(p for p in parts if p != "__init__")])] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _late() -> dict[str, str]:
    """Name -> module, of the names that the package itself resolves on first use."""
    for node in parsed(TREES["ckcontrol"] / "__init__.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_WHERE":
            return {name: "ckcontrol" + module for name, module in ast.literal_eval(node.value).items()}
    raise ValueError("ckcontrol/__init__.py has no _WHERE")


def _statements(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, lazy
        else:
            yield from _statements(child, lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _targets(statement: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """The modules a statement imports; names that `ckcontrol` resolves late are followed to their module."""
    known = modules()
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names if alias.name in known)
        return
    base = statement.module or ""
    if statement.level:
        parts = module.split(".")
        kept = parts[: len(parts) - statement.level + is_package]
        base = ".".join([*kept, *([base] if base else [])])
    for alias in statement.names:
        if f"{base}.{alias.name}" in known and not (base == "ckcontrol" and alias.name in _late()):
            yield f"{base}.{alias.name}"
        elif base == "ckcontrol" and alias.name in _late():
            yield _late()[alias.name]
        elif base in known:
            yield base


@cache
def imports() -> tuple[Import, ...]:
    """Every import inside the library, but for those of the package's own `__init__`, which names everything."""
    found = []
    for name, path in modules().items():
        if name == "ckcontrol":
            continue
        for statement, lazy in _statements(parsed(path)):
            for target in _targets(statement, name, path.name == "__init__.py"):
                if target not in ("ckcontrol", name):
                    found.append(Import(name, target, lazy, f"{path.relative_to(ROOT)}:{statement.lineno}"))
    return tuple(found)


def room(name: str) -> str:
    """`ckcontrol.policies.base` -> `policies`: the room of `FLOORS` a module belongs to."""
    return [*name.split("."), ""][1]


def inner(name: str) -> str:
    """The innermost room: the folder where it holds no further rooms, else the module itself."""
    path = modules()[name]
    folder = path.parent
    further = any(other.name == "__init__.py" and other.parent.parent == folder for other in modules().values())
    return name if further or folder == TREES["ckcontrol"] else _dotted(folder)


@cache
def _dotted(folder: Path) -> str:
    return next(name for name, path in modules().items() if path == folder / "__init__.py")


def caption(name: str) -> str:
    """The first sentence of a module's or a room's docstring."""
    text = ast.get_docstring(parsed(modules()[name])) or ""
    return " ".join(text.split("\n\n")[0].split())


# --- the layout table -----------------------------------------------------------------------------------------------

BEGIN, END = "<!-- layout: written by docs/architecture.py -->", "<!-- end of layout -->"


def layout() -> str:
    """Return the table of AGENTS.md: floors from the ground up, and in them rooms with their captions and files."""
    lines = []
    for number, floor in enumerate(FLOORS):
        for name in floor:
            prefix = f"ckcontrol.{name}"
            if prefix not in modules() or name == "__main__":
                continue
            lines += _entry(prefix, number)
            inside = [n for n, p in modules().items() if n.startswith(prefix + ".") and p.name == "__init__.py"]
            for each in sorted(inside):
                lines += _entry(each, number, indent="  ")
    return "\n".join(lines)


def _entry(name: str, number: int, indent: str = "") -> list[str]:
    path = modules()[name]
    shown = path.parent if path.name == "__init__.py" else path
    place = f"{shown.relative_to(ROOT).as_posix()}{'/' if path.name == '__init__.py' else ''}"
    text = f"{indent}- `{place}`{'' if indent else f' (floor {number})'}: {caption(name)}"
    if path.name != "__init__.py":
        return [text]
    files = sorted(p.stem for p in shown.glob("*.py") if p.name != "__init__.py")
    return [text] + ([f"{indent}  Files: {', '.join(files)}."] if files else [])


def with_layout(page: str) -> str:
    """Return a page with the table between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{layout()}\n\n{rest[rest.index(END) :]}"


# --- the picture ------------------------------------------------------------------------------------------------------

WIDTH, BOX, GAP, LINE = 1180, 34, 46, 15
STYLE = """
  .floor { fill: none; stroke: #c9ccd1; stroke-dasharray: 2 4 }
  .room { fill: #f6f7f9; stroke: #59636e } .name { font: 600 14px system-ui, sans-serif; fill: #1f2328 }
  .inner { font: 11.5px system-ui, sans-serif; fill: #47515b }
  .edge { fill: none; stroke: #6e7781; stroke-opacity: .55; stroke-width: 1.3 }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117 } .room { fill: #161b22; stroke: #8b949e } .name { fill: #e6edf3 }
    .inner { fill: #adb6c0 } .edge { stroke: #8b949e } .floor { stroke: #30363d }
  }
"""


def edges() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    found = {(room(i.source), room(i.target)) for i in imports()}
    return {(a, b) for a, b in found if a != b and "__main__" not in (a, b)}


def reduced(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Leave out what a longer way says already: the arrows worth drawing."""
    pairs = set(pairs)
    below: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in below:
            below[name] = set()  # a circle ends here
            for a, b in pairs:
                if a == name:
                    below[name] |= {b} | reach(b)
        return below[name]

    return {(a, b) for a, b in pairs if not any(b in reach(c) for x, c in pairs if x == a and c != b)}


def picture() -> str:
    """Return the rooms by floor as SVG, the ground at the bottom, with the arrows that no longer way replaces."""
    present = {room(name) for name in modules()}
    floors = [[name for name in floor if name in present and name != "__main__"] for floor in FLOORS]
    floors = [floor for floor in floors if floor]
    places: dict[str, tuple[float, float, float, float]] = {}
    body: list[str] = []
    top = 20.0
    for floor in reversed(floors):
        contents = {name: _contents(name) for name in floor}
        height = BOX + LINE * max(len(rows) for rows in contents.values())
        widths = {name: max([len(name) * 9.0, *(len(r) * 6.3 for r in contents[name])]) + 28 for name in floor}
        free = (WIDTH - 40 - sum(widths.values())) / (len(floor) + 1)
        left = 20 + free
        for name in floor:
            places[name] = (left, top, widths[name], height)
            body.append(_box(name, places[name], contents[name]))
            left += widths[name] + free
        top += height + GAP
    lines = [_arrow(places[a], places[b]) for a, b in sorted(reduced(edges()))]
    height = top - GAP + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="Rooms of ckcontrol; an arrow points to what a room imports">\n<style>{STYLE}</style>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#6e7781"/></marker></defs>\n' + "\n".join([*lines, *body]) + "\n</svg>\n"
    )


def _contents(name: str) -> list[str]:
    """What stands in a room's box: the rooms inside it, or its files."""
    prefix = f"ckcontrol.{name}"
    path = modules()[prefix]
    if path.name != "__init__.py":
        return []
    rooms = [n for n, p in modules().items() if n.startswith(prefix + ".") and p.name == "__init__.py"]
    words = sorted(n.removeprefix(prefix + ".").replace(".", "/") for n in rooms)
    words = [f"{word}/" for word in words] or sorted(p.stem for p in path.parent.glob("*.py") if p.stem[0] != "_")
    rows: list[str] = []
    for word in words:
        if rows and len(rows[-1]) + len(word) < 40:
            rows[-1] += f"  {word}"
        else:
            rows.append(word)
    return rows


def _box(name: str, place: tuple[float, float, float, float], rows: list[str]) -> str:
    x, y, width, height = place
    text = f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6"/>'
    middle = x + width / 2
    text += f'<text class="name" x="{middle:.0f}" y="{y + 22:.0f}" text-anchor="middle">{escape(name)}</text>'
    for number, row in enumerate(rows):
        down = y + 22 + LINE * (number + 1)
        text += f'<text class="inner" x="{middle:.0f}" y="{down:.0f}" text-anchor="middle">{escape(row)}</text>'
    return text


def _arrow(above: tuple[float, float, float, float], below: tuple[float, float, float, float]) -> str:
    x1, y1 = above[0] + above[2] / 2, above[1] + above[3]
    x2, y2 = below[0] + below[2] / 2, below[1]
    bend = (y2 - y1) / 2
    return (
        f'<path class="edge" marker-end="url(#tip)" d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} '
        f'{x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"/>'
    )


def main(arguments: list[str]) -> int:
    """Write the picture and the table, or compare them with what is there."""
    page, drawing = ROOT / "AGENTS.md", ROOT / "docs" / "architecture.svg"
    made: Mapping[Path, str] = {page: with_layout(page.read_text(encoding="utf-8")), drawing: picture()}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python docs/architecture.py", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(made[path], encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
