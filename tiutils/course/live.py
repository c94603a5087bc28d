"""Watch a run: loss, images, time and memory left; pause it, or stop it and keep the result.

A notebook reacts to buttons while a cell waits, not while it computes; so the run computes in a thread of its own, and
the cell waits for it. With kernels older than ipykernel 7, such as Colab's, buttons react only after the cell; there,
use the notebook's own stop button in place of *stop and keep*.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from PIL import Image

from tiutils.errors import InputError
from tiutils.figures import curves, output
from tiutils.protocols import Progress

if TYPE_CHECKING:
    from tiutils.config import TrainingConfig
    from tiutils.runs.session import TrainingResult

Draw = Callable[[Any, int], Sequence[Image.Image]]


class LiveView:
    """A callback for `train` with a box to watch it; as a context manager, it displays the box.

        with LiveView(draw) as view:
            result = await view.train(config)  # or, without buttons, train(config, callbacks=[view])

    Attributes:
        box: an `ipywidgets.VBox`: buttons, a status line, a figure.
        samples: step → the images that `draw` returned.
        losses: of each step seen.
    """

    def __init__(
        self,
        draw: Draw | None = None,
        *,
        every: int = 50,
        photo: Image.Image | None = None,
        fixed_losses: Mapping[int, float] | None = None,
        sensitivities: Mapping[int, float] | None = None,
    ):
        """Create the box.

        Args:
            draw: called as `draw(models, step)` for images to show.
            every: the number of steps between these calls.
            photo: shown beside the images, for comparison.
            fixed_losses: step → loss on a fixed batch, plotted as well; filled in by another callback, as are
                `EarlyStopping.losses`.
            sensitivities: step → prompt sensitivity, likewise, as are `EarlyStopping.sensitivities`.
        """
        import ipywidgets

        self.draw, self.every, self.photo = draw, every, photo
        self.fixed_losses = {} if fixed_losses is None else fixed_losses
        self.sensitivities = {} if sensitivities is None else sensitivities
        self.samples: dict[int, Sequence[Image.Image]] = {}
        self.losses: list[Any] = []
        self.step = 0
        self.stopped, self.running = threading.Event(), threading.Event()
        self.running.set()
        self._begun: float | None = None
        self._paused = 0.0
        self._pause = ipywidgets.Button(description="pause", icon="pause")
        self._stop = ipywidgets.Button(description="stop and keep", icon="stop")
        self._pause.on_click(lambda _: self.pause() if self.running.is_set() else self.go_on())
        self._stop.on_click(lambda _: self.stop())
        self._line, self._page = ipywidgets.HTML("not started yet"), ipywidgets.HTML()
        buttons = ipywidgets.HBox([self._pause, self._stop])
        self.box = ipywidgets.VBox([buttons, self._line, self._page])

    def __enter__(self) -> LiveView:
        """Display the box."""
        from IPython.display import display

        display(self.box)
        return self

    def __exit__(self, *_: object) -> None:
        """Show where the run ended, and disable the buttons."""
        self._line.value = f"ended after step {self.step}; what was learned is kept"
        self._show()
        self._pause.disabled = self._stop.disabled = True

    async def train(self, config: TrainingConfig) -> TrainingResult:
        """Run `tiutils.train` in a thread, with this view as its callback.

        Interrupting the cell once means *stop and keep*: the call still returns what was learned.

        Raises:
            InputError: as `run.train`.
        """
        from tiutils.runs import run

        work = asyncio.ensure_future(asyncio.to_thread(run.train, config, callbacks=[self]))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:  # the notebook's stop button
            self.stop()
            return await work

    def pause(self) -> None:
        """Wait after the current step; this does not affect the result."""
        self.running.clear()
        self._pause.description, self._pause.icon = "go on", "play"

    def go_on(self) -> None:
        """End a pause."""
        self.running.set()
        self._pause.description, self._pause.icon = "pause", "pause"

    def stop(self) -> None:
        """End the run after the current step; what was learned is kept and saved."""
        self.stopped.set()
        self.go_on()

    def __call__(self, progress: Progress) -> bool:
        """Update the view after a step; return whether to stop the run."""
        self._begun = self._begun or time.perf_counter()
        self.step, total = progress.step, progress.training.total_steps
        self.losses.append(progress.loss)  # on the device; reading it now would wait for the step
        due = self.step % self.every == 0
        if due and self.draw is not None:
            self.samples[self.step] = self.draw(progress.training.models, self.step)
        if due or self.step % 10 == 0 or len(self.losses) == 1:
            self._line.value = self.line(total)
        if due:
            self._show()
        if not self.running.is_set():
            self._wait(total)
        return self.stopped.is_set()

    def line(self, total: int) -> str:
        """The status line: progress, and the time and memory left."""
        done = len(self.losses) - 1  # the clock starts after the first step
        text = f"step {self.step} of {total}"
        if done and self._begun is not None:
            spent = time.perf_counter() - self._begun - self._paused
            seconds = spent / done * (total - self.step)
            text += f" · {seconds // 60:.0f} min {seconds % 60:02.0f} s left"
        return text + f" · {memory_left()}"

    def figure(self) -> Figure:
        """The losses so far beside the latest images."""
        last = self.samples[max(self.samples)] if self.samples else ()
        pictures = [*([self.photo] if self.photo is not None else []), *last]
        self.losses = [float(loss) for loss in self.losses]
        return curves.loss_and_pictures(
            self.losses, pictures, self.step, self.fixed_losses, self.sensitivities
        )

    def _show(self) -> None:
        """Update the figure. Without a finite loss there is none; the training loop reports that itself."""
        with contextlib.suppress(InputError):
            self._page.value = output.as_html(self.figure())

    def _wait(self, total: int) -> None:
        """Wait until the pause ends, also by `stop`."""
        begun = time.perf_counter()
        self._line.value = f"paused after step {self.step} of {total}"
        self.running.wait()
        self._paused += time.perf_counter() - begun


def memory_left() -> str:
    """The free memory, of the GPU if there is one."""
    from tiutils.models import best_device
    from tiutils.runs import memory

    device = best_device()
    place = "GPU memory" if device.type == "cuda" else "memory"
    free, total = memory.free_and_total(device)
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB of {place} free"
