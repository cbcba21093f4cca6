"""Reads PyTorch's zip files (torch.save since 1.6, and TorchScript) and executes nothing.

Such a file is a zip of raw storages and a program for the pickle machine that puts tensors
together. Here that program is only looked at: an interpreter of our own follows it as far as dicts,
lists, tuples, numbers, strings and tensors go, and refuses by name whatever else it wants.
TorchScript's modules are read as dicts of their attributes; their code is not.
"""

import dataclasses
import io
import itertools
import math
import pickletools
import re
import zipfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from big_mm.spec import UserError

# A program is a few hundred bytes a tensor, and trainers' bookkeeping is small beside it.
MAX_PROGRAM = 2**28
MAX_VALUES, MAX_DEPTH, MAX_RANK = 1_000_000, 24, 32
STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# Where trainers keep the weights, beside the optimizer's state and the like.
NESTED = ("state_dict", "model_state_dict", "model", "ema_model")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Global:
    """Something that the program names; only the functions below give it a meaning."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


def read(path: epath.Path) -> dict[str, Tensor]:
    """The tensors of a file by dotted name: of its `state_dict` or the like, if it has one.

    Raises:
      UserError: not a zip file, a damaged one, or one that wants to run something.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()) if "://" in str(path) else path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is truncated, or not of the zip format that PyTorch writes since 1.6; older "
            f"files must be unpickled, which is not done here: load it in PyTorch and save it as "
            f"safetensors ({error})"
        ) from error
    files = _Archive(path, archive)
    value = _Program(files).run()
    while isinstance(value, dict):
        inner = next((key for key in NESTED if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = value[inner]
    return _flatten(path, value)


class _Archive:
    """The zip file: of what is read nothing is compressed, and nothing is there twice."""

    def __init__(self, path: epath.Path, archive: zipfile.ZipFile):
        self.path, self._archive = path, archive
        names = [name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl"]
        if not names:
            raise UserError(f"{path} is a zip file without data.pkl: PyTorch did not write it")
        self.root = names[0].removesuffix("data.pkl")
        # Not TorchScript's code, which it compresses.
        read = re.compile(re.escape(self.root) + r"(data\.pkl|byteorder|data/.*)")
        infos = [info for info in archive.infolist() if read.fullmatch(info.filename)]
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise UserError(f"{path} is compressed, which PyTorch's files are not")
        if sum(info.file_size for info in infos) > path.stat().length:
            raise UserError(f"{path} claims more bytes than it has")
        self._infos = {info.filename: info for info in infos}
        if self.root + "byteorder" in self._infos and self.bytes("byteorder") != b"little":
            raise UserError(f"{path} is of a big-endian machine")

    def bytes(self, name: str) -> bytes:
        try:
            return self._archive.read(self.root + name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: {name} is damaged or missing: {error}") from error

    def size(self, name: str) -> int:
        info = self._infos.get(self.root + name)
        return info.file_size if info else -1

    def tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple) -> Tensor:
        """A view of a storage, whose bounds are checked before anything is read."""
        numbers = (offset, *shape, *strides)
        plain = all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        if not plain or len(shape) != len(strides) or len(shape) > MAX_RANK:
            raise UserError(f"{self.path}: a tensor whose shape and strides make no sense")
        count, size = math.prod(shape), storage.dtype.itemsize
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if count and (last >= storage.count or count > storage.count):
            raise UserError(f"{self.path}: a tensor of shape {shape} is larger than its storage")
        if self.size(f"data/{storage.key}") != storage.count * size:
            raise UserError(
                f"{self.path}: storage {storage.key} should have {storage.count * size} bytes and "
                f"has {max(self.size(f'data/{storage.key}'), 0)}"
            )

        def read() -> np.ndarray:
            flat = np.frombuffer(self.bytes(f"data/{storage.key}"), storage.dtype)
            steps = tuple(stride * size for stride in strides)
            return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)

        return Tensor(shape, read)


class _Program:
    """What the pickle machine would build, without its power to call anything."""

    def __init__(self, files: _Archive):
        self.files, self.stack, self.marks, self.memo = files, [], [], {}

    def run(self) -> Any:
        if self.files.size("data.pkl") > MAX_PROGRAM:
            raise UserError(f"{self.files.path}: its program has {self.files.size('data.pkl')} B")
        program = self.files.bytes("data.pkl")
        try:
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.files.path}: its program is damaged: {error!r}") from error
        raise AssertionError("genops ends with STOP")

    def _step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif handler := getattr(self, f"_op_{name.lower()}", None):
            handler(argument)
        elif name not in ("PROTO", "FRAME"):
            raise self._refused(f"the operation {name}")

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"{self.files.path} wants to run {what}: refused. Its author can give you the weights "
            "as safetensors; or load it, where you trust it, in PyTorch and save them so"
        )

    def _pop_to_mark(self) -> list[Any]:
        self.stack, items = self.marks.pop(), self.stack
        return items

    def _op_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _op_global(self, argument: str) -> None:
        self.stack.append(self._named(argument.replace(" ", ".", 1)))

    def _op_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._named(f"{module}.{name}"))

    def _named(self, name: str) -> _Global:
        module, _, last = name.rpartition(".")
        known = name in _CALLS or name in _INERT or name.startswith("__torch__.")
        if not known and not (module == "torch" and last in STORAGES):
            raise self._refused(repr(name))
        return _Global(name)

    def _op_tuple(self, _: Any) -> None:
        items = self._pop_to_mark()
        self.stack.append(tuple(items))

    def _op_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _op_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _op_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _op_list(self, _: Any) -> None:
        items = self._pop_to_mark()
        self.stack.append(items)

    def _op_dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self.stack.append({})
        self._update(items)

    def _op_append(self, _: Any) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _op_appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise self._refused(f"an append to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _op_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _op_setitems(self, _: Any) -> None:
        self._update(self._pop_to_mark())

    def _update(self, items: list[Any]) -> None:
        target, keys = self.stack[-1], items[::2]
        # Other keys have a hash, which may cost any time to compute.
        if not isinstance(target, dict) or not all(type(key) in (str, int) for key in keys):
            raise self._refused("a dict whose keys are not strings or integers")
        target.update(zip(keys, items[1::2], strict=True))

    def _op_binpersid(self, _: Any) -> None:
        kind, storage, key, _, count = self.stack.pop()[:5]
        if kind != "storage" or not isinstance(storage, _Global) or type(count) is not int:
            raise self._refused("a reference that is not a storage")
        dtype = STORAGES.get(storage.name.rpartition(".")[2])
        if dtype is None:
            raise UserError(f"{self.files.path} holds a {storage.name}, which is not read")
        self.stack.append(_Storage(str(key), dtype, count))

    def _op_reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, arguments))

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or function.name not in _CALLS:
            raise self._refused(_name(function))
        return _CALLS[function.name](self, *arguments)

    def _op_newobj(self, _: Any) -> None:
        _, made = self.stack.pop(), self.stack.pop()
        if not isinstance(made, _Global) or not made.name.startswith("__torch__."):
            raise self._refused(_name(made))
        self.stack.append({})

    def _op_build(self, _: Any) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], dict) or not isinstance(state, dict):
            raise self._refused(f"__setstate__ of a {type(self.stack[-1]).__name__}")
        # torch.save hangs the versions of modules on a state_dict; TorchScript's are attributes.
        self.stack[-1].update({k: v for k, v in state.items() if k != "_metadata"})

    # What the program may call, under the names it uses.

    def _tensor(self, storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
        if not isinstance(storage, _Storage):
            raise self._refused("a tensor without storage")
        return self.files.tensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor

    def _from_type(self, function: Any, _: Any, arguments: Any, *__: Any) -> Any:
        return self._call(function, arguments)

    def _ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        self.stack.append({})
        self._update(list(itertools.chain.from_iterable(pairs)))
        return self.stack.pop()


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = frozenset(
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BINSTRING SHORT_BINSTRING STRING BININT "
    "BININT1 BININT2 INT LONG LONG1 LONG4 BINFLOAT FLOAT BINBYTES SHORT_BINBYTES".split()
)
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Program._ordered_dict,
    "torch._utils._rebuild_tensor": _Program._tensor,
    "torch._utils._rebuild_tensor_v2": _Program._tensor,
    "torch._utils._rebuild_parameter": _Program._parameter,
    "torch._utils._rebuild_parameter_with_state": _Program._parameter,
    "torch._tensor._rebuild_from_type_v2": _Program._from_type,
    "torch.Size": _Program._parameter,
    "torch.jit._pickle.build_intlist": _Program._parameter,
    "torch.jit._pickle.build_doublelist": _Program._parameter,
    "torch.jit._pickle.build_boollist": _Program._parameter,
    "torch.jit._pickle.build_tensorlist": _Program._parameter,
    "torch.jit._pickle.restore_type_tag": _Program._parameter,
}
_INERT = frozenset(["torch.nn.parameter.Parameter", "torch._tensor.Tensor", "torch.Tensor"])


def _name(value: Any) -> str:
    # Not its repr: a few nested lists can have a longer one than fits into memory.
    return repr(value.name) if isinstance(value, _Global) else f"a {type(value).__name__}"


def _flatten(path: epath.Path, value: Any) -> dict[str, Tensor]:
    """{dotted name: tensor} of nested dicts; what is neither is no weight."""
    found: dict[str, Tensor] = {}
    seen = itertools.count()

    def walk(node: Any, name: str, depth: int) -> None:
        # The same dict may hang in many places, so that few bytes make more names than fit.
        if next(seen) > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"{path} nests its dicts without end: no weights are kept so")
        if isinstance(node, Tensor):
            found[name] = node
        elif isinstance(node, dict):
            for key, child in node.items():
                walk(child, f"{name}.{key}" if name else str(key), depth + 1)

    walk(value, "", 0)
    return found
