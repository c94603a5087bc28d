"""Tensors as reproducible bytes, whereas safetensors' own writer shuffles the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from tiutils.errors import encodable


def to_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The content of a safetensors file, with its metadata sorted by key."""
    data = safetensors.numpy.save(dict(tensors))
    end = 8 + int.from_bytes(data[:8], "little")
    facts = {encodable(key): encodable(value) for key, value in sorted(metadata.items())}
    header = {"__metadata__": facts, **json.loads(data[8:end])}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # like the library, start the tensors at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]
