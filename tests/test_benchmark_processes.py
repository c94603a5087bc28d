"""What benchmarks.processes makes of what it measured: efficiencies by hand, and a table."""

import pytest

from benchmarks import processes


def run(number, share, seconds, cpu_seconds):
    taken = {"seconds": seconds, "cpu_seconds": cpu_seconds, "shared_bytes": 1032}
    return {"processes": number, "share": share, **taken}


RUNS = [
    run(1, 4, 0.5, 0.4), run(2, 2, 0.25, 0.25), run(2, 4, 1.0, 0.4),
    run(1, 4, 0.4, 0.5), run(2, 2, 0.5, 0.25), run(2, 4, 0.8, 0.5),
]  # fmt: skip


def test_efficiency_by_hand():
    rows = processes.summarize(RUNS)
    assert [(row["processes"], row["share"]) for row in rows] == [(1, 4), (2, 2), (2, 4)]
    # half of the work in 0.25 of 0.4 s: 0.4 / (2 × 0.25); the same work in 0.8 of 0.4 s
    assert [row["seconds_efficiency"] for row in rows] == pytest.approx([1, 0.8, 0.5])
    assert [row["cpu_seconds_efficiency"] for row in rows] == pytest.approx([1, 0.8, 1])


def test_the_table_has_a_line_for_each_cut():
    record = {"machine": "2 cores", "steps": 30, "summary": processes.summarize(RUNS)}
    lines = processes.as_markdown(record).splitlines()
    assert "| 2 | 2 | 0.250 | 80% | 0.25 | 80% |" in lines
    assert "medians of 25 steps" in lines[-1] and "1,032 bytes" in lines[-1]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_the_readme_has_room_for_the_table():
    page = (processes.ROOT / "benchmarks" / "README.md").read_text()
    assert page.count("<!-- processes:begin -->") == page.count("<!-- processes:end -->") == 1
