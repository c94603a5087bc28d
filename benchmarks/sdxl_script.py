"""One small Stable Diffusion XL, taught by `tiutils train` and by diffusers' `textual_inversion_sdxl.py`, unchanged.

    python -m benchmarks.sdxl_script --diffusers CHECKOUT

The model has random weights in SDXL's layout, so nothing is learned that could be seen in a picture. Compared are the
losses of all steps, as means with their standard errors, because the two programs draw other noise, and what each
writes. Writes benchmarks/sdxl_script.json and the table in docs/engines.md. A few CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from benchmarks import programs
from benchmarks.quality import write_between_markers

ROOT = programs.ROOT
RECORD = ROOT / "benchmarks" / "sdxl_script.json"
SIDE, STEPS = 32, 200


def main() -> int:
    """Train with both, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sdxl_script")
    parser.add_argument("--diffusers", required=True, help="a checkout")
    checkout = parser.parse_args().diffusers
    with tempfile.TemporaryDirectory() as name:
        model, photos = make_material(Path(name))
        found = {
            who: train(start, model, photos, Path(name) / who)
            for who, start in {
                "tiutils": [sys.executable, "-m", "tiutils", "train"],
                "diffusers": [sys.executable, "-m", "benchmarks.diffusers_script", checkout, "--sdxl"],
            }.items()
        }  # fmt: skip
    record = {"machine": programs.machine(), "steps": STEPS, "programs": found}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write_between_markers(ROOT / "docs" / "engines.md", as_markdown(record), "sdxl")
    print(as_markdown(record))
    return 0


def make_material(folder: Path) -> tuple[Path, Path]:
    """The model's folder and that of five photos, the tests' own."""
    made_by_tests = runpy.run_path(str(ROOT / "tests" / "small_model.py"))
    model, photos = made_by_tests["save_small_sdxl"](folder / "model"), folder / "photos"
    photos.mkdir()
    for index in range(5):
        made_by_tests["draw_photo"](index).save(photos / f"{index}.png")
    return model, photos


def train(start: list[str], model: Path, photos: Path, out: Path) -> dict[str, Any]:
    """Run one program; its losses and the tensors in its files."""
    flags = {
        "pretrained_model_name_or_path": model, "train_data_dir": photos, "placeholder_token": "<my-toy>",
        "initializer_token": "toy", "resolution": SIDE, "train_batch_size": 4, "learning_rate": 5e-3,
        "lr_scheduler": "constant", "lr_warmup_steps": 0, "seed": 0, "max_train_steps": STEPS,
        "mixed_precision": "no", "save_steps": 10**6, "output_dir": out,
    }  # fmt: skip
    if "tiutils" in start:
        flags |= {"norm_control": 0.0, "timestep_sampling": "uniform"}  # as the script does it
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "LOSSES": str(out.with_suffix(".losses")),
    }  # fmt: skip
    done = subprocess.run([*start, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    if "tiutils" in start:
        losses = json.loads((out / "run.json").read_text())["losses"]
    else:
        losses = [float(line) for line in out.with_suffix(".losses").read_text().split()]
    return {"losses": losses, "files": files_in(out)}


def files_in(folder: Path) -> dict[str, dict[str, list[int]]]:
    """The shapes of the tensors in each learned file."""
    shapes = {}
    for path in sorted(folder.glob("learned_embeds*.safetensors")):
        with safe_open(path, framework="np") as content:
            shapes[path.name] = {
                name: list(content.get_slice(name).get_shape())
                for name in content.keys()  # noqa: SIM118
            }
    return shapes


def as_markdown(record: dict[str, Any]) -> str:
    """A row a program: the mean loss of the first and the second half, and what is in its files."""
    half = record["steps"] // 2
    lines = [
        f"| program | mean loss, steps 1 to {half} | steps {half + 1} to {2 * half} | files |",
        "|---|--:|--:|---|",
    ]
    for who, found in record["programs"].items():
        losses = np.array(found["losses"])
        cells = [
            f"{part.mean():.3f} ± {part.std(ddof=1) / np.sqrt(len(part)):.3f}"
            for part in (losses[:half], losses[half:])
        ]
        files = "; ".join(
            f"`{name}`: " + ", ".join(f"`{key}` {tuple(shape)}" for key, shape in content.items())
            for name, content in found["files"].items()
        )
        lines.append(f"| {who} | {cells[0]} | {cells[1]} | {files} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
