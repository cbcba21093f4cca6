"""The numbers do not depend on the layout: devices, meshes, microbatches, processes."""

import functools
import math
import pathlib

import jax
import numpy as np
import pytest

from big_mm import mesh as mesh_lib
from big_mm import spec, trees
from big_mm.losses import captioning, contrastive
from big_mm.mesh import MeshConfig
from big_mm.objectives.base import Weighted
from big_mm.training import loop, optimizer
from big_mm.training import state as states
from big_mm.training.run import lay_out
from tests import tiny
from tests.training import runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 5
# data, fsdp, tensor. Every mesh of up to eight devices, and processes: benchmarks/layouts.py.
LAYOUTS = [(8, 1, 1), (1, 8, 1), (1, 1, 2), (2, 2, 2)]
TERMS = {
    "coca": {
        "contrastive": spec.spec(contrastive.Softmax, positives="text_id"),
        "captioning": spec.spec(captioning.CrossEntropy),
    },
    "siglip": {"contrastive": spec.spec(contrastive.Sigmoid)},
}


@pytest.fixture(autouse=True)
def everything_is_sharded(monkeypatch):
    """The tiny models' parameters too, which are below the usual bound; compilation is most of the
    time here, and needs no optimization.
    """
    monkeypatch.setattr(mesh_lib, "MIN_SHARDED", 1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("layouts")


def curve(directory, model, layout, terms=None, **options):
    """Losses of STEPS updates, the first gradient's norm, and the final state."""
    made = runs.config(
        directory / model,
        model=getattr(tiny, model),
        # Adam divides a rounding error of a tiny gradient by its own size.
        optimizer=spec.spec(optimizer.AdamW, learning_rate=3e-3, eps=1e-3),
        **options,
    )
    losses = terms or TERMS[model]
    made.objective = spec.spec(Weighted, model=made.objective.model, losses=losses)
    run = spec.build(made)
    mesh = MeshConfig(*layout).make(jax.devices()[: math.prod(layout)])
    example, batches = loop.open_data(run, 0)
    prepared = lay_out(run, example, mesh)
    state, metrics = prepared.create(), []
    for _, (batch, _) in zip(range(STEPS), loop.device_batches(run, mesh, batches), strict=False):
        state, values = prepared.update(state, batch)
        metrics.append(jax.device_get(values))
    return [values["loss"] for values in metrics], metrics[0]["grad_norm"], state


@pytest.fixture(scope="module")
def one_device(directory):
    """The same on a single device, by model."""
    return functools.cache(lambda model: curve(directory, model, (1, 1, 1)))


def check_equal(found, wanted):
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, err_msg="losses")
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, err_msg="the first gradient's norm")
    params = trees.flatten(jax.device_get(found[2].params))
    for path, value in trees.flatten(jax.device_get(wanted[2].params)).items():
        np.testing.assert_allclose(params[path], value, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_layout_does_not_change_the_curve(directory, one_device, layout):
    found = curve(directory, "coca", layout)
    check_equal(found, one_device("coca"))
    state = found[2]
    for tree in (state.params, state.opt_state, state.ema):
        leaves = trees.flatten(tree).items()
        kernel = next(
            leaf for path, leaf in leaves if path.endswith("decoder/layers/mlp/up/kernel")
        )
        parts = kernel.size // kernel.addressable_shards[0].data.size
        assert parts == layout[1] * layout[2], "it is not split as the mesh says"


def test_nor_does_it_for_a_dual_encoder(directory, one_device):
    check_equal(curve(directory, "siglip", (2, 2, 2)), one_device("siglip"))


def test_nor_do_microbatches_and_a_ring(directory, one_device):
    ring = TERMS["coca"]["contrastive"].copy_and_resolve_references()
    ring.update({"exchange": "ring", "tile": 3})
    terms = TERMS["coca"] | {"contrastive": ring}
    check_equal(curve(directory, "coca", (1, 4, 2), terms, accumulate=4), one_device("coca"))


@pytest.mark.parametrize("config", ["coca.py:giant", "clip.py", "siglip.py", "captioner.py"])
def test_nearly_all_of_a_state_is_split_over_fsdp_and_tensor(config):
    """Moments and averages included, by shapes alone."""
    made = spec.load_config(str(ROOT / "configs" / config))
    mesh = jax.sharding.AbstractMesh((2, 8, 2), ("data", "fsdp", "tensor"))
    objective = spec.build(made.objective)
    chosen = spec.build(made.optimizer)
    size, length = objective.model.image.image_size, objective.model.text.max_len
    batch = {
        "image": jax.ShapeDtypeStruct((2, size, size, 3), "uint8"),
        "tokens": jax.ShapeDtypeStruct((2, length), "int32"),
        "token_mask": jax.ShapeDtypeStruct((2, length), "bool"),
    }
    init = functools.partial(states.init_params, objective, batch, 0)
    create = functools.partial(states.create, objective, chosen, seed=0, ema=True)
    shapes = jax.eval_shape(create, jax.eval_shape(init))
    placed = jax.tree.leaves(states.shardings(shapes, mesh, ()))
    leaves = jax.tree.leaves(shapes)
    whole = sum(leaf.size for leaf in leaves)
    each = sum(
        math.prod(place.shard_shape(leaf.shape)) for leaf, place in zip(leaves, placed, strict=True)
    )
    assert each < 1.1 * whole / 16
