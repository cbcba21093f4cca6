"""The sidecar index of a TFRecord shard: where its records begin, so that any one is one read away.

A TFRecord is: length (uint64), masked CRC32C of these 8 bytes (uint32), the data, masked CRC32C of
the data (uint32), all little-endian. https://www.tensorflow.org/tutorials/load_data/tfrecord

The index of `DIR/NAME` is `DIR/.NAME.index`: a header of 40 bytes (magic, size of the shard, digest
of its version, number of entries, CRC32C of the entries, CRC32C of the header) and one uint64 an
entry, closed by the shard's size. Entries divide the shard without gaps: the low 56 bits are the
offset at which the entry begins, and it ends where the next begins; the high 8 bits are 0 or
1 + the index in DAMAGE of what the headers show to be wrong. A damaged stretch is an entry too, so
that the number of entries is a fact of the file. Payloads are read only where a header is damaged.
"""

import functools
import hashlib
import mmap
import os
import struct
import zlib
from array import array

import google_crc32c
import numpy as np
from absl import logging

from big_mm.data import shards
from big_mm.data.damage import DAMAGE
from big_mm.data.shards import INDEX_SUFFIX, LocalFile, RemoteFile, Stamp
from big_mm.spec import UserError

RECORD_HEADER = struct.Struct("<QI")
RECORD_OVERHEAD = 16
_HEADER = struct.Struct("<8sQQQII")
_MAGIC = b"bigmmix1"
_ENTRY = struct.Struct("<QQ")
_OFFSET_BITS = 56
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
# Locally a page holds the headers of several small records and skips the payload of large ones; a
# remote request costs as much as the transfer of some MiB.
_LOCAL_BLOCK, _REMOTE_BLOCK = 4096, 8 << 20
_ZLIB_OR_GZIP = 47  # zlib's `wbits` for either, by its header
# A search doubles its blocks, so that it costs as much as the distance to what it finds.
_SEARCH_BLOCKS = (4096, 1 << 20)
# A damaged length may be anything; what it costs to try it is bounded.
_PAYLOAD_BLOCK, _LARGEST_PAYLOAD = 1 << 20, 256 << 20


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and offset as TFRecords store it."""
    return _mask(google_crc32c.value(data))


def _mask(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Index:
    """The entries of one shard; `buffer` is an index file, memory-mapped or in memory."""

    def __init__(self, buffer: bytes | mmap.mmap, stamp: Stamp):
        """Raises ValueError when the buffer is damaged or is not the index of that version."""
        if len(buffer) < _HEADER.size:
            raise ValueError("it is cut off")
        magic, size, version, count, body_crc, header_crc = _HEADER.unpack_from(buffer)
        if magic != _MAGIC:
            raise ValueError("it is of another format")
        if google_crc32c.value(buffer[: _HEADER.size - 4]) != header_crc:
            raise ValueError("its header is damaged")
        if (size, version) != (stamp.size, _digest(stamp.version)):
            raise ValueError("the shard has changed since")
        if len(buffer) != _HEADER.size + 8 * (count + 1):
            raise ValueError("it is cut off")
        if google_crc32c.value(buffer[_HEADER.size :]) != body_crc:
            raise ValueError("its entries are damaged")
        self._buffer = buffer
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> tuple[int, int, str | None]:
        """Entry i: its begin and end in bytes, and the damage that the headers show, if any."""
        if not 0 <= i < self._count:
            raise IndexError(f"record {i} of {self._count}")
        begin, end = _ENTRY.unpack_from(self._buffer, _HEADER.size + 8 * i)
        code = begin >> _OFFSET_BITS
        return begin & _OFFSET_MASK, end & _OFFSET_MASK, DAMAGE[code - 1] if code else None

    def to_bytes(self) -> bytes:
        """The index file."""
        return bytes(self._buffer)


def pack(entries: array, stamp: Stamp) -> bytes:
    """The index file of entries as `scan` returns them."""
    body = np.asarray(entries).astype("<u8").tobytes()
    fields = (stamp.size, _digest(stamp.version), len(entries) - 1, google_crc32c.value(body))
    head = _HEADER.pack(_MAGIC, *fields, 0)[: _HEADER.size - 4]
    return head + struct.pack("<I", google_crc32c.value(head)) + body


def _digest(version: str) -> int:
    return int.from_bytes(hashlib.sha256(version.encode()).digest()[:8], "little")


def scan(file: LocalFile | RemoteFile, name: str) -> array:
    """The entries of a shard, from its record headers.

    A length is believed when its checksum fits, or when the data of that length has the checksum
    that follows it. Otherwise the bytes are searched for the next header that fits, and what lies
    between is one damaged entry, of however many records.

    Raises:
      UserError: the file is compressed.
    """
    block_size = _LOCAL_BLOCK if isinstance(file, LocalFile) else _REMOTE_BLOCK
    unpack, crc32c, size = RECORD_HEADER.unpack_from, google_crc32c.value, file.stamp.size
    entries = array("Q")
    block, start, position = b"", 0, 0
    while position < size:
        at = position - start
        if at + RECORD_HEADER.size > len(block):
            block, start, at = file.read(position, block_size), position, 0
        if len(block) - at < RECORD_HEADER.size:
            end, kind = size, "truncated"
        else:
            length, stored = unpack(block, at)
            end, kind = position + RECORD_OVERHEAD + length, None
            # masked_crc, written out: this loop is the cost of indexing.
            crc = crc32c(block[at : at + 8])
            if (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF != stored:
                if position == 0:
                    _refuse_compressed(block, name)
                end, kind = _after_bad_length(file, position, end), "length_crc"
            elif end > size:
                end, kind = size, "truncated"
        entries.append(position | _code(kind))
        position = end
    entries.append(size)
    return entries


def _code(kind: str | None) -> int:
    return 0 if kind is None else (1 + DAMAGE.index(kind)) << _OFFSET_BITS


def _refuse_compressed(block: bytes, name: str) -> None:
    """Asked of a file whose first header does not fit; a sound length may look like a magic."""
    hint = ""
    if block.startswith((b"BZh", b"\x28\xb5\x2f\xfd")):
        method = "bzip2" if block.startswith(b"BZh") else "zstandard"
    else:
        try:  # Two or three bytes of magic prove nothing about a damaged file; decompressing does.
            zlib.decompressobj(_ZLIB_OR_GZIP).decompress(block, 1)
        except zlib.error:
            return
        method = "gzip" if block.startswith(b"\x1f\x8b") else "zlib"
        hint = f", as with `gunzip < {name} > NEW_FILE`" if method == "gzip" else ""
    raise UserError(
        f"{name} is compressed ({method}), so that no record can be read without all before it: "
        f"store it uncompressed{hint}"
    )


def _after_bad_length(file: LocalFile | RemoteFile, position: int, end: int) -> int:
    """Where the next record begins after one whose length's checksum is wrong."""
    if end <= file.stamp.size and end - position <= _LARGEST_PAYLOAD:
        crc, footer = 0, end - 4
        for at in range(position + RECORD_HEADER.size, footer, _PAYLOAD_BLOCK):
            crc = google_crc32c.extend(crc, file.read(at, min(_PAYLOAD_BLOCK, footer - at)))
        if _mask(crc).to_bytes(4, "little") == file.read(footer, 4):
            return end
    return _search(file, position + 1)


def _search(file: LocalFile | RemoteFile, position: int) -> int:
    """The first offset from `position` on where a header fits, or the end of the file."""
    extra = RECORD_HEADER.size - 1
    size, (block_size, largest) = file.stamp.size, _SEARCH_BLOCKS
    while position + extra < size:
        block = np.frombuffer(file.read(position, block_size + extra), np.uint8)
        starts = len(block) - extra
        if starts <= 0:  # The file has become shorter.
            break
        # The three highest bytes of any length below 1 TiB are zero.
        high = block[5 : starts + 5] | block[6 : starts + 6] | block[7 : starts + 7]
        candidates = np.flatnonzero(high == 0)
        crc = np.zeros(len(candidates), np.uint32)
        stored = np.zeros(len(candidates), np.uint32)
        length = np.zeros(len(candidates), np.uint64)
        for i, table in enumerate(_crc_tables()):
            byte = block[candidates + i]
            crc ^= table[byte]
            length |= byte.astype(np.uint64) << np.uint64(8 * i)
        for i in range(4):
            stored |= block[candidates + 8 + i].astype(np.uint32) << np.uint32(8 * i)
        masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
        for hit in np.flatnonzero(masked == stored):
            begin = position + int(candidates[hit])
            if begin + RECORD_OVERHEAD + int(length[hit]) <= size:
                return begin
        position += starts
        block_size = min(2 * block_size, largest)
    return size


@functools.cache
def _crc_tables() -> list[np.ndarray]:
    """Eight tables of 256 whose XOR, one value a byte, is the CRC32C of 8 bytes (it is affine)."""
    zero = google_crc32c.value(bytes(8))
    tables = []
    for i in range(8):
        values = [google_crc32c.value(bytes(i) + bytes([b]) + bytes(7 - i)) for b in range(256)]
        tables.append(np.array(values, np.uint32) ^ np.uint32(0 if i == 0 else zero))
    return tables


def sidecar(url: str) -> str:
    """Where the index of a shard lies; hidden, so that nobody's `train-*` takes it for a shard."""
    parent, slash, name = url.rpartition("/")
    return f"{parent}{slash}.{name}{INDEX_SUFFIX}"


def open_index(url: str, stamp: Stamp) -> tuple[Index, bool]:
    """The index of a shard, built and stored if there is none for this version of it.

    It is stored beside the shard, or in the user's cache where that is read-only, or nowhere. A
    remote index is copied to the cache, so that it can be memory-mapped.

    Returns:
      The index, and whether it is stored: one in memory has to be handed to other processes.
    """
    cached, beside = _cache_path(url), sidecar(url)
    for place in (cached, beside) if shards.is_remote(url) else (beside, cached):
        if place is not None and (index := _read(place, stamp)) is not None:
            if shards.is_remote(place):
                return index, _store(cached, index.to_bytes()) is None
            return index, True
    index = build_index(url, stamp)
    problem = _store(beside, index.to_bytes())
    if problem is None and not shards.is_remote(url):
        return index, True
    problem_too = _store(cached, index.to_bytes())
    if problem_too is None:
        if problem is not None:
            logging.info("the index of %s is in %s, because %s", url, cached, problem)
        return index, True
    if problem is not None:
        logging.warning(
            "the index of %s stays in memory and is built again in every run: %s; %s",
            *(url, problem, problem_too),
        )
    return index, False


def build_index(url: str, stamp: Stamp) -> Index:
    """Indexes a shard in memory. Raises UserError if it is compressed."""
    logging.info("indexing %s (%.1f MB)", url, stamp.size / 1e6)
    return Index(pack(scan(shards.open_file(url), url), stamp), stamp)


def write_sidecar(url: str, entries: array) -> None:
    """Stores the index of a shard that has just been written."""
    if (problem := _store(sidecar(url), pack(entries, shards.stat(url)))) is not None:
        raise OSError(f"cannot write the index of {url}: {problem}")


def _read(place: str, stamp: Stamp) -> Index | None:
    try:
        if shards.is_remote(place):
            files, path = shards.filesystem(place)
            return Index(files.cat_file(path), stamp)
        with open(place, "rb") as file:
            return Index(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), stamp)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.info("the index %s is not used: %s", place, error)
        return None


def _store(place: str | None, data: bytes) -> str | None:
    """Writes an index whole; returns why that is not possible, if it is not."""
    if place is None:
        return f"{_cache_directory()} is not a private directory of this user"
    directory = os.path.dirname(place) or "."
    if not shards.is_remote(place) and not shards.is_writable(directory):
        return f"{directory} is read-only"
    try:
        # No waiting for the disk: a damaged index is noticed and built again.
        with shards.atomic_write(place, sync=False) as file:
            file.write(data)
    except Exception as error:  # A remote filesystem may raise anything; none is a reason to stop.
        return f"{place} cannot be written ({error or type(error).__name__})"
    return None


def _cache_path(url: str) -> str | None:
    """Where the user's cache holds the index, or None when it is not the user's alone.

    An index decides which bytes are read, so nobody else may write it.
    """
    directory = _cache_directory()
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        info = os.stat(directory)
    except OSError:
        return None
    if info.st_uid != os.geteuid() or info.st_mode & 0o077:
        return None
    name = url if shards.is_remote(url) else os.path.abspath(url)
    return os.path.join(directory, hashlib.sha256(name.encode()).hexdigest()[:32] + INDEX_SUFFIX)


def _cache_directory() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "big_mm", "index")
