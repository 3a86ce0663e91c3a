"""Imports go only downwards between the floors of the house.

The source is read, not run: every ``import`` counts, also inside functions, and
so does ``import_module`` with a literal name. Two rules are checked.

* A package imports only itself and lower floors. An import under ``if
  TYPE_CHECKING`` counts too: whoever names a type knows its owner.
* Packages that must work without PyTorch never come to it, not by any chain of
  imports. Here ``if TYPE_CHECKING`` does not count, for it never runs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "evenflow"

FLOORS = {
    "errors": -1,  # everyone may raise
    "flow": 0,
    "theory": 0,
    "parallel": 1,
    "store": 1,
    "trace": 1,
    "program": 1,
    "predict": 2,
    "measure": 2,
    "watch": 2,
    "diagnose": 2,
    "surgery": 2,
    "intervene": 3,
    "lab": 3,
    "scripts": 3,
    "report": 3,
    "check": 4,
    "integrations": 4,
    "fix": 5,
    "testing": 5,
    "cli": 6,
    "__main__": 7,
}
WITHOUT_TORCH = ("flow", "theory", "store", "diagnose", "report")


@dataclass(frozen=True)
class Import:
    """One import statement: who, whom, where, and whether it ever runs."""

    importer: str
    target: str
    place: str
    runs: bool


class _Reader(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, module: str, package: str, place: str, known: frozenset[str]) -> None:
        self.module, self.package, self.place, self.known = module, package, place, known
        self.runs = True
        self.found: list[Import] = []

    def add(self, target: str, node: ast.stmt | ast.expr) -> None:
        self.found.append(Import(self.module, target, f"{self.place}:{node.lineno}", self.runs))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self.package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
        for alias in node.names:
            name = f"{base}.{alias.name}"
            self.add(name if name in self.known or base == "evenflow" else base, node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if name == "import_module" and isinstance(first, ast.Constant) and isinstance(first.value, str):
            self.add(first.value, node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)
            return
        outside, self.runs = self.runs, False
        for statement in node.body:
            self.visit(statement)
        self.runs = outside
        for statement in node.orelse:
            self.visit(statement)


def read_imports(source: Path) -> list[Import]:
    """Every import below ``source``, the folder of the package ``evenflow``."""
    files: dict[str, Path] = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    imports = []
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        reader = _Reader(module, package, str(path.relative_to(source.parent)), frozenset(files))
        reader.visit(ast.parse(path.read_text(encoding="utf-8")))
        imports += reader.found
    return imports


def _storey(module: str) -> str:
    """``evenflow.flow.site`` → ``flow``; the root package → ``""``."""
    return module.split(".")[1] if "." in module else ""


def upward(imports: list[Import]) -> list[str]:
    """The imports that do not go down, as sentences."""
    wrong = []
    for one in imports:
        here, there = _storey(one.importer), _storey(one.target)
        if not here or one.target.split(".")[0] != "evenflow" or here == there or there == "__version__":
            continue
        if here not in FLOORS:
            wrong.append(f"{one.place}: {here} has no floor; give it one in DESIGN.md and here")
        elif there not in FLOORS:
            wrong.append(f"{one.place}: inside the house import from a module, not {one.target}")
        elif FLOORS[there] >= FLOORS[here]:
            wrong.append(f"{one.place}: {here} ({FLOORS[here]}) imports {there} ({FLOORS[there]})")
    return wrong


def ways_to_torch(imports: list[Import]) -> list[str]:
    """For each module that must do without PyTorch but does not, the chain of imports that leads there."""
    runs_by: dict[str, list[Import]] = {}
    for one in imports:
        if one.runs:
            runs_by.setdefault(one.importer, []).append(one)

    def chain(module: str, seen: set[str]) -> list[str] | None:
        for one in runs_by.get(module, []):
            if one.target.split(".")[0] == "torch":
                return [f"{one.place} imports torch"]
            for step in _loaded_by(one.target):
                if step not in seen:
                    seen.add(step)
                    rest = chain(step, seen)
                    if rest:
                        return [f"{one.place} imports {step}", *rest]
        return None

    found = []
    for module in sorted({one.importer for one in imports}):
        if _storey(module) in WITHOUT_TORCH:
            way = chain(module, {module})
            if way:
                found.append("; ".join(way))
    return found


def _loaded_by(target: str) -> Iterator[str]:
    """``evenflow.flow.site`` runs ``evenflow.flow`` on its way; nothing for other people's packages."""
    parts = target.split(".")
    if parts[0] == "evenflow":
        yield from (".".join(parts[:length]) for length in range(2, len(parts) + 1))


def test_imports_go_only_downwards() -> None:
    assert upward(read_imports(SOURCE)) == []


def test_packages_without_torch_never_come_to_it() -> None:
    assert ways_to_torch(read_imports(SOURCE)) == []


def test_packages_without_torch_load_without_it() -> None:
    here = [name for name in WITHOUT_TORCH if (SOURCE / name / "__init__.py").exists()]
    code = f"import sys\nfor name in {here}: __import__('evenflow.' + name)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _house(folder: Path, **files: str) -> list[Import]:
    """A small made-up house: ``measure__deep="..."`` is ``measure/deep.py``."""
    source = folder / "evenflow"
    for name, text in {"__init__": "", **files}.items():
        path = source / (name.replace("__", "/") + ".py" if name != "__init__" else "__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read_imports(source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from evenflow.measure import measure", "flow (0) imports measure (2)"),
        ("import evenflow.cli.check", "flow (0) imports cli (6)"),
        ("from evenflow import measure", "flow (0) imports measure (2)"),
        ("from .. import measure", "flow (0) imports measure (2)"),
        ("from ..measure.deep import x", "flow (0) imports measure (2)"),
        ("from evenflow.theory import maps", "flow (0) imports theory (0)"),
        ("def late():\n    from evenflow.measure import x", "flow (0) imports measure (2)"),
        ("if TYPE_CHECKING:\n    from evenflow.measure import x", "flow (0) imports measure (2)"),
        ("import importlib\nimportlib.import_module('evenflow.measure')", "flow (0) imports measure (2)"),
        ("import evenflow", "inside the house import from a module, not evenflow"),
        ("from evenflow import Flow", "inside the house import from a module, not evenflow.Flow"),
    ],
)
def test_an_upward_import_is_seen(tmp_path: Path, text: str, said: str) -> None:
    found = upward(_house(tmp_path, flow__site=text, measure__deep="x = 1"))
    assert len(found) == 1
    assert said in found[0]
    assert "flow/site.py:" in found[0]


def test_a_package_without_a_floor_is_seen(tmp_path: Path) -> None:
    found = upward(_house(tmp_path, cellar__wine="from evenflow.flow import Flow"))
    assert found == ["evenflow/cellar/wine.py:1: cellar has no floor; give it one in DESIGN.md and here"]


def test_downward_imports_are_fine(tmp_path: Path) -> None:
    text = (
        "import numpy\nfrom evenflow.flow.site import Site\nfrom evenflow import __version__\nfrom . import a"
    )
    assert upward(_house(tmp_path, report__html=text, report__a="", flow__site="")) == []


def test_torch_is_seen_through_others(tmp_path: Path) -> None:
    imports = _house(
        tmp_path,
        report__html="def late():\n    import evenflow.measure.deep",
        measure__deep="import torch.nn",
    )
    assert ways_to_torch(imports) == [
        "evenflow/report/html.py:2 imports evenflow.measure.deep; evenflow/measure/deep.py:1 imports torch"
    ]


def test_torch_for_types_only_is_fine(tmp_path: Path) -> None:
    text = "if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy"
    assert ways_to_torch(_house(tmp_path, flow__site=text)) == []
    text = "if TYPE_CHECKING:\n    import numpy\nelse:\n    import torch"
    assert len(ways_to_torch(_house(tmp_path, flow__site=text))) == 1
