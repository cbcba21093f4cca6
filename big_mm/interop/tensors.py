"""The tensors of a file as a read-only mapping from names to arrays, each read when asked for.

    open_tensors(path)["visual.conv1.weight"]

Files: .safetensors (memory-mapped; one, or many with a *.safetensors.index.json), .npz (never
unpickled; what NumPy stored as two raw bytes is bfloat16), and PyTorch's .pt, .pth, .bin (see
`torch_archive`). Arrays keep their type, bfloat16 and float16 included.
"""

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from big_mm.interop import torch_archive
from big_mm.interop.torch_archive import DAMAGE, Tensor
from big_mm.spec import UserError

INDICES = (".safetensors.index.json", ".bin.index.json")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz", *INDICES)
# What wrappers of a model (data parallelism, compilation) put before the names.
PREFIXES = ("module.", "_orig_mod.")


@dataclasses.dataclass(frozen=True)
class Tensors(Mapping):
    """Names, shapes and types of all tensors at once; an array when it is indexed.

    Attributes:
      source: the file, for messages.
      entries: by name.
    """

    source: str
    entries: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, without reading it."""
        return self.entries[name].shape


def open_tensors(path: epath.Path) -> Tensors:
    """The tensors of a file.

    Raises:
      UserError: no such file, a kind that is not known, a damaged or truncated file, or one that
        wants to run code.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    opened = {
        ".safetensors": _safetensors,
        ".json": _sharded,
        ".npz": _npz,
        ".pt": torch_archive.read,
        ".pth": torch_archive.read,
        ".bin": torch_archive.read,
    }.get(path.suffix)
    if opened is None:
        raise UserError(f"{path} is none of the kinds read: {', '.join(SUFFIXES)}")
    entries = opened(path)
    if not entries:
        raise UserError(f"{path} holds no tensors")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in entries):
            entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return Tensors(str(path), entries)


def _safetensors(path: epath.Path) -> dict[str, Tensor]:
    try:
        if "://" in str(path):
            stored = safetensors.numpy.load(path.read_bytes())
            return {name: _held(array) for name, array in stored.items()}
        mapped = safetensors.safe_open(str(path), framework="numpy")
        names = list(mapped.keys())
        slices = {name: mapped.get_slice(name) for name in names}
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: mapped.get_tensor(name)

    return {name: Tensor(tuple(slices[name].get_shape()), reader(name)) for name in names}


def _sharded(path: epath.Path) -> dict[str, Tensor]:
    """The shards that an index names, each beside it: safetensors, or PyTorch's zip files."""
    try:
        files = json.loads(path.read_text())["weight_map"]
        shards = {file: {} for file in sorted(set(files.values()))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not an index of shards: {error!r}") from error
    for file in shards:
        if "/" in file or "\\" in file or not (path.parent / file).is_file():
            raise UserError(f"{path} names the shard {file!r}, which is not beside it")
        shard = path.parent / file
        reader = _safetensors if shard.suffix == ".safetensors" else torch_archive.read
        shards[file] = reader(shard)
    missing = [name for name, file in files.items() if name not in shards[file]]
    if missing:
        raise UserError(f"{path}: {missing[0]} is not in its shard {files[missing[0]]}")
    return {name: shards[file][name] for name, file in files.items()}


def _npz(path: epath.Path) -> dict[str, Tensor]:
    try:
        # Open files cost nothing; their arrays are read one by one.
        archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()) if "://" in str(path) else path)
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read as npz: {error}") from error
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    return {i.filename.removesuffix(".npy"): _npy(path, archive, i) for i in infos}


def _npy(path: epath.Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """One array of an .npz, whose header and size agree."""
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = header(file)
            held = info.file_size - file.tell()
    except DAMAGE as error:
        raise UserError(f"{path}: {info.filename} cannot be read: {error}") from error
    if dtype.hasobject:
        raise UserError(f"{path}: {info.filename} holds pickled objects, which are never read")
    if held != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"{path}: {info.filename} claims shape {shape} of {dtype} and holds {held} bytes"
        )

    def read() -> np.ndarray:
        try:
            with archive.open(info) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except DAMAGE as error:
            raise UserError(f"{path}: {info.filename} is damaged: {error}") from error
        return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array

    return Tensor(tuple(shape), read)


def _held(array: Any) -> Tensor:
    return Tensor(array.shape, lambda: array)
