"""Where in an image a word acts: the U-Net's cross-attention, averaged over steps, heads and layers.

At each place, a cross-attention layer divides its attention among the tokens of the prompt, softmax(QKᵀ/√d) (Rombach
et al. 2022, arXiv 2112.10752, section 3.3). The shares of a word, laid out as an image, are its map (DAAM: Tang et al.
2022, arXiv 2210.04885). As fused kernels never store these shares, a hook computes them separately. The attention that
the U-Net uses (PyTorch's, xFormers', sliced) is unaffected, and so are the images, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tiutils import inference
from tiutils.errors import InputError
from tiutils.figures.grids import image_grid
from tiutils.figures.output import Images, sentence
from tiutils.models import Models
from tiutils.tokenizer import expand_prompt, token_ids


@dataclass
class Shares:
    """The attention shares that `record` has collected, summed over the calls of each layer.

    Attributes:
        sums: layer name → float32 `(places, tokens)`, the mean over heads for the batch's last sample.
        calls: layer name → the number of calls.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def maps(self, width: int, height: int) -> Tensor:
        """The mean over calls and layers, float32 `(tokens, h, w)` on the CPU; tokens sum to 1.

        Smaller layers are enlarged bilinearly to the size of the largest.

        Args:
            width: of the image, in pixels.
            height: of the image, in pixels.

        Raises:
            InputError: no cross-attention layer was called.
        """
        if not self.sums:
            raise InputError("no attention was recorded; generate an image inside `record`")
        layers = []
        for name, total in self.sums.items():
            rows = round((len(total) * height / width) ** 0.5)
            layers.append((total / self.calls[name]).T.unflatten(1, (rows, -1)))
        size = max((layer.shape[1:] for layer in layers), key=lambda shape: shape.numel())
        enlarged = [F.interpolate(layer[None], size, mode="bilinear") for layer in layers]
        return torch.cat(enlarged).mean(dim=0).cpu()


@contextlib.contextmanager
def record(unet: UNet2DConditionModel) -> Iterator[Shares]:
    """Inside this context, each call of the U-Net adds the shares of its batch's last sample to the yielded object.

    Under classifier-free guidance, that sample is the one with the prompt.
    """
    shares = Shares()

    @torch.no_grad()
    def add(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
        seen = attention_shares(layer, hidden_states[-1:], text[-1:]).mean(dim=(0, 1))
        shares.sums[name] = shares.sums[name] + seen if name in shares.sums else seen
        shares.calls[name] = shares.calls.get(name, 0) + 1

    with contextlib.ExitStack() as stack:
        for name, layer in unet.named_modules():
            if getattr(layer, "is_cross_attention", False):
                hook = layer.register_forward_pre_hook(partial(add, name), with_kwargs=True)
                stack.callback(hook.remove)
        yield shares


def attention_shares(layer: Any, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) of one of diffusers' cross-attention layers, before it is multiplied by the values.

    Args:
        layer: an `Attention` module.
        hidden_states: `(batch, places, channels)`, of the image.
        encoder_hidden_states: `(batch, tokens, hidden)`, of the prompt.

    Returns:
        float32 `(batch, heads, places, tokens)`; the tokens of each place sum to 1.
    """
    query, key = (
        projected.unflatten(-1, (layer.heads, -1)).transpose(1, 2).float()
        for projected in (layer.to_q(hidden_states), layer.to_k(encoder_hidden_states))
    )
    return (query @ key.transpose(-1, -2) * layer.scale).softmax(dim=-1)


def positions(models: Models, prompt: str, word: str) -> list[int]:
    """The positions of a word's tokens among the prompt's tokens, for all its occurrences.

    Raises:
        InputError: it does not occur, or only beyond what the model reads.
    """
    wanted = models.tokenizer.encode(
        expand_prompt(models.tokenizer, word), add_special_tokens=False
    )
    ids = token_ids(models.tokenizer, [prompt])[0].tolist()
    starts = [i for i in range(len(ids)) if wanted and ids[i : i + len(wanted)] == wanted]
    if not starts:
        raise InputError(
            f"{word!r} does not occur among the {len(ids)} tokens of {prompt!r}; "
            f"give a word as it is written in the prompt"
        )
    return [start + k for start in starts for k in range(len(wanted))]


def draw_with_maps(
    models: Models, prompt: str, words: Sequence[str], **drawing: Any
) -> tuple[Image.Image, dict[str, Tensor]]:
    """Generate an image, and the share of attention that each place gave to each word.

    Args:
        models: the frozen parts.
        prompt: as for `inference.generate`.
        words: of the prompt, learned or plain; the shares of a word's tokens are summed.
        drawing: further arguments of `inference.generate`, such as `seed`.

    Returns:
        the image that `generate` returns, and word → float32 `(h, w)` in [0, 1], of the size of the U-Net's
        largest cross-attention layer.

    Raises:
        InputError: a word is not in the prompt; or as `generate`.
    """
    places = {word: positions(models, prompt, word) for word in words}
    with record(models.unet) as shares:
        picture = inference.generate(models, prompt, **{**drawing, "num_images_per_prompt": 1})[0]
    maps = shares.maps(*picture.size)
    return picture, {word: maps[found].sum(dim=0) for word, found in places.items()}


def attention_figure(
    pictures: Images, maps: Sequence[Mapping[str, Tensor]], *, title: str = ""
) -> Figure:
    """A row per image: the image, then where each word acts, bright where its share is largest.

    Args:
        pictures: from `draw_with_maps`.
        maps: for each image, word → share of the attention, `(h, w)`.
        title: above everything.

    Raises:
        InputError: there are no images, or not as many maps.
    """
    if not pictures or len(pictures) != len(maps):
        raise InputError(f"{len(pictures)} images and {len(maps)} maps: give one map per image")
    rows = [
        [picture, *(heat_overlay(picture, heat) for heat in words.values())]
        for picture, words in zip(pictures, maps, strict=True)
    ]
    alt = f"{sentence(title)}Pictures, and where each word acts. " + " ".join(
        f"{word}: most at the {_whereabouts(heat)}."
        for words in maps
        for word, heat in words.items()
    )
    return image_grid(
        rows, column_labels=["picture", *maps[0]], title=title, alt=alt, gaps=(0,), cell=1.07
    )


def heat_overlay(picture: Image.Image, heat: Tensor, *, strength: float = 0.6) -> Image.Image:
    """The image in gray under its map in color, from dark blue (least) to yellow (most); RGB.

    The map `(h, w)` is scaled to its own range, so colors compare places within a map, not different maps. The
    colors (cividis) are suitable for color-blind readers.
    """
    values = heat.float()[None, None]
    enlarged = F.interpolate(values, picture.size[::-1], mode="bicubic", align_corners=False)[0, 0]
    low, high = enlarged.min(), enlarged.max()
    scaled = ((enlarged - low) / (high - low).clamp(min=1e-12)).numpy()
    colors = (colormaps["cividis"](scaled)[..., :3] * 255).round().astype("uint8")
    return Image.blend(picture.convert("L").convert("RGB"), Image.fromarray(colors), strength)


def _whereabouts(heat: Tensor) -> str:
    """In words, which ninth of the map contains the largest value."""
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    vertical = ("top", "middle", "bottom")[3 * row // heat.shape[0]]
    horizontal = ("left", "center", "right")[3 * column // heat.shape[1]]
    return f"{vertical} {horizontal}"
