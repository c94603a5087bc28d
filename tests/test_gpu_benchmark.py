"""The benchmark for GPUs, rehearsed on a CPU: its stages, its guards, its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import gpu_tables
from benchmarks.quality import ROOT

STAGES = ["correctness", "speed", "captured", "memory", "jax", "whole", "sdxl", "compile"]
GUARDS = """
import sys, time
from benchmarks import gpu

def broken(notes):
    notes.measure("before", lambda: 1)
    notes.measure("of two", lambda: 1 / 0)
    raise ValueError("broken on purpose")

def endless(notes):
    notes.measure("before", lambda: 2)
    time.sleep(600)

gpu.STAGES.clear()
gpu.STAGES["broken"] = gpu.Stage(broken, 50, least=0)
gpu.STAGES["endless"] = gpu.Stage(endless, 5, least=0)
gpu.STAGES["costly"] = gpu.Stage(broken, 1, least=1000)
gpu.STAGES["sound"] = gpu.Stage(lambda notes: notes.measure("it", lambda: 3), 100, least=0)
sys.exit(gpu.main(["--thin", "--out", sys.argv[1], "--minutes", "0.4"]))
"""


def run(*words):
    told = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, *map(str, words)]
    return subprocess.run(
        words, cwd=ROOT, env=os.environ | told, capture_output=True, text=True, timeout=1500
    )


@pytest.mark.release
@pytest.mark.slow
def test_rehearsal(tmp_path):
    done = run("-m", "benchmarks.gpu", "--thin", "--minutes", 20, "--out", tmp_path)
    report = json.loads((tmp_path / "gpu.json").read_text())
    states = {name: found["state"] for name, found in report["stages"].items()}
    assert states == dict.fromkeys(STAGES, "done"), done.stderr[-3000:]
    assert done.returncode == 0
    assert report["thin"] and "rehearsal" in report["card"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.json" for n in [*STAGES, "gpu"]}
    for name, found in report["stages"].items():
        assert json.loads((tmp_path / f"{name}.json").read_text()) == found
        reasons = [one for one in found.values() if isinstance(one, dict) and "skipped" in one]
        assert all("need" in one["skipped"] or "rehearsal" in one["skipped"] for one in reasons)
    stages = report["stages"]
    assert stages["speed"]["batch 1"]["ours"]["ms"] > 0
    assert stages["speed"]["row optimizer"]["directional, 1 × 768"]["us"] > 0
    exact = stages["correctness"]["deterministic, no"]
    assert exact["repeated_bit_for_bit"] and exact["resumed_bit_for_bit"]
    for whole in ("ours, --capture", "ours, but for the optimizer, captured", "ours, captured"):
        found = stages["captured"][f"capturing {whole}, batch 1"]
        assert found["max_relative"] < 1e-4
    assert stages["jax"]["losses"]["within"]
    assert stages["sdxl"]["no, checkpointing on, batch 1"]["loss"] > 0
    page = gpu_tables.everything(report)
    assert "| ours, captured | " in page and gpu_tables.NONE in page
    assert page in done.stdout


@pytest.mark.release
@pytest.mark.slow
def test_what_fails_or_has_no_time_is_named_and_the_rest_goes_on(tmp_path):
    done = run("-c", GUARDS, tmp_path)
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert done.returncode == 1
    assert stages["broken"]["state"] == "failed: ValueError: broken on purpose"
    assert stages["broken"]["before"] == 1
    assert stages["broken"]["of two"] == {"error": "ZeroDivisionError: division by zero"}
    assert stages["endless"]["state"] == "ended: its time was over"
    assert stages["endless"]["before"] == 2
    assert stages["costly"]["state"].startswith("skipped: ")
    assert (stages["sound"]["state"], stages["sound"]["it"]) == ("done", 3)


def test_tables_say_what_was_not_measured(tmp_path, monkeypatch):
    report = {
        "date": "2026-01-01", "card": "A card", "versions": {"torch": "1", "jax": None},
        "stages": {
            "speed": {
                "chip": {"error": "none"},
                "batch 1": {"ours": {"ms": 50.0}, "diffusers' script": {"ms": 100.0}},
            },
            "correctness": {
                "float32": {"losses": [0.1, 0.2]},
                "fp16": {"losses": [0.1005, 0.2]},
                "bf16": {"losses": [0.1, 0.21]},
                "against float32": {"skipped": "-3 seconds were left, about 0 are needed"},
            },
            "memory": {
                "fp16, checkpointing off, batch 1": {"max_reserved": 3 * 2**30, "nvidia_smi": None},
                "fit 4 GiB": {"plan": "a plan", "max_reserved": 2**31, "out_of_memory": 0},
                "fit 3 GiB": {"error": "OutOfMemoryError: 1"}, "fit 2.4 GiB": {"refused": "no"},
            },
            "sdxl": {"fp16, checkpointing on, batch 1": {"max_reserved": 9 * 2**30, "ms": 700.0}},
            "captured": {"state": "skipped: 3 seconds were left for it"},
        },
    }  # fmt: skip
    page = gpu_tables.everything(report)
    none = gpu_tables.NONE
    assert page.startswith("Measured 2026-01-01, A card; random weights in Stable Diffusion 1.5's")
    nothing = f" | {none}" * 5
    assert f"| ours | 50.0 | 50.0 | 0.50{nothing} |" in page
    assert f"| fp16 | 0.25 % | 0.5 % | 1 % | yes | {none} |" in page, "derived from the losses"
    assert f"| bf16 | 2.5 % | 5 % | 3 % | no | {none} |" in page
    assert "Beyond the bound, which was set beforehand: bf16 in 1 of 2 steps." in page
    assert "not finished: captured: skipped: 3 seconds were left for it." in page
    assert f"{none} {none}" not in page.replace("|", ""), "no sentence of nothing but that"
    assert f"| fp16 | off | 1 | {none} | {none} | 3.00 GiB | {none} | {none} |" in page
    assert "| 4 GiB | a plan | 2.00 GiB | 0 |" in page and f"| 2.4 GiB | refused | {none}" in page
    assert f"| fp16 | on | 1 | {none} | {none} | 9.00 GiB | 700.0 |" in page
    assert "| 3 GiB | failed: OutOfMemoryError: 1 |" in page
    for folder, name in (("benchmarks", "gpu"), ("docs", "gpu-memory")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / ("README.md" if folder == "benchmarks" else "memory.md")
        path.write_text(f"before <!-- {name}:begin --><!-- {name}:end --> after")
    monkeypatch.setattr(gpu_tables, "ROOT", tmp_path)
    gpu_tables.write(report)
    assert page in (tmp_path / "benchmarks" / "README.md").read_text()
    assert "3.00 GiB" in (tmp_path / "docs" / "memory.md").read_text()


def test_the_pages_have_the_figures_that_are_kept():
    report = json.loads((ROOT / "benchmarks" / "gpu-h200.json").read_text())
    assert gpu_tables.everything(report) in (ROOT / "benchmarks" / "README.md").read_text()
    assert gpu_tables.memory(report) in (ROOT / "docs" / "memory.md").read_text()
