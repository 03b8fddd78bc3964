"""Models of other libraries through simplify: accepted or not, class kept or not, exact or not,
smaller or not.

    pip install timm "transformers[torch]"
    python benchmarks/coverage.py --only transformers
    python benchmarks/coverage.py --out runs/bench/coverage.json
    python benchmarks/coverage.py --only monai --masks channels --double --add --out FILE

Models of five more libraries are in ``third_party.py``. Random weights, also where a library starts
with zeros or ones (heads, layer scales, norms), and random statistics of BatchNorm.
Masks are independent (half of the neurons of every Linear and convolution with
more than ten die, each by itself, with their biases) or, with ``--masks coupled``, what pruners of
transformers take: half of the hidden neurons of MLPs and half of the heads. With ``--only torchvision
--masks inner``, half of the neurons that no sum, no pyramid and no choice of boxes reads, in models of
detection and segmentation. With ``--masks channels``, half of the channels of every coupled group
that ``snello.graph.coupling`` finds, with all that writes or scales them, as pruners of channels
leave them; dimensions of heads, and groups that a norm computes statistics over, stay. One row per
architecture:

- accepted: ``simplify`` returned a model; otherwise the first line of its error. It has compared
  the outputs in float64 then, on two batch sizes.
- class kept: the result is of the model's own class.
- error: largest difference of the outputs (in float32, or in float64 with ``--double``) from the
  masked model's, over their largest deviation from the batch's mean.
- removable: share of the parameters that could go, counted by ``probed.py``, which runs the masked
  model and knows nothing of snello's rules; of torchvision's, by the inputs of every layer that are
  constant.
- gone: share of the removable parameters that went. It can be more than one: ``probed.py`` counts
  neither embeddings nor layer scales.
- left: share of the parameters that is left.
- seconds: CPU time of ``simplify``, one thread, all of its verification included; and how many times
  that of one plain ``torch.export.export`` of the same model in the same process.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import re
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from probed import probed
from third_party import LIBRARIES
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snello.files import write_text
from snello.graph import Decisions, Inputs
from snello.graph.coupled import coupling
from snello.simplification import plan_of, simplify
from snello.timing import cpu_seconds, timed

TIMM = (
    "resnet18", "resnetv2_50", "efficientnet_b0", "tf_efficientnetv2_b0", "mobilenetv3_small_100",
    "mobilenetv4_conv_small", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "convnext_atto", "convnextv2_atto", "mixer_s32_224", "resmlp_12_224",
    "regnetx_002", "regnety_002", "densenet121", "ghostnet_100", "repvgg_a0", "hrnet_w18_small",
    "res2net50_14w_8s", "levit_128s", "edgenext_xx_small", "mobilevit_xxs", "poolformer_s12", "pvt_v2_b0",
    "coat_lite_tiny", "xcit_nano_12_p16_224", "beit_base_patch16_224", "maxvit_nano_rw_256", "fastvit_t8",
    "efficientformer_l1", "mobileone_s0", "tinynet_e", "nf_resnet50", "dla34", "vovnet39a", "cspresnet50",
    "lcnet_050", "gernet_s", "botnet26t_256", "skresnet18", "resnest14d", "seresnet50", "ecaresnet26t",
    "hardcorenas_a", "selecsls42", "dpn48b", "inception_v3", "xception41", "nfnet_l0", "twins_svt_small",
    "cait_xxs24_224", "crossvit_9_240", "davit_tiny", "focalnet_tiny_srf", "gcvit_xxtiny", "gmlp_s16_224",
    "inception_next_atto", "nextvit_small", "repghostnet_050", "repvit_m0_9", "rexnet_100", "sequencer2d_s",
    "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "vgg11", "visformer_tiny", "volo_d1_224",
    "eva02_tiny_patch14_224", "hgnet_tiny", "mnasnet_small", "semnasnet_075", "spnasnet_100", "starnet_s1",
    "shvit_s1", "swiftformer_xs", "mambaout_femto", "caformer_s18", "hiera_tiny_224",
    "convit_tiny", "cpubone_b0_bfrobust", "cspnext_tiny", "efficientformerv2_s0", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "fasternet_t0", "hieradet_small", "iformer_t", "inception_resnet_v2",
    "inception_v4", "lcnetv2_base", "legacy_seresnet18", "legacy_xception", "lowformer_b0", "mvitv2_tiny",
    "nest_tiny", "pit_ti_224", "rdnet_tiny", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224",
    "vit_relpos_small_patch16_224", "vit_tiny_r_s16_p8_224", "vitamin_small_224", "convmixer_1024_20_ks9_p14",
    "test_vit3", "mobilenetv2_100", "resnext50_32x4d", "wide_resnet50_2", "senet154", "eca_nfnet_l0",
    "bat_resnext26ts", "gcresnet33ts", "halonet26t", "lambda_resnet26t", "sehalonet33ts", "vit_small_patch14_dinov2",
    "coatnet_nano_rw_224", "gmixer_12_224",
)  # fmt: skip

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SPEECH = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tokens(length: int = 7) -> Tensor:
    return torch.randint(0, 100, (2, length))


def image(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side)


TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "BertModel": ("BertConfig", {"vocab_size": 100, **SMALL}, tokens),
    "DistilBertModel": (
        "DistilBertConfig", {"vocab_size": 100, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}, tokens,
    ),
    "RobertaModel": ("RobertaConfig", {"vocab_size": 100, **SMALL}, tokens),
    "ViTForImageClassification": ("ViTConfig", {"image_size": 32, "patch_size": 8, **SMALL}, image),
    "DeiTModel": ("DeiTConfig", {"image_size": 32, "patch_size": 8, **SMALL}, image),
    "CLIPVisionModel": ("CLIPVisionConfig", {"image_size": 32, "patch_size": 8, **SMALL}, image),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}, tokens),
    "LlamaForCausalLM": ("LlamaConfig", {"vocab_size": 100, "num_key_value_heads": 2, **SMALL}, tokens),
    "MistralForCausalLM": ("MistralConfig", {"vocab_size": 100, "num_key_value_heads": 2, **SMALL}, tokens),
    "Qwen2ForCausalLM": ("Qwen2Config", {"vocab_size": 100, "num_key_value_heads": 2, **SMALL}, tokens),
    "T5Model": (
        "T5Config", {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens(5)},
    ),
    "BartModel": ("BartConfig", SPEECH, tokens),
    "WhisperModel": (
        "WhisperConfig", {**SPEECH, "num_mel_bins": 8, "max_source_positions": 16, "decoder_start_token_id": 1},
        lambda: {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": tokens(5)},
    ),
    "Wav2Vec2Model": (
        "Wav2Vec2Config",
        {
            "vocab_size": 100, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, **SMALL,
        },
        lambda: torch.randn(2, 400),
    ),
    "ResNetForImageClassification": (
        "ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
        image,
    ),
    "ConvNextForImageClassification": (
        "ConvNextConfig", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}, image,
    ),
    "SegformerForImageClassification": (
        "SegformerConfig",
        {
            "hidden_sizes": [16, 32], "depths": [1, 1], "num_encoder_blocks": 2, "num_attention_heads": [1, 2],
            "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [4, 4],
            "decoder_hidden_size": 16,
        },
        lambda: image(64),
    ),
    "SwinForImageClassification": (
        "SwinConfig",
        {
            "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4],
            "window_size": 4,
        },
        image,
    ),
    "MobileViTForImageClassification": (
        "MobileViTConfig",
        {
            "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
            "num_attention_heads": 2,
        },
        lambda: image(64),
    ),
    "ElectraModel": ("ElectraConfig", {"vocab_size": 100, "embedding_size": 32, **SMALL}, tokens),
    "AlbertModel": ("AlbertConfig", {"vocab_size": 100, "embedding_size": 16, **SMALL}, tokens),
    "DebertaV2Model": ("DebertaV2Config", {"vocab_size": 100, **SMALL}, tokens),
    "MPNetModel": ("MPNetConfig", {"vocab_size": 100, **SMALL}, tokens),
    "GemmaForCausalLM": (
        "GemmaConfig", {"vocab_size": 100, "num_key_value_heads": 1, "head_dim": 8, **SMALL}, tokens,
    ),
    "Qwen3ForCausalLM": (
        "Qwen3Config", {"vocab_size": 100, "num_key_value_heads": 2, "head_dim": 8, **SMALL}, tokens,
    ),
    "PhiForCausalLM": ("PhiConfig", {"vocab_size": 100, **SMALL}, tokens),
    "Olmo2ForCausalLM": ("Olmo2Config", {"vocab_size": 100, **SMALL}, tokens),
    "OPTForCausalLM": (
        "OPTConfig",
        {
            "vocab_size": 100, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "word_embed_proj_dim": 32, "max_position_embeddings": 64,
        },
        tokens,
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {"vocab_size": 100, **SMALL}, tokens),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4}, tokens),
    "FalconForCausalLM": ("FalconConfig", {"vocab_size": 100, **SMALL}, tokens),
    "MBartModel": ("MBartConfig", SPEECH, lambda: {"input_ids": tokens(), "decoder_input_ids": tokens(5)}),
    "PegasusModel": ("PegasusConfig", SPEECH, lambda: {"input_ids": tokens(), "decoder_input_ids": tokens(5)}),
    "HubertModel": (
        "HubertConfig",
        {
            "vocab_size": 100, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, **SMALL,
        },
        lambda: torch.randn(2, 400),
    ),
    "ASTForAudioClassification": (
        "ASTConfig", {"max_length": 64, "num_mel_bins": 32, **SMALL}, lambda: torch.randn(2, 64, 32),
    ),
    "Dinov2Model": ("Dinov2Config", {"image_size": 32, "patch_size": 8, **SMALL}, image),
    "BeitForImageClassification": ("BeitConfig", {"image_size": 32, "patch_size": 8, **SMALL}, image),
    "YolosForObjectDetection": (
        "YolosConfig", {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5, **SMALL}, image,
    ),
    "SiglipVisionModel": ("SiglipVisionConfig", {"image_size": 32, "patch_size": 8, **SMALL}, image),
    "RegNetForImageClassification": (
        "RegNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}, image,
    ),
    "PoolFormerForImageClassification": (
        "PoolFormerConfig",
        {
            "hidden_sizes": [16, 32], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3],
            "strides": [4, 2], "padding": [2, 1],
        },
        lambda: image(64),
    ),
}  # fmt: skip
"""Class -> its configuration's class, its options, its inputs."""


DETECTION = {"weights": None, "weights_backbone": None, "num_classes": 4}
LIMITS = {
    "min_size": 96, "max_size": 128, "box_score_thresh": 0.0, "box_detections_per_img": 4,
    "rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20,
}  # fmt: skip
SINGLE = {"score_thresh": 0.0, "detections_per_img": 4, "topk_candidates": 50}
SIZED = {**SINGLE, "min_size": 96, "max_size": 128}

BLOCKS = r"(layer\d\.\d+\.conv[12]|rpn\.head\.conv.*)$"
MOBILE = r"(block\.0\.0|features\.16\.0|rpn\.head\.conv.*)$"
BOXES = r"|box_head\.(fc\d|\d\.0)$"

TORCHVISION: dict[str, tuple[dict[str, Any], str]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (LIMITS, MOBILE + BOXES),
    "fasterrcnn_resnet50_fpn": (LIMITS, BLOCKS + BOXES),
    "fasterrcnn_resnet50_fpn_v2": (LIMITS, BLOCKS + BOXES),
    "retinanet_resnet50_fpn": (SIZED, BLOCKS + r"|_head\.conv\.\d\.0$"),
    "ssd300_vgg16": (SINGLE, r"features\.(0|2|5|7|10|12|14|17|19)$|extra\.\d\.0$"),
    "ssdlite320_mobilenet_v3_large": (SINGLE, r"block\.0\.0$|extra\.\d\.0\.0$"),
    "fcos_resnet50_fpn": (SIZED, BLOCKS),
    "maskrcnn_resnet50_fpn": (LIMITS, BLOCKS + BOXES + r"|mask_head\.\d\.0$"),
    "keypointrcnn_resnet50_fpn": (
        {**LIMITS, "num_classes": 2}, BLOCKS + BOXES + r"|keypoint_head\.\d+$",
    ),
    "fcn_resnet50": ({}, BLOCKS + r"|classifier\.0$"),
    "deeplabv3_resnet50": ({}, BLOCKS + r"|convs\.\d\.[01]$|project\.0$|classifier\.1$"),
    "lraspp_mobilenet_v3_large": ({}, MOBILE),
}  # fmt: skip
"""Builder -> its options, and the names of the layers whose neurons die."""


@dataclass(frozen=True)
class Row:
    """One architecture; numbers are None where simplify refused it."""

    library: str
    name: str
    outcome: str
    class_kept: bool | None = None
    error: float | None = None
    left: float | None = None
    left_alone: int | None = None
    seconds: float | None = None
    masks: str = "independent"
    removable: float | None = None
    gone: float | None = None
    export_seconds: float | None = None
    reason: str = ""
    double: bool = False


def models(library: str) -> Iterator[tuple[str, Callable[[], tuple[nn.Module, Any]]]]:
    """Names of a library's models, each with a function that makes the model and its inputs."""
    if library == "timm":
        import timm

        def from_timm(name: str) -> tuple[nn.Module, Any]:
            model = timm.create_model(name, num_classes=10)
            return model, torch.randn(2, *model.default_cfg["input_size"])

        yield from ((name, lambda name=name: from_timm(name)) for name in TIMM)
        return
    if library == "torchvision":
        yield from ((name, lambda name=name: from_torchvision(name)) for name in TORCHVISION)
        return
    if library in LIBRARIES:
        names, make = LIBRARIES[library]
        yield from ((name, lambda name=name: make(name)) for name in names)
        return
    import transformers

    def from_transformers(name: str) -> tuple[nn.Module, Any]:
        config, options, inputs = TRANSFORMERS[name]
        return getattr(transformers, name)(getattr(transformers, config)(**options)), inputs()

    yield from ((name, lambda name=name: from_transformers(name)) for name in TRANSFORMERS)


def from_torchvision(name: str) -> tuple[nn.Module, Any]:
    """A model of detection with two images of different size, or one of segmentation."""
    from torchvision import models

    options = {**DETECTION, **TORCHVISION[name][0]}
    if hasattr(models.detection, name):
        images = [torch.rand(3, 96, 112), torch.rand(3, 85, 96)]
        return getattr(models.detection, name)(**options), (images,)
    return getattr(models.segmentation, name)(**options), torch.randn(2, 3, 65, 65)


@torch.no_grad()
def kill(model: nn.Module, names: str = "") -> None:
    """Half of the neurons die of each layer whose name a pattern matches."""
    for name, layer in model.named_modules():
        if re.search(names, name) is None:
            continue
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and len(layer.weight) > 10:
            dead = torch.rand(len(layer.weight)) < 0.5
            layer.weight[dead] = 0
            if layer.bias is not None:
                layer.bias[dead] = 0


HIDDEN = (
    "fc1", "intermediate.dense", "lin1", "wi", "gate_proj", "up_proj", "dense_h_to_4h", "c_fc", "ffn",
    "intermediate_dense", "linear1",
)  # fmt: skip
"""Ends of the names of layers whose neurons are the hidden ones of an MLP."""
HEADS = (
    "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "q", "k", "v",
    "query_proj", "key_proj", "value_proj", "query_key_value",
)  # fmt: skip
"""Ends of the names of projections whose neurons are those of heads, one after the other."""
PACKED = ("qkv", "c_attn")
"""The same of those that hold queries, keys and values, one after the other."""


@torch.no_grad()
def kill_coupled(model: nn.Module) -> None:
    """Half of the hidden neurons of MLPs die, and half of the heads."""
    for name, layer in model.named_modules():
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or isinstance(layer, nn.Embedding):
            continue
        rows = weight.T if type(layer).__name__ == "Conv1D" else weight
        last = name.rpartition(".")[2]
        parts = 3 if last in PACKED else 1 if last in HEADS or name.endswith(HIDDEN) else 0
        for part in rows.chunk(parts) if parts else ():
            part[: len(part) // 2] = 0
        for part in bias.chunk(parts) if parts and isinstance(bias, Tensor) else ():
            part[: len(part) // 2] = 0


@torch.no_grad()
def kill_channels(model: nn.Module, inputs: Inputs) -> None:
    """Half of the channels of every coupled group die, with all that writes or scales them.

    Groups over which a norm computes statistics stay: without them, the others would change. So do
    head dimensions: half of the heads die already.
    """
    groups = coupling(model, inputs, trial=False)
    generator = torch.Generator().manual_seed(0)
    tensors = dict(model.named_parameters())
    for group in groups.free:
        if group.norms or group.width < 4 or group.kind == "head_dim":
            continue
        dead = torch.randperm(group.width, generator=generator)[: group.width // 2].tolist()
        for member in group.parameters:
            if member.role != "read" and member.name in tensors:
                index = torch.tensor(member.of(dead), dtype=torch.long)
                tensors[member.name].index_fill_(member.axis, index, 0)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give random values to what a library starts with zeros or ones: it would hide errors, and what
    can be removed.
    """
    for parameter in model.parameters():
        flat = parameter.flatten()
        if parameter.is_floating_point() and len(flat) > 1 and bool((flat == flat[0]).all()):
            parameter.add_(0.2 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)


def drawn(inputs: Inputs) -> Callable[[nn.Module], object]:
    """Call a model on random inputs of the example's shapes."""

    def other(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return torch.randn_like(x, dtype=torch.float64)
        return torch.randint_like(x, 0, 100) if x.dtype is torch.long else x

    return lambda model: inputs.map(other).call(model)


def could_go(model: nn.Module, inputs: Inputs) -> int | None:
    """Parameters that could go; None where the model does not run so."""
    try:
        return probed(model, drawn(inputs), draws=1)
    except Exception:
        return None


def export_seconds(model: nn.Module, inputs: Inputs) -> float | None:
    """CPU time of one plain export; None where it fails."""
    model = copy.deepcopy(model)  # a forward may store what it computed from fake tensors
    start = cpu_seconds()
    try:
        torch.export.export(model, tuple(inputs.args), dict(inputs.kwargs), strict=False)
    except Exception:
        return None
    return cpu_seconds() - start


@torch.no_grad()
def never_varying(model: nn.Module, inputs: Inputs) -> int:
    """Parameters of layers and norms that are rows of dead neurons, or read constant inputs.

    For models that choose by values: ``probed.py`` would count what one run does not choose.
    """
    ranges: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        axis = -1 if isinstance(layer, nn.Linear) else 1
        values = args[0].movedim(axis, 0).flatten(1)
        if not values.numel():
            return
        low, high = values.amin(1), values.amax(1)
        if layer in ranges:
            before = ranges[layer]
            low, high = torch.minimum(before[0], low), torch.maximum(before[1], high)
        ranges[layer] = low, high

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, kinds)]
    # An activation that is zero on the few positions of one example need not be zero on others.
    with patch.object(F, "relu", lambda x, inplace=False: F.leaky_relu(x, 0.1)):
        inputs.map(torch.clone).call(model)
    for hook in hooks:
        hook.remove()
    return sum(_not_varying(layer, low == high) for layer, (low, high) in ranges.items())


def _not_varying(layer: nn.Module, constant: Tensor) -> int:
    if isinstance(layer, nn.BatchNorm2d):
        return 2 * int(constant.sum())
    weight: Tensor = layer.weight  # type: ignore[assignment]
    gone = torch.zeros_like(weight, dtype=torch.bool)
    if isinstance(layer, nn.ConvTranspose2d):
        gone[constant] = True
        return int(gone.sum())
    dead = (weight == 0).flatten(1).all(1)
    if len(constant) == weight.shape[1]:
        gone[:, constant] = True
    elif len(constant) == len(weight):  # depthwise
        dead = dead | constant
    gone[dead] = True
    return int(gone.sum()) + (int(dead.sum()) if layer.bias is not None else 0)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Floating-point tensors among the outputs."""
    leaves = pytree.tree_leaves(inputs.map(torch.clone).call(model))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def error(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest deviation from the batch's mean."""
    spread = (
        (expected - expected.mean(0, keepdim=True))
        .abs()
        .max()
        .clamp(min=1e-4 * expected.abs().max())
    )
    return float((expected - found).abs().max() / spread) if spread > 0 else 0.0


def row(
    library: str,
    name: str,
    make: Callable[[], tuple[nn.Module, Any]],
    masks: str = "independent",
    *,
    double: bool = False,
) -> Row:
    """Simplify one model and judge the result, in float32 or float64."""
    torch.manual_seed(0)
    model, example = make()
    model.eval()
    randomise(model)
    inputs = Inputs.of(example)
    if double:
        model.double()
        inputs = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
    if masks == "coupled":
        kill_coupled(model)
    elif masks == "channels":
        kill_channels(model, inputs)
    else:
        kill(model, TORCHVISION[name][1] if masks == "inner" else "")
    could = (never_varying if library == "torchvision" else could_go)(model, inputs)
    plain = export_seconds(model, inputs)
    try:
        lean, seconds = timed(lambda: simplify(model, inputs), clock=cpu_seconds)
    except Exception as failure:
        outcome = f"{type(failure).__name__}: {failure}".partition("\n")[0][:200]
        return Row(library, name, outcome, masks=masks, double=double)
    plan = plan_of(lean)
    assert plan is not None
    with Decisions() as decisions:
        expected = outputs(model, inputs)
    with Decisions(decisions.taken):  # rounding can turn the order of equal scores
        found = outputs(lean, inputs)
    pairs = zip(expected, found, strict=True)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, lean))
    return Row(
        library, name, "accepted", type(lean) is type(model), max(error(a, b) for a, b in pairs),
        after / before, len(plan.left_alone), seconds, masks,
        None if could is None else could / before, (before - after) / could if could else None,
        plain, plan.reason, double,
    )  # fmt: skip


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and quartiles in brackets."""
    if len(values) < 2:
        return ", ".join(f"{value:.{digits}f}" for value in values) or "none"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def summary(own: list[Row]) -> str:
    """Summary of the rows of one library and one kind of masks."""
    accepted = [row for row in own if row.outcome == "accepted"]
    kept = sum(bool(row.class_kept) for row in accepted)
    gone = [row.gone for row in accepted if row.gone is not None]
    times = [
        row.seconds / row.export_seconds for row in accepted if row.seconds and row.export_seconds
    ]
    return (
        f"{len(accepted)} of {len(own)} accepted, {kept} in their own class. Median [quartiles] of the share of "
        f"the removable parameters that went: {spread(gone)} ({len(gone)} architectures); of the time, in plain "
        f"exports: {spread(times, 1)} ({len(times)} architectures).\n"
    )


def table(rows: list[Row]) -> str:
    """The rows as Markdown, with a summary of each library and kind of masks."""
    lines = []
    for library, masks in dict.fromkeys((row.library, row.masks) for row in rows):
        own = [row for row in rows if (row.library, row.masks) == (library, masks)]
        lines += [
            f"\n## {library}, {masks} masks{', in float64' if own[0].double else ''}\n",
            summary(own),
            "| architecture | class kept | error | removable | gone | left | alone | seconds | exports |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [line(row) for row in own]
    return "\n".join(lines)


def line(r: Row) -> str:
    """One row of the table."""
    if r.outcome != "accepted":
        return f"| {r.name} | {r.outcome} | | | | | | | |"

    def number(value: float | None, digits: int = 3) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    exports = r.seconds / r.export_seconds if r.seconds and r.export_seconds else None
    kind = "yes" if r.class_kept else "graph"
    return (
        f"| {r.name} | {kind} | {r.error:.0e} | {number(r.removable)} | {number(r.gone)} | {number(r.left)} | "
        f"{r.left_alone} | {number(r.seconds, 1)} | {number(exports, 1)} |"
    )


def written(path: Path, rows: list[Row]) -> None:
    """Write the rows as JSON, and the table beside them; prose above the table's first heading stays."""
    text = json.dumps([asdict(row) for row in rows], indent=1)
    write_text(path, text)
    page = path.with_suffix(".md")
    prose = f"\n{page.read_text()}".partition("\n## ")[0] if page.exists() else ""
    page.write_text(f"{prose.rstrip()}\n{table(rows)}\n".lstrip())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=("timm", "torchvision", "transformers", *LIBRARIES), help="one library"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file of the rows; the table goes beside it as .md"
    )
    parser.add_argument(
        "--masks",
        choices=("independent", "coupled", "inner", "channels"),
        default="independent",
        help="which neurons die",
    )
    parser.add_argument("--double", action="store_true", help="models and errors in float64")
    parser.add_argument("--names", nargs="*", help="some architectures; all unless given")
    parser.add_argument("--add", action="store_true", help="keep the other rows of --out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows: list[Row] = []
    if options.add and options.out is not None and options.out.exists():
        rows = [Row(**record) for record in json.loads(options.out.read_text())]
    for library in [options.only] if options.only else ["torchvision", "transformers", "timm"]:
        for name, make in models(library):
            if options.names and name not in options.names:
                continue
            found = row(library, name, make, options.masks, double=options.double)
            key = (library, name, options.masks)
            rows = [r for r in rows if (r.library, r.name, r.masks) != key] + [found]
            print(found, flush=True)
            if options.out is not None:  # a run may be cut short
                written(options.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
