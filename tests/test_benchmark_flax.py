"""The Flax benchmark's arithmetic, its commands and its models, without training anything."""

import pytest

from benchmarks import flax as benchmark

STEPS = (10, 30)


def runs_of(who, short, long, cold=None):
    """Two rounds, the second disturbed."""
    found = []
    for disturbance in (0.0, 5.0):
        for steps, seconds in zip(STEPS, (short, long), strict=True):
            found.append(
                {
                    "who": who,
                    "steps": steps,
                    "cache": "warm",
                    "seconds": seconds + disturbance,
                    "cpu_seconds": seconds / 2,
                }
            )
    if cold is not None:
        found.append({**found[0], "cache": "cold", "seconds": cold, "cpu_seconds": cold / 2})
    return found


RUNS = [*runs_of("a", 10, 12, cold=40), *runs_of("c", 8, 11), *runs_of("d", 9, 13, cold=69)]
RECORD = {"summary": benchmark.summarize(RUNS, STEPS), "compared": "seconds", "batch": 4}


def test_summary_by_hand():
    a, c, d = (RECORD["summary"][key] for key in "acd")
    assert a["seconds"] == pytest.approx(0.1) and a["cpu_seconds"] == pytest.approx(0.05)
    assert a["compile_seconds"] == 30 and d["compile_cpu_seconds"] == 30
    assert "compile_seconds" not in c


def test_goals():
    assert benchmark.ratio(RECORD, "d") == pytest.approx(2.0)
    assert benchmark.missed(RECORD) == ["c"]  # 1.5 times, where 1.7 are asked for
    only_a = {**RECORD, "summary": {"a": RECORD["summary"]["a"]}}
    assert benchmark.missed(only_a) == []


def test_table():
    lines = benchmark.as_markdown(RECORD).splitlines()
    assert lines[2] == "| (a) tiutils, JAX | 0.100 | 40.0 |  | 30 seconds |"
    assert lines[3] == "| (c) diffusers' script, PyTorch | 0.150 | 26.7 | 1.50 × |  |"


def test_commands(tmp_path):
    options = benchmark.parse(["--diffusers", "new", "--batch", "2"])
    a, b, c = (benchmark.command(key, options, tmp_path, 7) for key in "abc")
    assert benchmark.command("d", options, tmp_path, 7) is None  # nobody said where it is
    plain = ["train", "--norm_control=0.0", "--timestep_sampling=uniform"]  # as in (c) and (d)
    assert a[3:8] == [*plain, "--framework", "flax"]
    assert b[3:6] == plain and "--framework" not in b
    assert c[1:4] == ["-m", "benchmarks.diffusers_script", "new"]
    for words in (a, b, c):
        assert words[words.index("--max_train_steps") + 1] == "7"
        assert words[words.index("--train_batch_size") + 1] == "2"
        assert words[words.index("--resolution") + 1] == "64"
    options = benchmark.parse(["--old_env", "python-of-old", "--old_diffusers", "old"])
    d = benchmark.command("d", options, tmp_path, 7)
    assert d[:4] == ["python-of-old", "-m", "benchmarks.flax_script", "old"]
    assert "--checkpointing_steps" not in d  # it knows none


def test_the_command_is_recorded_without_folders():
    said = ["--diffusers", "/home/me/diffusers", "--old_env", "/opt/python", "--threads", "1"]
    assert benchmark.without_paths(said) == [
        "--diffusers", "CHECKOUT", "--old_env", "PYTHON", "--threads", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("name", benchmark.ONE_ENCODER)
def test_the_old_flax_script_can_take_the_shapes(name):
    """It normalizes in 32 groups, whatever the configuration says."""
    unet = benchmark.SHAPES[name]["unet"]
    assert all(width % 32 == 0 for width in unet["block_out_channels"])
    assert unet["cross_attention_dim"] == benchmark.SHAPES[name]["text"]["hidden_size"]
    vae = benchmark.SHAPES[name]["vae"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    assert unet["sample_size"] * factor == vae["sample_size"]
