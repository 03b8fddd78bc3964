"""The Python that torch.fx writes for a lean graph: how it reaches its layers."""

from __future__ import annotations

import ast


def reach_directly(body: list[str]) -> list[str]:
    """Lines in which layers are called by way of ``_modules``: for :meth:`torch.fx.Graph.on_generate_code`.

    torch.fx writes ``getattr(self.features, "0").conv(x)``. Every step of that is a lookup that fails before
    nn.Module's own finds the layer, in Python: at batch 1 a tenth of what a lean MobileNet takes. The dictionaries
    hold the same layers, whoever replaces them.

    Args:
        body: the lines of a ``forward``, each of which may hold several statements.
    """
    return [_direct(line) for line in body]


def _direct(line: str) -> str:
    try:
        statements = ast.parse(line).body
    except SyntaxError:  # not a line of its own: whatever it is, it calls no layer
        return line
    for statement in statements:
        value = getattr(statement, "value", None)
        if isinstance(value, ast.Call) and (path := _path(value.func)):
            called = ast.get_source_segment(line, value.func)
            assert called is not None
            line = line.replace(called, "self" + "".join(f"._modules[{name!r}]" for name in path), 1)
    return line


def _path(expression: ast.expr) -> list[str] | None:
    """The names that lead from ``self`` to what the expression is; None if they do not begin there."""
    match expression:
        case ast.Name("self"):
            return []
        case ast.Attribute(parent, name) | ast.Call(ast.Name("getattr"), [parent, ast.Constant(str(name))]):
            before = _path(parent)
            return None if before is None else [*before, name]
    return None
