"""Pickles read without running them: numbers, text, containers and arrays, and nothing else.

A pickle is a program for Python's unpickler, and may call any function. This module interprets the instructions itself
and never calls what a file names: a few known names stand for functions defined below, any other name is refused.
`pickletools` decodes the instructions, and checks every length against what is left of the file.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_INSTRUCTIONS = 100_000  # an embedding needs a few hundred
MAX_VALUES = 2**20  # floats in one array; 75 vectors of SD 1.5 are 57,600
# float types by the names of torch and safetensors; NumPy has no bfloat16
FLOATS = {"Half": "<f2", "Float": "<f4", "Double": "<f8", "BFloat16": "bf16",
          "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "bf16"}  # fmt: skip
NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}
TORCH_TYPES = {"float16", "float32", "float64", "bfloat16"}
LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
            "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
            "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class UnsafePickle(ValueError):
    """The pickle asks for something other than data; the message names it."""


@dataclass(frozen=True, eq=False)
class Storage:
    """Where a tensor's values are stored: a key into the file, and torch's name of their type."""

    key: str
    kind: str


@dataclass(frozen=True, eq=False)
class Tensor:
    """A torch tensor whose values are still to be read: a view of a storage, measured in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, fetch: Callable[[str], bytes]) -> np.ndarray:
        """A copy of the values; `fetch` returns a storage's bytes by its key.

        Raises:
            ValueError: they are not floats, too many, or outside the storage.
        """
        values = floats(fetch(self.storage.key), self.storage.kind)
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        is_sound = min(self.offset, *self.stride, 0) == 0 and min(self.shape, default=1) > 0
        # a few bytes can claim a huge shape
        if not is_sound or math.prod(self.shape) > MAX_VALUES or self.offset + last >= len(values):
            raise ValueError(f"shape {self.shape}, expected (n, hidden)")
        steps = [step * values.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps).copy()


class Stand:
    """Stands in for an object that the pickle builds in two steps: from arguments, then from a state."""

    def __init__(self, kind: str, arguments: tuple[Any, ...] = (), state: Any = None):
        self.kind, self.arguments, self.state = kind, arguments, state


@dataclass(frozen=True, eq=False)
class Known:
    """A name that the interpreter knows, and the function that a call of it runs."""

    name: str
    make: Callable[..., Any] | None = None


def _rebuild(storage: Storage, offset: int, shape: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise UnsafePickle("a tensor without a storage")
    return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _empty(*arguments: Any) -> dict[Any, Any]:
    return {}  # an OrderedDict gets its items later; the sets, of hooks, are not needed


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as protocol 2, which has none, writes them: as the first 256 characters of Unicode."""
    if type(text) is not str or encoding != "latin1":
        raise UnsafePickle("_codecs.encode of other than bytes")
    return text.encode("latin1")


def _jax_array(function: Any, arguments: Any, state: Any, own_state: Any) -> Stand:
    """JAX wraps NumPy's array: the function that makes it, its arguments, its state, and a state of JAX's own."""
    return Stand("array", (), state)


def _number(dtype: Any, data: Any) -> int | float:
    """A NumPy number, such as the step, from its bytes."""
    kind, order = _kind_and_order(dtype)
    if kind not in NUMBERS or type(data) is not bytes or len(data) != int(kind[1:]):
        raise ValueError(f"a NumPy number of type {kind}, expected an integer or a float")
    return np.frombuffer(data, order + kind)[0].item()


def _kind_and_order(dtype: Any) -> tuple[str, str]:
    """A NumPy type, such as "f4", and its byte order, "<" or ">"."""
    if not isinstance(dtype, Stand) or dtype.kind != "dtype":
        raise UnsafePickle("a NumPy value without a type")
    kind, order = str(dtype.arguments[0]), dtype.state[1]
    return kind, "<" if order in ("|", "=") else str(order)


KNOWN: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _empty,
    "__builtin__ set": _empty,
    "builtins set": _empty,
    "torch._utils _rebuild_tensor": _rebuild,
    "torch._utils _rebuild_tensor_v2": _rebuild,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils _rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._utils _rebuild_device_tensor_from_numpy": lambda array, *_: array,
    "torch.nn.modules.container ParameterDict": lambda: Stand("ParameterDict"),
    "_codecs encode": _encode,
    "numpy.core.multiarray scalar": _number,
    "numpy._core.multiarray scalar": _number,
    "numpy dtype": lambda *arguments: Stand("dtype", arguments),
    "numpy ndarray": lambda *_: Stand("array"),
    "numpy.core.multiarray _reconstruct": lambda *_: Stand("array"),
    "numpy._core.multiarray _reconstruct": lambda *_: Stand("array"),
    "jax._src.array _reconstruct_array": _jax_array,
    "jax._src.device_array reconstruct_device_array": _jax_array,
}


def _global(name: str) -> Known:
    if name in KNOWN:
        return Known(name, KNOWN[name])
    module, _, kind = name.partition(" ")
    if module in ("torch", "torch.cuda") and kind.endswith("Storage"):
        return Known(kind.removesuffix("Storage"))
    if module == "torch" and kind in TORCH_TYPES:
        return Known(kind)
    raise UnsafePickle(name.replace(" ", "."))


def _persistent(identity: Any) -> Storage | Known:
    """What torch's persistent id means: ("storage", type, key, device, count[, view, now unused]).

    In the older stream, a class of torch is ("module", class, its file, its source).
    """
    if identity[0] == "module" and len(identity) == 4:
        if not isinstance(identity[1], Known) or identity[1].name not in KNOWN:
            raise UnsafePickle("a persistent id of an unknown kind")
        return identity[1]
    what, kind, key, _, _, *view = identity
    if what != "storage" or not isinstance(kind, Known) or type(key) is not str or any(view):
        raise UnsafePickle("a persistent id of an unknown kind")
    return Storage(key, kind.name)


def interpret(stream: io.BytesIO, kinds: dict[str, str] | None = None) -> Any:
    """The content of one pickle; the stream is left at its end.

    Args:
        stream: positioned at the pickle's start.
        kinds: filled with the type of each storage, by key.

    Returns:
        numbers, text, bytes, `None`, lists, tuples, dicts, `Tensor`s and `Stand`s.

    Raises:
        UnsafePickle: it contains an unknown instruction or name.
        Exception: of any type, for damaged files.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def pop(count: int) -> list[Any]:
        marks.append(len(stack) - count)
        if marks[-1] < 0:
            raise ValueError("its stack is empty")
        return above_mark()

    instructions: Iterable[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for count, (opcode, argument, _) in enumerate(instructions):
        if count > MAX_INSTRUCTIONS:
            raise ValueError("more instructions than an embedding needs")
        name = opcode.name
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(above_mark() if name == "TUPLE" else pop(int(name[-1]))))
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2) if name == "SETITEM" else above_mark()
            _put(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = pop(1) if name == "APPEND" else above_mark()
            _extend(stack[-1], items)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name == "STACK_GLOBAL":
            stack.append(_global(" ".join(pop(2))))  # join fails unless they are text
        elif name == "BINPERSID":
            storage = _persistent(stack.pop())
            stack.append(storage)
            if kinds is not None and isinstance(storage, Storage):
                kinds[storage.key] = storage.kind
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(_make(*pop(2)))
        elif name == "BUILD":
            (state,) = pop(1)
            _set_state(stack[-1], state)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise UnsafePickle(f"the instruction {name}")
    raise ValueError("it is cut short")


def _put(target: Any, items: Iterable[tuple[Any, Any]]) -> None:
    for key, value in items:
        # other keys can be nested so deeply that hashing them takes forever
        if type(target) is not dict or not isinstance(key, str | int | float | None):
            raise ValueError(f"an entry of a {type(target).__name__} under {type(key).__name__}")
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise ValueError(f"an entry of a {type(target).__name__}")
    target.extend(items)


def _make(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Known) or function.make is None:
        raise UnsafePickle(f"a call of {getattr(function, 'name', type(function).__name__)}")
    return function.make(*arguments)


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, Stand):
        target.state = state
    elif not isinstance(target, dict):  # an OrderedDict's attributes are not needed
        raise UnsafePickle(f"a state for a {type(target).__name__}")


def parameters(stand: Any) -> Any:
    """The entries of a ParameterDict, as in the first files of Textual Inversion; anything else is unchanged."""
    if isinstance(stand, Stand) and stand.kind == "ParameterDict":
        return stand.state["_parameters"]
    return stand


def numpy_values(stand: Any) -> Any:
    """The floats of a pickled NumPy array; the content of one that contains Python objects."""
    if not isinstance(stand, Stand) or stand.kind != "array":
        return stand
    _, shape, dtype, is_fortran, data = stand.state
    kind, order = _kind_and_order(dtype)
    if kind.startswith("O"):
        return numpy_values(data[0]) if len(data) == 1 else data
    if kind not in ("f2", "f4", "f8") or order not in ("<", ">"):
        raise ValueError(f"{kind} values, expected floats")
    return np.frombuffer(data, order + kind).reshape(shape, order="F" if is_fortran else "C")


def floats(data: bytes, kind: str) -> np.ndarray:
    """Bytes as a flat array of floats; `kind` is torch's or safetensors' name of their type.

    Raises:
        ValueError: it is not a float type.
    """
    if kind not in FLOATS:
        raise ValueError(f"{kind} values, expected floats")
    if FLOATS[kind] == "bf16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, FLOATS[kind])
