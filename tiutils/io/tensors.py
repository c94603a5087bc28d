"""Tensors as bytes that are the same whenever the tensors are: the safetensors library shuffles its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from tiutils.errors import encodable


def to_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose metadata stands in the order of its keys."""
    data = safetensors.numpy.save(dict(tensors))
    end = 8 + int.from_bytes(data[:8], "little")
    facts = {encodable(key): encodable(value) for key, value in sorted(metadata.items())}
    header = {"__metadata__": facts, **json.loads(data[8:end])}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (
        -len(text) % 8
    )  # the tensors begin at a multiple of eight, as the library has it
    return len(text).to_bytes(8, "little") + text + data[end:]
