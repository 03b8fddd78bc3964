"""The arguments of a model's forward and the placeholders that torch.fx makes of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from torch import fx, nn
from torch.fx.graph import CodeGen

from .inputs import Inputs


def parameters_of(model: nn.Module) -> dict[str, Parameter]:
    """Placeholder -> parameter of the forward, without self."""
    parameters = list(_signature(model).parameters.values())[1:]
    return {_placeholder(parameter): parameter for parameter in parameters}


def bind(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Placeholder -> the argument that is given for it.

    Raises:
        TypeError: for arguments that the forward does not take, and for missing ones.
    """
    bound = _signature(model).bind(model, *inputs.args, **inputs.kwargs).arguments
    return {
        placeholder: bound[parameter.name]
        for placeholder, parameter in parameters_of(model).items()
        if parameter.name in bound
    }


def left_out(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Placeholder -> default, for the parameters without an argument."""
    return {
        placeholder: _value_if_left_out(parameter)
        for placeholder, parameter in parameters_of(model).items()
        if placeholder not in arguments
    }


def selecting(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that can select a branch of the forward, but from which nothing is computed.

    These are None, booleans, strings, and `*args` and `**kwargs` that are empty.
    """
    return {
        placeholder: value
        for placeholder, value in values.items()
        if value is None or isinstance(value, bool | str) or (placeholder[0] == "*" and not value)
    }


def keep_signature(graph: fx.Graph, model: nn.Module) -> None:
    """Give a traced graph the order and the keyword-only arguments of the model's forward.

    torch.fx makes keyword-only arguments positional and puts them before `*args`. A required one
    after one with a default would then be a syntax error, and the others would take values that
    belong to `*args`.
    """
    parameters = parameters_of(model)
    keywords = frozenset(p.name for p in parameters.values() if p.kind is Parameter.KEYWORD_ONLY)
    if not keywords:
        return
    placeholders = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    first = next(node for name, node in placeholders.items() if name in keywords)
    rest = next((n for name, n in placeholders.items() if re.match(r"\*\w", name)), None)
    if rest is None:
        graph.set_codegen(_KeywordOnly(keywords))
    else:
        first.prepend(rest)


class _KeywordOnly(CodeGen):
    """A code generator that writes a bare `*` before the keyword-only arguments."""

    def __init__(self, keywords: frozenset[str]) -> None:
        super().__init__()
        self.keywords = keywords

    def gen_fn_def(self, free_vars: list[str], *args: Any, **kwargs: Any) -> str:
        # An entry is "name", "name : annotation" or "name = default".
        names = [entry.partition(":")[0].partition("=")[0].strip() for entry in free_vars]
        index = next((i for i, name in enumerate(names) if name in self.keywords), None)
        if index is not None:
            free_vars = [*free_vars[:index], "*", *free_vars[index:]]
        return super().gen_fn_def(free_vars, *args, **kwargs)


def _signature(model: nn.Module) -> inspect.Signature:
    """The signature that torch.fx analyses: that of the class, below any decorators."""
    return inspect.signature(inspect.unwrap(type(model).forward))


def _placeholder(parameter: Parameter) -> str:
    """The placeholder of a parameter: its name, with the stars of `*args` and `**kwargs`."""
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    return f"**{parameter.name}" if parameter.kind is Parameter.VAR_KEYWORD else parameter.name


def _value_if_left_out(parameter: Parameter) -> Any:
    """The value of a parameter without an argument; `Parameter.empty` if it is required."""
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return ()
    return {} if parameter.kind is Parameter.VAR_KEYWORD else parameter.default
