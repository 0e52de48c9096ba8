"""What a careless edit could turn a module into: one small change of its source each.

Texts of errors and logs stay, and of what stands outside of functions all but the bounds that calls are given
(`Field(ge=1)`): nothing else there decides anything.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Mutation", "mutations"]

COMPARED: dict[type, type] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult}
COMMENTARY = ("get_logger().info", "get_logger().debug")
"""Their loss is no fault; warnings are part of what a command promises."""


@dataclass(frozen=True)
class Mutation:
    """Put `text` in the place of the characters from `start` to `end`."""

    kind: str
    start: int
    end: int
    text: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]


def mutations(source: str) -> list[Mutation]:
    """All that can be made of a module, in the order of the source."""
    return list(_mutations(source))


@functools.cache
def _mutations(source: str) -> tuple[Mutation, ...]:
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    lines = source.splitlines()

    def place(row: int, column: int) -> int:
        return offsets[row - 1] + len(lines[row - 1].encode()[:column].decode())  # ast counts bytes

    found: dict[tuple[int, int, str], Mutation] = {}
    for node, changed, kind in _changes(ast.parse(source)):
        start, end = place(node.lineno, node.col_offset), place(node.end_lineno or 0, node.end_col_offset or 0)
        text = changed if isinstance(changed, str) else ast.unparse(changed)
        if text != source[start:end]:
            found.setdefault((start, end, text), Mutation(kind, start, end, text))
    return tuple(sorted(found.values(), key=lambda one: (one.start, one.end, one.text)))


def _changes(tree: ast.Module) -> Iterator[tuple[Any, ast.AST | str, str]]:
    for node in _deciding(tree):
        match node:
            case ast.Compare(left, [operator], [right]) if type(operator) in COMPARED:
                yield node, ast.Compare(left, [COMPARED[type(operator)]()], [right]), "compare"
            case ast.BoolOp(operator, values):
                other = ast.And() if isinstance(operator, ast.Or) else ast.Or()
                yield node, f"({ast.unparse(ast.BoolOp(other, values))})", "and, or"
            case ast.UnaryOp(ast.Not(), operand):
                yield node, f"({ast.unparse(operand)})", "not"
            case ast.If(test) | ast.While(test) | ast.IfExp(test) if not isinstance(test, ast.UnaryOp):
                yield test, f"(not ({ast.unparse(test)}))", "condition"
            case ast.BinOp(left, operator, right) if type(operator) in COMPUTED and not _is_text(left, right):
                yield node, f"({ast.unparse(ast.BinOp(left, COMPUTED[type(operator)](), right))})", "arithmetic"
            case ast.Constant(bool() as value):
                yield node, repr(not value), "constant"
            case ast.Constant(int() | float() as value):
                yield node, repr(value + 1), "constant"
            case ast.Constant(str() as value) if value.isidentifier():
                yield node, repr(f"{value}x"), "constant"
            case ast.Continue():
                yield node, "break", "jump"
            case ast.Break():
                yield node, "continue", "jump"
            case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
                yield node, "return None", "return"
            case ast.Raise() | ast.AugAssign() | ast.Expr(ast.Call()) | ast.Delete():
                yield node, "pass", "deleted"
            case ast.Assign([ast.Attribute() | ast.Subscript()]):
                yield node, "pass", "deleted"
            case ast.Call(function, [first, second, *rest], keywords) if _may_swap(function, first, second):
                yield node, ast.Call(function, [second, first, *rest], keywords), "arguments"


def _deciding(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes inside functions, without those that only say something, and bounds outside of them."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function) if node is not function}
    for function in functions:
        if id(function) not in inner:
            for statement in function.body:
                yield from _below(statement)
    decorators = {id(one) for node in ast.walk(tree) for one in getattr(node, "decorator_list", ())}
    outside = (node for node in ast.walk(tree) if id(node) not in inner | decorators)
    for call in (node for node in outside if isinstance(node, ast.Call)):
        for keyword in call.keywords:
            yield from (node for node in ast.walk(keyword) if isinstance(getattr(node, "value", None), int | float))


def _below(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "cast":
        yield from _below(node.args[1])
        return
    if isinstance(node, ast.Expr) and ast.unparse(node).startswith(COMMENTARY):
        return
    yield node
    if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and ast.unparse(node).startswith("get_logger()")):
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        children: list[ast.AST] = list(node.body)
    elif isinstance(node, ast.AnnAssign):
        children = [node.value] if node.value else []
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _below(child)


def _is_text(*nodes: ast.AST) -> bool:
    return any(
        isinstance(node, ast.JoinedStr | ast.List) or isinstance(getattr(node, "value", 0), str) for node in nodes
    )


def _may_swap(function: ast.expr, first: ast.expr, second: ast.expr) -> bool:
    starred = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
    return not starred and ast.dump(first) != ast.dump(second) and ast.unparse(function) not in ("cast", "max", "min")
