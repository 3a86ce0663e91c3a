"""A patch as Python that stands alone: imports, helpers, and one function for each part of a program.

Helpers come with their source, cut out of the module that defines them together
with what they use, so that the text needs PyTorch only. Steps that are the same
but for the number of a layer become a loop.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator

from evenflow.surgery.script import Names, Step, spelled

_INDEX = re.compile(r"\[(\d+)\]")


def function(part: str, about: str, body: list[str], extra: str = "") -> list[str]:
    """The lines of ``def edit_part(part): body; return part``; none without a body."""
    if not body:
        return []
    indented = [f'"""{about}"""', *body, f"return {part}"]
    return [f"def edit_{part}({part}{extra}):", *(f"    {line}" for line in indented)]


def lines(steps: list[Step], names: Names) -> list[str]:
    """The steps as Python, with comments; runs of equal ones as loops."""
    notes = [[f"# {text}" for text in (one.source, one.note) if text] for one in steps]
    texts = ["\n".join(spelled(statement, names) for statement in one.statements) for one in steps]
    written: list[str] = []
    done = 0
    while done < len(steps):
        same = _alike(texts[done:])
        fresh = (note for one in notes[done : done + same] for note in one if note not in written)
        written += dict.fromkeys(fresh)
        written += _loop(texts[done], texts[done + 1], same) if same > 1 else texts[done].split("\n")
        done += same
    return written


def _alike(texts: list[str]) -> int:
    """How many texts from the first on make a loop; 1 if fewer than three do."""
    stride = _stride(texts[0], texts[1]) if len(texts) > 2 else 0
    if not stride:
        return 1
    same = 1
    while same < len(texts) and texts[same] == _moved(texts[0], texts[1], lambda at: str(at + same * stride)):  # noqa: B023
        same += 1
    return same if same > 2 else 1


def _stride(one: str, other: str) -> int:
    """By how much bracketed indices move from one text to the other; 0 if not all that move agree."""
    if _INDEX.split(one)[::2] != _INDEX.split(other)[::2]:
        return 0
    moves = {
        int(b) - int(a) for a, b in zip(_INDEX.findall(one), _INDEX.findall(other), strict=True) if a != b
    }
    return moves.pop() if len(moves) == 1 and min(moves) > 0 else 0


def _moved(one: str, other: str, put: Callable[[int], str]) -> str:
    """The first text, with ``put`` of each index that is another one in the other text."""
    others = iter(_INDEX.findall(other))

    def index(match: re.Match[str]) -> str:
        at = match.group(1)
        return match.group(0) if next(others) == at else f"[{put(int(at))}]"

    return _INDEX.sub(index, one)


def _loop(one: str, other: str, times: int) -> list[str]:
    stride = _stride(one, other)
    start = min(int(a) for a, b in zip(_INDEX.findall(one), _INDEX.findall(other), strict=True) if a != b)
    stop = start + (times - 1) * stride + 1
    span = f"{start}, {stop}, {stride}" if stride > 1 else f"{start}, {stop}" if start else f"{stop}"
    body = _moved(one, other, lambda at: "i" if at == start else f"i + {at - start}")
    return [f"for i in range({span}):", *(f"    {line}" for line in body.split("\n"))]


# ---------------------------------------------------------------------------- helpers


def definitions(names: Names) -> tuple[list[str], list[str]]:
    """(import lines, source blocks) of the pieces that were named, and of all that these use."""
    imports = set(names.imports)
    blocks: dict[tuple[str, str], str] = {}
    for piece in names.pieces:
        _collect(piece.__module__, piece.__qualname__.split(".")[0], imports, blocks)
    return sorted(imports, key=_import_order), list(blocks.values())


def _import_order(line: str) -> tuple[bool, str]:
    return ("torch" in line, line)


def _collect(module: str, name: str, imports: set[str], blocks: dict[tuple[str, str], str]) -> None:
    if (module, name) in blocks:
        return
    source = inspect.getsource(sys.modules[module])
    tree = ast.parse(source)
    defined = {key: node for node in tree.body for key in _bound(node)}
    node = defined[name]
    blocks[module, name] = ""  # holds the place against recursion
    for used in _used(node):
        other = defined.get(used)
        if other is None or used == name:
            continue
        if isinstance(other, ast.ImportFrom) and str(other.module).startswith("evenflow."):
            _collect(str(other.module), used, imports, blocks)
        elif isinstance(other, (ast.Import, ast.ImportFrom)):
            imports.add(_import_of(other, used))
        else:
            _collect(module, used, imports, blocks)
    del blocks[module, name]
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    blocks[module, name] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _import_of(node: ast.Import | ast.ImportFrom, used: str) -> str:
    alias = next(one for one in node.names if (one.asname or one.name.split(".")[0]) == used)
    name = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
    return f"from {node.module} import {name}" if isinstance(node, ast.ImportFrom) else f"import {name}"


def _used(node: ast.AST) -> list[str]:
    return list(dict.fromkeys(one.id for one in ast.walk(node) if isinstance(one, ast.Name)))
