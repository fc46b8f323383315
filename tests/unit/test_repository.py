"""Guards over the whole repository: who may import whom, what no file may contain, what must agree with what.

Everything is read with `ast` and run in subprocesses; no dependency beyond the standard library and pytest.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import ckcontrol as ck

ROOT = Path(__file__).resolve().parents[2]
TREES = {"ckcontrol": ROOT / "ckcontrol", "ckcontrol.retrieval": ROOT / "retrieval", "ckcontrol.eval": ROOT / "eval"}

# Who may import whom: a module imports from its own row and from rows above it. A package counts as one module.
LEVELS = [
    {"errors"},
    {"config", "wheels", "rates"},
    {"dist"},
    {"gain", "kernel"},
    {"policies"},
    {"trace", "recorder", "drafts", "prompts", "text", "checks"},
    {"cache", "matmul", "streams", "reference", "tiny", "models"},
    {"decode"},
    {"generation", "processor"},
    {"text_safety", "palette", "page_css", "describe", "page", "show"},
    {"rag", "heads"},
    {"eval"},
    {"demo", "doctor", "vllm"},
    {"cli"},
    {"__main__"},
]
# `retrieval` stands beside the rows: it imports `errors` alone, and only the rows from `rag` down may import it.
BESIDE = {"retrieval"}
# Imports against the rows, allowed inside a function only.
AGAINST = {
    ("config", "policies"): "Control checks its own names and ranges by building its policy from the registry",
    (
        "trace",
        "show",
    ): "Answer.show() and the notebook view are methods of the record; drawing is loaded when asked for",
    ("retrieval", "models"): "Embedder('demo') means the model that 'demo' means everywhere",
}


class Import(NamedTuple):
    source: str
    target: str
    lazy: bool
    where: str


@cache
def package_files() -> dict[str, Path]:
    """Dotted name -> file, of everything that is installed."""
    found = {}
    for prefix, folder in TREES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([prefix, *(p for p in parts if p != "__init__")])] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def unit(name: str) -> str:
    """`ckcontrol.policies.base` -> `policies`: the name it goes by in LEVELS; the package itself is ``""``."""
    return [*name.split("."), ""][1]


def statements(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import that can run, with whether it waits for a function call; `if TYPE_CHECKING` never runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, lazy
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        else:
            yield from statements(child, lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))


def imported(statement: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> list[str]:
    """The dotted names a statement imports; names that `ckcontrol` resolves late are followed to their module."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    base = statement.module or ""
    if statement.level:
        parts = module.split(".")
        kept = parts[: len(parts) - statement.level + is_package]
        base = ".".join([*kept, *([base] if base else [])])
    if base != "ckcontrol":
        return [base]
    names = [alias.name for alias in statement.names]
    return [f"ckcontrol{ck._WHERE[n]}" if n in ck._WHERE else f"ckcontrol.{n}" for n in names]


@cache
def imports() -> tuple[Import, ...]:
    found = []
    for name, path in package_files().items():
        for statement, lazy in statements(parsed(path)):
            for target in imported(statement, name, path.name == "__init__.py"):
                if target.split(".")[0] == "ckcontrol" and target != "ckcontrol.__version__":
                    where = f"{path.relative_to(ROOT)}:{statement.lineno}"
                    found.append(Import(unit(name), unit(target), lazy, where))
    return tuple(found)


def tracked() -> list[Path]:
    """Every file that is in the repository or would be added to it."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def python(code: str, *flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=cwd, capture_output=True, encoding="utf-8")


# --- imports ----------------------------------------------------------------------------------------------------


def test_every_module_has_its_place() -> None:
    """A new module fails here until someone decides where it stands."""
    named = [name for row in LEVELS for name in row] + sorted(BESIDE)
    assert len(named) == len(set(named))
    assert {unit(name) for name in package_files()} - {""} == set(named)


def test_imports_go_one_way() -> None:
    rank = {name: row for row, names in enumerate(LEVELS) for name in names}
    outer = {name for name, row in rank.items() if row >= rank["eval"]}
    wrong = []
    for source, target, lazy, where in imports():
        if source == target or not source:
            continue
        if source in BESIDE:
            fine = target == "errors" or (lazy and (source, target) in AGAINST)
        elif target in BESIDE:
            fine = source in outer
        else:
            fine = rank[target] <= rank[source] or (lazy and (source, target) in AGAINST)
        if not fine:
            wrong.append(f"{where}: {source} imports {target}")
    assert not wrong, "\n".join(wrong)
    used = {(i.source, i.target) for i in imports()}
    assert used >= AGAINST.keys(), "an exception that nothing uses any more"


def test_imports_have_no_circle() -> None:
    edges: dict[str, set[str]] = {}
    for source, target, _, _ in imports():
        if source and source != target and (source, target) not in AGAINST:
            edges.setdefault(source, set()).add(target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


@pytest.mark.parametrize("statement", ["import ckcontrol", "import ckcontrol; ckcontrol.__version__; dir(ckcontrol)"])
def test_importing_the_package_is_light(statement: str) -> None:
    heavy = ["torch", "transformers", "numpy", "faiss", "sentence_transformers", "rich", "typer"]
    done = python(f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("folder", ["eval", "retrieval"])
def test_the_mapped_folders_cannot_be_imported_by_their_own_name(folder: str) -> None:
    done = python(f"import {folder}")
    assert done.returncode == 1
    assert f"ImportError: this directory is installed as ckcontrol.{folder}; import that name" in done.stderr
    module = importlib.import_module(f"ckcontrol.{folder}")
    assert module.__name__ == f"ckcontrol.{folder}"


# --- what the code may not contain --------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield what could run code that came as data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
            if node.module == "torch" and any(alias.name == "load" for alias in node.names):
                yield node.lineno, "torch.load"
        else:
            names = set()
        yield from ((node.lineno, name) for name in names & UNSAFE_MODULES)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield node.lineno, "torch.load"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                yield node.lineno, node.func.id
            for keyword in node.keywords:
                given = ast.unparse(keyword.value)
                if (keyword.arg, given) == ("shell", "True") or (keyword.arg == "weights_only" and given != "True"):
                    yield node.lineno, f"{keyword.arg}={given}"
                if keyword.arg == "trust_remote_code" and given != "False":
                    yield node.lineno, f"trust_remote_code={given}"
        if isinstance(node, ast.Dict):
            keys = {k.value for k in node.keys if isinstance(k, ast.Constant)}
            if "trust_remote_code" in keys:
                yield node.lineno, "trust_remote_code in a dict"


def test_no_pickle_and_no_code_from_data() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in package_files().values()
        for line, what in unsafe(parsed(path))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "import os, marshal",
        "torch.load(path)",
        "from torch import load",
        "eval('1')",
        "exec(text)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "f(weights_only=False)",
        "f(**{'trust_remote_code': True})",
        "run(text, shell=True)",
    ],
)
def test_the_guard_sees(line: str) -> None:
    assert list(unsafe(ast.parse(line)))


def test_the_guard_is_not_fooled_by_harmless_names() -> None:
    assert not list(unsafe(ast.parse("model.eval(); re.compile('x'); f(trust_remote_code=False); safetensors.load(p)")))


def test_no_machine_paths_and_no_registry_hosts() -> None:
    """Patterns are put together here so that this file does not match itself."""
    homes = "|".join(["work", "tmp", "root", "home", "Users"])
    hosts = "|".join(["py" + r"pi\.org", "pythonhosted" + r"\.org", "npm" + r"js\.org", "deb" + r"ian\.org"])
    ban = re.compile(
        rf"(?<![\w.:/-])/({homes})/\w|[A-Z]:\\Users|{hosts}|(extra-)?index-" + r"url\s*[=\s]\s*http|https?://localhost"
    )
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        for number, line in enumerate(text.splitlines(), 1):
            if ban.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


# --- size and words -------------------------------------------------------------------------------------------------


def test_files_stay_readable() -> None:
    sizes = {
        str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in package_files().values()
    }
    assert {name: size for name, size in sizes.items() if size > 400} == {}
    assert statistics.median(sizes.values()) <= 150


def test_every_module_opens_with_a_docstring() -> None:
    others = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("examples/*.py"), *ROOT.glob("benchmarks/*.py")]
    empty = [path for path in others if not path.read_text(encoding="utf-8").strip()]
    assert all(path.name == "__init__.py" for path in empty)
    for path in [*package_files().values(), *(set(others) - set(empty))]:
        assert ast.get_docstring(parsed(path)), path.relative_to(ROOT)


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods that callers may use; what `@overload` repeats is left out."""
    for node in tree.body:
        inside = [node] if not isinstance(node, ast.ClassDef) or node.name.startswith("_") else node.body
        for child in inside:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
                if not any(ast.unparse(d).endswith("overload") for d in child.decorator_list):
                    yield child


def test_public_functions_are_annotated_and_documented() -> None:
    found = []
    for path in package_files().values():
        for function in public_functions(parsed(path)):
            where = f"{path.relative_to(ROOT)}:{function.lineno}: {function.name}"
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            arguments += [a for a in (function.args.vararg, function.args.kwarg) if a]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            found += [f"{where}: no annotation for {bare}"] if bare else []
            found += [f"{where}: no return annotation"] if function.returns is None else []
            found += [f"{where}: no docstring"] if not ast.get_docstring(function) else []
    assert not found, "\n".join(found)


def test_public_names_exist_and_are_documented() -> None:
    assert ck.__all__ == sorted(ck._WHERE) == dir(ck)
    for name in ck.__all__:
        value = getattr(ck, name)
        assert len(inspect.getdoc(value) or "") > 20, name
        assert value.__module__ == f"ckcontrol{ck._WHERE[name]}" or value.__module__.startswith(
            f"ckcontrol{ck._WHERE[name]}."
        )
        assert callable(value)
    typed = [s for s in parsed(TREES["ckcontrol"] / "__init__.py").body if isinstance(s, ast.If)]
    named = {alias.name for block in typed for s in block.body for alias in s.names if isinstance(s, ast.ImportFrom)}
    assert named == set(ck.__all__), "what type checkers see is what can be imported"


def test_all_lists_of_the_modules_are_true() -> None:
    for name in package_files():
        if not name.endswith("__main__"):
            try:
                module = importlib.import_module(name)
                missing = [public for public in getattr(module, "__all__", ()) if not hasattr(module, public)]
            except ModuleNotFoundError as error:  # what needs the engine it lives in is tested where there is one
                assert (unit(name), error.name) == ("vllm", "vllm"), name
                continue
            assert not missing, f"{name}.__all__ names {missing}"
