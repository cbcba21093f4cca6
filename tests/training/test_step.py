"""The update: accumulation, freezing, averaging, and refusal of bad steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_mm import mesh as mesh_lib
from big_mm import trees
from big_mm.losses import captioning, contrastive
from big_mm.objectives.base import Weighted
from big_mm.training import optimizer, step
from big_mm.training import state as states
from big_mm.training.guard import Guard
from big_mm.types import Aux, Mean
from tests.training.toy import Model

ROWS, LENGTH, VOCABULARY = 16, 8, 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd(optimizer.Optimizer):
    """The gradient itself: Adam would turn a rounding error of a small gradient into a big step."""

    def direction(self):
        return optax.identity()


def batch(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    token_mask = np.arange(LENGTH) < rng.integers(3, LENGTH + 1, ROWS)[:, None]
    tokens = np.where(token_mask, rng.integers(5, VOCABULARY, token_mask.shape), 0)
    image = rng.integers(0, 256, (ROWS, 4, 4, 3)).astype(np.uint8)
    return {"image": image, "tokens": tokens.astype(np.int32), "token_mask": token_mask}


def captioner() -> Weighted:
    return Weighted(Model(VOCABULARY), {"captioning": captioning.CrossEntropy()})


def start(objective, chosen, *, ema: bool = False) -> states.State:
    params = jax.jit(lambda: states.init_params(objective, batch(), 0))()
    return states.create(objective, chosen, params, seed=0, ema=ema)


def update(objective, chosen, **options):
    mesh = mesh_lib.MeshConfig().make(jax.devices()[:2])
    return jax.jit(step.Update(objective, chosen, mesh, seed=0, steps=10, **options))


def same(left, right) -> bool:
    return trees.digest(left) == trees.digest(right)


def test_accumulation_is_exact_for_unequal_token_counts():
    objective, chosen = captioner(), Sgd(learning_rate=1.0, clip_norm=None, weight_decay=0.1)
    whole, one = update(objective, chosen)(start(objective, chosen), batch())
    parts, four = update(objective, chosen, accumulate=4)(start(objective, chosen), batch())
    np.testing.assert_allclose(four["loss"], one["loss"], rtol=1e-6)
    np.testing.assert_allclose(four["captioning/accuracy"], one["captioning/accuracy"], rtol=1e-6)
    for path, value in trees.flatten(whole.params).items():
        np.testing.assert_allclose(trees.flatten(parts.params)[path], value, atol=2e-6)


def test_mean_of_microbatch_means_would_be_another_loss():
    rows = batch()
    counts = rows["token_mask"][:, 1:].sum(1)
    quarters = [counts[i::4].sum() for i in range(4)]
    assert len(set(quarters)) > 1, "the batch above must have microbatches of unequal counts"


@pytest.mark.parametrize("term", [contrastive.Softmax(positives="label"), contrastive.Sigmoid()])
@pytest.mark.parametrize("accumulate", [2, 8, 16])
def test_microbatches_keep_the_negatives_of_the_whole_batch(term, accumulate):
    """With dropped-out rows, a padding row, equal captions and the captioning loss in the step."""
    terms = {"contrastive": term, "captioning": captioning.CrossEntropy()}
    objective = Weighted(Model(VOCABULARY, bias=True), terms, {"captioning": 0.5})
    chosen = Sgd(learning_rate=1.0, clip_norm=None, frozen=(("text/.*", True),))
    rows = batch() | {"label": np.arange(ROWS) % 11, "mask": np.arange(ROWS) != 3}
    whole, one = update(objective, chosen)(start(objective, chosen), rows)
    parts, many = update(objective, chosen, accumulate=accumulate)(start(objective, chosen), rows)
    assert one.keys() == many.keys()
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-5, err_msg=name)
    for path, value in trees.flatten(whole.params).items():
        np.testing.assert_allclose(trees.flatten(parts.params)[path], value, rtol=1e-5, atol=3e-6)


def test_dropout_is_the_same_in_both_passes_over_a_microbatch():
    """Or the cached gradients would be those of another function: by finite differences."""
    objective = Weighted(Model(VOCABULARY, dropout=0.5), {"contrastive": contrastive.Softmax()})
    chosen = Sgd(learning_rate=1.0, clip_norm=None)
    run, state = update(objective, chosen, accumulate=4), start(objective, chosen)
    new, before = run(state, batch())
    slope = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, new.params)
    size = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(slope)))

    def loss(distance):
        far = jax.tree.map(lambda p, s: p + distance / size * s, state.params, slope)
        return float(run(dataclasses.replace(state, params=far), batch())[1]["loss"])

    np.testing.assert_allclose((loss(1e-2) - loss(-1e-2)) / 2e-2, size, rtol=1e-2)
    assert float(before["loss"]) != float(update(objective, chosen)(state, batch())[1]["loss"])


class CountingLoss:
    """The first of a row's numbers, as a loss; `carry` below must keep the rows' order."""

    couples = ()

    def __call__(self, outputs, rows):
        return Mean.of(outputs["logit_scale"] * rows["label"], None), {}


def test_counting_costs_no_second_forward_pass():
    """XLA counts a loop's body once: four microbatches cost what one batch of their size costs."""
    objective, chosen = captioner(), Sgd(learning_rate=1.0)

    def flops(times, accumulate):
        rows = {key: np.concatenate([value] * times) for key, value in batch().items()}
        run = update(objective, chosen, accumulate=accumulate)
        lowered = run.lower(start(objective, chosen), rows)
        return lowered.compile().cost_analysis()["flops"]

    assert flops(4, 4) < 1.05 * flops(1, 1)


def test_carry_comes_back_in_the_batch_order():
    class Carrying(Weighted):
        def carry(self, outputs, rows):
            return {"rows": rows["label"], "mean": Mean.of(rows["label"] * 1.0)}

        def init_extra(self, rng, params):
            return {"rows": jnp.zeros(ROWS, jnp.int32), "mean": jnp.zeros(())}

        def update_extra(self, extra, params, aux):
            return {"rows": aux.carry["rows"], "mean": aux.carry["mean"].compute()}

    objective = Carrying(Model(VOCABULARY), {"counting": CountingLoss()})
    chosen = Sgd(learning_rate=0.1)
    rows = batch() | {"label": np.arange(ROWS, dtype=np.int32)}
    new, _ = update(objective, chosen, accumulate=4)(start(objective, chosen), rows)
    np.testing.assert_array_equal(new.extra["rows"], np.arange(ROWS))
    np.testing.assert_allclose(new.extra["mean"], np.arange(ROWS).mean())


def test_frozen_parameters_cost_nothing_and_stay():
    objective = captioner()
    chosen = optimizer.AdamW(
        learning_rate=0.1, weight_decay=0.1, frozen=(("image/norm/.*", False), ("image/.*", True))
    )
    old = start(objective, chosen, ema=True)
    new, _ = update(objective, chosen, ema=0.9)(old, batch())
    before, after = trees.flatten(old.params), trees.flatten(new.params)
    trainable = chosen.trainable(old.params)
    for path in before:
        moved = not np.array_equal(before[path], after[path])
        if path.startswith("image/") and not path.startswith("image/norm/"):
            assert not trainable[path] and not moved
            assert not [p for p in trees.flatten((old.opt_state, old.ema)) if p.endswith(path)]
    assert trainable["image/norm/scale"]
    assert not np.array_equal(before["image/norm/scale"], after["image/norm/scale"])


def test_frozen_parameters_have_no_gradient_computation():
    objective = captioner()

    def flops(frozen):
        chosen = Sgd(learning_rate=0.1, frozen=frozen)
        lowered = update(objective, chosen).lower(start(objective, chosen), batch())
        return lowered.compile().cost_analysis()["flops"]

    assert flops((("image/.*", True),)) < 0.9 * flops(())


def nan_slope(value):
    """The value itself; its derivative is not a number."""
    return value + jnp.sqrt(0.0 * value)


class Poisoned(Weighted):
    """A batch can ask for a loss, a derivative or a size that no update should follow."""

    def loss(self, params, extra, rows, rng):
        value, aux = super().loss(params, extra, rows, rng)
        poison = rows["poison"].max()
        value = jnp.where(poison == 1, jnp.nan, value)
        value = jax.lax.cond(poison == 2, nan_slope, lambda x: x, value)
        value *= jnp.where(poison == 3, 1e6, 1.0)
        return value, Aux(aux.terms)

    def init_extra(self, rng, params):
        return {"seen": jnp.zeros((), jnp.int32)}

    def update_extra(self, extra, params, aux):
        return {"seen": extra["seen"] + 1}


def test_a_bad_step_changes_nothing_but_the_counters():
    objective = Poisoned(Model(VOCABULARY), {"captioning": captioning.CrossEntropy()})
    chosen = optimizer.AdamW(learning_rate=0.1)
    run = update(objective, chosen, ema=0.9, guard=Guard(max_grad_norm=1e3))

    def rows(poison):
        return batch() | {"poison": np.full(ROWS, poison)}

    old, metrics = run(start(objective, chosen, ema=True), rows(0))
    assert int(metrics["skipped"]) == 0
    for poison in (1, 2, 3):
        new, metrics = run(old, rows(poison))
        assert int(metrics["skipped"]) == int(new.skipped) == poison
        assert int(new.step) == int(old.step) + 1
        for field in ("params", "opt_state", "ema", "extra"):
            assert same(getattr(new, field), getattr(old, field)), (poison, field)
        old = new
    new, metrics = run(old, rows(0))
    assert int(metrics["skipped"]) == 3 and int(new.extra["seen"]) == 2
    assert not same(new.params, old.params)


def test_average_follows_its_formula():
    objective, chosen = captioner(), Sgd(learning_rate=0.1)
    run = update(objective, chosen, ema=0.3)
    state = start(objective, chosen, ema=True)
    expected = {path: np.asarray(leaf) for path, leaf in trees.flatten(state.params).items()}
    for number in range(4):
        state, _ = run(state, batch(number))
        decay = min(0.3, (1 + number) / (10 + number))
        now = trees.flatten(state.params)
        expected = {
            p: decay * old + (1 - decay) * np.asarray(now[p]) for p, old in expected.items()
        }
    for path, value in expected.items():
        np.testing.assert_allclose(state.ema[path], value, rtol=1e-5, atol=1e-6)


def test_damaged_rows_are_counted_and_not_shown_to_the_objective():
    class Strict(Weighted):
        def loss(self, params, extra, rows, rng):
            assert "bad" not in rows
            return super().loss(params, extra, rows, rng)

    objective = Strict(Model(VOCABULARY), {"captioning": captioning.CrossEntropy()})
    chosen = Sgd(learning_rate=0.1)
    run = update(objective, chosen)
    state = start(objective, chosen)
    for expected in (3, 6):
        state, metrics = run(state, batch() | {"bad": np.arange(ROWS) < 3})
        assert int(metrics["data/bad"]) == expected
