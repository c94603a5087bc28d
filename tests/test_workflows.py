"""The workflows call commands that exist, with pinned actions, no rights to write, and the supported Python."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = {
    name
    for rule in re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in rule.split()
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = r"[\w.-]+/[\w./-]+@(v\d+|[0-9a-f]{40})"


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request):
    return yaml.safe_load(request.param.read_text())


def steps_of(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_is_a_workflow():
    assert WORKFLOWS


def test_every_command_is_a_target_of_the_makefile(workflow):
    commands = [step["run"].split() for step in steps_of(workflow) if "run" in step]
    assert commands and all(program == "make" for program, *_ in commands)
    assert {target for _, *targets in commands for target in targets} <= TARGETS


def test_actions_are_pinned(workflow):
    for step in steps_of(workflow):
        assert "uses" not in step or re.fullmatch(PINNED, step["uses"]), step


def test_nothing_may_be_written_but_the_book(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        if "permissions" in job:  # to publish the book, and nothing else: no command runs beside it
            assert job["permissions"] == {"pages": "write", "id-token": "write"}
            assert [step["uses"].split("@")[0] for step in job["steps"]] == ["actions/deploy-pages"]


def test_the_python_is_the_oldest_supported_one(workflow):
    """The one that `constraints.txt` is made for."""
    for job in workflow["jobs"].values():
        versions = [step.get("with", {}).get("python-version") for step in job["steps"]]
        runs_commands = any("run" in step for step in job["steps"])
        found = [f">={version}" for version in versions if version]
        assert found == [PROJECT["requires-python"]] * runs_commands


def test_every_job_ends(workflow):
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())
