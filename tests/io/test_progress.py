"""Progress: lines at intervals in a log file, none when silent."""

from __future__ import annotations

import io

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
