"""Features are computed once, found again only where they are the same, and exact after a crash."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import oracles
import pytest
import tiny

from big_mm import spec, trees
from big_mm.data.examples import Schema, encode
from big_mm.data.records import TFRecordSource, TFRecordWriter
from big_mm.evaluators import NearestNeighbours, Retrieval, ZeroShot, features, run_all
from big_mm.mesh import MeshConfig, single_device_mesh
from big_mm.predictor import Predictor
from big_mm.probing import logistic
from big_mm.spec import UserError

COUNT = 23


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    built = spec.build(tiny.config(tmp_path_factory.mktemp("tiny")))
    model, contract = built["objective"].model, built["contract"]
    params = tiny.parameters(model, contract)
    return Predictor(model, params, contract, single_device_mesh(), batch_size=8)


@pytest.fixture
def source(tmp_path):
    return written(tmp_path / "data.tfrecord")


def written(path, shift=0):
    numbered = oracles.Numbered(COUNT)
    with TFRecordWriter(str(path)) as writer:
        for i in range(COUNT):
            image = b"broken" if i in (4, 22) else numbered[(i + shift) % COUNT]["image"]
            caption = ["", f"number {i % 9}"] if i != 7 else [" "]  # a damaged record as well
            row = {"image": image, "key": f"n{i}", "label": i % 4, "caption": caption}
            writer.write(encode(row))
    return TFRecordSource(str(path), Schema(captions=None, label="label"))


def counting(predictor, folder=None):
    """The predictor, and the numbers of pictures that it was asked for."""
    seen = []

    class Counting(Predictor):
        def image_outputs(self, images, keys, dtype="float32"):
            seen.append(len(images))
            return super().image_outputs(images, keys, dtype)

    fields = {f.name: getattr(predictor, f.name) for f in dataclasses.fields(predictor) if f.init}
    made = Counting(**fields | {"features": folder})
    made.compiled.update(predictor.compiled)
    return made, seen


SOUND = [i for i in range(COUNT) if i not in (4, 22)]


def expected(predictor, output="image_features"):
    images = np.stack([oracles.picture(i) for i in SOUND])
    return predictor.image_outputs(images, (output,))[output]


def test_rows_are_the_models_own_and_come_with_number_key_and_label(predictor, source):
    found = features.extract(predictor, source, "image_features", batch_size=5)
    np.testing.assert_allclose(found.values, expected(predictor), rtol=1e-4, atol=1e-5)
    assert found.index.tolist() == SOUND and found.keys == [f"n{i}" for i in SOUND]
    assert found.labels.tolist() == [i % 4 for i in SOUND]
    assert [r["key"] for r in features.read(source, found.index)] == found.keys


def test_the_embedding_is_that_of_encode_image(predictor):
    images = tiny.images(5)
    out = predictor.image_outputs(images, ("image_embedding", "patch_tokens"), "float16")
    np.testing.assert_allclose(out["image_embedding"], predictor.encode_image(images), atol=1e-3)
    assert out["patch_tokens"].dtype == np.float16 and out["patch_tokens"].shape == (5, 16, 16)


def test_they_are_computed_once_for_all_who_ask_and_anew_for_other_parameters(predictor, source):
    model, seen = counting(predictor)
    first = features.extract(model, source, "image_features", batch_size=5)
    assert features.extract(model, dataclasses.replace(source), "image_features") is first
    assert sum(seen) == len(SOUND)
    features.extract(model, source, "image_features", limit=3)
    features.extract(model, source, "image_features", dtype="float16")
    features.extract(model.replace(params=model.params), source, "image_features")
    assert sum(seen) == 3 * len(SOUND) + 3
    rewritten = written(pathlib.Path(source.shards), shift=1)
    assert rewritten == source
    found = features.extract(model, rewritten, "image_features")
    assert not np.allclose(found.values, first.values)


@pytest.mark.parametrize("kept", [False, True])
def test_evaluators_share_what_they_have_embedded(predictor, source, tmp_path, kept):
    captioned = dataclasses.replace(source, schema=Schema(label="label"))
    embedding = {"output": "image_embedding", "ks": (3,)}
    asked = {
        "retrieval": Retrieval(captioned, ks=(1, 2)),
        "zero_shot": ZeroShot(captioned, oracles.NAMES, batch_size=5),
        "few": Retrieval(captioned, ks=(1, 2), limit=9),
        "neighbours": NearestNeighbours(captioned, captioned, **embedding),
    }
    alone, model = {}, None
    for name, evaluator in asked.items():
        model, seen = counting(predictor)
        alone |= run_all({name: evaluator}, model)
        assert sum(seen) == (7 if name == "few" else 20)  # without 4, 7 and 22
    model, seen = counting(predictor, tmp_path / "kept" if kept else None)
    assert run_all(asked, model) == alone
    assert sum(seen) == 20 + 7
    again, more = counting(predictor, model.features)
    assert run_all(dict(reversed(asked.items())), again) == alone
    assert sum(more) == (0 if kept else 20 + 7)


@pytest.mark.parametrize("batch_size", [5, 11])  # of 11, the last batch is one damaged record
def test_a_folder_outlives_the_process(predictor, source, tmp_path, batch_size):
    model, seen = counting(predictor, tmp_path / "kept")
    first = features.extract(model, source, "patch_tokens", batch_size=batch_size, dtype="float16")
    again, more = counting(predictor, tmp_path / "kept")
    found = features.extract(again, source, "patch_tokens", batch_size=64, dtype="float16")
    assert sum(seen) == len(SOUND) and not more
    assert isinstance(found.values, np.memmap)
    np.testing.assert_array_equal(found.values, first.values)
    assert (found.keys, found.index.tolist()) == (first.keys, first.index.tolist())
    assert found.labels.tolist() == first.labels.tolist()


def test_an_interrupted_extraction_goes_on(predictor, source, tmp_path):
    class Killed(Exception):
        pass

    model, seen = counting(predictor, tmp_path / "kept")
    whole, image_outputs = expected(predictor), model.image_outputs

    def dying(images, keys, dtype):
        if sum(seen) >= 10:
            raise Killed
        return image_outputs(images, keys, dtype)

    object.__setattr__(model, "image_outputs", dying)
    with pytest.raises(Killed):
        features.extract(model, source, "image_features", batch_size=5)
    with next((tmp_path / "kept").glob("*/parts.jsonl")).open("a") as file:
        file.write('{"end": 15, "checks')  # killed while it wrote
    model, seen = counting(predictor, tmp_path / "kept")
    found = features.extract(model, source, "image_features", batch_size=5)
    assert sum(seen) == len(SOUND) - 14
    np.testing.assert_allclose(found.values, whole, rtol=1e-4, atol=1e-5)
    assert found.index.tolist() == SOUND


def test_damaged_rows_are_computed_again(predictor, source, tmp_path):
    model, _ = counting(predictor, tmp_path / "kept")
    first = np.array(features.extract(model, source, "image_features", batch_size=5).values)
    rows = np.lib.format.open_memmap(next((tmp_path / "kept").glob("*/rows.npy")), "r+")
    rows[12, 3] += 1
    rows.flush()
    again, seen = counting(predictor, tmp_path / "kept")
    found = features.extract(again, source, "image_features", batch_size=5)
    np.testing.assert_array_equal(found.values, first)
    assert sum(seen) == len(SOUND) - 9  # the parts before the damaged one stay


@pytest.mark.parametrize("changed", ["params", "model", "contract", "records", "schema", "limit"])
def test_nothing_stale_is_found(predictor, source, tmp_path, changed):
    model, _ = counting(predictor, tmp_path / "kept")
    first = np.array(features.extract(model, source, "image_features").values)
    other, seen = counting(predictor, tmp_path / "kept")
    limit = None
    if changed == "params":
        params = tiny.parameters(other.model, other.contract, seed=1)
        other = dataclasses.replace(other, params=params)
    elif changed == "model":
        parallel = other.model.clone(pooling="parallel")
        other = dataclasses.replace(other, model=parallel)
    elif changed == "contract":
        other = dataclasses.replace(
            other, contract=dataclasses.replace(other.contract, kernel="bicubic")
        )
    elif changed == "records":
        source = written(tmp_path / "data.tfrecord", shift=1)
    elif changed == "schema":
        source = dataclasses.replace(source, schema=Schema(captions=None, label=None))
    else:
        limit = 7
    found = features.extract(other, source, "image_features", limit=limit)
    assert sum(seen) == len(found)
    assert changed in ("contract", "schema", "limit") or not np.allclose(first, found.values)


def test_two_writers_do_not_meet(predictor, source, tmp_path):
    model, _ = counting(predictor, tmp_path / "kept")
    features.extract(model, source, "image_features")
    folder = next((tmp_path / "kept").iterdir())
    store = features.Store(folder)
    assert json.loads((folder / "identity.json").read_text())["request"]["label"] == "label"
    with store.writing(COUNT):
        again, _ = counting(predictor, tmp_path / "kept")
        with pytest.raises(UserError, match="another process writes features"):
            features.extract(again, source, "image_features")


def test_devices_change_nothing(predictor, source):
    eight = Predictor(
        predictor.model, predictor.params, predictor.contract, MeshConfig().make(), batch_size=16
    )
    found = features.extract(eight, source, "image_features", batch_size=9)
    np.testing.assert_allclose(found.values, expected(predictor), rtol=1e-4, atol=1e-5)


def test_bad_requests_say_what_is_wrong(predictor, source, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="CoCa has no image_feature; its outputs here are"):
        features.extract(predictor, source, "image_feature")
    with pytest.raises(UserError, match="from a local disk, not from gs://bucket/kept"):
        features.extract(counting(predictor, "gs://bucket/kept")[0], source, "image_features")
    monkeypatch.setattr(features.os, "sysconf", lambda name: 8)
    with pytest.raises(UserError, match="keep it in a folder by --features DIR"):
        features.extract(counting(predictor)[0], source, "image_features")


def test_values_that_are_not_finite_name_their_record(predictor, source):
    model, _ = counting(predictor)

    def diverged(images, keys, dtype):
        values = np.ones((len(images), 2), dtype)
        values[3, 1] = np.inf
        return {keys[0]: values}

    object.__setattr__(model, "image_outputs", diverged)
    with pytest.raises(UserError, match="image_features of record 'n3' is not finite"):
        features.extract(model, source, "image_features")


ONE_OF_TWO_PROCESSES = """
import pathlib, sys
import jax
import numpy as np
from big_mm import distributed, spec, trees
distributed.init()
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.evaluators import features
from big_mm.mesh import MeshConfig
from big_mm.predictor import Predictor
from big_mm.probing import heads, logistic
import tiny

folder = pathlib.Path(sys.argv[1])
place = folder / str(jax.process_index())
place.mkdir()
built = spec.build(tiny.config(place))
model, contract = built["objective"].model, built["contract"]
with np.load(folder / "params.npz") as arrays:
    params = trees.unflatten(dict(arrays))
predictor = Predictor(model, params, contract, MeshConfig().make(), 8, features=folder / "kept")
source = TFRecordSource(
    str(folder / "data.tfrecord"), Schema(captions=None, label="label"), store_index=False
)
found = features.extract(predictor, source, "patch_tokens", batch_size=5)
head = heads.AttentionalHead(4, heads=2)
recipe = heads.Recipe(epochs=1, batch_size=8)
trained = heads.train(head, found.values, found.labels, recipe, predictor.mesh)
flat = found.values.reshape(len(found), -1)
fitted = logistic.LogisticRegression(flat, found.labels, 4, mesh=predictor.mesh).fit(1.0)
classifier = np.asarray(trained["classifier"]["kernel"].addressable_data(0))
np.savez(place / "out.npz", values=found.values, classifier=classifier, weights=fitted.weights)
"""


def test_every_process_gets_all_rows_and_the_same_probes(predictor, source, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    np.savez(tmp_path / "params.npz", **jax.device_get(trees.flatten(predictor.params)))
    tests = pathlib.Path(__file__).resolve().parent.parent
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    command = [sys.executable, "-c", ONE_OF_TWO_PROCESSES, str(tmp_path)]
    running = [subprocess.Popen(command, env=common | {"JAX_PROCESS_ID": str(i)}) for i in (0, 1)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    assert len(list((tmp_path / "kept").glob("*-of-2"))) == 2
    alone = features.extract(predictor, source, "patch_tokens")
    flat = alone.values.reshape(len(alone), -1)
    fitted = logistic.LogisticRegression(flat, alone.labels, 4, mesh=predictor.mesh).fit(1.0)
    first, second = (np.load(tmp_path / str(i) / "out.npz") for i in (0, 1))
    np.testing.assert_allclose(first["values"], alone.values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first["weights"], fitted.weights, atol=1e-3)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
