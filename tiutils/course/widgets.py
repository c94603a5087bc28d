"""Controls for the notebooks; the work is done by plain functions, mostly in `explore`.

Only what ipywidgets 7 and 8 have in common is used, because Colab has 7. It is imported in the functions, as is
`explore`, which needs PyTorch, so that this module can be imported without either.
"""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from tiutils.concept import PHOTO_SUFFIXES, Concept
from tiutils.errors import InputError
from tiutils.figures import diagrams, grids, output
from tiutils.io.files import replace_file

LAZY = {"continuous_update": False}  # react to Enter or a released slider, not to every change
PROMPT = LAZY | {"layout": {"width": "480px", "max_width": "95%"}}


def photo_upload(folder: str | Path) -> Any:
    """A button that stores photos chosen in the browser in `folder`; an `ipywidgets.FileUpload`."""
    import ipywidgets

    button = ipywidgets.FileUpload(
        accept=",".join(PHOTO_SUFFIXES), multiple=True, description="Choose 3 to 5 photos",
        layout={"width": "max-content"},
    )  # fmt: skip
    button.observe(lambda change: save_uploads(change["new"], folder), names="value")
    return button


def save_uploads(value: Any, folder: str | Path) -> list[Path]:
    """Write uploaded files into `folder`, under the last part of their names.

    Args:
        value: of a FileUpload: in ipywidgets 8 a sequence of mappings with "name" and "content",
            in 7 a mapping from names to mappings with "content".
        folder: created if missing.
    """
    if isinstance(value, Mapping):
        files = {name: entry["content"] for name, entry in value.items()}
    else:
        files = {entry["name"]: entry["content"] for entry in value}
    folder, written = Path(folder), []
    for name, content in files.items():
        # a browser sends bare names; keep only the last part of anything else
        plain = name.replace("\\", "/").rsplit("/", 1)[-1]
        if plain.strip(". \0"):
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / plain.replace("\0", ""))
            replace_file(written[-1], bytes(content))
    return written


def above_figure(plot: Callable[..., Figure], *controls: Any) -> Any:
    """Controls above the figure that `plot` makes of their values, again after each change; a `VBox`.

    The message of an `InputError` is shown in place of the figure; the controls remain.
    """
    import ipywidgets

    page = ipywidgets.HTML()

    def update(_: Any = None) -> None:
        try:
            page.value = output.as_html(plot(*(control.value for control in controls)))
        except InputError as error:
            page.value = html.escape(str(error))

    for control in controls:
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([*controls, page])


def photo_picker(concept: Concept, resolution: int) -> Any:
    """Choose photos and see their crops; a `VBox` whose first child's value is the indices chosen."""
    import ipywidgets

    from tiutils.course import explore

    photos = _photo_options(concept)
    return above_figure(
        lambda chosen, crop, mirrored: explore.crop_preview(concept, chosen, crop, mirrored, resolution),
        ipywidgets.SelectMultiple(
            options=photos, value=tuple(range(len(photos))), rows=min(8, len(photos)), description="photos"
        ),
        ipywidgets.ToggleButtons(options=explore.CROPS, value="center", description="crop"),
        ipywidgets.Checkbox(value=False, description="mirrored"),
    )  # fmt: skip


def noise_slider(models: Any, concept: Concept, prompt: str) -> Any:
    """A slider over the timesteps that adds noise to a photo, with the model's guess; a `VBox`."""
    import ipywidgets

    from tiutils.course import explore

    last = models.noise_scheduler.config.num_train_timesteps - 1
    return above_figure(
        functools.partial(explore.noise_preview, models, concept),
        ipywidgets.Dropdown(options=_photo_options(concept), value=0, description="photo"),
        ipywidgets.Text(value=prompt, description="prompt", **PROMPT),
        ipywidgets.IntSlider(value=last // 2, min=0, max=last, description="timestep", **LAZY),
    )


def _photo_options(concept: Concept) -> list[tuple[str, int]]:
    return [(photo.path.name, index) for index, photo in enumerate(concept.photos)]


def initializer_suggester(models: Any, concept: Concept, known: Mapping[str, float]) -> Any:
    """Enter nouns and see which describes the photos best; a `VBox` whose first child contains the nouns.

    The losses in `known` are not computed again.
    """
    import ipywidgets

    from tiutils.course import explore

    losses, images = dict(known), [photo.image for photo in concept.photos]

    def compare(text: str) -> Figure:
        nouns = list(dict.fromkeys(text.replace(",", " ").split()))
        new = [word for word in nouns if word not in losses]
        losses.update(explore.word_losses(models, images, new))
        return diagrams.word_bars({word: losses[word] for word in nouns})

    layout = {"width": "95%"}
    nouns = ipywidgets.Text(value=" ".join(known), description="nouns", layout=layout, **LAZY)
    return above_figure(compare, nouns)


def embedding_explorer(models: Any, first: str, second: str) -> Any:
    """Two words and a slider between them: what the vector between means; a `VBox`."""
    import ipywidgets

    from tiutils.course import explore

    return above_figure(
        functools.partial(explore.blend_preview, models),
        ipywidgets.Text(value=first, description="from", **LAZY),
        ipywidgets.Text(value=second, description="to", **LAZY),
        ipywidgets.FloatSlider(value=0.5, min=0, max=1, step=0.05, description="amount", **LAZY),
    )


def playground(models: Any, prompt: str) -> Any:
    """Prompt, negative prompt, seed and guidance scale, with the image generated from them; a `VBox`."""
    import ipywidgets

    from tiutils.course import explore

    return above_figure(
        functools.partial(explore.play, models),
        ipywidgets.Text(value=prompt, description="prompt", **PROMPT),
        ipywidgets.Text(value="", description="away from", **PROMPT),
        ipywidgets.IntSlider(value=1, min=0, max=50, description="seed", **LAZY),
        ipywidgets.FloatSlider(
            value=models.guidance_scale, min=1, max=15, step=0.5, description="guidance", **LAZY
        ),
    )


def before_after_slider(before: Image.Image, after: Image.Image) -> Any:
    """A slider that wipes from one image to another of the same size; a `VBox`."""
    import ipywidgets

    percent = ipywidgets.IntSlider(value=50, min=0, max=100, description="after, %")
    return above_figure(functools.partial(grids.wipe, before, after), percent)


class DownloadLink:
    """A link to download a small file, whose content is part of the notebook's page."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = base64.b64encode(self.path.read_bytes()).decode()

    def _repr_html_(self) -> str:
        name = html.escape(self.path.name, quote=True)
        href = f"data:application/octet-stream;base64,{self.data}"
        return f'<a download="{name}" href="{href}">Download {name}</a>'

    def __repr__(self) -> str:
        return f"Download {self.path.name}"
