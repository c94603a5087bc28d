"""What a notebook lets the reader press; each callback is a plain function.

Only what ipywidgets 7 and 8 share is used: Colab has 7.
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
from tiutils.figures import output
from tiutils.io.files import replace_file

SENTENCE = {"width": "480px", "max_width": "95%"}  # room for a prompt, and no more than the page


def photo_upload(folder: str | Path) -> Any:
    """A button that stores the photos chosen in the browser in `folder`; an `ipywidgets.FileUpload`."""
    import ipywidgets  # here, so that this module can be imported without it

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
            in 7 a mapping of names to mappings with "content".
        folder: where to; made if missing.
    """
    if isinstance(value, Mapping):
        files = {name: entry["content"] for name, entry in value.items()}
    else:
        files = {entry["name"]: entry["content"] for entry in value}
    folder, written = Path(folder), []
    for name, content in files.items():
        # a browser sends a bare name; anything that climbs out of the folder is cut to one
        plain = name.replace("\\", "/").rsplit("/", 1)[-1]
        if plain.strip(". \0"):
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / plain.replace("\0", ""))
            replace_file(written[-1], bytes(content))
    return written


def above_picture(draw: Callable[..., Figure], *controls: Any) -> Any:
    """Controls above the picture that `draw` makes of their values, anew at each change; a `VBox`.

    What `draw` refuses with an `InputError` is said in the picture's place; the controls stay.
    """
    import ipywidgets

    page = ipywidgets.HTML()

    def redraw(_: Any = None) -> None:
        try:
            page.value = as_html(draw(*(control.value for control in controls)))
        except InputError as error:
            page.value = html.escape(str(error))

    for control in controls:
        control.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*controls, page])


def photo_picker(concept: Concept, resolution: int) -> Any:
    """Choose photos, see their crops; a `VBox` whose first child's value is the indices chosen.

    The work is done by `explore.crop_preview`.
    """
    import ipywidgets

    from tiutils.course import explore  # here, as it needs PyTorch

    names = [(photo.path.name, index) for index, photo in enumerate(concept.photos)]
    return above_picture(
        lambda chosen, crop, mirrored: explore.crop_preview(
            concept, chosen, crop, mirrored, resolution
        ),
        ipywidgets.SelectMultiple(
            options=names, value=tuple(range(len(names))), rows=min(8, len(names)),
            description="photos",
        ),
        ipywidgets.ToggleButtons(options=explore.CROPS, value="center", description="crop"),
        ipywidgets.Checkbox(value=False, description="mirrored"),
    )  # fmt: skip


def noise_slider(models: Any, concept: Concept, prompt: str) -> Any:
    """A slider over the timesteps that adds noise to a photo, and the model's guess; a `VBox`.

    The work is done by `explore.noise_preview`.
    """
    import ipywidgets

    from tiutils.course import explore

    last = models.noise_scheduler.config.num_train_timesteps - 1
    photos = [(photo.path.name, index) for index, photo in enumerate(concept.photos)]
    return above_picture(
        functools.partial(explore.noise_preview, models, concept),
        ipywidgets.Dropdown(options=photos, value=0, description="photo"),
        ipywidgets.Text(
            value=prompt, description="prompt", continuous_update=False, layout=SENTENCE
        ),
        ipywidgets.IntSlider(
            value=last // 2, min=0, max=last, description="timestep", continuous_update=False
        ),
    )


def initializer_suggester(models: Any, concept: Concept, known: Mapping[str, float]) -> Any:
    """Write nouns, see which describes the photos best; a `VBox` whose first child holds the nouns.

    The work is done by `explore.word_losses`; the losses in `known` are not computed again.
    """
    import ipywidgets

    from tiutils.course import explore
    from tiutils.figures import diagrams

    losses, images = dict(known), [photo.image for photo in concept.photos]

    def compare(text: str) -> Figure:
        nouns = list(dict.fromkeys(text.replace(",", " ").split()))
        losses.update(
            explore.word_losses(models, images, [word for word in nouns if word not in losses])
        )
        return diagrams.word_bars({word: losses[word] for word in nouns})

    nouns = ipywidgets.Text(
        value=" ".join(known), description="nouns", continuous_update=False,
        layout={"width": "95%"},
    )  # fmt: skip
    return above_picture(compare, nouns)


def embedding_explorer(models: Any, first: str, second: str) -> Any:
    """Two words and a slider between them: what the vector between means; a `VBox`.

    The work is done by `explore.blend_preview`.
    """
    import ipywidgets

    from tiutils.course import explore

    words = [
        ipywidgets.Text(value=word, description=name, continuous_update=False)
        for name, word in (("from", first), ("to", second))
    ]
    amount = ipywidgets.FloatSlider(
        value=0.5, min=0, max=1, step=0.05, description="amount", continuous_update=False
    )
    return above_picture(functools.partial(explore.blend_preview, models), *words, amount)


def playground(models: Any, prompt: str) -> Any:
    """Prompt, negative prompt, seed and guidance, and the picture they give; a `VBox`.

    The work is done by `explore.play`.
    """
    import ipywidgets

    from tiutils.course import explore  # here, as it needs PyTorch

    return above_picture(
        functools.partial(explore.play, models),
        ipywidgets.Text(value=prompt, description="prompt", continuous_update=False, layout=SENTENCE),
        ipywidgets.Text(value="", description="away from", continuous_update=False, layout=SENTENCE),
        ipywidgets.IntSlider(
            value=1, min=0, max=50, description="seed", continuous_update=False
        ),
        ipywidgets.FloatSlider(
            value=models.guidance_scale, min=1, max=15, step=0.5, description="guidance",
            continuous_update=False,
        ),
    )  # fmt: skip


def before_after_slider(before: Image.Image, after: Image.Image) -> Any:
    """A slider that wipes from one picture to another of the same size; a `VBox`.

    The work is done by `grids.wipe`.
    """
    import ipywidgets

    from tiutils.figures import grids

    percent = ipywidgets.IntSlider(value=50, min=0, max=100, description="after, %")
    return above_picture(functools.partial(grids.wipe, before, after), percent)


def as_html(figure: Figure) -> str:
    """A figure as an image element with its alt text, for an `ipywidgets.HTML`."""
    data = base64.b64encode(output.to_png(figure)).decode()
    alt = html.escape(output.alt_text(figure), quote=True)
    return f'<img alt="{alt}" src="data:image/png;base64,{data}" style="max-width: 100%">'


class DownloadLink:
    """A link that saves a small file from the notebook's page; it holds the file itself."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = base64.b64encode(self.path.read_bytes()).decode()

    def _repr_html_(self) -> str:
        name = html.escape(self.path.name, quote=True)
        href = f"data:application/octet-stream;base64,{self.data}"
        return f'<a download="{name}" href="{href}">Download {name}</a>'

    def __repr__(self) -> str:
        return f"Download {self.path.name}"
