"""NoC's levels, what they change, and what is filtered."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import big_mm
from big_mm import spec
from big_mm.evaluators.altered import Fields
from big_mm.losses.captioning import CrossEntropy
from big_mm.objectives.judge import Judge
from big_mm.predictor import Predictor
from big_mm.spec import UserError
from big_mm.training.init_from import InitFrom
from experiments.noc import config, noc
from tests import tiny

LEVELS = 4


def controlled(vocab_size, **options):
    made = tiny.captioner(vocab_size)
    towers = {"image": made.image, "text": made.text}
    return spec.spec(noc.ControlledCaptioner, **towers, levels=LEVELS, level=3, **options)


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return spec.build(tiny.config(tmp_path_factory.mktemp("noc")).contract)


@pytest.fixture(scope="module")
def predictor(contract):
    model = spec.build(controlled(contract.tokenizer.vocab_size))
    return Predictor(model, tiny.parameters(model, contract, gain=4.0), contract)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return big_mm.load(tiny.workdir(tmp_path_factory.mktemp("judge"), tiny.siglip))


@pytest.fixture(scope="module")
def batch(contract):
    tokens, token_mask = contract.text(tiny.TEXTS[:8])
    return {"image": tiny.images(8), "tokens": tokens, "token_mask": token_mask}


def test_levels_are_torchs_buckets():
    # torch.bucketize(x, boundaries, right=True), of torch 2.13.
    x = jnp.array([-1.0, -0.2, -0.1, 0.1, 0.1000001, 0.39, 0.4, 2.0])
    assert noc.bucketize(x, (-0.2, 0.1, 0.4)).tolist() == [0, 1, 1, 2, 2, 2, 3, 3]
    # bin_edges_[0][1:-1] of scikit-learn's KBinsDiscretizer(8, strategy="uniform"), whose edges
    # are numpy.linspace(smallest, largest, 9).
    edges = [-0.2375, -0.075, 0.0875, 0.25, 0.4125, 0.575, 0.7375]
    np.testing.assert_allclose(noc.uniform(-0.4, 0.9, 8), edges, atol=1e-12)


def test_the_batchs_level_reads_as_the_models_own(predictor, batch):
    def logits(level, given):
        model = predictor.model.clone(level=level)
        outputs = jax.jit(model.apply)({"params": predictor.params}, batch | given)
        return np.asarray(outputs["caption_logits"])

    own = np.stack([logits(level, {}) for level in range(LEVELS)])
    assert np.abs(own[1:] - own[:1]).max(axis=(1, 2, 3)).min() > 0.01
    levels = np.array([0, 1, 2, 3, 3, 2, 1, 0])
    mixed = logits(0, {"level": levels})
    np.testing.assert_allclose(mixed, own[levels, np.arange(8)], atol=1e-4)


def test_it_writes_at_the_level_that_is_asked_for(predictor, batch):
    images, high = batch["image"], predictor.caption(batch["image"])
    assert Fields({"level": 3})(predictor).caption(images) == high
    lowest = Fields({"level": 0})(predictor)
    low = lowest.generate(images, predictor.contract.decoding)[0]
    assert predictor.contract.detokenize(low) != high
    # Greedy at level 0: each token is the likeliest after those before it, by the whole forward.
    rows = {"image": images, "tokens": low, "token_mask": low != 0, "level": np.zeros(8, np.int32)}
    logits = np.array(predictor.outputs(rows, ["caption_logits"])["caption_logits"])
    logits[..., [0, 1, 4]] = -np.inf
    written = low[:, 1:] != 0
    np.testing.assert_array_equal(logits.argmax(-1)[:, :-1][written], low[:, 1:][written])


def test_the_judge_sets_levels_and_leaves_out_what_is_low(predictor, frozen, batch):
    make = functools.partial(
        noc.Aligned,
        model=predictor.model,
        losses={"captioning": CrossEntropy()},
        judge=Judge(frozen.model, InitFrom("")),
    )
    embedded = frozen.outputs(batch, ["image_embedding", "text_embedding"])
    expected = (embedded["image_embedding"] * embedded["text_embedding"]).sum(-1)
    state = types.SimpleNamespace(extra={"judge": frozen.params})

    boundaries = tuple(np.quantile(expected, [0.25, 0.5, 0.75]).tolist())
    levels = np.searchsorted(boundaries, expected, side="right")
    everything = make(boundaries=boundaries).prepare(state, batch)
    np.testing.assert_array_equal(everything["level"], levels)
    assert everything["mask"].all()
    kept = levels >= 2
    filtered = make(boundaries=boundaries, minimum=2)
    prepared = filtered.prepare(state, batch | {"mask": np.arange(8) != kept.argmax()})
    kept[kept.argmax()] = False
    np.testing.assert_array_equal(prepared["mask"], kept)
    evaluate = jax.jit(lambda rows: filtered.loss(predictor.params, {}, rows, jax.random.key(0))[0])
    few = {key: value[kept] for key, value in prepared.items()}
    assert float(evaluate(prepared)) == pytest.approx(float(evaluate(few)), rel=1e-5)


def test_an_unknown_arm_is_refused():
    with pytest.raises(UserError, match="arm='clip' is none of noc, vanilla, filtered, strict"):
        config.get_config("clip")
