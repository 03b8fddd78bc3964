"""Models of five more libraries for ``coverage.py``: small configurations, with example inputs.

    pip install segmentation-models-pytorch monai diffusers open_clip_torch ultralytics

Ultralytics is AGPL: it is measured here, and no part of snello depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, Any]


def _image(side: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, side, side)


def _volume(side: int) -> torch.Tensor:
    return torch.randn(2, 1, side, side, side)


SEGMENTATION = {
    "Unet": "resnet18", "UnetPlusPlus": "resnet18", "MAnet": "resnet18", "Linknet": "resnet18",
    "FPN": "mobilenet_v2", "PSPNet": "resnet18", "DeepLabV3": "resnet18",
    "DeepLabV3Plus": "mobilenet_v2", "PAN": "resnet18", "UPerNet": "resnet18",
    "Segformer": "mit_b0", "DPT": "tu-vit_tiny_patch16_224",
}  # fmt: skip
"""Architecture of segmentation-models-pytorch -> its encoder."""


def _segmentation(name: str) -> Made:
    import segmentation_models_pytorch as smp

    options = {"dynamic_img_size": True} if name == "DPT" else {}
    model = getattr(smp, name)(SEGMENTATION[name], encoder_weights=None, classes=3, **options)
    return model, _image(128 if name == "PAN" else 64)


MONAI: dict[str, tuple[dict[str, Any], Callable[[], torch.Tensor]]] = {
    "UNet": (
        {
            "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": (16, 32, 64),
            "strides": (2, 2), "num_res_units": 2,
        },
        lambda: _volume(16),
    ),
    "DenseNet121": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, lambda: _image(64, 1),
    ),
    "SegResNet": (
        {"spatial_dims": 3, "init_filters": 16, "in_channels": 1, "out_channels": 2},
        lambda: _volume(16),
    ),
    "UNETR": (
        {
            "in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 16, "hidden_size": 96,
            "mlp_dim": 192, "num_heads": 4,
        },
        lambda: _volume(32),
    ),
    "SwinUNETR": (
        {"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 2},
        lambda: _image(64, 1),
    ),
    "AttentionUnet": (
        {
            "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (16, 32, 64),
            "strides": (2, 2),
        },
        lambda: _image(64, 1),
    ),
    "BasicUNet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "features": (16, 16, 32, 32, 64, 16)},
        lambda: _image(64, 1),
    ),
    "DynUNet": (
        {
            "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2], "upsample_kernel_size": [2, 2],
        },
        lambda: _image(64, 1),
    ),
    "VNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, lambda: _image(64, 1)),
}  # fmt: skip
"""Architecture of MONAI -> its options, its input."""


def _monai(name: str) -> Made:
    from monai.networks import nets

    options, example = MONAI[name]
    return getattr(nets, name)(**options), example()


_BLOCKS = {"block_out_channels": (32, 64), "norm_num_groups": 8}

DIFFUSERS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "UNet2DModel": (
        {
            **_BLOCKS, "sample_size": 16, "layers_per_block": 1, "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        lambda: (_image(16), torch.tensor([3, 5])),
    ),
    "UNet2DConditionModel": (
        {
            **_BLOCKS, "sample_size": 16, "layers_per_block": 1, "cross_attention_dim": 24,
            "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        lambda: (_image(16, 4), torch.tensor([3, 5]), torch.randn(2, 7, 24)),
    ),
    "AutoencoderKL": (
        {
            **_BLOCKS, "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
            "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        },
        lambda: _image(32),
    ),
    "DiTTransformer2DModel": (
        {
            "num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2,
            "sample_size": 8, "norm_num_groups": 4,
        },
        lambda: {
            "hidden_states": _image(8, 4), "timestep": torch.tensor([3, 5]),
            "class_labels": torch.tensor([1, 2]),
        },
    ),
}  # fmt: skip
"""Class of diffusers -> its options, its inputs."""


def _diffusers(name: str) -> Made:
    import diffusers

    options, example = DIFFUSERS[name]
    return getattr(diffusers, name)(**options), example()


_VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "convnext": {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": ""},
}
_TEXT = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 4, "layers": 2}
OPEN_CLIP = ("visual vit", "visual resnet", "visual convnext", "text", "both towers")


def _open_clip(name: str) -> Made:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    tower, _, kind = name.partition(" ")
    text, vision = (
        CLIPTextCfg(**_TEXT),
        CLIPVisionCfg(**_VISION[kind if kind in _VISION else "vit"]),
    )
    tokens = torch.randint(1, 100, (2, 16))
    if tower == "visual":
        model = CLIP(32, vision, text)
        return model.visual, _image(_VISION[kind]["image_size"])
    if tower == "text":
        return CustomTextCLIP(32, vision, text).text, tokens
    return CLIP(32, vision, text), (_image(32), tokens)


YOLO = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolov8n-seg")


def _ultralytics(name: str) -> Made:
    import ultralytics

    return ultralytics.YOLO(f"{name}.yaml", verbose=False).model, _image(64)


LIBRARIES: dict[str, tuple[tuple[str, ...], Callable[[str], Made]]] = {
    "segmentation-models-pytorch": (tuple(SEGMENTATION), _segmentation),
    "monai": (tuple(MONAI), _monai),
    "diffusers": (tuple(DIFFUSERS), _diffusers),
    "open_clip": (OPEN_CLIP, _open_clip),
    "ultralytics": (YOLO, _ultralytics),
}
"""Name of a library -> names of its models, and the function that makes one."""
