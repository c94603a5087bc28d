"""The set-up installs what is missing and keeps what is there."""

import subprocess
import sys

import pytest

from tiutils.course import setup


@pytest.fixture
def asked(monkeypatch):
    """The commands that would have been run."""
    commands = []
    monkeypatch.setattr(setup.subprocess, "run", lambda command, check: commands.append(command))
    return commands


def test_where_all_is_there_nothing_is_installed(asked, capsys):
    setup.install(("numpy", "pytest"))
    assert not asked and not capsys.readouterr().out


def test_only_what_is_missing_is_installed_and_the_rest_is_pinned(asked, capsys):
    setup.install(("numpy", "no_such_package", "pytest"))
    ((*command, first, second, third, quiet),) = asked
    assert command == [sys.executable, "-m", "pip", "install"] and quiet == "--quiet"
    assert first.startswith("numpy==") and second.startswith("pytest==")
    assert third == "no_such_package"
    assert capsys.readouterr().out == "installing no_such_package …\n"


def test_it_says_what_there_is_to_work_with(asked, capsys):
    setup.start()
    topics = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert topics == ["torch", "diffusers", "transformers", "device", "memory"]


def test_it_can_be_imported_before_anything_is_installed():
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'PIL', 'matplotlib'): sys.modules[name] = None\n"
        "from tiutils.course import setup; print(setup.missing_of(['json', 'no_such_package']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['no_such_package']\n"
