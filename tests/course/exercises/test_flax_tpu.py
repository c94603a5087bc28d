"""06_flax_tpu: what it builds by hand is what tiutils.flax does; its exercises check themselves."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from tiutils.course.exercises import flax_tpu as exercises

ROOT = Path(__file__).parents[3]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "06_flax_tpu.ipynb", as_version=4)
CELLS = {cell.id: cell.source for cell in NOTEBOOK.cells}
SOLUTIONS = ROOT / "notebooks" / "solutions" / "flax_tpu.py"
LINKS = ("02_tokenizer_surgery", "03_training_loop", "04_inference")


def silent(*_, **__):
    """In the place of print."""


def definitions(cell):
    """A cell up to the line that begins to run what it defines."""
    lines = CELLS[cell].splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith("    return "))
    return "\n".join(lines[: last + 1])


@pytest.fixture(scope="module")
def page(small_model, photos):
    """The notebook's own definitions, executed on the small model and test photos."""
    import jax
    import jax.numpy as jnp

    import tiutils
    from tiutils import batches, concept
    from tiutils.flax import diffusion, inference, models, token_embedding

    parts = models.load(small_model)
    word = token_embedding.add_placeholder(parts, "<w>", initializer_token="toy", num_vectors=2)
    config = tiutils.TrainingConfig(
        placeholder_token="<w>", initializer_token="toy", num_vectors=2, max_train_steps=3,
        train_batch_size=2, learning_rate=1e-2, train_data_dir=str(photos),
        norm_control=0.0, timestep_sampling="uniform",
    )  # fmt: skip
    thing = concept.load(photos)
    names = {
        "jax": jax, "jnp": jnp, "np": np, "parts": parts, "token_embedding": token_embedding,
        "inference": inference, "TWIN": config,
        "batches": batches, "diffusion": diffusion, "thing": thing, "word": word, "print": silent,
        "dataset": diffusion.encode_dataset(parts, thing, "<w>", config),
        "networks": (parts.text_encoder, parts.unet),
    }  # fmt: skip
    names["batch_of"] = lambda step: diffusion.Samples(
        **vars(batches.batch_at(names["dataset"].plan, step))
    )
    for cell in (
        "jit",
        "look-up-by-hand",
        "noise-by-hand",
        "loss-by-hand",
        "step-by-hand",
        "loop-by-hand",
        "draw-by-hand",
    ):
        exec(compile(definitions(cell), cell, "exec"), names)
    return names


def test_look_up_by_hand(page):
    parts = page["parts"]
    first = parts.first_id
    ids = np.array([[first, 3, first + 1, 0], [7, first + 1, 5, first]])
    table = parts.text_encoder.embeddings.token_embedding.embedding[...]
    found = page["look_up_by_hand"](table, parts.rows, ids, first)
    expected = page["token_embedding"].look_up(parts.text_encoder, ids, parts.rows, first)
    assert found.shape == (2, 4, 32) and np.array_equal(found, expected)


def test_noise_by_hand(page):
    from tiutils.flax import schedulers

    generator = np.random.default_rng(0)
    z0, noise = generator.normal(size=(2, 5, 4, 8, 8)).astype(np.float32)
    t = np.array([0, 1, 250, 700, 999])
    own = schedulers.alphas_cumprod(page["parts"].scheduler_config)
    expected = schedulers.add_noise(own, t, z0, noise)
    np.testing.assert_allclose(page["add_noise"](z0, noise, t), expected, atol=1e-5)


@pytest.mark.release
@pytest.mark.slow
def test_the_loop_by_hand_is_the_modules(page):
    import jax

    from tiutils.flax import training

    start = np.array(page["parts"].rows)
    losses, rows = page["train_by_hand"](3)
    mesh = training.make_mesh(2, jax.devices()[:1])
    begun = training.prepare(page["parts"], page["word"], page["thing"], page["TWIN"], mesh)
    expected = training.train_rows(begun)
    np.testing.assert_allclose(losses, expected.losses, atol=1e-5)
    np.testing.assert_allclose(rows, begun.vectors(), atol=1e-5)
    assert not np.allclose(rows, start, atol=1e-3)
    page["token_embedding"].set_rows(page["parts"], page["word"], start)


@pytest.mark.release
@pytest.mark.slow
def test_drawing_by_hand_is_the_modules(page):
    parts, inference = page["parts"], page["inference"]
    latents = page["draw_by_hand"](parts, "a <w>", seed=3, steps=4, guidance=3.0)
    pixels = parts.vae.decode(latents / parts.vae_scaling)[0]
    by_hand = (np.clip(pixels / 2 + 0.5, 0, 1) * 255).transpose(1, 2, 0)
    options = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 3.0, "sampler": "ddim"}
    (picture,) = inference.generate(parts, "a <w>", **options)
    assert np.abs(by_hand - np.asarray(picture, float)).max() <= 1.5


# Where there is no diffusers, as on Colab's TPU machine

WITHOUT = """
import sys
for name in ("diffusers", "accelerate", "torchvision", "bitsandbytes"):
    sys.modules[name] = None  # cannot be imported
import nbformat
from tiutils.course import setup
setup.start = setup.install = lambda *_: None  # nothing shall be brought
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell.cell_type == "code" and cell.id in sys.argv[2:]:
        exec(compile(cell.source, cell.id, "exec"), globals())
print(HAS_PYTORCH, len(torch_losses), len(jax.devices()))
"""


@pytest.mark.release
@pytest.mark.slow
def test_the_frameworks_are_compared_where_there_is_no_diffusers():
    """The losses of PyTorch then come from the file."""
    cells = list(CELLS)[: list(CELLS).index("twins") + 1]
    code = WITHOUT.replace("import nbformat", "import nbformat, importlib.util as u\nfind = u.find_spec\n"
    "u.find_spec = lambda name, *rest: None if sys.modules.get(name, 0) is None else find(name, *rest)")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "06_flax_tpu.ipynb", *cells],
        cwd=ROOT / "notebooks",
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert "never further apart than 1e-4: True" in done.stdout
    assert done.stdout.splitlines()[-1] == "False 20 8"


def test_the_stored_losses_are_of_the_notebooks_run():
    stored = json.loads((ROOT / "data" / "twin-losses.json").read_text())
    twin = CELLS["material"]
    assert f"max_train_steps={len(stored['losses'])}" in twin
    for flag in ("train_batch_size", "learning_rate", "norm_control"):
        value = stored["command"].split(f"--{flag} ")[1].split()[0]
        assert f"{flag}={value}" in twin, flag


@pytest.mark.release
@pytest.mark.slow
def test_the_command_makes_the_stored_losses(tmp_path):
    stored = json.loads((ROOT / "data" / "twin-losses.json").read_text())
    words = [word.strip("'") for word in stored["command"].split()[1:]]
    words[words.index("--output_dir") + 1] = str(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "tiutils", *words],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=900,
    )
    found = json.loads((tmp_path / "run.json").read_text())["losses"]
    np.testing.assert_allclose(found, stored["losses"], rtol=0, atol=1e-4)


# Twins


@pytest.mark.parametrize("name", LINKS)
def test_the_twins_are_linked_both_ways(name):
    there = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert any(f"]({name}.ipynb)" in source for source in CELLS.values())
    assert any("](06_flax_tpu.ipynb)" in cell.source for cell in there.cells)


# Exercises


def test_solutions_are_right_and_stubs_are_not_yet():
    solutions = runpy.run_path(str(SOLUTIONS))
    assert exercises.check_product_step(solutions["product_step"]).startswith("right")
    right = exercises.check_batch_that_divides(solutions["batch_that_divides"])
    assert right.startswith("right")
    assert exercises.check_product_step(lambda a, b: ...).startswith("not yet")
    assert exercises.check_batch_that_divides(lambda b, d: ...).startswith("not yet")


def test_the_first_solution_scans():
    import jax
    import jax.numpy as jnp

    step = runpy.run_path(str(SOLUTIONS))["product_step"]
    betas = jnp.linspace(0.01, 0.2, 7)
    _, found = jax.lax.scan(step, jnp.float32(1), betas)
    np.testing.assert_allclose(found, np.cumprod(1 - betas), rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (a * b, a * b),
        lambda a, b: (a * (1 - b), a),  # what was before it
        lambda a, b: (1 - b, 1 - b),
        lambda a, b: (a - b, a - b),
        lambda a, b: a * (1 - b),  # one thing, not two
        lambda a: (a, a),
        lambda a, b: 1 / 0,
        7,
    ],
)
def test_wrong_steps_are_refused(function):
    assert exercises.check_product_step(function).startswith("not quite")


@pytest.mark.parametrize(
    "function",
    [
        lambda b, d: b // d * d,
        lambda b, d: (b // d + 1) * d,
        lambda b, d: d,
        lambda b, d: b,
        lambda b, d: "8",
        lambda b: 8,
        lambda b, d: 1 / 0,
        7,
    ],
)
def test_wrong_batches_are_refused(function):
    assert exercises.check_batch_that_divides(function).startswith("not quite")
