"""What is exported is what was trained: read back by us, and run by JAX alone."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import tiny
from PIL import Image

import big_mm
from big_mm import export, trees
from big_mm.mesh import single_device_mesh
from big_mm.predictor import Predictor
from big_mm.spec import UserError

# What a stranger has: everything but this code.
BLOCKED = "import sys; sys.modules['big_mm'] = None\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return tiny.workdir(tmp_path_factory.mktemp("run"), lowercase=True)


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return big_mm.load(run, mesh=single_device_mesh())


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("exports") / "jax"
    # Hidden in the test: nothing of the run is needed any more.
    hidden = run.rename(run.with_name("hidden"))
    try:
        status = export.main(
            ["--checkpoint", str(hidden), "--format", "jax", "--out", str(out)]
            + ["--platforms", "cpu", "tpu", "cuda"]
        )
    finally:
        hidden.rename(run)
    assert status == 0
    return out


def test_files_and_their_names(exported, predictor):
    assert {path.name for path in exported.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "encode_image.jaxexport",
        "encode_text.jaxexport",
        "caption.jaxexport",
        "run.py",
    }
    stored = safetensors.numpy.load_file(exported / "model.safetensors")
    flat = trees.flatten(predictor.params)
    assert stored.keys() == flat.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(stored[path], leaf)
    assert str(exported.parent) not in (exported / "config.json").read_text()


def test_load_reads_it_back(exported, predictor, tmp_path):
    moved = exported.rename(tmp_path / "moved")
    try:
        loaded = big_mm.load(moved, mesh=predictor.mesh)
    finally:
        moved.rename(exported)
    assert loaded.model == predictor.model
    assert loaded.contract.fingerprint == predictor.contract.fingerprint
    images = tiny.images(3)
    np.testing.assert_array_equal(loaded.encode_image(images), predictor.encode_image(images))


def test_an_export_can_be_exported(exported, tmp_path):
    files = export.export(exported, "safetensors", tmp_path / "again")
    assert files == ["config.json", "model.safetensors", "tokenizer.model"]
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_programs_run_without_this_code(exported, predictor, tmp_path):
    count = 5
    tokens, token_mask = predictor.contract.text(tiny.TEXTS[:count])
    prefix = np.zeros((count, predictor.contract.max_len), np.int32)
    prefix[:, 0] = predictor.contract.tokenizer.bos_id
    images = tiny.images(count)
    np.savez(tmp_path / "in.npz", image=images, tokens=tokens, token_mask=token_mask, prefix=prefix)
    script = f"""
import jax.export, numpy as np, pathlib
from safetensors.numpy import load_file
here = pathlib.Path({str(exported)!r})
params = load_file(here / "model.safetensors")
given = np.load({str(tmp_path / "in.npz")!r})
run = lambda name, *keys: jax.export.deserialize(
    (here / f"{{name}}.jaxexport").read_bytes()).call(params, *(given[key] for key in keys))
tokens, scores = run("caption", "image", "prefix")
np.savez({str(tmp_path / "out.npz")!r}, image=run("encode_image", "image"),
         text=run("encode_text", "tokens", "token_mask"), tokens=tokens, scores=scores)
"""
    subprocess.run([sys.executable, "-c", BLOCKED + script], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found["image"], predictor.encode_image(images), atol=2e-4)
    texts = predictor.encode_text(tiny.TEXTS[:count])
    np.testing.assert_allclose(found["text"], texts, atol=2e-4)
    expected, scores = predictor.generate(images, predictor.contract.decoding)
    np.testing.assert_array_equal(found["tokens"], expected)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-3)


def test_run_py_shows_their_use(exported, predictor, tmp_path):
    picture = tmp_path / "picture.png"
    Image.fromarray(tiny.images(1)[0]).save(picture)
    script = (
        f"{BLOCKED}import runpy; runpy.run_path({str(exported / 'run.py')!r}, None, '__main__')"
    )
    texts = ["A Red Circle", "two stars"]
    result = subprocess.run(
        [sys.executable, "-c", script, str(picture), *texts],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert f"caption: {predictor.caption([picture])[0]}\n" in result.stdout
    for text, cosine in zip(texts, predictor.similarity([picture], texts)[0], strict=True):
        found = next(line for line in result.stdout.splitlines() if line.endswith(text))
        assert abs(float(found.split()[1]) - cosine) < 1e-3


@pytest.mark.parametrize(
    "model, contract, programs",
    [
        (tiny.siglip, {"padding": "attended"}, {"encode_image", "encode_text"}),
        (tiny.captioner, {}, {"caption"}),
    ],
)
def test_other_models_export_what_they_can_do(tmp_path, model, contract, programs):
    run = tiny.workdir(tmp_path, model, **contract)
    files = export.export(run, "jax", tmp_path / "out", platforms=["cpu"])
    assert {name.removesuffix(".jaxexport") for name in files if "export" in name} == programs


def test_a_damaged_export_is_refused(exported, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in exported.iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".safetensors":
            content[-5] ^= 1
        (damaged / path.name).write_bytes(bytes(content))
    with pytest.raises(UserError, match="model.safetensors is damaged: checksum of"):
        big_mm.load(damaged)
    (damaged / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        big_mm.load(damaged)
    (damaged / "config.json").unlink()
    with pytest.raises(UserError, match="config.json cannot be read"):
        big_mm.load(damaged)


def test_nothing_is_overwritten_or_left_half_done(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "full" / "notes.txt"):
        with pytest.raises(UserError, match="is not an empty directory: name another --out"):
            export.export(run, "safetensors", out)
    arguments = ["--checkpoint", str(tmp_path), "--format", "safetensors"]
    assert export.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint in ")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    export.export(run, "safetensors", tmp_path / "empty")
    assert json.loads((tmp_path / "empty" / "config.json").read_text())["inputs"]["lowercase"]


def test_formats_and_platforms_are_checked(run, tmp_path):
    with pytest.raises(UserError, match="format 'onnx' is none of safetensors, jax"):
        export.export(run, "onnx", tmp_path / "out")
    with pytest.raises(UserError, match=r"platforms \['abacus'\] are not among cpu, cuda, tpu"):
        export.export(run, "jax", tmp_path / "out", platforms=["abacus"])
