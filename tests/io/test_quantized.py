"""Linear layers in 8 and 4 bits: accurate, frozen, small, and gradients pass through them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_training import make_training
from torch import nn

import tiutils
from tiutils import models, training
from tiutils.io.quantized import FrozenLinear, quantize
from tiutils.runs import inputs

BITS = pytest.mark.parametrize("bits, error, share", [("8bit", 0.01, 0.5), ("4bit", 0.12, 0.3)])


@pytest.fixture(scope="module", autouse=True)
def library():
    pytest.importorskip("bitsandbytes")


@BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_output_and_gradient_are_near_those_of_the_whole_weights(bits, error, share, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(128, 192).to(dtype)
    packed = FrozenLinear(linear, bits)
    ours = torch.randn(2, 7, 128, dtype=dtype, requires_grad=True)
    plain = ours.detach().clone().requires_grad_(True)
    direction = torch.randn(2, 7, 192, dtype=dtype)
    output, expected = packed(ours), linear(plain)
    for result in (output, expected):
        (result * direction).sum().backward()
    assert output.dtype == expected.dtype == ours.grad.dtype == dtype
    for got, wanted in ((output, expected), (ours.grad, plain.grad)):
        assert (got - wanted).float().norm() <= error * wanted.float().norm()
    kept = packed.packed.nbytes + packed.scales.nbytes
    assert kept <= share * linear.weight.numel() * 2 * 1.1, "against two bytes for each weight"


@BITS
def test_the_gradient_is_that_of_the_unpacked_weights_exactly(bits, error, share):
    layer = FrozenLinear(nn.Linear(64, 64, bias=False), bits)
    x, gradient = torch.randn(3, 64, requires_grad=True), torch.randn(3, 64)
    layer(x).backward(gradient)
    assert torch.equal(x.grad, gradient @ layer.weight())


@BITS
def test_nothing_unpacked_waits_for_the_backward_pass(bits, error, share):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        FrozenLinear(nn.Linear(64, 64), bits)(torch.randn(3, 64, requires_grad=True))
    assert kept == []


def test_linear_layers_are_packed_and_convolutions_stay(small_model):
    whole, packed = models.load(small_model), models.load(small_model, quantize="8bit")
    kinds = {type(module) for module in packed.unet.modules()}
    assert nn.Linear not in kinds and {nn.Conv2d, FrozenLinear} <= kinds
    assert packed.dtype == torch.float32
    assert not any(p.requires_grad for p in packed.unet.parameters())
    assert nn.Linear in {type(module) for module in packed.text_encoder.modules()}
    count = sum(isinstance(module, nn.Linear) for module in whole.unet.modules())
    assert count == sum(isinstance(module, FrozenLinear) for module in packed.unet.modules())


@BITS
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_word_is_learned_through_packed_weights(
    small_model, photos, monkeypatch, bits, error, share, mixed_precision
):
    flags = {"mixed_precision": mixed_precision, "learning_rate": 0.05, "max_train_steps": 40}
    plain = make_training(small_model, photos, **flags)
    packed = make_training(small_model, photos, **flags)
    quantize(packed.models.unet, bits)
    before = packed.fixed_loss(16)
    assert before == pytest.approx(plain.fixed_loss(16), rel=0.02)
    training.train_rows(packed)
    training.train_rows(plain)
    assert packed.fixed_loss(16) < before
    assert packed.fixed_loss(16) == pytest.approx(plain.fixed_loss(16), rel=0.02)


def test_a_whole_run_with_few_bits_draws_and_resumes(small_model, photos, tmp_path):
    flags = {
        "pretrained_model_name_or_path": str(small_model), "quantize": "8bit", "train_batch_size": 2,
        "validation_prompt": "a <my-toy>", "validation_steps": 2, "num_validation_images": 1,
    }  # fmt: skip
    config = tiutils.TrainingConfig(str(photos), "<my-toy>", "toy", max_train_steps=4, **flags)
    whole = tiutils.train(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    assert (tmp_path / "whole" / "validation-steps-2.png").is_file()
    cut = dataclasses.replace(config, output_dir=str(tmp_path / "cut"), gradient_checkpointing=True)
    tiutils.train(cut, callbacks=[lambda progress: progress.step == 2])
    again = tiutils.train(dataclasses.replace(cut, resume_from_checkpoint="latest"))
    assert whole.losses[2:] == pytest.approx(again.losses, rel=1e-4)


def test_a_packed_model_cannot_be_written_whole():
    config = tiutils.TrainingConfig(
        "d", "<my-toy>", "toy", quantize="8bit", save_as_full_pipeline=True
    )
    with pytest.raises(tiutils.InputError, match="--save_as_full_pipeline cannot write a U-Net"):
        inputs.check_config(config)
