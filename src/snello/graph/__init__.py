"""The graph of a model: its operations in order, what each one reads, and their shapes.

[`capture`][snello.graph.capture] runs torch.fx at the level of modules: every layer of torch is one
node, and so is every functional call. Where torch.fx cannot trace a model, or computes something
else, the operations that run on the example inputs are recorded as the same kinds of node. Example
inputs also give the shape of every output:

    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), torch.zeros(1, 3, 9, 9))
    graph.norm_after("0")                             # '1'
    [shape_of(node) for node in graph.nodes]

[`coupling`][snello.graph.coupled.coupling] finds the channels that can only be removed together,
[`cut`][snello.graph.coupled.cut] removes some of them from a copy of the model, and
[`reference`][snello.graph.coupled.reference] computes the outputs that the copy must have.

Example inputs are a tensor, a tuple of positional arguments or a mapping of keyword arguments, of
any nesting ([`Inputs`][snello.graph.Inputs]).

This package knows torch, not the libraries built on it: a module of theirs that is to stay one operation is
registered by its qualified name with [`register_leaf`][snello.graph.register_leaf], from the
package that handles it. To add something here, write one file per concept and re-export its public
names below.
"""

from typing import Any

from ._signature import bind as bind
from ._tracer import register_leaf as register_leaf
from .capture import capture as capture
from .coupled import Coupling as Coupling
from .coupled import coupling as coupling
from .coupled import cut as cut
from .decisions import Decision as Decision
from .decisions import Decisions as Decisions
from .graph import Graph as Graph
from .inputs import Example as Example
from .inputs import Inputs as Inputs
from .inputs import Positional as Positional
from .inputs import as_inputs as as_inputs
from .inputs import class_name as class_name
from .inputs import joined as joined
from .inputs import positional as positional
from .inputs import tensors_in as tensors_in
from .labelled import Labelled as Labelled
from .labelled import Loss as Loss
from .labelled import labelled as labelled
from .labelled import loss_of as loss_of
from .labelled import repeatable as repeatable
from .labelled import scores_of as scores_of
from .labelled import unlabelled as unlabelled
from .modes import evaluation as evaluation
from .modes import evaluation_mode as evaluation_mode
from .modes import requiring_gradients as requiring_gradients
from .places import at_place as at_place
from .places import module_of_error as module_of_error
from .places import place_of as place_of
from .places import place_of_error as place_of_error
from .shapes import ByName as ByName
from .shapes import known_shape as known_shape
from .shapes import shape_of as shape_of
from .targets import TargetTable as TargetTable
from .twins import differ as differ
from .twins import parts_of as parts_of
from .twins import same_numbers as same_numbers
from .twins import tensors_of as tensors_of

# Other names are for the packages of snello.
__all__ = ["Coupling", "Graph", "Inputs", "capture", "coupling", "cut", "register_leaf", "shape_of"]


def __getattr__(name: str) -> Any:
    if name == "trace":
        # An AttributeError would be replaced by Python's own "cannot import name".
        raise ImportError("snello.graph.trace is called snello.graph.capture now")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
