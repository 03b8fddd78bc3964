"""Models whose forward decides by values: detection with NMS, loops and branches over tensors.

They are recorded as they run; shared heads are narrowed for all their calls together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision.models.detection as detection
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from laws import generator, randomise
from snello.errors import ModelError
from snello.graph import Decisions, Inputs, capture
from snello.graph.merged import one_of
from snello.graph.recorded import overwritten
from snello.graph.twins import tensors_of
from snello.simplification import SimplificationPlan, apply, plan_of, simplify

SMALL = {"weights": None, "weights_backbone": None, "num_classes": 4}
TWO_STAGES = {
    **SMALL, "min_size": 64, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 4,
    "rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 10,
}  # fmt: skip
ONE_STAGE = {**SMALL, "score_thresh": 0.0, "detections_per_img": 4, "topk_candidates": 20}


def images() -> list[Tensor]:
    return [torch.rand(3, *size, generator=generator(size[1])) for size in ((64, 80), (53, 64))]


@dataclass(frozen=True)
class Detector:
    """A detection model of torchvision.

    Attributes:
        make: its builder.
        options: of the builder.
        hidden: parts of the names of layers whose neurons only one layer reads, at each call.
        narrowed: a layer among them.
    """

    make: Callable[..., nn.Module]
    options: dict[str, Any]
    hidden: tuple[str, ...]
    narrowed: str


BOXES = ("body.layer1.0.conv1", "rpn.head.conv", "box_head.fc6", "box_head.fc7")


class Pyramid(nn.Module):
    """A backbone with two levels of 16 channels."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (
            nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
        )  # fmt: skip
        self.fpn = FeaturePyramidNetwork([12, 16], 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.one(self.stem(x).relu()).relu()
        return self.fpn({"0": one, "1": self.two(one).relu()})


def anchors() -> AnchorGenerator:
    return AnchorGenerator(((8,), (16,)), ((0.5, 1.0),) * 2)


def two_stages(**kwargs: Any) -> nn.Module:
    return detection.MaskRCNN(
        Pyramid(), rpn_anchor_generator=anchors(), box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2),
        box_head=TwoMLPHead(16 * 9, 32), box_predictor=FastRCNNPredictor(32, 4),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1"], 4, 2), mask_head=MaskRCNNHeads(16, (12, 12), 1),
        mask_predictor=MaskRCNNPredictor(12, 8, 4), **kwargs,
    )  # fmt: skip


def one_stage(**kwargs: Any) -> nn.Module:
    return detection.RetinaNet(Pyramid(), 4, anchor_generator=anchors(), **kwargs)


SIZES = {"min_size": 48, "max_size": 64}
TWO = {k: v for k, v in {**TWO_STAGES, **SIZES}.items() if k not in SMALL}
ONE = {k: v for k, v in {**ONE_STAGE, **SIZES}.items() if k not in SMALL}
DETECTORS = {
    "two stages and masks": Detector(
        two_stages, TWO, ("stem", "rpn.head.conv", "fc6", "fc7", "mask_head"), "rpn.head.conv.0.0"
    ),
    "the masks of it": Detector(two_stages, TWO, ("mask_head.0",), "roi_heads.mask_head.0.0"),
    "one stage": Detector(
        one_stage, ONE, ("stem", "_head.conv."), "head.classification_head.conv.3.0"
    ),
}
LARGE = {
    "Faster R-CNN, MobileNetV3": Detector(
        detection.fasterrcnn_mobilenet_v3_large_320_fpn, TWO_STAGES,
        ("rpn.head.conv", "box_head.fc6", "box_head.fc7"), "rpn.head.conv.0.0",
    ),
    "RetinaNet": Detector(
        detection.retinanet_resnet50_fpn, {**ONE_STAGE, "min_size": 64, "max_size": 96},
        ("body.layer1.0.conv1", "_head.conv."), "head.classification_head.conv.3.0",
    ),
    "SSDlite": Detector(
        detection.ssdlite320_mobilenet_v3_large, ONE_STAGE, ("backbone.extra.0.0",), "backbone.extra.0.0.0",
    ),
    "Faster R-CNN, ResNet-50": Detector(
        detection.fasterrcnn_resnet50_fpn, TWO_STAGES, BOXES, "roi_heads.box_head.fc6"
    ),
    "FCOS": Detector(
        detection.fcos_resnet50_fpn, {**ONE_STAGE, "min_size": 64, "max_size": 96},
        ("body.layer1.0.conv1",), "backbone.body.layer1.0.conv1",
    ),
    "SSD": Detector(
        detection.ssd300_vgg16, ONE_STAGE, ("backbone.features.0",), "backbone.features.0"
    ),
    "Mask R-CNN": Detector(
        detection.maskrcnn_resnet50_fpn, TWO_STAGES, (*BOXES, "mask_head.0"), "roi_heads.mask_head.0.0"
    ),
    "Keypoint R-CNN": Detector(
        detection.keypointrcnn_resnet50_fpn, {**TWO_STAGES, "num_classes": 2},
        (*BOXES, "keypoint_head.0"), "roi_heads.keypoint_head.0",
    ),
}  # fmt: skip


def made(case: Detector) -> tuple[nn.Module, int]:
    """A model with every other hidden neuron dead in training mode, too; the number of neurons."""
    torch.manual_seed(0)
    model = case.make(**case.options).double().eval()
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and any(h in name for h in case.hidden):
                layer.weight[::2] = 0
                if layer.bias is not None:
                    layer.bias[::2] = 0
    return model, len(model.get_submodule(case.narrowed).weight)


def assert_same(model: nn.Module, lean: nn.Module, *args: Any) -> None:
    """The same outputs to 1e-9 of the largest."""
    expected, found = (tensors_of(Inputs(args).map(torch.clone).call(m)) for m in (model, lean))
    assert len(expected) == len(found) > 0
    for a, b in zip(expected, found, strict=True):
        scale = float(a.detach().abs().max()) if a.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * max(scale, 1e-30))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(c, id=name) for name, c in DETECTORS.items()),
        *(pytest.param(c, id=name, marks=pytest.mark.exhaustive) for name, c in LARGE.items()),
    ],
)
def test_a_detector_is_narrowed_in_its_own_class(case: Detector) -> None:
    model, width = made(case)
    x = [image.double() for image in images()]
    lean = simplify(model, (x,))
    plan = plan_of(lean)
    assert type(lean) is type(model)
    assert plan.representation == "module"
    assert len(lean.get_submodule(case.narrowed).weight) == width // 2
    assert not any(case.narrowed in name for name in plan.left_alone)
    with torch.no_grad():
        assert any(t.numel() for t in tensors_of(model(x)))
        assert_same(model, lean, x)
        assert_same(model, lean, [x[1], x[0][:, :40], x[1]])
    targets = [
        {
            "boxes": torch.tensor([[4.0, 5.0, 30.0, 33.0]], dtype=torch.float64),
            "labels": torch.ones(1, dtype=torch.long),
            "masks": torch.ones(1, *image.shape[1:], dtype=torch.uint8),
            "keypoints": torch.full((1, 17, 3), 9.0),  # torchvision takes no other dtype
        }
        for image in x
    ]
    losses = []
    for each in (model, lean):
        for layer in each.modules():  # statistics of the batch are not those of evaluation
            layer.train(not isinstance(layer, nn.BatchNorm2d))
        torch.manual_seed(1)
        losses.append(each(x, targets))
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-9, atol=1e-12)
    fresh = apply(SimplificationPlan.from_json(plan.to_json()), case.make(**case.options).double())
    fresh.load_state_dict(lean.state_dict())


class Branching(nn.Module):
    """A branch, a loop and a selection that depend on values; a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 6)
        self.hidden, self.score = nn.Linear(6, 10), nn.Linear(10, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for _ in range(2):  # the same layers on their own result
            x = x + self.last(self.again(self.first(x).relu()).tanh())
        score = self.score(self.hidden(x).relu()).flatten()
        if bool(score.max() > score.min()):
            score = score * 2
        order = score.topk(3).indices
        kept = x[order]
        kept[:, 0] = 0
        return {"score": score[order], "rows": kept[kept.sum(1) > -1e6]}


def branching() -> nn.Module:
    model = randomise(Branching().double(), generator(1)).eval()
    with torch.no_grad():
        for layer, dead in ((model.first, 6), (model.again, 7), (model.hidden, 4)):
            layer.weight[:dead] = layer.bias[:dead] = 0
    return model


def test_layers_are_narrowed_between_decisions_and_for_all_of_their_calls() -> None:
    model = branching()
    x = torch.randn(7, 6, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x)
    assert type(lean) is Branching
    widths = [getattr(lean, name).out_features for name in ("first", "again", "hidden", "last")]
    assert widths == [10, 9, 6, 6]
    for seed in range(3):
        assert_same(
            model, lean, torch.randn(7 + seed, 6, dtype=torch.float64, generator=generator(seed))
        )


def test_one_call_stands_for_several() -> None:
    graph = capture(branching(), torch.randn(7, 6, dtype=torch.float64, generator=generator(2)))
    assert not graph.runnable
    assert {name: len(calls) for name, calls in graph.calls.items()} == dict.fromkeys(
        ("first", "again", "last", "hidden", "score"), 1
    )
    whole = [node for node in graph.nodes if node.target is one_of]
    assert len(whole) == 2, "one where the layers start, one that reads what the second call reads"


class Writing(nn.Module):
    """Writes on memory that another tensor shares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.other, self.end = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        part = y[:, :4]
        part += int(x.sum() > -1e9)  # y changes, too, and so do its constant channels
        return self.last(y) + self.end(self.other(x).relu())


def test_memory_that_is_written_on_under_another_name() -> None:
    model = randomise(Writing().double(), generator(3)).eval()
    with torch.no_grad():
        for layer in (model.first, model.other):
            layer.weight[2:6] = layer.bias[2:6] = 0
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator(4))
    assert any(node.target is overwritten for node in capture(model, x).nodes)
    lean = simplify(model, x)
    assert (lean.first.out_features, lean.other.out_features) == (8, 4)
    assert_same(model, lean, x)


def test_what_finds_nothing_cannot_be_verified() -> None:
    model = one_stage(**{**ONE, "score_thresh": 1.0}).eval()
    with pytest.raises(
        ModelError, match=r"RetinaNet gives empty tensors, \(0, 4\).*score threshold"
    ):
        simplify(model, (images(),))


class Silent(nn.Module):
    """Gives its result in an object that holds no tensor in sight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> object:
        return str(float(self.layer(x).sum()))


def test_a_model_without_tensors_in_its_output_is_refused() -> None:
    with pytest.raises(ModelError, match="Silent gives no tensor on the example inputs"):
        simplify(Silent(), torch.ones(2, 3))


class Drawing(nn.Module):
    """Draws random numbers at each run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * torch.randn_like(y) if bool(x.sum() > 0) else x


def test_a_model_that_differs_from_run_to_run_is_refused() -> None:
    with pytest.raises(ModelError, match="Drawing gives other outputs each time it runs"):
        simplify(Drawing(), torch.ones(2, 3))


def test_decisions_are_repeated_and_values_are_not() -> None:
    x = torch.tensor([0.3, 0.7, 0.5])
    with Decisions() as first:
        x.topk(2)
    with Decisions(first.taken) as second:
        values, indices = (x.flip(0) + 1e-3).topk(2)  # another order
    assert indices.tolist() == [1, 2]
    torch.testing.assert_close(values, torch.tensor([0.701, 0.501]))
    assert not second.taken[0].read[0].equal(first.taken[0].read[0])
    with Decisions(first.taken):
        assert torch.argmax(torch.ones(5)) == 0, "of other sizes: its own"
    with Decisions() as first:
        torch.fft.rfft(x)
    with Decisions(first.taken):
        assert torch.fft.rfft(x + 1)[0].real == pytest.approx(4.5), "a complex value is no decision"
