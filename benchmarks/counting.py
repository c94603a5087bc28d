"""Count the bytes of a training step without a device: every tensor is created, none is filled.

PyTorch's fake tensors have shapes and dtypes but no data, so a step of Stable Diffusion 1.5 takes seconds, and no
memory, on any machine. What is counted is what PyTorch's allocator would be asked for, in blocks of 512 bytes as on a
GPU. Memory outside the allocator is not seen: cuDNN's workspaces and the device's context. Attention is
`scaled_dot_product_attention`, counted in its fused form, which a GPU also uses for these shapes.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.flax import random_parts
from tiutils import diffusion
from tiutils.batches import BatchPlan
from tiutils.io.quantized import quantize
from tiutils.models import Models
from tiutils.token_embedding import TokenEmbedding
from tiutils.training import recompute_activations

BLOCK = 512  # bytes, the block size of PyTorch's allocator on a GPU
PRECISIONS = {"no": torch.float32, "half": torch.float16}


class Counter(TorchDispatchMode):
    """A context manager that counts the bytes of tensors.

    Attributes:
        live: bytes of tensors that were created inside and still exist.
        peak: the largest value of `live` so far.
        moved: bytes of all operations' inputs and outputs, except views: the memory traffic.
    """

    def __init__(self, there: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = self.moved = 0
        self.known: Any = weakref.WeakKeyDictionary()
        for tensor in there:
            self.known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, made = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in ((args, kwargs), result)
        )
        for tensor in made:
            self._see(tensor.untyped_storage())
        if not func.is_view:
            self.moved += sum(tensor.nbytes for tensor in (*given, *made))
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known[storage] = size = -(-storage.nbytes() // BLOCK) * BLOCK
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


def tensors(*modules: nn.Module) -> list[Tensor]:
    """All parameters and buffers."""
    return list(itertools.chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules))


def ready(parts: Models, checkpointing: bool, bits: str | None) -> Models:
    """Frozen parts with a new row in the embedding table, and the switches set."""
    for part in (*parts.text_encoders, parts.vae, parts.unet):
        part.requires_grad_(False).eval()
    row, last = nn.Parameter(torch.zeros(1, parts.hidden_size, device=parts.device)), 0
    for encoder, tokenizer in zip(parts.text_encoders, parts.tokenizers, strict=True):
        table, first = encoder.get_input_embeddings(), last
        last += table.embedding_dim
        columns = slice(first, last)
        embedding = TokenEmbedding(table, row, table.num_embeddings, tokenizer, columns)
        encoder.set_input_embeddings(embedding)
    if bits is not None:
        quantize(parts.unet, bits)
    if checkpointing:
        recompute_activations(parts)
    return parts


def dataset(parts: Models, batch: int) -> diffusion.LatentDataset:
    """A dataset with the new word in each prompt; its values do not matter."""
    shape, device = parts.latent_shape(), parts.device
    word = parts.text_encoder.get_input_embeddings().first_id
    plan = BatchPlan(0, batch, (3,) * 5, 3, shape, 1000)
    prompts = torch.full((3, 77 * len(parts.text_encoders)), word, device=device)
    mean, std = torch.zeros(15, *shape, device=device), torch.ones(15, *shape, device=device)
    return diffusion.LatentDataset(mean, std, prompts, plan)


def step(parts: Models, learned: diffusion.LatentDataset, half: torch.dtype | None) -> Tensor:
    """The forward and backward pass of step 0, as in a training run; returns the mean loss."""
    with torch.autocast(parts.device.type, half, enabled=half is not None):
        losses = diffusion.losses_at(parts, learned, 0, 0, learned.plan.batch_size)
    losses.mean().backward()
    return losses.detach().mean()


def count_step(
    model: str, precision: str, checkpointing: bool, bits: str | None, batch: int
) -> dict[str, int]:
    """One forward and backward pass: bytes of `weights`, peak bytes of `activations`, and bytes moved (`time`)."""
    dtype = PRECISIONS[precision]
    with FakeTensorMode(allow_non_fake_inputs=True):
        parts = ready(random_parts(model, dtype, 49408), checkpointing, bits)
        held = tensors(parts.unet, *parts.text_encoders)
        learned = dataset(parts, batch)
        with Counter(held) as counter:
            step(parts, learned, None if precision == "no" else dtype)
    weights = sum(tensor.nbytes for tensor in held)
    return {"weights": weights, "activations": counter.peak, "time": counter.moved}


def count_encoding(model: str, precision: str) -> int:
    """Bytes on the device while the VAE encodes one photo: text encoder, VAE, and the VAE's activations."""
    dtype = PRECISIONS[precision]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        parts = ready(random_parts(model, dtype, 49408), False, None)
        side, held = parts.resolution, tensors(parts.vae, *parts.text_encoders)
        with Counter(held) as counter:
            moments = parts.vae.encode(torch.zeros(1, 3, side, side, dtype=dtype)).latent_dist
            del moments
    return sum(tensor.nbytes for tensor in held) + counter.peak
