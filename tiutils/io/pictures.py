"""What kind of picture a file is, judged by its content: RAW, HEIC, JPEG XL, or one for Pillow to open.

Many RAW files are TIFF files whose first picture is a thumbnail, which Pillow would take for the photo. Phones and
messengers rename HEIC files, so file extensions are not trusted.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from typing import Any, BinaryIO

from tiutils.errors import InputError, first_line

RAW = "a camera's RAW file, of which only a thumbnail can be read; save it as JPEG"
PREVIEW = "a TIFF file that begins with a thumbnail of its picture; save it as JPEG"
JPEG_XL = "a JPEG XL picture, which cannot be read; save it as JPEG"
HEIC = "a HEIC photo, which cannot be read: save it as JPEG, or pip install pillow-heif"
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff",
    ".gpr", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
RAW_SIGNATURES = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM",
                  b"II\x1a\0\0\0HEAPCCDR")  # fmt: skip
JPEG_XL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
HEIC_BRANDS = set(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())
AVIF_BRANDS = {b"avif", b"avis"}
HEAD = 4096  # bytes, enough to tell a file's type

# TIFF tags, and the struct codes of the types their values may have
KIND, WIDTH, HEIGHT, PHOTOMETRIC, SUB_IFDS, DNG_VERSION = 254, 256, 257, 262, 330, 50706
TIFF_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
SENSOR = {32803, 34892}  # PhotometricInterpretation: color filter array, linear raw
MAX_DIRECTORIES, MAX_ENTRIES, MAX_VALUES = 64, 1000, 16
Directory = dict[int, tuple[int, ...]]  # the values of one TIFF directory, by tag

MAX_BOXES = 4096
MAX_META = 4 * 2**20  # bytes of the metadata box of a HEIC or AVIF file


def check(file: BinaryIO, suffix: str = "") -> bool:
    """Refuse what Pillow would misread or not recognize; return whether the file is HEIC, for `open_heic`.

    Args:
        file: the picture, positioned at its start; still there afterwards.
        suffix: of its name; only used to tell RAW files from other TIFF files.

    Raises:
        InputError: it is a RAW file, a TIFF file that begins with a thumbnail, or JPEG XL.
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
    """The picture in a HEIC file, as a PIL image.

    Raises:
        InputError: pillow-heif is not installed, or the file is damaged.
    """
    if importlib.util.find_spec("pillow_heif") is None:
        raise InputError(HEIC)
    from pillow_heif import HeifImageFile

    try:
        return HeifImageFile(file)
    except Exception as error:
        reason = first_line(error)[:80]
        raise InputError(f"a damaged HEIC photo ({reason}); save it as JPEG") from error


def _brands(head: bytes) -> set[bytes]:
    """The brands of an ISO media file: what it is, and what else it can be read as."""
    if head[4:8] != b"ftyp":
        return set()
    box = head[8 : max(12, min(int.from_bytes(head[:4], "big"), HEAD))]
    return {box[:4], *(box[place : place + 4] for place in range(8, len(box) - 3, 4))}


def _thumbnail(file: BinaryIO) -> str | None:
    """Why the first picture of a TIFF file is not its main picture; None if it is."""
    chain, inner = _directories(file)
    first, everything = (chain or [{}])[0], [*chain, *inner]
    if any(DNG_VERSION in each or set(each.get(PHOTOMETRIC, ())) & SENSOR for each in everything):
        return RAW
    is_reduced = bool(first.get(KIND, (0,))[0] & 1)
    is_smaller = any(_area(each) > _area(first) for each in inner)
    unknown = len(first.get(SUB_IFDS, ())) > 0 and not inner  # its pointers lead nowhere
    if SUB_IFDS in first and (is_reduced or is_smaller or unknown):
        return RAW
    return PREVIEW if is_reduced else None


def _area(directory: Directory) -> int:
    return directory.get(WIDTH, (0,))[0] * directory.get(HEIGHT, (0,))[0]


def _directories(file: BinaryIO) -> tuple[list[Directory], list[Directory]]:
    """The directories of a TIFF file: those of its main chain, and those nested in others."""
    file.seek(0)
    head = file.read(16).ljust(16, b"\0")
    order, is_big = "<" if head[:2] == b"II" else ">", b"+" in head[2:4]
    first = struct.unpack(order + ("Q" if is_big else "I"), head[8:16] if is_big else head[4:8])[0]
    chain: list[Directory] = []
    inner: list[Directory] = []
    queue, seen = [(first, chain)], set[int]()
    while queue and len(seen) < MAX_DIRECTORIES:
        offset, home = queue.pop(0)
        if not offset or offset in seen:
            continue
        seen.add(offset)
        if found := _directory(file, offset, order, is_big):
            entries, following = found
            home.append(entries)
            queue += [(place, inner) for place in entries.get(SUB_IFDS, ())]
            queue.append((following, home))
    return chain, inner


def _directory(
    file: BinaryIO, offset: int, order: str, is_big: bool
) -> tuple[Directory, int] | None:
    """The relevant tags of a directory, and the offset of the next one; None if it is damaged."""
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
    """The content of a chunk that precedes the pixels of a PNG file; None if there is none."""
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
        file.seek(length + 4, os.SEEK_CUR)  # and its checksum
    return None


def nclx(file: BinaryIO) -> tuple[int, int, bool] | None:
    """The color code points of the main picture in an AVIF or HEIC file: primaries, transfer, full range."""
    meta = _meta(file)
    if meta is None:
        return None
    inside = dict(_boxes(meta[4:]))  # after version and flags
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
    """The content of an ISO media file's metadata box; None if there is none."""
    file.seek(0)
    for _ in range(MAX_BOXES):
        header = file.read(8)
        size, name = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8:
            return None
        size = int.from_bytes(file.read(8), "big") - 16 if size == 1 else size - 8
        if name == b"meta":
            return file.read(max(0, min(size, MAX_META)))
        if size < 0:  # up to the end of the file, or damaged
            return None
        file.seek(size, os.SEEK_CUR)
    return None


def _boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """The names and contents of consecutive boxes."""
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
    """Item → indices of its properties, as far as `data`, the content of an ipma box, is intact."""
    found: dict[int, list[int]] = {}
    id_size, index_size = (4 if data[:1] > b"\0" else 2), (2 if data[3:4] > b"\0" else 1)
    place = 8
    while place + id_size < len(data) and len(found) < MAX_BOXES:
        item = int.from_bytes(data[place : place + id_size], "big")
        count, place = data[place + id_size], place + id_size + 1
        mask = 2 ** (8 * index_size - 1) - 1  # the highest bit marks a property as essential
        ends = range(place + index_size, place + index_size * (count + 1), index_size)
        found[item] = [int.from_bytes(data[end - index_size : end], "big") & mask for end in ends]
        place += count * index_size
    return found
