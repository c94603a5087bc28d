"""`tiutils doctor`: what it says when something is missing, old, broken, full or out of reach."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tiutils.cli import doctor
from tiutils.cli.doctor import Finding
from tiutils.io import hub, pretrained


@pytest.fixture
def bundled(tmp_path, monkeypatch) -> Path:
    """A stand-in for the bundled model's folder."""
    folder = tmp_path / "tiny-sd"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    monkeypatch.setattr(pretrained, "BUNDLED_MODEL", folder)
    monkeypatch.setattr(hub, "answers", lambda path: False)
    return folder


def test_a_sound_machine_can_train(bundled, capsys):
    findings = {finding.topic: finding for finding in doctor.diagnose()}
    assert {"python", "torch", "diffusers", "transformers", "accelerate", "safetensors"} <= set(
        findings
    )
    assert {"bitsandbytes", "xformers", "device", "disk", "hub", "model"} <= set(findings)
    assert findings["torch"].found.startswith("2.")
    assert str(bundled) in findings["bundled model"].found
    assert not [finding for finding in findings.values() if finding.fatal]
    assert doctor.main() == 0
    assert capsys.readouterr().out.endswith("Training can run.\n")


def test_without_any_model_it_says_so_and_exits_1(bundled, capsys):
    shutil.rmtree(bundled)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "must change: bundled model: clone the whole repository" in out
    assert out.endswith("Training cannot run yet.\n")


def test_the_hub_makes_up_for_a_missing_bundled_model(bundled, monkeypatch):
    shutil.rmtree(bundled)
    monkeypatch.setattr(hub, "answers", lambda path: True)
    monkeypatch.setattr(pretrained, "default_model", lambda accelerated: pretrained.DEFAULT_MODEL)
    findings = {finding.topic: finding for finding in doctor.model_and_hub()}
    assert findings["hub"] == Finding("hub", "reached")
    assert pretrained.DEFAULT_MODEL in findings["model"].found
    assert doctor.can_train(list(findings.values()))


@pytest.mark.parametrize(("value", "words"), [("1", "switched off"), ("0", "not reached")])
def test_offline_by_choice_and_by_accident(bundled, monkeypatch, value, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    finding = next(doctor.model_and_hub())
    assert finding.topic == "hub" and words in finding.found


def test_a_hanging_network_does_not_hang_the_doctor(bundled, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda path: time.sleep(5))
    monkeypatch.setattr(doctor, "SECONDS_FOR_THE_HUB", 0.05)
    start = time.monotonic()
    assert doctor.can_train(list(doctor.model_and_hub()))
    assert time.monotonic() - start < 2


def test_the_doctor_loads_no_model_classes(tmp_path):
    """They take half of its time, and no finding needs them."""
    code = (
        "import sys; from tiutils.cli import doctor; doctor.within = lambda *_: None; doctor.diagnose(); "
        "sys.exit('tiutils.models' in sys.modules or 'diffusers.models.unets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_within_gives_the_answer_or_none():
    assert doctor.within(5, lambda: 3) == 3
    assert doctor.within(5, lambda: 1 / 0) is None


@pytest.mark.parametrize(
    ("requirement", "found", "fatal"),
    [
        ("torch>=1.0", "2.13.0+cpu", False),
        ("torch>=2.13", "2.13.0+cpu", False),
        ("torch", "2.13.0+cpu", False),
        ("torch>=2.13.1", "2.13.0+cpu; >=2.13.1 is needed", True),
        ("torch>=10", "2.13.0+cpu; >=10 is needed", True),
    ],
)
def test_versions_are_compared_as_numbers(monkeypatch, requirement, found, fatal):
    monkeypatch.setattr(doctor, "installed_version", lambda name: "2.13.0+cpu")
    finding = doctor.package_version(requirement)
    assert (finding.found, finding.fatal) == (found, fatal)
    assert bool(finding.change) == fatal


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    finding = doctor.package_version("diffusers>=0.39")
    assert finding == Finding(
        "diffusers", "not installed", "run: pip install 'diffusers>=0.39'", fatal=True
    )


def test_missing_optional_packages_are_no_problem(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    optional = [f for f in doctor.package_versions() if f.topic in doctor.OPTIONAL]
    assert len(optional) == 2 and doctor.can_train(optional)


def test_a_package_that_cannot_be_imported_ends_the_examination(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("raise ImportError('needs a newer hub\\nand more')\n")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.import_all("json", "broken_one")
    assert finding is not None and finding.fatal
    assert finding.found == "cannot be imported: needs a newer hub"
    monkeypatch.setattr(doctor, "import_all", lambda *names: finding)
    findings = doctor.diagnose()
    assert finding in findings and not doctor.can_train(findings)


@pytest.mark.parametrize(
    ("gib", "problem", "fatal"),
    [(100, False, False), (2, True, False), (0.5, True, False), (0.01, True, True)],
)
def test_disk_space(monkeypatch, tmp_path, gib, problem, fatal):
    usage = namedtuple("usage", "total used free")(2**40, 0, int(gib * 2**30))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    finding = doctor.disk_space(tmp_path)
    assert (bool(finding.change), finding.fatal) == (problem, fatal)


def test_a_gpu_is_named_with_its_memory(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * 2**30, 15 * 2**30))
    device = next(doctor.device_and_memory())
    assert device.found == "Tesla T4, 6.0 of 15.0 GiB free"
    assert device.change.startswith("for SD 1.5 add --fit: without it") and not device.fatal
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (14 * 2**30, 15 * 2**30))
    assert next(doctor.device_and_memory()).change == ""


def test_a_gpu_that_pytorch_does_not_see(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "CUDA build" in next(doctor.device_and_memory()).change
