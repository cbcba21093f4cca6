"""L2-regularised multinomial logistic regression by L-BFGS, to scikit-learn's optimum.

The objective is scikit-learn's: C * (sum of the cross-entropies) + 1/2 * (sum of the squared
weights), the bias unregularised. It is minimised on the devices in float32, rows spread over them,
all rows at each step.

What makes float32 enough: the features are centred (the bias takes that up), divided by one number
(C takes that up) and turned to their principal axes, which changes the coordinates and not the
optimum; the line search is Hager and Zhang's, which near the optimum compares slopes where losses
no longer differ in float32 (2006, ACM TOMS 32(1)). What makes it fast: along a principal axis of
variance v, the curvature is about p (1 - p) v + penalty for a class of share p, and L-BFGS works in
coordinates in which that is 1. However uneven the features, and however weak the regularisation,
it then takes tens of iterations.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Real

from big_mm import mesh as mesh_lib

# As scikit-learn.
_MEMORY = 10
_BLOCK = 65_536
# C from 1e-6 to 1e6, eight steps a decade (arXiv:2103.00020, appendix A.3).
GRID = 10.0 ** (np.arange(-48, 49) / 8)
# The sweep looks at every 16th (two decades apart), then halves the distance around the best.
_FIRST_STRIDE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """Scores: features @ weights + bias.

    Attributes:
      c: the inverse strength of the regularisation.
      iterations: of L-BFGS.
      gradient: the largest entry of the mean objective's gradient where it stopped, in units of the
        features' overall standard deviation.
    """

    weights: Float[np.ndarray, "width classes"]
    bias: Float[np.ndarray, " classes"]
    c: float = 0.0
    iterations: int = 0
    gradient: float = 0.0

    def scores(self, features: Real[np.ndarray, "n width"]) -> Float[np.ndarray, "n classes"]:
        """In float64."""
        return features.astype(np.float64) @ self.weights + self.bias

    def predict(self, features: Real[np.ndarray, "n width"]) -> Int[np.ndarray, " n"]:
        """The class of the highest score, of equal ones the first."""
        return self.scores(features).argmax(axis=1)


class LogisticRegression:
    """The classifier of some rows, for any C and any subset of them.

    Rows are put on the devices once; subsets are weights of 0 and 1, so that one program serves a
    whole sweep and the last fit.

    Args:
      iterations: at most; where they do not suffice (weak regularisation), the result is not the
        optimum, here as in scikit-learn.
      tolerance: stop where no entry of the gradient (as of `Linear.gradient`) is larger.
    """

    def __init__(
        self,
        features: Real[np.ndarray, "n width"],
        labels: Int[np.ndarray, " n"],
        classes: int,
        *,
        iterations: int = 1000,
        tolerance: float = 1e-6,
        mesh: Mesh | None = None,
    ):
        self.classes, self.iterations, self.tolerance = classes, iterations, tolerance
        self.mesh = mesh or mesh_lib.MeshConfig().make()
        self.count, self.labels = len(features), np.asarray(labels, np.int32)
        self.mean = np.mean(features, axis=0, dtype=np.float64)
        variances, self.axes = _principal(features, self.mean)
        self.scale = float(np.sqrt(variances.mean())) or 1.0
        self.variances = variances / self.scale**2
        turned = np.empty(features.shape, np.float32)
        for at in _blocks(self.count):
            turned[at] = (features[at] - self.mean) @ (self.axes / self.scale)
        self._features, self._labels = self._put(turned), self._put(self.labels)

    def fit(
        self,
        c: float,
        rows: Bool[np.ndarray, " n"] | None = None,
        prior: Float[np.ndarray, "width classes"] | None = None,
    ) -> Linear:
        """The classifier of the rows where `rows` is true; default: of all.

        Args:
          prior: weights to begin with, the distance from which is penalised; default: zero.
        """
        chosen = np.ones(self.count, bool) if rows is None else rows
        penalty = 1 / (c * chosen.sum() * self.scale**2)
        weights, bias, iterations, gradient = jax.device_get(
            _program(self.mesh)(
                self._features,
                self._labels,
                self._put(chosen.astype(np.float32)),
                np.float32(penalty),
                np.float32(self.tolerance),
                np.int32(self.iterations),
                self._start(prior),
                self._units(chosen, penalty),
                np.float32(self.axes),
            )
        )
        weights = self.axes @ weights.astype(np.float64) / self.scale
        bias = bias.astype(np.float64) - self.mean @ weights
        return Linear(weights, bias, float(c), int(iterations), float(gradient))

    def _start(self, prior: Float[np.ndarray, "width classes"] | None) -> tuple[Any, Any]:
        """Weights and bias in the coordinates of the centred, scaled and turned features."""
        weights = np.zeros((len(self.mean), self.classes)) if prior is None else prior
        return np.float32(self.axes.T @ weights * self.scale), np.float32(self.mean @ weights)

    def _units(self, chosen: Bool[np.ndarray, " n"], penalty: float) -> tuple[Any, Any]:
        """What a step of 1 is for each weight and bias: one over the root of the curvature."""
        shares = np.bincount(self.labels[chosen], minlength=self.classes) / chosen.sum()
        curvature = np.maximum(shares * (1 - shares), 1 / self.count)
        weights = np.outer(self.variances, curvature) + penalty
        return np.float32(weights**-0.5), np.float32(curvature**-0.5)

    def _put(self, array: np.ndarray) -> jax.Array:
        """On the devices, rows spread, padded by rows of zeros (of weight 0)."""
        devices = mesh_lib.batch_devices(self.mesh)
        rows = -(-len(array) // devices) * devices
        padded = np.zeros((rows, *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        sharding = mesh_lib.batch_sharding(self.mesh)
        return jax.make_array_from_callback(padded.shape, sharding, padded.__getitem__)


def _principal(
    features: Real[np.ndarray, "n width"], mean: Float[np.ndarray, " width"]
) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, "width width"]]:
    """The variances along the principal axes, and the axes as columns, in float64."""
    covariance = np.zeros((len(mean), len(mean)))
    for at in _blocks(len(features)):
        centred = features[at] - mean
        covariance += centred.T @ centred / len(features)
    variances, axes = np.linalg.eigh(covariance)
    if jax.process_count() > 1:  # the last bits differ with a host's processor and threads
        found = np.concatenate([variances[None], axes])
        words = multihost_utils.broadcast_one_to_all(found.view(np.uint32))
        variances, *axes = np.asarray(words).view(np.float64)
    return np.maximum(variances, 0.0), np.asarray(axes)


def _blocks(count: int) -> Iterator[slice]:
    """Rows that may be held in float64."""
    return (slice(first, first + _BLOCK) for first in range(0, count, _BLOCK))


def sweep(accuracy: Callable[[float], float]) -> dict[float, float]:
    """Validation accuracy by C, in the order of trial: CLIP's parametric binary search.

    The first seven are two decades apart; then the distance around the best so far is halved until
    it is an eighth of a decade: at most 15 fits instead of 97. `best` reads the result.

    Args:
      accuracy: of the classifier of a given C on validation examples.
    """
    tried: dict[int, float] = {}

    def attempt(place: int) -> None:
        if 0 <= place < len(GRID) and place not in tried:
            tried[place] = accuracy(float(GRID[place]))

    for place in range(0, len(GRID), _FIRST_STRIDE):
        attempt(place)
    stride = _FIRST_STRIDE // 2
    while stride:
        peak = _peak(tried)
        attempt(peak - stride)
        attempt(peak + stride)
        stride //= 2
    return {float(GRID[place]): found for place, found in tried.items()}


def best(accuracies: dict[float, float]) -> float:
    """The C of the highest accuracy; of equal ones the smallest, the strongest regularisation."""
    return _peak(accuracies)


def _peak(tried: dict[Any, float]) -> Any:
    return max(sorted(tried), key=lambda place: tried[place])


@functools.cache
def _program(mesh: Mesh) -> Callable[..., Any]:
    return jax.jit(_fit, out_shardings=mesh_lib.replicated(mesh))


def _fit(
    features: Float32[Array, "n width"],
    labels: Int[Array, " n"],
    rows: Float32[Array, " n"],
    penalty: Any,
    tolerance: Any,
    iterations: Any,
    start: tuple[Array, Array],
    units: tuple[Array, Array],
    axes: Float32[Array, "width width"],
) -> tuple[Array, Array, Array, Array]:
    """Weights, bias, iterations and the largest entry of the gradient.

    Args:
      units: of what is optimised, the distance of weights and bias from the start.
      axes: back from which the gradient's entries are those of the features as they were.
    """
    total = rows.sum()

    def distance(params: tuple[Array, Array]) -> tuple[Array, Array]:
        """From the start. What is the same for all classes changes no probability, and is 0 at the
        optimum: left in, only the weak penalty would keep it there.
        """
        moved = jax.tree.map(jnp.multiply, params, units)
        return jax.tree.map(lambda x: x - x.mean(axis=-1, keepdims=True), moved)

    def objective(params: tuple[Array, Array]) -> Float[Array, ""]:
        moved = distance(params)
        weights, bias = jax.tree.map(jnp.add, start, moved)
        # Without it GPUs and TPUs would round the factors to 10 or 8 bits.
        logits = jnp.matmul(features, weights, precision="highest") + bias
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (rows * losses).sum() / total + 0.5 * penalty * (moved[0] ** 2).sum()

    solver = optax.lbfgs(memory_size=_MEMORY)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        params, state, count, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        params = optax.apply_updates(params, updates)
        after = optax.tree.get(state, "grad")  # the line search has it
        weights, bias = jax.tree.map(jnp.divide, after, units)
        weights = jnp.matmul(axes, weights, precision="highest")
        return params, state, count + 1, optax.tree.norm((weights, bias), ord="inf")

    def going(carry: tuple[Any, ...]) -> Array:
        return (carry[2] < iterations) & (carry[3] > tolerance)

    params = jax.tree.map(jnp.zeros_like, start)
    carry = (params, solver.init(params), jnp.int32(0), jnp.float32(jnp.inf))
    params, _, count, gradient = jax.lax.while_loop(going, step, carry)
    return *jax.tree.map(jnp.add, start, distance(params)), count, gradient
