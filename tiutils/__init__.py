"""Teach a frozen Stable Diffusion one new word from 3 to 5 photos (Textual Inversion, Gal et al. 2022).

    import tiutils
    result = tiutils.train(tiutils.TrainingConfig(
        train_data_dir="data/concepts/wood-toy", placeholder_token="<wood-toy>", initializer_token="toy"
    ))
    tiutils.generate(result.models, "a <wood-toy> on the beach")

Names are loaded when they are first used: `import tiutils` alone takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiutils.config import TrainingConfig
    from tiutils.errors import InputError
    from tiutils.inference import generate, load_embedding
    from tiutils.models import load
    from tiutils.runs.run import train
    from tiutils.runs.session import TrainingResult

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "TrainingConfig",
    "TrainingResult",
    "generate",
    "load",
    "load_embedding",
    "train",
]

_HOMES = {
    "InputError": "errors",
    "TrainingConfig": "config",
    "TrainingResult": "runs.session",
    "generate": "inference",
    "load": "models",
    "load_embedding": "inference",
    "train": "runs.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tiutils' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tiutils.{_HOMES[name]}"), name)
