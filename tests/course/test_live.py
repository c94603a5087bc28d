"""The live view: what it shows, and that its buttons act on a real run without changing the result."""

import asyncio
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tiutils
from tiutils.course.live import LiveView
from tiutils.figures import curves, output
from tiutils.io import embeddings
from tiutils.protocols import Progress
from tiutils.runs import early_stopping
from tiutils.runs.early_stopping import EarlyStopping

RED = Image.new("RGB", (16, 16), "red")


@pytest.fixture
def config(small_model, photos, tmp_path):
    """A run of six steps."""
    return tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(small_model), train_data_dir=str(photos),
        placeholder_token="<my-toy>", initializer_token="toy", max_train_steps=6,
        output_dir=str(tmp_path / "out"),
    )  # fmt: skip


@pytest.fixture
def learn(config, tmp_path):
    """Train with these callbacks; returns the result."""

    def learn(*callbacks, out="out"):
        return tiutils.train(replace(config, output_dir=str(tmp_path / out)), callbacks=callbacks)

    return learn


def rows(result):
    return embeddings.read(result.embedding_path).vectors


def test_it_shows_what_early_stopping_measures(learn, monkeypatch):
    monkeypatch.setattr(early_stopping, "LOSSES_PER_SENSITIVITY", 1)
    watch = EarlyStopping(2, num_samples=2, sensitivity=True)
    view = LiveView(every=3, fixed_losses=watch.losses, sensitivities=watch.sensitivities)
    learn(watch, view)
    text = output.alt_text(view.figure())
    first, last = watch.sensitivities[2], watch.sensitivities[6]
    assert f"{watch.losses[2]:.4f} at step 2 to {watch.losses[6]:.4f} at step 6" in text
    assert f"sensitivity goes from {first:.2f} at step 2 to {last:.2f} at step 6" in text
    assert len(view.figure().axes) == 2 and view._page.value


def test_it_shows_losses_pictures_time_and_memory(learn):
    drawn = []
    view = LiveView(lambda models, step: drawn.append(step) or [RED], every=3, photo=RED)
    lines = []
    view._line.observe(lambda change: lines.append(change["new"]), names="value")
    with view:
        result = learn(view)
    assert drawn == [3, 6] == list(view.samples)
    np.testing.assert_array_equal(view.losses, result.losses)
    assert any(
        re.fullmatch(
            r"step 3 of 6 · \d+ min \d\d s left · [\d.]+ of [\d.]+ GiB of memory free", line
        )
        for line in lines
    )
    page = view.box.children[2].value
    assert "Training loss of steps 1 to 6" in page and "Beside it: pictures, 2." in page
    assert lines[-1].startswith("ended after step 6")
    assert all(button.disabled for button in view.box.children[0].children), "the run is over"


def test_stop_keeps_what_was_learned(learn):
    view = LiveView()
    stop = view.box.children[0].children[1]
    result = learn(view, lambda progress: stop.click() if progress.step == 2 else None)
    assert result.steps == 3, "the press came after the view had looked at step 2"
    assert result.stopped == "stopped by request"
    assert np.isfinite(rows(result)).all() and result.embedding_path.is_file()


def test_a_pause_changes_nothing_but_the_time(learn):
    view = LiveView()
    pause = view.box.children[0].children[0]

    def press_twice(progress):
        if progress.step == 2:
            pause.click()
            assert pause.description == "go on"
            threading.Timer(0.3, pause.click).start()

    paused = learn(press_twice, view, out="paused")
    assert pause.description == "pause" and view._paused > 0.2
    np.testing.assert_array_equal(rows(paused), rows(learn(out="plain")))


def test_a_press_is_heard_while_the_run_computes(config, learn):
    view = LiveView()
    pause, stop = view.box.children[0].children

    async def cell():
        """Like a notebook's cell: it waits, and the event loop delivers the clicks."""
        running = asyncio.ensure_future(view.train(replace(config, max_train_steps=10_000)))
        while view.step < 2:
            await asyncio.sleep(0.02)
        pause.click()
        while "paused after step" not in view.box.children[1].value:
            await asyncio.sleep(0.02)
        paused_at = view.step
        await asyncio.sleep(0.3)
        assert view.step == paused_at, "it waits"
        pause.click()
        stop.click()
        return await running

    result = asyncio.run(cell())
    assert result.stopped == "stopped by request" and 2 <= result.steps < 10_000
    assert result.embedding_path.is_file()


@pytest.mark.parametrize("paused", [False, True])
def test_to_interrupt_the_cell_is_to_stop_and_keep(config, paused):
    view = LiveView()

    async def cell():
        running = asyncio.ensure_future(view.train(replace(config, max_train_steps=10_000)))
        while view.step < 2:
            await asyncio.sleep(0.02)
        if paused:
            view.pause()
            await asyncio.sleep(0.3)
        running.cancel()  # what ipykernel does on SIGINT
        return await running

    result = asyncio.run(cell())
    assert result.stopped == "stopped by request" and result.embedding_path.is_file()


def test_the_thread_learns_the_same_bits_and_raises_the_same(config, learn):
    view = LiveView()
    inside = asyncio.run(view.train(replace(config, output_dir=config.output_dir + "-thread")))
    np.testing.assert_array_equal(rows(inside), rows(learn()))
    with pytest.raises(tiutils.InputError, match="nowhere"):
        asyncio.run(view.train(replace(config, train_data_dir="nowhere", output_dir="runs/none")))


def test_losses_that_are_no_numbers_do_not_end_the_run():
    class Training:
        total_steps, models = 2, None

    view = LiveView(every=1)
    assert view(Progress(1, torch.tensor(float("nan")), 1e-3, Training)) is False
    assert view.box.children[2].value == ""


def test_fixed_losses_and_the_steps_of_a_resumed_run_are_drawn():
    figure = curves.loss_and_pictures([0.5, 0.3], [RED], evaluation={10: 0.4}, last_step=12)
    text = output.alt_text(figure)
    assert "steps 11 to 12" in text and "0.4000 at step 10" in text
    assert len(figure.axes) == 2
