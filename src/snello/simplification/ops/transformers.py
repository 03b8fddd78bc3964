"""Layers of Hugging Face transformers, by name, because the library need not be installed."""

from .layers import register_linear

# GPT-2's linear layer, with the weight of the original TensorFlow model.
register_linear("transformers.pytorch_utils.Conv1D")
