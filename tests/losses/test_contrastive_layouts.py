"""The contrastive losses at every layout, against the whole matrix in float64."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import mesh as mesh_lib
from big_mm.losses.contrastive import Sigmoid, Softmax
from big_mm.spec import UserError

EMBEDDINGS = ("image_embedding", "text_embedding")
LOSSES = [Softmax, Sigmoid]
# mesh (data, fsdp, tensor), exchange, tile: some tiles do not divide the rows of a device
LAYOUTS = [
    ((1, 1, 1), "gather", 0),
    ((1, 1, 1), "gather", 1),
    ((1, 1, 1), "gather", 5),
    ((2, 1, 1), "gather", 24),
    ((2, 1, 1), "ring", 5),
    ((1, 4, 1), "gather", 0),
    ((1, 4, 1), "gather", 5),
    ((1, 4, 1), "ring", 0),
    ((2, 2, 2), "gather", 2),
    ((2, 2, 2), "ring", 0),
    ((2, 2, 2), "ring", 2),
]


def case(rows, dim=8, seed=0, scale=20.0):
    """Random embeddings, about half of them in groups, a few padding rows."""
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, rows, dim))
    outputs = {
        key: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        for key, x in zip(EMBEDDINGS, (image, text + image / 2), strict=True)
    }
    outputs |= {"logit_scale": np.float32(scale), "logit_bias": np.float32(-3)}
    mask = np.arange(rows) % 7 != 3
    return outputs, {"mask": mask, "group": rng.integers(0, 1 + rows * 2 // 3, rows)}


def tied(rows, dim=8, seed=1):
    """One-hot embeddings: most logits are equal to others, without rounding."""
    outputs, batch = case(rows, dim)
    hot = np.eye(dim, dtype=np.float32)[np.random.default_rng(seed).integers(0, dim, (2, rows))]
    return outputs | dict(zip(EMBEDDINGS, hot, strict=True)), batch


def reference(loss, outputs, batch):
    """Value, gradients and accuracies from the whole matrix in float64."""
    rows = np.flatnonzero(batch["mask"])
    image, text = (outputs[key][rows].astype(np.float64) for key in EMBEDDINGS)
    ids = batch[loss.positives][rows] if loss.positives else rows
    cosine, scale, count = image @ text.T, np.float64(outputs["logit_scale"]), len(rows)
    positive = ids[:, None] == ids[None, :]
    logits = scale * cosine
    if isinstance(loss, Softmax):
        share = positive / positive.sum(1, keepdims=True)
        logs = [np.log(np.exp(logits).sum(axis, keepdims=True)) for axis in (0, 1)]
        value = (logs[0].sum() + logs[1].sum()) / 2 - (share * logits).sum()
        gradient = (np.exp(logits - logs[0]) + np.exp(logits - logs[1])) / 2 - share
    else:
        logits += outputs["logit_bias"]
        value = np.log1p(np.exp(np.where(positive, -logits, logits))).sum()
        gradient = 1 / (1 + np.exp(-logits)) - positive
    expected = {
        "value": value / count,
        "logit_scale": (gradient * cosine).sum() / count,
        "logit_bias": 0 if isinstance(loss, Softmax) else gradient.sum() / count,
    }
    for key, part in zip(EMBEDDINGS, (gradient @ text, gradient.T @ image), strict=True):
        expected[key] = np.zeros(outputs[key].shape)
        expected[key][rows] = scale * part / count
    found = {"image_to_text_accuracy": logits.argmax(1), "text_to_image_accuracy": logits.argmax(0)}
    return expected | {key: (ids[best] == ids).mean() for key, best in found.items()}


def traceable(loss, mesh):
    """(outputs, batch) -> what `reference` gives."""

    def value(outputs, batch):
        mean, metrics = loss(outputs, batch)
        return mean.compute(), metrics

    def function(outputs, batch):
        with mesh_lib.using(mesh):
            (mean, metrics), gradient = jax.value_and_grad(value, has_aux=True)(outputs, batch)
        accuracies = {k: v.compute() for k, v in metrics.items() if k.endswith("accuracy")}
        return {"value": mean} | gradient | accuracies

    return function


def placed(mesh, outputs, batch):
    """Rows over the mesh, where it divides them."""
    even = len(batch["mask"]) % mesh_lib.batch_devices(mesh) == 0
    rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    return jax.tree.map(
        lambda x: jax.device_put(x, rows if x.ndim and even else whole), (outputs, batch)
    )


def compiled(loss, mesh=None):
    mesh = mesh or mesh_lib.single_device_mesh()
    function = jax.jit(traceable(loss, mesh))
    return lambda outputs, batch: function(*placed(mesh, outputs, batch))


def distance(got, expected):
    """The norm of the difference relative to what is expected."""
    scale = np.linalg.norm(expected)
    return np.linalg.norm(np.asarray(got, np.float64) - expected) / (scale if scale > 1e-12 else 1)


def assert_equal(got, expected, rtol):
    assert {key: d for key in expected if (d := distance(got[key], expected[key])) > rtol} == {}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("shape, exchange, tile", LAYOUTS)
def test_every_layout_is_the_whole_matrix(kind, shape, exchange, tile):
    mesh = mesh_lib.MeshConfig(*shape).make(jax.devices()[: int(np.prod(shape))])
    loss = kind(positives="group", exchange=exchange, tile=tile)
    function = compiled(loss, mesh)
    for inputs in (case(24), tied(24)):
        assert_equal(function(*inputs), reference(loss, *inputs), 1e-5)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("rows", [1, 6])
def test_rows_that_devices_do_not_divide(kind, rows):
    mesh = mesh_lib.MeshConfig().make()
    loss = kind(exchange="ring", tile=1000)
    assert_equal(compiled(loss, mesh)(*case(rows)), reference(loss, *case(rows)), 1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_first_of_equal_logits_counts_everywhere(kind):
    """Without groups a tie is a hit for one row only."""
    loss = kind(exchange="ring", tile=3)
    mesh = mesh_lib.MeshConfig(data=2, fsdp=2).make(jax.devices()[:4])
    assert_equal(compiled(loss, mesh)(*tied(24)), reference(loss, *tied(24)), 1e-5)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("tile", [0, 256])
def test_float32_gradients_are_those_of_float64(kind, tile):
    inputs = case(2048, dim=64, scale=14.3)
    loss = kind(positives="group", tile=tile)
    assert_equal(compiled(loss)(*inputs), reference(loss, *inputs), 1e-6)


def test_padding_rows_take_no_part_and_get_no_gradient():
    inputs = case(24)
    other = {k: np.where(inputs[1]["mask"][:, None], inputs[0][k], 1e3) for k in EMBEDDINGS}
    for loss in (Softmax(tile=5), Sigmoid(tile=5)):
        function = compiled(loss)
        got, again = function(*inputs), function(inputs[0] | other, inputs[1])
        for key in EMBEDDINGS:
            np.testing.assert_array_equal(got[key][~inputs[1]["mask"]], 0)
        jax.tree.map(np.testing.assert_array_equal, got, again)


@pytest.mark.parametrize("tile", [0, 5])
def test_bfloat16_embeddings_lose_nothing_more(tile):
    outputs, batch = case(24)
    rounded = {k: jnp.asarray(outputs[k], jnp.bfloat16) for k in EMBEDDINGS}
    loss = Softmax(tile=tile)
    got = compiled(loss)(outputs | rounded, batch)
    exact = {k: np.asarray(v, np.float32) for k, v in rounded.items()}
    expected = reference(loss, outputs | exact, batch)
    for key in EMBEDDINGS:
        assert got[key].dtype == jnp.bfloat16
        assert distance(got.pop(key), expected.pop(key)) < 2**-8
    assert_equal(got, expected, 1e-5)


def test_without_jit():
    mesh = mesh_lib.MeshConfig(data=2).make(jax.devices()[:2])
    inputs = placed(mesh, *case(6))
    with mesh_lib.using(mesh):
        mean, _ = Softmax(exchange="ring", tile=2)(*inputs)
    expected = reference(Softmax(), *case(6))["value"]
    np.testing.assert_allclose(mean.compute(), expected, rtol=1e-5)


def programs(jaxpr, repeats=1):
    """Every equation of a traced program with the number of times that it runs."""
    for equation in jaxpr.eqns:
        yield equation, repeats
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from programs(inner, repeats * times)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_only_a_tile_of_the_logits_is_ever_there(kind, exchange):
    """And no matrix product more than two of B^2 D forward and backward, and those two again."""
    rows, dim, tile, devices = 64, 2, 4, 4
    mesh = mesh_lib.MeshConfig(fsdp=devices).make(jax.devices()[:devices])
    loss = kind(positives="group", exchange=exchange, tile=tile)
    inputs = case(rows, dim)
    traced = jax.make_jaxpr(traceable(loss, mesh))(*inputs)
    flops = 0
    for equation, repeats in programs(traced.jaxpr):
        assert all(out.aval.size <= rows * dim for out in equation.outvars)
        if equation.primitive.name == "dot_general":
            assert equation.outvars[0].aval.size <= max(tile * tile, tile * dim)
            flops += 2 * tile * tile * dim * repeats
    assert flops == 8 * rows**2 * dim / devices


@pytest.mark.parametrize("kind", LOSSES)
def test_a_batch_of_262144_takes_little_beside_its_embeddings(kind):
    """Compiled, not run: temporary memory beside embeddings and their gradients."""
    rows, dim = 2**18, 1024
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    outputs = dict.fromkeys(EMBEDDINGS, jax.ShapeDtypeStruct((rows, dim), jnp.float32))
    outputs |= {"logit_scale": scalar, "logit_bias": scalar}
    batch = {"group": jax.ShapeDtypeStruct((rows,), jnp.int32)}

    loss = kind(positives="group", tile=1024)
    function = jax.jit(traceable(loss, mesh_lib.single_device_mesh()))
    memory = function.lower(outputs, batch).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 100e6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"exchange": "rings"}, "exchange='rings' is none of"),
        ({"tile": -1}, "tile=-1: a number of rows"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(UserError, match=message):
        Softmax(**options)


def test_a_missing_key_of_positives():
    with pytest.raises(UserError, match=r"positives='text_id' is no key of the batch: \['group'"):
        Sigmoid(positives="text_id")(*case(6))


TPU_PROGRAM = """
import re
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from big_mm import mesh as mesh_lib
from big_mm.losses.contrastive import Sigmoid, Softmax

mesh = mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2).make(
    topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
)
rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
embedding = jax.ShapeDtypeStruct((2048, 128), jnp.float32, sharding=rows)
scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
outputs = dict.fromkeys(("image_embedding", "text_embedding"), embedding)
outputs |= dict.fromkeys(("logit_scale", "logit_bias"), scalar)
batch = {"group": jax.ShapeDtypeStruct((2048,), jnp.int32, sharding=rows)}

for loss in (Softmax("group", "gather", 100), Softmax("group", "ring", 128)):
    def function(outputs, batch):
        with mesh_lib.using(mesh):
            return jax.value_and_grad(lambda x: loss(x, batch)[0].compute())(outputs)

    traced = jax.jit(function).trace(outputs, batch)
    text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    for step in re.split("\\n\\n", text):
        start, work = step.find("collective-permute-start("), step.find(" while(")
        if 0 <= start and 0 <= work and "ENTRY" not in step:
            print(loss.exchange, start < work < step.rfind("collective-permute-done("))
    print(loss.exchange, "all-gather" in text)
"""


@pytest.mark.tpu_compiler
def test_tpus_pass_blocks_on_while_they_work():
    """The compiler's schedule of a ring's step: blocks leave before the tiles, and arrive after."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_LOG_DIR": "disabled",
    }
    command = [sys.executable, "-c", TPU_PROGRAM]
    run = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["gather True", "ring True", "ring True", "ring False"]
