"""The only jitted update: from a state and a global batch to the next state and its metrics."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from big_mm import mesh as mesh_lib
from big_mm import trees
from big_mm.training import optimizer as optimizers
from big_mm.training.guard import Guard
from big_mm.training.state import State, step_rng
from big_mm.types import Aux, Batch, Mean, Outputs

Metrics = dict[str, Float[Array, ""]]
Flat = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Update:
    """The update of one run: `jax.jit(Update(...), donate_argnums=0)`.

    A step that the guard refuses leaves everything but the counters as it was, bit for bit.
    """

    objective: Any
    optimizer: optimizers.Optimizer
    mesh: Mesh
    seed: int
    steps: int
    accumulate: int = 1
    ema: float = 0.0
    guard: Guard = Guard()

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        with mesh_lib.using(self.mesh):
            return self._update(state, batch)

    def _update(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        batch, bad = count_bad(state.bad, batch)
        rng = step_rng(self.seed, state.step)
        trainable, frozen = trees.split(state.params, self.optimizer.trainable(state.params))

        def loss(trainable: Flat) -> tuple[Float[Array, ""], Aux]:
            params = trees.merge(trainable, frozen)
            return self.objective.loss(params, state.extra, batch, rng)

        if self.accumulate == 1:
            (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        else:
            value, aux, grads = self.accumulated(trainable, frozen, state.extra, batch, rng)

        transform = self.optimizer.transform(state.params)
        direction, opt_state = transform.update(grads, state.opt_state, trainable)
        rate = self.optimizer.rate(state.step, self.steps)
        updated = optimizers.apply(trainable, direction, rate)
        params = trees.merge(updated, frozen)
        ema = average(state.ema, updated, self.ema, state.step)
        extra = self.objective.update_extra(state.extra, params, aux)

        metrics = summary(value, aux, {"grad": grads, "param": trainable, "update": direction})
        metrics |= {"learning_rate": rate, "update_norm": rate * metrics["update_norm"]}
        accepted = state.step - state.skipped
        good = self.guard.accepts(state.guard, metrics, accepted)
        new = dataclasses.replace(state, params=params, opt_state=opt_state, ema=ema, extra=extra)
        new = jax.tree.map(lambda n, old: jnp.where(good, n, old), new, state)
        new = dataclasses.replace(
            new,
            step=state.step + 1,
            skipped=state.skipped + ~good,
            bad=bad,
            guard=self.guard.advance(state.guard, metrics["grad_norm"], good, accepted),
        )
        counters = {name: new.guard[name] for name in ("refused_in_a_row", "rollbacks")}
        counters |= {"skipped": new.skipped, "data/bad": bad, "data/jumped": new.jumped}
        return new, metrics | counters | {"grad_norm_average": state.guard["grad_norm"]}

    def accumulated(
        self, params: Flat, frozen: Flat, extra: Any, batch: Batch, rng: Array
    ) -> tuple[Float[Array, ""], Aux, Flat]:
        """Value, Aux and gradient of the whole batch, one microbatch in memory at a time.

        Counts (tokens, valid rows) differ between microbatches, so that a mean of their means is
        not the batch's mean; and coupled terms compare all rows of the batch. A first pass
        therefore takes the counts and the coupled outputs, without gradient; XLA drops from it what
        these do not need. The coupled terms and their gradients by those outputs follow from the
        whole batch. The second pass sums over the microbatches the gradients of each one's share:
        its part of the other terms, and its coupled outputs times their cached gradients
        (GradCache, arXiv:2101.06983).
        """
        objective = self.objective
        coupled = {name: term for name, term in objective.losses.items() if term.couples}
        single = {name: term for name, term in objective.losses.items() if not term.couples}
        keys = {key for term in coupled.values() for key in term.couples}
        micro = jax.tree.map(self._split, batch), jax.random.split(rng, self.accumulate)

        def forward(params: Flat, rows: Batch, rng: Array) -> Outputs:
            return objective.forward(trees.merge(params, frozen), extra, rows, rng)

        def first(_: None, inputs: tuple[Batch, Array]) -> tuple[None, Any]:
            outputs = forward(params, *inputs)
            terms, _ = objective.terms(outputs, inputs[0], single)
            cached = {key: value for key, value in outputs.items() if key in keys}
            return None, (cached, {name: term.count for name, term in terms.items()})

        _, (cached, counts) = jax.lax.scan(first, None, micro)
        counts = {name: value.sum(0) for name, value in counts.items()}
        slopes, whole = self._coupled(coupled, cached, batch)

        def share(params: Flat, inputs: Any) -> tuple[Float[Array, ""], Aux]:
            rows, rng, slope = inputs
            outputs = forward(params, rows, rng)
            terms, metrics = objective.terms(outputs, rows, single)
            value = objective.scalar(terms, counts)
            value += sum((outputs[key] * slope[key]).sum() for key in slope)
            return value, Aux(terms, metrics, objective.carry(outputs, rows))

        def second(total: Flat, inputs: Any) -> tuple[Flat, Aux]:
            grads, aux = jax.grad(share, has_aux=True)(params, inputs)
            return jax.tree.map(jnp.add, total, grads), aux

        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, auxes = jax.lax.scan(second, zeros, (*micro, slopes))
        aux = jax.tree.map(_gather, auxes, is_leaf=lambda x: isinstance(x, Mean))
        aux = Aux(aux.terms | whole.terms, aux.metrics | whole.metrics, aux.carry)
        return objective.scalar(aux.terms), aux, grads

    def _coupled(self, losses: Any, cached: Outputs, batch: Batch) -> tuple[Outputs, Aux]:
        """Gradients of the coupled terms by their outputs [parts, rows, ...], and their Aux."""
        shared = {key for key, value in cached.items() if value.ndim == 1}  # a scalar a microbatch
        outputs = {k: v[0] if k in shared else _gather(v) for k, v in cached.items()}

        def value(outputs: Outputs) -> tuple[Float[Array, ""], Aux]:
            terms, metrics = self.objective.terms(outputs, batch, losses)
            return self.objective.scalar(terms), Aux(terms, metrics)

        slopes, aux = jax.grad(value, has_aux=True)(outputs)
        parts = self.accumulate
        return {
            key: jnp.broadcast_to(slope / parts, parts) if key in shared else self._split(slope)
            for key, slope in slopes.items()
        }, aux

    def _split(self, rows: Shaped[Array, "batch ..."]) -> Shaped[Array, "parts rows ..."]:
        """Every microbatch takes rows of every device, so that nothing moves between devices."""
        rows = rows.reshape(-1, self.accumulate, *rows.shape[1:]).swapaxes(0, 1)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, mesh_lib.BATCH_AXES))
        return jax.lax.with_sharding_constraint(rows, sharding)


def _gather(stacked: Any) -> Any:
    """The inverse of `Update._split` for rows; the sum for means."""
    if isinstance(stacked, Mean):
        return Mean(stacked.total.sum(0), stacked.count.sum(0))
    return stacked.swapaxes(0, 1).reshape(-1, *stacked.shape[2:])


def summary(value: Array, aux: Aux, measured: dict[str, Flat]) -> Metrics:
    """Means of terms and metrics by name, and `<name>_norm` of what is measured."""
    metrics = {name: mean.compute() for name, mean in aux.metrics.items()}
    metrics |= {f"loss/{name}": term.compute() for name, term in aux.terms.items()}
    return metrics | {"loss": value} | {f"{name}_norm": norm(x) for name, x in measured.items()}


def norm(flat: Flat) -> Float[Array, ""]:
    """The Euclidean norm of all leaves together, in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in flat.values()]
    return jnp.sqrt(jnp.stack(squares).sum())


def average(ema: Flat, params: Flat, decay: float, step: Array) -> Flat:
    """The running average; its decay starts small, so that the initialisation is soon forgotten."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {path: decay * old + (1.0 - decay) * params[path] for path, old in ema.items()}


def count_bad(total: Array, batch: Batch) -> tuple[Batch, Array]:
    """Takes the flags of damaged records out of the batch and adds them up over all hosts."""
    batch = dict(batch)
    flags = batch.pop("bad", None)
    return batch, total if flags is None else total + flags.sum(dtype=total.dtype)
