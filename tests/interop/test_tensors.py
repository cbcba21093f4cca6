"""Weights are read as PyTorch wrote them, and nothing that a file wants to run is run."""

import io
import json
import pathlib
import shutil
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from big_mm.interop import torch_archive
from big_mm.interop.tensors import open_tensors
from big_mm.spec import UserError
from tests.interop import cases

BASE = np.arange(24, dtype=np.float32)


def test_a_trainers_checkpoint():
    found = open_tensors(epath.Path(cases.GOLDEN / "trainer.pt"))
    expected = {
        "transposed": BASE.reshape(4, 6).T,
        "slice": BASE[6:18:2],
        "half": BASE[:3].astype(np.float16),
        "bfloat16": BASE[:3].astype(jnp.bfloat16) / jnp.bfloat16(3),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.ones(2, np.float32),
        "count": np.int64(7),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found.shape(name) == value.shape
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_torchscript_is_read_without_its_code():
    found = open_tensors(epath.Path(cases.GOLDEN / "scripted.pt"))
    assert {name: found.shape(name) for name in found} == {
        "0.weight": (3, 2),
        "0.bias": (3,),
        "1.weight": (3,),
        "1.bias": (3,),
    }
    np.testing.assert_array_equal(found["0.weight"], np.full((3, 2), 0.5, np.float32))


def test_the_format_before_zip_files_is_refused():
    with pytest.raises(UserError, match="older files must be unpickled, which is not done here"):
        open_tensors(epath.Path(cases.GOLDEN / "legacy.pt"))


def archive(path: pathlib.Path, program: bytes, **files: bytes) -> epath.Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", program)
        for name, content in files.items():
            made.writestr(f"archive/data/{name}", content)
    return epath.Path(path)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 6) -> bytes:
    """A reference to a storage."""
    kinds = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
    return kinds + b"J" + struct.pack("<i", count) + b"tQ"


def tensor(shape: bytes, strides: bytes, offset: int = 0, **kwargs) -> bytes:
    """A call of what puts a tensor together, its shape and strides given as programs."""
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(**kwargs)
    return call + b"K" + bytes([offset]) + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"


def named(program: bytes, name: str = "weight") -> bytes:
    return b"\x80\x02}" + text(name) + program + b"s."


SIX = np.arange(6, dtype=np.float32).tobytes()


def test_the_crafted_programs_are_of_the_right_kind(tmp_path):
    path = archive(
        tmp_path / "x.pt", named(tensor(b"K\x02K\x03\x86", b"K\x03K\x01\x86")), **{"0": SIX}
    )
    np.testing.assert_array_equal(open_tensors(path)["weight"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        (b"cposix\nsystem\n(" + text("touch RAN") + b"tR.", "'posix.system'"),
        (b"cbuiltins\neval\n(" + text("open('RAN','w')") + b"tR.", "'builtins.eval'"),
        (b"c__builtin__\nexec\n" + text("open('RAN','w')") + b"\x85R.", "'__builtin__.exec'"),
        (b"cbuiltins\ngetattr\n.", "'builtins.getattr'"),
        (text("posix") + text("system") + b"\x93.", "'posix.system'"),
        # A name put together from parts, or from what is not a string.
        (text("builtins") + text("eval\x00") + b"\x93.", "'builtins.eval"),
        (b"K\x01K\x02\x93.", "'1.2'"),
        (b"ccollections\nOrderedDict.__class__\n.", "'collections.OrderedDict.__class__'"),
        (b"ctorch\nload\n.", "'torch.load'"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n.__reduce__", None),
        (b"(iposix\nsystem\n.", "the operation INST"),
        (b"(cposix\nsystem\no.", "'posix.system'"),
        (b"\x82\x01.", "the operation EXT1"),
        (text("x") + b")R.", "a str"),
        (b"ctorch\nFloatStorage\n)R.", "'torch.FloatStorage'"),
        (b"ctorch\nFloatStorage\n)\x81.", "'torch.FloatStorage'"),
        (b"c__torch__.Model\nModel\n)R.", "'__torch__.Model.Model'"),
        (b"]" + text("state") + b"b.", "__setstate__ of a list"),
        (b"}(" + b")" + b"K\x01" + b"u.", "a dict whose keys are not strings or integers"),
        (b"}K\x01a.", "an append to a dict"),
        (b"Pposix.system\n.", "the operation PERSID"),
        (b"K\x05Q.", None),
        (b"(" + text("file") + b"K\x01K\x01K\x01K\x01tQ.", "a reference that is not a storage"),
    ],
)
def test_whatever_else_a_program_wants_is_refused(tmp_path, monkeypatch, program, wanted):
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "evil.pt", b"\x80\x04" + program)
    message = f"wants to run {wanted}" if wanted else "evil.pt: its program is damaged|no tensors"
    with pytest.raises(UserError, match=message):
        open_tensors(path)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("program", "files", "message"),
    [
        # More elements than the storage has, by shape, offset, or by standing still.
        (
            named(tensor(b"K\x02K\x04\x86", b"K\x04K\x01\x86")),
            {"0": SIX},
            "larger than its storage",
        ),
        (named(tensor(b"K\x06\x85", b"K\x01\x85", offset=1)), {"0": SIX}, "larger than its stor"),
        (
            named(tensor(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"K\x00K\x00\x86")),
            {"0": SIX},
            "is larger than its storage",
        ),
        (named(tensor(b"J\xff\xff\xff\xff\x85", b"K\x01\x85")), {"0": SIX}, "make no sense"),
        (named(tensor(b"K\x01\x85", b")")), {"0": SIX}, "make no sense"),
        (named(tensor(b"K\x06\x85", b"K\x01\x85", count=2**30)), {"0": SIX}, "should have 4294967"),
        (named(tensor(b"K\x06\x85", b"K\x01\x85", key="../7")), {"0": SIX}, "and has 0"),
        (
            named(tensor(b"K\x06\x85", b"K\x01\x85", kind="QInt8Storage")),
            {"0": SIX},
            "wants to run",
        ),
        (b"\x80\x02}", {}, "its program is damaged"),
        (b"\x80\x02h\x05.", {}, "its program is damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", {}, "its program is damaged"),
        (b"\x80\x02K\x01.", {}, "holds no tensors"),
    ],
)
def test_sizes_are_checked_before_anything_is_read(tmp_path, program, files, message):
    with pytest.raises(UserError, match=message):
        open_tensors(archive(tmp_path / "x.pt", program, **files))


def test_few_bytes_do_not_become_many(tmp_path):
    # Each dict holds the one before it twice.
    doubled = b"}" + b"q\x00"
    for _ in range(40):
        doubled += b"}" + text("a") + b"h\x00s" + text("b") + b"h\x00sq\x00"
    with pytest.raises(UserError, match="nests its dicts without end"):
        open_tensors(archive(tmp_path / "x.pt", b"\x80\x02" + doubled + b"."))
    # The same with tuples, whose hash or text would take for ever, as a key and as a name.
    nested = b")" + b"q\x00" + 60 * b"h\x00h\x00\x86q\x00"
    for use in (b"}h\x00K\x01s.", b"h\x00)R."):
        with pytest.raises(UserError, match="wants to run"):
            open_tensors(archive(tmp_path / "x.pt", b"\x80\x02" + nested + use))


def test_zip_files_that_lie(tmp_path):
    program = named(tensor(b"K\x06\x85", b"K\x01\x85"))
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", program)
        made.writestr("archive/data/0", SIX)
    with pytest.raises(UserError, match="is compressed"):
        open_tensors(epath.Path(tmp_path / "x.pt"))
    path = archive(tmp_path / "x.pt", program, **{"0": SIX})
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(UserError, match="is truncated, or not of the zip format"):
        open_tensors(path)
    path.write_bytes(whole.replace(SIX, SIX[:-1] + b"\x01"))
    with pytest.raises(UserError, match="data/0 is damaged"):
        open_tensors(path)["weight"]
    archive(tmp_path / "x.pt", program).rename(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as made:
        made.writestr("something", b"")
    with pytest.raises(UserError, match="without data.pkl: PyTorch did not write it"):
        open_tensors(epath.Path(tmp_path / "x.pt"))


def test_damage_of_any_kind_is_one_clear_error(tmp_path):
    whole, rng = (cases.GOLDEN / "trainer.pt").read_bytes(), np.random.default_rng(0)
    path, read, refused = tmp_path / "x.pt", 0, 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 9)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            found = open_tensors(epath.Path(path))
            read += len([found[name] for name in found])
        except UserError:
            refused += 1
    assert read > 0 and refused > 100


def test_npz_files_that_lie(tmp_path):
    path = epath.Path(tmp_path / "x.npz")

    def message(content: bytes) -> str:
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("weight.npy", content)
        with pytest.raises(UserError) as error:
            open_tensors(path)["weight"]
        return str(error.value)

    def npy(array) -> bytes:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    assert "holds pickled objects, which are never read" in message(npy(np.array([{}, 1])))
    claims = npy(np.zeros((2, 2))).replace(b"(2, 2)", b"(2,99)")
    assert "claims shape (2, 99) of float64 and holds 32 bytes" in message(claims)
    assert "cannot be read" in message(b"not an array")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read as npz"):
        open_tensors(path)


def test_safetensors_that_lie(tmp_path):
    path = epath.Path(tmp_path / "x.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    whole = path.read_bytes()
    header = {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 12]}}
    text = json.dumps(header).encode()
    for content in (whole[:-4], struct.pack("<Q", len(text)) + text + bytes(12), b"", b"\xff" * 20):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as safetensors"):
            open_tensors(path)


def test_shards_of_pytorch_files(tmp_path):
    whole = open_tensors(epath.Path(cases.GOLDEN / "trainer.pt"))
    for shard in ("pytorch_model-1.bin", "pytorch_model-2.bin"):
        shutil.copy(cases.GOLDEN / "trainer.pt", tmp_path / shard)
    index = tmp_path / "pytorch_model.bin.index.json"

    def read(*files):
        names = [f"module.{name}" for name in sorted(whole)]
        found = {name: files[i % len(files)] for i, name in enumerate(names)}
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": found}))
        return open_tensors(epath.Path(index))

    found = read("pytorch_model-1.bin", "pytorch_model-2.bin")
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)
    shutil.copy(cases.GOLDEN / "legacy.pt", tmp_path / "pytorch_model-2.bin")
    with pytest.raises(UserError, match="pytorch_model-2.bin is truncated, or not of the zip"):
        read("pytorch_model-1.bin", "pytorch_model-2.bin")
    with pytest.raises(UserError, match="names the shard 'away/x.bin', which is not beside it"):
        read("away/x.bin")
    safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not in its shard other.safetensors"):
        read("other.safetensors")


def test_paths(tmp_path):
    with pytest.raises(UserError, match="no file"):
        open_tensors(epath.Path(tmp_path / "absent.pt"))
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="is none of the kinds read: .safetensors,"):
        open_tensors(epath.Path(tmp_path / "model.onnx"))


def test_the_reader_cannot_call_anything_else():
    """Its table of calls holds functions of its own and nothing of Python's or PyTorch's."""
    own = vars(torch_archive._Program).values()
    assert all(function in own for function in torch_archive._CALLS.values())
