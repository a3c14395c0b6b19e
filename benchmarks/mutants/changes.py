"""Small changes of a function's expressions, one at a time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
METHODS = {
    "mean": "sum",
    "sum": "mean",
    "amax": "amin",
    "amin": "amax",
    "max": "min",
    "min": "max",
    "softmax": "log_softmax",
    "log_softmax": "softmax",
    "abs": "square",
    "square": "abs",
    "exp": "expm1",
    "log": "log1p",
}


@dataclass(frozen=True)
class Mutant:
    """A function with one expression changed."""

    path: Path
    function: str
    """Its qualified name in the file."""
    line: int
    change: str
    """Such as ``a * b -> a / b``."""
    code: CodeType

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function}: {self.change}"


def mutants(path: Path, root: Path) -> Iterator[Mutant]:
    """Yield every mutant of the functions and methods of a file.

    Left alone are text, annotations, decorators, defaults, asserts and the text of errors.

    Args:
        path: The file, from `root` on.
        root: The directory of the project.
    """
    source = (root / path).read_text(encoding="utf-8")
    sites = [(name, place) for name, function in _functions(ast.parse(source)) for place, _ in _expressions(function)]
    for name, place in sites:
        number = 0
        while True:
            tree = ast.parse(source)
            node = dict(_expressions(dict(_functions(tree))[name]))[place]
            replacements = [*_replacements(node)]
            if number == len(replacements):
                break
            changed = ast.fix_missing_locations(_Replace(node, replacements[number]).visit(tree))
            change = f"{ast.unparse(node)} -> {ast.unparse(replacements[number])}"
            yield Mutant(path, name, node.lineno, change, _code(compile(changed, str(root / path), "exec"), name))
            number += 1


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self.old, self.new = old, ast.copy_location(new, old)

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().visit(node)


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")


def _expressions(function: ast.FunctionDef) -> Iterator[tuple[int, ast.expr]]:
    """Yield the expressions that may be changed, each with its number."""
    left: list[ast.AST] = [*reversed(function.body)]
    number = 0
    while left:
        node = left.pop()
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            continue
        if isinstance(node, ast.expr):
            yield number, node
            number += 1
        if isinstance(node, ast.AnnAssign):
            left += [node.value] if node.value else []
        elif isinstance(node, ast.FunctionDef):  # in a function: without its annotations
            left += reversed(node.body)
        else:
            left += reversed([*ast.iter_child_nodes(node)])


def _replacements(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(op)](), right)
        case ast.Compare(left, [op], comparators) if type(op) in OPERATORS:
            yield ast.Compare(left, [OPERATORS[type(op)]()], comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(OPERATORS[type(op)](), values)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1 if abs(value) < 1e6 else 2 * value)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Call(ast.Attribute(value, "detach"), []):
            yield value
        case ast.Call(ast.Attribute(value, name), arguments, keywords) if name in METHODS:
            yield ast.Call(ast.Attribute(value, METHODS[name], ast.Load()), arguments, keywords)
        case _:
            pass


def _code(module: CodeType, name: str) -> CodeType:
    for part in name.split("."):
        module = next(each for each in module.co_consts if isinstance(each, CodeType) and each.co_name == part)
    return module
