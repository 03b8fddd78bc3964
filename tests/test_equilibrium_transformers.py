"""Cached features of transformers' models, which torch.fx cannot trace."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from snello.equilibrium import FeatureCache, Prefix, SelectiveUpdate
from snello.graph import Example, Inputs, tensors_of

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


def vit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), (torch.randn(12, 3, 16, 16),)


def bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=50,
        num_labels=5,
    )  # fmt: skip
    ids, mask = torch.randint(50, (12, 9)), torch.ones(12, 9, dtype=torch.long)
    mask[::3, 5:] = 0
    return transformers.BertForSequenceClassification(config), (ids, mask)


def bert_by_name() -> tuple[nn.Module, dict[str, object]]:
    """As a loader of datasets gives a batch: with labels, the loss in front of the outputs."""
    model, (ids, mask) = bert()
    labels = torch.arange(12) % 5
    return model, {"input_ids": ids, "attention_mask": mask, "labels": labels, "return_dict": True}


def gpt2_by_name() -> tuple[nn.Module, dict[str, object]]:
    """Its mask is the third argument, behind one that is no tensor."""
    config = transformers.GPT2Config(
        n_embd=16, n_layer=3, n_head=2, vocab_size=50, n_positions=9, pad_token_id=0, num_labels=5
    )
    ids = torch.randint(1, 50, (12, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    return transformers.GPT2ForSequenceClassification(config), inputs


def convnext() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_labels=5
    )
    return transformers.ConvNextForImageClassification(config), (torch.randn(12, 3, 32, 32),)


def whisper() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, num_mel_bins=8,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=20,
        max_source_positions=10, use_cache=False, num_labels=5, classifier_proj_size=8,
    )  # fmt: skip
    return transformers.WhisperForAudioClassification(config), (torch.randn(12, 8, 20),)


def t5() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Its first block computes a bias of positions, the same for all samples, for all blocks."""
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, vocab_size=50, dropout_rate=0.0
    )
    return transformers.T5EncoderModel(config), (torch.randint(50, (12, 9)),)


def segformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Its head reads the outputs of all stages."""
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 2, 2], depths=[1, 1, 1, 1],
        decoder_hidden_size=16, num_labels=5,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config), (torch.randn(12, 3, 64, 64),)


@pytest.mark.parametrize(
    "build", [vit, bert, bert_by_name, gpt2_by_name, convnext, whisper, t5, segformer]
)
@pytest.mark.parametrize("share", [0.45, 0.8])
def test_a_training_from_stored_features_is_the_one_that_computes_them(
    build: Callable[[], tuple[nn.Module, Example]], share: float
) -> None:
    torch.manual_seed(0)
    model, example = build()
    inputs = Inputs.of(example)
    other = copy.deepcopy(model)
    weights = []
    for network, limit in ((model, 2**30), (other, 0)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        update = SelectiveUpdate(
            network, optimizer, inputs.map(lambda x: x[:2]), Prefix(share), dispatch="fixed"
        )
        update.step()
        cache = FeatureCache(update, 12, measured=False, limit=limit)
        for step in range(6):
            network.train()
            torch.manual_seed(step)
            where = torch.arange(12)[step % 2 :: 2]
            outputs = cache(inputs.map(lambda x: x[where]), where)  # noqa: B023
            optimizer.zero_grad()
            tensors_of(outputs)[0].square().mean().backward()
            optimizer.step()
        assert cache.status.layers[0] in dict(network.named_modules())
        assert cache.status.stored == (12 if limit else 0)
        weights.append(network.state_dict())
        cache.close()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    network.eval()
    expected = tensors_of(inputs.call(network))
    assert all(map(torch.equal, expected, tensors_of(cache(inputs, range(12)))))


def test_what_is_the_same_for_all_samples_follows_weights_that_are_written_on() -> None:
    torch.manual_seed(0)
    model, (ids,) = t5()
    update = SelectiveUpdate(model, None, ids[:2], Prefix(0.7), dispatch="fixed")
    update.step()
    cache = FeatureCache(update, 12, measured=False)
    for _ in range(2):
        found = cache(ids, range(12)).last_hidden_state
        assert "encoder.block.0" in cache.status.layers
        assert torch.equal(found, model(ids).last_hidden_state)
        with torch.no_grad():
            model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    cache.close()
