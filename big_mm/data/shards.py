"""Where shards are and how their bytes are read: patterns, local and remote files, atomic writes.

A shard is named by a path or by a URL of any fsspec filesystem (`gs://`, `s3://`, `memory://`).
Reads are positioned (`pread`, ranged requests), so that threads share a file without a position.
"""

import contextlib
import glob
import itertools
import os
import re
import secrets
import stat as stat_bits
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import fsspec

from big_mm.spec import UserError

INDEX_SUFFIX = ".index"
_MAX_NAMES = 100_000
_REQUESTS = 32
# What tells two versions of a remote object apart, most exact first.
_VERSION_KEYS = ("generation", "etag", "ETag", "content_md5", "mtime", "LastModified")
_VERSION_KEYS += ("last_modified", "created")


class Stamp(NamedTuple):
    """Tells whether a shard is still the one that was indexed."""

    size: int
    version: str


def is_remote(url: str) -> bool:
    """Whether `url` needs fsspec."""
    return "://" in url


def normalise(url: str | os.PathLike[str]) -> str:
    """A path without `file://` and with `~` expanded; remote URLs stay as they are."""
    url = os.fspath(url).removeprefix("file://")
    return url if is_remote(url) else os.path.expanduser(url)


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a remote URL and the path in it.

    Raises:
      UserError: no such protocol, or the package that speaks it is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {url}: {error}") from error


class LocalFile:
    """A local file, open for positioned reads."""

    def __init__(self, path: str):
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.stamp = _local_stamp(os.fstat(self._descriptor))

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at the end of the file."""
        data = os.pread(self._descriptor, count, offset)
        if len(data) == count or not data:
            return data
        # One call returns at most 2 GiB, and less than asked for on some network filesystems.
        parts = [data]
        while count := count - len(parts[-1]):
            offset += len(parts[-1])
            parts.append(os.pread(self._descriptor, count, offset))
            if not parts[-1]:
                break
        return b"".join(parts)

    def __del__(self) -> None:
        # Not a close() method: whichever thread still reads holds a reference to the file.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class RemoteFile:
    """An object of an fsspec filesystem, read by ranged requests."""

    def __init__(self, url: str):
        self._filesystem, self._path = filesystem(url)
        self.stamp = stat(url)

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at the end of the file."""
        end = min(offset + count, self.stamp.size)
        return self._filesystem.cat_file(self._path, start=offset, end=end) if end > offset else b""


def open_file(url: str) -> LocalFile | RemoteFile:
    """A file for positioned reads by any number of threads."""
    return RemoteFile(url) if is_remote(url) else LocalFile(url)


def stat(url: str) -> Stamp:
    """Size and version of a file. Raises FileNotFoundError."""
    if is_remote(url):
        files, path = filesystem(url)
        return _remote_stamp(files.info(path))
    return _local_stamp(os.stat(url))


def _local_stamp(info: os.stat_result) -> Stamp:
    return Stamp(info.st_size, str(info.st_mtime_ns))


def _remote_stamp(info: dict[str, Any]) -> Stamp:
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None), "")
    return Stamp(int(info["size"]), version)


def expand(patterns: str | Sequence[str]) -> dict[str, Stamp]:
    """{file: stamp} of the shards that patterns name, in the order of the patterns.

    A pattern is a path or URL with any of `*`, `?`, `[...]` (matches sorted by name), `{a,b}`,
    `{00000..00031}` and `name@4.tfrecord`, which stands for `name-00000-of-00004.tfrecord` to
    `name-00003-of-00004.tfrecord`. A file that has exactly the given name goes before all that.

    Raises:
      UserError: nothing matches, one of the enumerated shards is missing, or one is named twice.
    """
    if isinstance(patterns, (str, os.PathLike)):
        patterns = (patterns,)
    if not patterns:
        raise UserError("no shards are named")
    found: dict[str, Stamp] = {}
    for pattern in patterns:
        for url, stamp in _expand_one(normalise(pattern)).items():
            if url in found:
                raise UserError(f"the shard {url} is named twice (again by {pattern!r})")
            found[url] = stamp
    return found


def _expand_one(pattern: str) -> dict[str, Stamp]:
    if re.search(r"[*?\[{@]", pattern) and (stamp := _stat_or_none(pattern)) is not None:
        return {pattern: stamp}
    names = enumerate_names(pattern)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        matches = list(pool.map(_glob, names))
        urls = [url for match in matches for url in match]
        stamps = dict(zip(urls, pool.map(_stat_or_none, urls), strict=True))
    parts = [{url: stamps[url] for url in match if stamps[url]} for match in matches]
    missing = [name for name, part in zip(names, parts, strict=True) if not part]
    if missing == [pattern]:
        raise UserError(f"no shard matches {pattern!r}{_hint(pattern)}")
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(names)} shards that {pattern!r} names are missing; "
            f"the first is {missing[0]}{_hint(missing[0])}"
        )
    return {url: stamp for part in parts for url, stamp in part.items()}


def enumerate_names(pattern: str) -> list[str]:
    """`@N` and braces written out; `*`, `?` and `[...]` stay.

    Raises:
      UserError: more than 100,000 names.
    """
    parent, slash, name = pattern.rpartition("/")
    if match := re.search(r"@(\d+)(?=\.|$)", name):
        count = int(match[1])
        _check_count(count, pattern)
        head, tail = parent + slash + name[: match.start()], name[match.end() :]
        names = [f"{head}-{i:05d}-of-{count:05d}{tail}" for i in range(count)]
    else:
        names = [pattern]
    return [full for name in names for full in _braces(name, pattern)]


def _braces(text: str, pattern: str) -> list[str]:
    """Shell brace expansion of the innermost groups first; a brace without its partner is text."""
    group = re.search(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", text)
    if group is None:
        return [text]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", group[1]):
        first, last = int(span[1]), int(span[2])
        _check_count(abs(last - first) + 1, pattern)
        padded = any(len(s) > 1 and s.startswith("0") for s in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        steps = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        choices = [f"{i:0{width}d}" for i in steps]
    else:
        choices = group[1].split(",")
    before, after = text[: group.start()], text[group.end() :]
    names = itertools.chain.from_iterable(
        _braces(before + choice + after, pattern) for choice in choices
    )
    names = list(dict.fromkeys(itertools.islice(names, _MAX_NAMES + 1)))
    _check_count(len(names), pattern)
    return names


def _check_count(count: int, pattern: str) -> None:
    if count > _MAX_NAMES:
        raise UserError(f"{pattern!r} names more than {_MAX_NAMES:,} shards")


def _glob(name: str) -> list[str]:
    """Sorted matches, directories among them, or the name itself."""
    if not re.search(r"[*?\[]", name):
        return [name]
    if is_remote(name):
        files, path = filesystem(name)
        matches = map(files.unstrip_protocol, files.glob(path))
    else:
        matches = glob.glob(name, recursive=True)
    return sorted(url for url in matches if not url.endswith(INDEX_SUFFIX))


def _stat_or_none(url: str) -> Stamp | None:
    try:
        if not is_remote(url):
            return stat(url) if _is_file(url) else None
        files, path = filesystem(url)
        info = files.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if info["type"] == "directory" else _remote_stamp(info)


def _is_file(path: str) -> bool:
    return os.path.exists(path) and not os.path.isdir(path)


def _hint(pattern: str) -> str:
    if is_remote(pattern):
        return ""
    if os.path.isdir(pattern):
        return f": it is a directory; name its files, like {os.path.join(pattern, '*.tfrecord')}"
    directory = os.path.dirname(pattern) or "."
    if re.search(r"[*?\[{@]", directory) or os.path.isdir(directory):
        return ""
    return f": there is no directory {directory}"


@contextlib.contextmanager
def atomic_write(url: str, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file that is at `url` whole after the block, or not at all when the block raises.

    With `sync` that holds through a power failure too, at the price of waiting for the disk. A
    remote object is written to a local temporary file first and sent as one upload.
    """
    if is_remote(url):
        files, path = filesystem(url)
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            files.put_file(file.name, path)
        return
    directory, name = os.path.split(url)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, url)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def is_writable(directory: str) -> bool:
    """Whether files may be put there; root does not overrule a directory without write bits."""
    mode = os.stat(directory).st_mode
    writable_by_anyone = stat_bits.S_IWUSR | stat_bits.S_IWGRP | stat_bits.S_IWOTH
    return bool(mode & writable_by_anyone) and os.access(directory, os.W_OK)
