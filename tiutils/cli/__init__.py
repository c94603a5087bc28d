"""The command line, and `quiet_libraries`, which notebooks use, too."""

from __future__ import annotations

import logging
import os


def quiet_libraries() -> None:
    """Silence hints of other libraries, which are not meant for the reader."""
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    for name in ("accelerate", "bitsandbytes", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
