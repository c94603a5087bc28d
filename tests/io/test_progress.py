"""Progress: lines at intervals in a log file, none when silent."""

from __future__ import annotations

import io

import pytest

from tiutils.io import progress


def shown(monkeypatch, *, silent=False, steps=500):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with progress.silence(silent), progress.bar(steps, "learning", "step") as bar:
        for _ in range(steps):
            bar.update()
    return log.getvalue()


def test_a_log_file_has_few_whole_lines(monkeypatch):
    text = shown(monkeypatch)
    assert "\r" not in text and text.endswith("\n")
    assert 1 <= text.count("\n") <= 3 and "500/500" in text.splitlines()[-1]


def test_quiet(monkeypatch):
    assert shown(monkeypatch, silent=True) == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_goes_over_the_network_is_said_and_the_clients_bars_fill_no_log(
    is_terminal, monkeypatch
):
    from huggingface_hub import constants, utils

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    stderr = io.StringIO()
    stderr.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stderr", stderr)
    with progress.over_network("asking the Hub for a/b"):
        assert utils.are_progress_bars_disabled() == (not is_terminal)
    with progress.silence(), progress.over_network("asking the Hub for c/d"):
        assert utils.are_progress_bars_disabled()
    assert not utils.are_progress_bars_disabled()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with progress.over_network("asking the Hub for e/f"):
        pass
    assert stderr.getvalue() == "asking the Hub for a/b ...\n"
