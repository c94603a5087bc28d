"""What a picture file is, by its first bytes: a camera's RAW file, HEIC, JPEG XL, or one that Pillow may open.

A RAW file is a TIFF whose first picture is a thumbnail; Pillow would take it for the photo. HEIC
comes under other names from phones and messengers. No ending is believed.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from typing import Any, BinaryIO

from tiutils.errors import InputError, first_line

RAW = "a camera's RAW file, of which only a thumbnail can be read here; save it as JPEG"
PREVIEW = "a TIFF file that begins with a thumbnail of its picture; save it as JPEG"
JPEG_XL = "a JPEG XL picture, which cannot be read here; save it as JPEG"
HEIC = "a HEIC photo, which cannot be read here: save it as JPEG, or pip install pillow-heif"
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff",
    ".gpr", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
RAW_SIGNATURES = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM",
                  b"II\x1a\0\0\0HEAPCCDR")  # fmt: skip
JPEG_XL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
HEIC_BRANDS = {
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"hevm",
    b"hevs",
    b"mif1",
    b"msf1",
}
AVIF_BRANDS = {b"avif", b"avis"}
HEAD = 4096  # bytes; a file's type stands at its begin

# TIFF: tags, and how their values are stored
KIND, WIDTH, HEIGHT, PHOTOMETRIC, SUB_IFDS, DNG_VERSION = 254, 256, 257, 262, 330, 50706
TIFF_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
SENSOR = {
    32803,
    34892,
}  # PhotometricInterpretation of a mosaic of sensor values, and of linear ones
MAX_DIRECTORIES, MAX_ENTRIES, MAX_VALUES = 64, 1000, 16

MAX_BOXES = 4096
MAX_META = 4 * 2**20  # bytes of a HEIC's or AVIF's description of itself


def check(file: BinaryIO, suffix: str = "") -> bool:
    """Refuse what Pillow would misread or not know, by name; returns whether it is HEIC, to be read by `open_heic`.

    Args:
        file: the picture, at its begin; it is left there.
        suffix: of its name; it decides only over what has no signature of its own.

    Raises:
        InputError: a RAW file, a thumbnail in front of its picture, or JPEG XL.
    """
    head = file.read(HEAD)
    file.seek(0)
    if head.startswith(JPEG_XL_SIGNATURES):
        raise InputError(JPEG_XL)
    if head.startswith(RAW_SIGNATURES) or (head[:4] == b"II*\0" and head[8:10] == b"CR"):
        raise InputError(RAW)
    brands = _brands(head)
    if b"crx " in brands:
        raise InputError(RAW)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        try:
            reason = RAW if suffix.lower() in RAW_SUFFIXES else _thumbnail(file)
        finally:
            file.seek(0)
        if reason is not None:
            raise InputError(reason)
    return bool(brands & HEIC_BRANDS) and not brands & AVIF_BRANDS


def open_heic(file: BinaryIO) -> Any:
    """The picture in a HEIC file, a PIL image, where pillow-heif is installed.

    Raises:
        InputError: it is not, or the file is damaged.
    """
    if importlib.util.find_spec("pillow_heif") is None:
        raise InputError(HEIC)
    from pillow_heif import HeifImageFile

    try:
        return HeifImageFile(file)
    except Exception as error:
        said = first_line(error)[:80]
        raise InputError(f"a damaged HEIC photo ({said}); save it as JPEG") from error


def _brands(head: bytes) -> set[bytes]:
    """Those of an ISO media file: what it is, and what else it can be read as."""
    if head[4:8] != b"ftyp":
        return set()
    box = head[8 : max(12, min(int.from_bytes(head[:4], "big"), HEAD))]
    return {box[:4], *(box[place : place + 4] for place in range(8, len(box) - 3, 4))}


def _thumbnail(file: BinaryIO) -> str | None:
    """Why the first picture of a TIFF file is not the picture that the file is of; None if it is."""
    chain, inner = _directories(file)
    first, everything = (chain or [{}])[0], [*chain, *inner]
    if any(DNG_VERSION in each or set(each.get(PHOTOMETRIC, ())) & SENSOR for each in everything):
        return RAW
    is_reduced = bool(first.get(KIND, (0,))[0] & 1)
    is_smaller = any(_area(each) > _area(first) for each in inner)
    unknown = len(first.get(SUB_IFDS, ())) > 0 and not inner  # it says so, but leads nowhere
    if SUB_IFDS in first and (is_reduced or is_smaller or unknown):
        return RAW
    return PREVIEW if is_reduced else None


def _area(directory: dict[int, tuple[int, ...]]) -> int:
    return directory.get(WIDTH, (0,))[0] * directory.get(HEIGHT, (0,))[0]


def _directories(
    file: BinaryIO,
) -> tuple[list[dict[int, tuple[int, ...]]], list[dict[int, tuple[int, ...]]]]:
    """The wanted whole numbers of each picture in a TIFF file: of the chain, and of those inside of others."""
    file.seek(0)
    head = file.read(16).ljust(16, b"\0")  # cut short, it leads nowhere
    order, is_big = "<" if head[:2] == b"II" else ">", b"+" in head[2:4]
    first = struct.unpack(order + ("Q" if is_big else "I"), head[8:16] if is_big else head[4:8])[0]
    chain: list[dict[int, tuple[int, ...]]] = []
    inner: list[dict[int, tuple[int, ...]]] = []
    queue, seen = [(first, chain)], set[int]()
    while queue and len(seen) < MAX_DIRECTORIES:
        offset, home = queue.pop(0)
        if not offset or offset in seen:
            continue
        seen.add(offset)
        found = _directory(file, offset, order, is_big)
        if found is None:
            continue
        entries, following = found
        home.append(entries)
        queue += [(place, inner) for place in entries.get(SUB_IFDS, ())]
        queue.append((following, home))
    return chain, inner


def _directory(
    file: BinaryIO, offset: int, order: str, is_big: bool
) -> tuple[dict[int, tuple[int, ...]], int] | None:
    """The wanted tags of one directory, and where the next one is; None if it is cut short."""
    number, pointer = ("Q", "Q") if is_big else ("H", "I")
    entry_size, inline = (20, 8) if is_big else (12, 4)
    try:
        file.seek(offset)
        count = struct.unpack(order + number, file.read(struct.calcsize("=" + number)))[0]
        if count > MAX_ENTRIES:
            return None
        data = file.read(count * entry_size)
        following = struct.unpack(order + pointer, file.read(inline))[0]
        entries = {}
        for start in range(0, count * entry_size, entry_size):
            entry = data[start : start + entry_size]
            tag, kind = struct.unpack(order + "HH", entry[:4])
            if tag not in (KIND, WIDTH, HEIGHT, PHOTOMETRIC, SUB_IFDS, DNG_VERSION):
                continue
            amount = struct.unpack(order + pointer, entry[4 : 4 + inline])[0]
            if kind not in TIFF_TYPES or not 0 < amount <= MAX_VALUES:
                continue
            form = f"{order}{amount}{TIFF_TYPES[kind]}"
            size, values = struct.calcsize(form), entry[4 + inline :]
            if size > inline:
                file.seek(struct.unpack(order + pointer, values)[0])
                values = file.read(size)
            entries[tag] = struct.unpack(form, values[:size])
    except (struct.error, OSError, OverflowError, ValueError):
        return None
    return entries, following


def png_chunk(file: BinaryIO, name: bytes) -> bytes | None:
    """The content of a chunk that stands before a PNG's pixels; None if there is none, or no PNG."""
    file.seek(0)
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return None
    for _ in range(MAX_BOXES):
        header = file.read(8)
        length, found = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8 or found == b"IDAT":
            return None
        if found == name:
            return file.read(min(length, HEAD))
        file.seek(length + 4, os.SEEK_CUR)  # four bytes more: its checksum
    return None


def nclx(file: BinaryIO) -> tuple[int, int, bool] | None:
    """How the main picture of an AVIF or HEIC file is coded: primaries, transfer, whether in full range."""
    meta = _meta(file)
    if meta is None:
        return None
    inside = dict(_boxes(meta[4:]))  # a version and flags come first
    properties = dict(_boxes(inside.get(b"iprp", b"")))
    main = int.from_bytes(inside.get(b"pitm", b"")[4:], "big")
    listed = list(_boxes(properties.get(b"ipco", b"")))
    for index in _associations(properties.get(b"ipma", b"")).get(main, ()):
        name, content = listed[index - 1] if 0 < index <= len(listed) else (b"", b"")
        if name == b"colr" and content[:4] == b"nclx" and len(content) >= 11:
            primaries, transfer, _ = struct.unpack(">3H", content[4:10])
            return primaries, transfer, bool(content[10] & 128)
    return None


def _meta(file: BinaryIO) -> bytes | None:
    """The box that describes the pictures of an ISO media file."""
    file.seek(0)
    for _ in range(MAX_BOXES):
        header = file.read(8)
        size, name = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8:
            return None
        size -= 8
        if size == 1 - 8:
            size = int.from_bytes(file.read(8), "big") - 16
        if name == b"meta":
            return file.read(max(0, min(size, MAX_META)))
        if size < 0:  # to the end of the file, or damaged
            return None
        file.seek(size, os.SEEK_CUR)
    return None


def _boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """The boxes one after the other in `data`: name and content."""
    found: list[tuple[bytes, bytes]] = []
    place = 0
    while place + 8 <= len(data) and len(found) < MAX_BOXES:
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 8:
            break
        found.append((data[place + 4 : place + 8], data[place + 8 : place + size]))
        place += size
    return found


def _associations(data: bytes) -> dict[int, list[int]]:
    """Item → numbers of its properties, as far as `data`, an ipma box, is whole."""
    found: dict[int, list[int]] = {}
    id_size, index_size = (4 if data[:1] > b"\0" else 2), (2 if data[3:4] > b"\0" else 1)
    place = 8
    while place + id_size < len(data) and len(found) < MAX_BOXES:
        item = int.from_bytes(data[place : place + id_size], "big")
        count, place = data[place + id_size], place + id_size + 1
        numbers = [
            data[place + n * index_size : place + (n + 1) * index_size] for n in range(count)
        ]
        mask = 2 ** (8 * index_size - 1) - 1  # the highest bit says that a reader must know it
        found[item] = [int.from_bytes(number, "big") & mask for number in numbers]
        place += count * index_size
    return found
