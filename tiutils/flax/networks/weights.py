"""Weight files to Flax modules: the same safetensors files that PyTorch reads, one tensor at a time.

A path in a module is the name of its weight, except for the last word (Flax says kernel, scale and embedding where
torch says weight) and the layout (in Flax the inputs of a linear layer come first, a convolution's channels last), so
that no table of names is needed. Files are memory-mapped; the host never holds more than one tensor at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx, serialization
from safetensors import safe_open

from tiutils.errors import InputError, first_line, out_of_memory

Module = TypeVar("Module", bound=nnx.Module)
STEMS = ("model", "diffusion_pytorch_model")  # the names of transformers and diffusers
FLAX_FILES = ("flax_model.msgpack", "diffusion_flax_model.msgpack")
# not weights of these networks: a constant of old transformers, and CLIP's other half
IGNORED = re.compile(
    r"(.*\.)?position_ids|text_projection\..*|visual_projection\..*|vision_model\..*|logit_scale"
)
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_into(
    build: Callable[[], Module], folder: str | Path, *, variant: str | None = None
) -> Module:
    """Build a module and fill it with the weights in a folder, in the module's own dtypes, on the default device.

    Args:
        build: makes the module; it is only traced, so that no memory is spent on initial weights.
        folder: of one part of a model, such as `unet`.
        variant: suffix of the weight files, such as `"fp16"`.

    Raises:
        InputError: no weights can be read, or some are missing, superfluous, or of another shape; names them.
    """
    folder = Path(folder)
    graph, state = nnx.split(nnx.eval_shape(build))
    paths = jax.tree_util.tree_map_with_path(lambda path, leaf: _name(path), state)
    with ExitStack() as stack:
        try:
            tensors, is_flax = _open(folder, variant, stack)
            found = {_canonical(name): name for name in tensors if not IGNORED.fullmatch(name)}
            _check_names(folder, found, {_canonical(path) for path in jax.tree.leaves(paths)})

            def fill(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
                name = found[_canonical(path)]
                tensor = tensors[name]()
                value = _to_flax(tensor, len(leaf.shape), path, is_flax)
                if value.shape != leaf.shape:
                    raise InputError(
                        f"{name} in {folder} has shape {tensor.shape}, which does not fit the {leaf.shape} that "
                        "config.json asks for: the two are of different models"
                    )
                return jax.device_put(np.ascontiguousarray(value, dtype=leaf.dtype))

            return nnx.merge(graph, jax.tree.map(fill, paths, state))
        except InputError:
            raise
        except Exception as error:  # for a damaged file, three libraries raise anything
            if found_error := out_of_memory(error):
                raise MemoryError(first_line(found_error)) from error
            raise InputError(
                f"cannot read the weights in {folder}: {first_line(error)}; fetch the model again"
            ) from error


def _name(path: tuple[Any, ...]) -> str:
    """`down_blocks.0.resnets.0.conv1.kernel` of a path in a module's state."""
    return ".".join(str(step.key) for step in path if isinstance(step, jax.tree_util.DictKey))


def _canonical(name: str) -> str:
    """A weight's name in the form that names from torch, old Flax, and here all come to.

    Old Flax folders have `down_blocks_0`, old VAEs `query` for `to_q`; the text encoder's prefix may be missing.
    """
    steps = name.removeprefix("text_model.").split(".")
    steps[-1] = "bias" if steps[-1] == "bias" else "weight"
    if len(steps) > 1:
        steps[-2] = OLD_NAMES.get(steps[-2], steps[-2])
    return re.sub(r"_(\d+)(?=\.)", r".\1", ".".join(steps))


def _to_flax(tensor: np.ndarray, dimensions: int, path: str, is_flax: bool) -> np.ndarray:
    """A view of a tensor in Flax's layout; a linear layer here may be a 1×1 convolution in the file."""
    if not path.endswith(".kernel"):
        return tensor
    if not is_flax:
        tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    is_pointwise = tensor.ndim == 4 and dimensions == 2 and tensor.shape[:2] == (1, 1)
    return tensor[0, 0] if is_pointwise else tensor


def _open(
    folder: Path, variant: str | None, stack: ExitStack
) -> tuple[Mapping[str, Callable[[], np.ndarray]], bool]:
    """Functions that read one tensor each, by the tensors' names, and whether they are in Flax's layout."""
    files = _safetensors(folder, variant)
    if files:
        tensors: dict[str, Callable[[], np.ndarray]] = {}
        for path in files:
            file = stack.enter_context(safe_open(path, framework="numpy"))
            tensors |= {name: partial(file.get_tensor, name) for name in list(file.keys())}
        return tensors, False
    for name in FLAX_FILES if variant is None else ():
        if (folder / name).is_file():
            tree = serialization.msgpack_restore((folder / name).read_bytes())
            return {path: partial(np.asarray, leaf) for path, leaf in _flatten(tree).items()}, True
    names = sorted(path.name for path in folder.glob("*") if path.name != "config.json")
    found = f"has {', '.join(names[:5])}" if names else "is empty"
    raise InputError(
        f"{folder} {found}, where {STEMS[0]}.safetensors or {STEMS[1]}.safetensors is expected"
        + (f" with the variant {variant!r}" if variant else "")
        + "; torch's .bin files can run code and are not read: load the model with tiutils.models.load and write it "
        "with tiutils.models.save"
    )


def _safetensors(folder: Path, variant: str | None) -> list[Path]:
    """The folder's weight files: one, or the shards that an index names, or none."""
    infix = f".{variant}" if variant else ""
    for stem in STEMS:
        whole = folder / f"{stem}{infix}.safetensors"
        if whole.is_file():
            return [whole]
        index = folder / f"{stem}.safetensors.index{infix}.json"
        if index.is_file():
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
            for name in names:  # nothing outside the folder, and all of it there
                if Path(name).name != name or not (folder / name).is_file():
                    raise InputError(
                        f"{index} names the file {name!r}, which is not in {folder}: fetch the model again"
                    )
            return [folder / name for name in names]
    return []


def _flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of nested dicts by their dotted paths."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): np.asarray(tree)}
    return {
        path: value
        for name, branch in tree.items()
        for path, value in _flatten(branch, f"{prefix}{name}.").items()
    }


def _check_names(folder: Path, found: Mapping[str, str], wanted: set[str]) -> None:
    for problem, names in (
        ("lacks", sorted(wanted - found.keys())),
        (
            "has more than config.json asks for:",
            sorted(found[name] for name in found.keys() - wanted),
        ),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"the weights in {folder} are not those of this network: the file {problem} "
                f"{', '.join(names[:3])}{more}; fetch the model again, or use PyTorch for it"
            )
