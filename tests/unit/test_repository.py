"""Guards over the whole repository: who may import whom, what no file may contain, what must agree with what.

Everything is read with `ast` and run in subprocesses; no dependency beyond the standard library and pytest.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import ckcontrol as ck

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
assert _spec is not None and _spec.loader is not None
house = importlib.util.module_from_spec(_spec)  # reads the imports; its FLOORS say who may import whom
sys.modules["architecture"] = house  # NamedTuple looks its own module up
_spec.loader.exec_module(house)
FLOORS, TREES, imports, inner, package_files, parsed, room = (
    house.FLOORS,
    house.TREES,
    house.imports,
    house.inner,
    house.modules,
    house.parsed,
    house.room,
)

# `retrieval` knows nothing of language models: it imports these rooms alone, and only from the floors above itself.
RETRIEVAL_KNOWS = {
    "errors",
    "rates",  # the number of a counted noun
    "tables",
    "words",
    "word_spans",  # whether a text says an override's answer, as verdicts read it
    "models",  # Embedder("demo") means the model that "demo" means everywhere
}
# Inside vllm: the contract stands below the rest, and what runs in the engine knows nothing of HTTP or of clients.
VLLM_FLOORS = [["contract"], ["engine"], ["http", "offline"]]


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


def test_every_room_has_its_floor() -> None:
    """A new room fails here until someone decides where it stands."""
    named = [name for floor in FLOORS for name in floor]
    assert len(named) == len(set(named))
    assert {room(name) for name in package_files()} - {""} == set(named)


def test_imports_go_one_way() -> None:
    """Lazy imports and those under TYPE_CHECKING count like any other; there are no exceptions."""
    rank = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = []
    for source, target, _, where in imports():
        a, b = room(source), room(target)
        fine = a == b or rank[b] < rank[a]
        if a == "retrieval" != b:
            fine = fine and b in RETRIEVAL_KNOWS
        if not fine:
            wrong.append(f"{where}: {source} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_vllm_has_floors_of_its_own() -> None:
    rank = {name: number for number, names in enumerate(VLLM_FLOORS) for name in names}
    wrong = []
    for source, target, _, where in imports():
        if room(source) == room(target) == "vllm" and "." in source.removeprefix("ckcontrol.vllm"):
            a, b = (name.split(".")[2] if name.count(".") > 1 else None for name in (source, target))
            if a != b and (b is None or rank[b] >= rank[a]):
                wrong.append(f"{where}: {source} imports {target}")
    assert not wrong, "\n".join(wrong)


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Return one circle of the edges, or nothing."""
    after: dict[str, set[str]] = {}
    for source, target in edges:
        if source != target:
            after.setdefault(source, set()).add(target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(after.get(name, ())):
                if found := visit(target, (*path, name)):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(after) if (found := visit(name, ()))), [])


def test_files_import_in_no_circle() -> None:
    assert circle((i.source, i.target) for i in imports()) == []


def test_rooms_import_in_no_circle() -> None:
    """The innermost rooms, so inside vllm, heads, eval and retrieval too."""
    assert circle((inner(i.source), inner(i.target)) for i in imports()) == []


def test_the_guard_sees_circles() -> None:
    assert circle([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]) == ["a", "b", "c", "a"]
    assert circle([("a", "b"), ("a", "c"), ("b", "c")]) == []
    lazy = ast.parse("if TYPE_CHECKING:\n    from .x import y\ndef f():\n    import z")
    assert len(list(house._statements(lazy))) == 2


def test_every_module_can_be_imported_first() -> None:
    """Each in turn in a process that holds nothing of ckcontrol yet; what lives inside vLLM needs vLLM.

    Python imports a module's package before it: one that its package imports anyway has had its turn with the package.
    """
    code = (
        "import importlib, sys\n"
        "def first(name):\n"
        "    for known in [m for m in sys.modules if m.split('.')[0] == 'ckcontrol']:\n"
        "        del sys.modules[known]\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception as error:\n"
        "        if getattr(error, 'name', '') != 'vllm':\n"
        "            print(name, repr(error))\n"
        "    return {m for m in sys.modules if m.split('.')[0] == 'ckcontrol'}\n"
        "loaded = {'': set()}\n"
        "for name in sorted(sys.argv[1:]):\n"
        "    if name not in loaded[name.rpartition('.')[0]]:\n"
        "        loaded[name] = first(name)\n"
        "    else:\n"
        "        loaded[name] = loaded[name.rpartition('.')[0]]\n"
    )
    names = [name for name in package_files() if not name.endswith("__main__")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, encoding="utf-8")
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_picture_and_layout_table_are_the_codes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "architecture.py", "--check"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr


def test_every_room_opens_with_a_caption() -> None:
    for name, path in package_files().items():
        text = house.caption(name)
        assert len(text) > 15, path.relative_to(ROOT)


def test_the_root_holds_no_pictures_and_no_dumps() -> None:
    """Pictures of the product live under docs/pictures; nothing tracked is large."""
    text = {".md", ".toml", ".txt", ".cff", ".gitignore", "", ".yml", ".yaml"}
    stray = [p.name for p in tracked() if p.parent == ROOT and p.suffix not in text]
    large = [str(p.relative_to(ROOT)) for p in tracked() if p.stat().st_size > 2**20]
    assert (stray, large) == ([], [])


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
    """Patterns are put together here so that this file does not match itself. PyTorch's own index of CPU builds is
    what spares a user the CUDA ones."""
    homes = "|".join(["work", "tmp", "root", "home", "Users"])
    hosts = "|".join(["py" + r"pi\.org", "pythonhosted" + r"\.org", "npm" + r"js\.org", "deb" + r"ian\.org"])
    ban = re.compile(
        rf"(?<![\w.:/-])/({homes})/\w|[A-Z]:\\Users|{hosts}|(extra-)?index-" + r"url\s*[=\s]\s*http"
        r"(?!s://download\.pytorch\.org/whl/cpu\b)|https?://localhost"
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
    assert {name: size for name, size in sizes.items() if size > 500} == {}


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
    ours = [s for block in typed for s in block.body if isinstance(s, ast.ImportFrom) and s.level]
    named = {alias.name for s in ours for alias in s.names}
    assert named == set(ck.__all__), "what type checkers see is what can be imported"


def test_all_lists_of_the_modules_are_true() -> None:
    for name in package_files():
        if not name.endswith("__main__"):
            try:
                module = importlib.import_module(name)
                missing = [public for public in getattr(module, "__all__", ()) if not hasattr(module, public)]
            except ModuleNotFoundError as error:  # what needs the engine it lives in is tested where there is one
                assert (room(name), error.name) == ("vllm", "vllm"), name
                continue
            assert not missing, f"{name}.__all__ names {missing}"
