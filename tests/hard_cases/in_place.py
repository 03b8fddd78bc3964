"""Hard cases: operations in place, which change what is read later."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANY, CASES, DEAD, REFUSED, Case, Net, conv

# In place: what is read later has already been changed


def _relu_then_read(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    y = F.relu(x, inplace=True)
    return m.conv2(y) + m.conv3(x)


def _add_then_read(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    y = torch.sigmoid(x)
    x.add_(y)
    return m.conv2(x) + m.conv3(y)


def _module_then_read(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    return m.conv2(m.act(x)) + m.conv3(x)


def _through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    first, _ = x.chunk(2, 1)
    first.relu_()
    return m.conv2(x) + m.conv3(x)


def _through_a_reshape(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    x.flatten(2).mul_(0.5)
    return m.conv2(x) + m.conv3(x)


def _before_the_addition(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    y = x
    x += torch.sigmoid(x)
    return m.conv2(F.relu(x)) + m.conv3(y)


for _name, _body in {
    "relu, then read": _relu_then_read,
    "add_, then read": _add_then_read,
    "module, then read": _module_then_read,
    "+=, then the old name": _before_the_addition,
    "through a view": _through_a_view,
    "through a reshape": _through_a_reshape,
}.items():
    # What is written under one name and read under another is more than the traced graph says.
    _where = (
        REFUSED if _body in (_before_the_addition, _through_a_view, _through_a_reshape) else CASES
    )
    _where[f"in place: {_name}"] = Case(
        lambda body=_body: Net(
            body, conv1=conv(3, 6), conv2=conv(6, 4), conv3=conv(6, 4, 1), act=nn.ReLU(inplace=True)
        ),
        ANY, DEAD,
    )  # fmt: skip
