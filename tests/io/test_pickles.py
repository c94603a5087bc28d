"""Pickles are read without running them: the numbers are torch's, and nothing that a file asks for happens."""

from __future__ import annotations

import io
import pickle
import struct
import tempfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import embedding_samples as made
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from tiutils.errors import InputError
from tiutils.io import pickles
from tiutils.io.embeddings import read


def interpret(data: bytes):
    return pickles.interpret(io.BytesIO(data))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(plain, st.integers(2, 5))
def test_plain_data_comes_out_as_from_pythons_own_unpickler(value, protocol):
    if protocol == 2:  # has no bytes; as text through a function, which is refused
        value = str(value)
    assert interpret(pickle.dumps(value, protocol)) == value


@settings(max_examples=60, deadline=None)
@given(
    np_st.arrays(
        st.sampled_from([np.float32, np.float16, np.float64]),
        np_st.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.integers(-9, 9),
    ),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_tensor_has_torchs_own_values(values, is_transposed, is_zip, skipped):
    tensor = torch.from_numpy(values)
    tensor = tensor.t() if is_transposed else tensor
    tensor = tensor[skipped % len(tensor) :]  # starts inside its storage
    data = made.torch_bytes({"<toy>": tensor}, _use_new_zipfile_serialization=is_zip)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        found = read(path).vectors
    np.testing.assert_array_equal(found, tensor.float().numpy())


def test_a_tensor_beyond_its_storage_is_refused():
    storage = pickles.Storage("0", "Float")
    for offset, shape, stride in [
        (0, (2, 4), (4, 1)), (5, (1, 4), (4, 1)), (-1, (1, 4), (4, 1)), (4, (2, 2), (-2, 1)),
        (0, (1, -1), (1, 1)), (0, (0, 4), (4, 1)), (0, (2**40, 2**40), (0, 0)),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"expected \(n, hidden\)"):
            pickles.Tensor(storage, offset, shape, stride).array(lambda key: bytes(28))
    found = pickles.Tensor(storage, 1, (2, 3), (3, 1)).array(lambda key: bytes(28))
    assert found.shape == (2, 3)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "number",
    [np.float64(500.5), np.float32(0.25), np.float16(2), np.int64(500), np.uint8(7), np.bool_(1)],
)
def test_a_numpy_number_beside_the_vectors_is_a_number(tmp_path, number, is_zip):
    content = made.as_tensors(made.a1111_content(made.vectors())) | {"step": number}
    path = tmp_path / "x.pt"
    path.write_bytes(made.torch_bytes(content, _use_new_zipfile_serialization=is_zip))
    assert read(path).metadata["steps"] == str(number.item())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-(2**63), 2**63 - 1).map(np.int64) | st.floats().map(np.float64), st.integers(2, 5)
)
def test_numpy_numbers_are_those_of_pythons_own_unpickler(number, protocol):
    found = interpret(pickle.dumps(number, protocol))
    assert type(found) in (int, float) and (found == number or number != number)


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_vectors_where_a_tensor_is_expected(tmp_path, protocol):
    values = made.vectors()
    (tmp_path / "x.pt").write_bytes(made.torch_bytes({"<toy>": values}, pickle_protocol=protocol))
    np.testing.assert_array_equal(read(tmp_path / "x.pt").vectors, values)


def test_a_class_in_torchs_older_stream(tmp_path):
    """Its persistent id has four parts, including the class and its source."""
    values = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.tensor(made.vectors()))})
    content = {"string_to_token": {"*": 265}, "string_to_param": values, "name": "old-toy"}
    data = made.torch_bytes(content, _use_new_zipfile_serialization=False)
    if b"module" not in data.split(b"ParameterDict")[0]:  # newer torch names the class alone
        name = b"ctorch.nn.modules.container\nParameterDict\n"
        assert name in data
        begun, _, rest = data.partition(name)
        text = b"(X\x06\0\0\0module" + name + b"X\0\0\0\0X\0\0\0\0tQ"
        data = begun + text + rest
    (tmp_path / "x.pt").write_bytes(data)
    found = read(tmp_path / "x.pt")
    assert found.token == "old-toy"
    np.testing.assert_array_equal(found.vectors, made.vectors())


# What a file may ask for

FORBIDDEN = {
    "a function": b"cos\nsystem\n(S'true'\ntR.",
    "by text": b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
    "torch's": b"ctorch\nload\n.",
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\no.",
    "an extension": b"\x82\x01.",
    "with keywords": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "a persistent name": b"Pname\n.",
    "a storage called": b"ctorch\nFloatStorage\n(I9\ntR.",
    "a tensor from text": b"ctorch._utils\n_rebuild_tensor_v2\n(S'x'\nI0\n))I00\n)tR.",
    "a class of its own": b"(S'module'\nctorch\nFloatStorage\nS''\nS''\ntQ.",
    "another encoding": b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.",
    "a number of no type": b"cnumpy.core.multiarray\nscalar\n(S'f8'\nS'x'\ntR.",
    "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 4) + b"abcd.",
    "a state for text": b"S'x'\n}b.",
    "a state for a name": b"ccollections\nOrderedDict\n}b.",
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_all_but_data_is_refused(case):
    with pytest.raises(pickles.UnsafePickle) as caught:
        interpret(FORBIDDEN[case])
    assert str(caught.value)


def test_nothing_is_called_while_a_pickle_is_read(monkeypatch):
    """Neither Python's unpickler nor torch's is ever asked."""

    def refuse(*arguments, **options):
        raise AssertionError("an unpickler was asked")

    files = {name: data for name, (_, data, *_) in made.samples().items()}
    for home, name in [(pickle, "loads"), (pickle, "load"), (torch, "load"), (np, "load")]:
        monkeypatch.setattr(home, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files.values()):
            (Path(folder) / str(number)).write_bytes(data)
            assert read(Path(folder) / str(number)).vectors.size


# Bounds


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(2**22))
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def empty_png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def numpy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


TENSOR = (  # of 2**20 values, all the same one
    b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI1\nt"
    b"Q" b"I0\n(I1024\nI1024\nt(I0\nI0\ntI00\n}tR"
)  # fmt: skip
LAUGHS = b"(I1\nI1\ntq\x00" + b"0h\x00h\x00\x86q\x00" * 200  # a tuple of 2**200 leaves
BOMBS = {
    "memo": zipped(b"\x80\x02}r\xff\xff\xff\x7f."),
    "long bytes": zipped(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."),
    "long text": zipped(b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x."),
    "long frame": zipped(b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}."),
    "many containers": zipped(b"\x80\x02(" + b"}" * 2**21 + b"t."),
    "a bytearray": zipped(b"cbuiltins\nbytearray\n(I1099511627776\ntR."),
    "laughs as a key": zipped(b"}" + LAUGHS + b"N" + b"s."),
    "laughs as a word": zipped(b"}S'string_to_param'\n}S'name'\n" + LAUGHS + b"ss."),
    "laughs as a name": zipped(b"\x80\x04" + LAUGHS + LAUGHS + b"\x93."),
    "laughs as a storage": zipped(
        b"(S'storage'\nctorch\nFloatStorage\n" + LAUGHS + b"S'cpu'\nI1\ntQ."
    ),
    "many large tensors": zipped(
        b"}(" + b"".join(b"S'%d'\n" % n + TENSOR for n in range(2000)) + b"u."
    ),
    "numbers of a header": numpy_header("{'descr':'<f4','fortran_order':False,'shape':(2**40,)}\n"),
    "a header's shape": numpy_header(
        "{'descr':'<f4','fortran_order':False,'shape':(1099511627776,)}\n"
    ),
    "a header's nesting": numpy_header("[" * 9000),
    "pixels": empty_png(60_000, 60_000),
    "text of a picture": empty_png(
        1, 1, chunk(b"zTXt", b"sd-ti-embedding\0\0" + zlib.compress(bytes(2**27), 9))
    ),
    "a long header": made.header_first({"pad": "x" * 5 * 2**20}),
    "a deep header": struct.pack("<Q", 2**21) + b'{"a":' + b"[" * 2**21,
    "an endless tensor": made.header_first(
        {"<toy>": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}}
    ),
    "a deep picture": made.png(made.picture(4, 4), b'{"a":' + b"[" * 2**20),
}


@pytest.mark.parametrize("case", BOMBS)
def test_memory_and_time_are_bounded(tmp_path, case):
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[case])
    read_once(tmp_path)  # imports
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20 and time.process_time() - begun < 20


def read_once(folder: Path) -> None:
    for name, (_, data, *_) in made.samples().items():
        if name in ("A1111", "picture", "NumPy"):
            (folder / "sound").write_bytes(data)
            read(folder / "sound")


# Arbitrary changes to files of every format

FILES = [data for _, data, *_ in made.samples().values()]
FILES += [made.header_first({"<toy>": {"dtype": "F32", "shape": shape, "data_offsets": [0, 64]}})
          for shape in ([4, 4], [2**40, 2**40])]  # fmt: skip
OPCODES = b"().0125GIJKLMNRSTUVX]abcdegijlopqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x92\x93\x94\x95"


@st.composite
def damaged(draw) -> bytes:
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(len(data), 4000) - 1))  # where the structure is
        data[place] = draw(st.integers(0, 255) | st.sampled_from(OPCODES))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@st.composite
def program(draw) -> bytes:
    """A pickle of random instructions, with known and unknown names."""
    names = [f"c{name.replace(' ', chr(10))}\n".encode() for name in pickles.KNOWN]
    names += [b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"S'storage'\n", b"S'string_to_param'\n"]
    one = st.sampled_from([bytes([code]) for code in OPCODES] + names * 3)
    return b"\x80\x02" + b"".join(draw(st.lists(one, max_size=25))) + b"."


@settings(max_examples=200, deadline=None)
@given(damaged() | program() | program().map(zipped) | st.binary(max_size=60))
def test_any_file_gives_sound_words_or_an_input_error(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stranger"
        path.write_bytes(data)
        try:
            found = read(path)
        except InputError as error:
            assert "stranger" in str(error) and "\n" not in str(error)
        else:
            assert found.token.strip() and found.vectors.dtype == np.float32
            assert found.vectors.ndim == 2 and np.isfinite(found.vectors).all()


@settings(max_examples=200, deadline=None)
@given(program())
def test_random_instructions_call_nothing(data):
    try:
        found = interpret(data)
    except Exception as error:
        assert not isinstance(error, SystemError | AssertionError)
    else:
        kinds = (type(None), bool, int, float, str, bytes, list, tuple, dict)
        known = (pickles.Tensor, pickles.Storage, pickles.Stand, pickles.Known)
        assert isinstance(found, kinds + known)
