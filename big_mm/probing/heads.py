"""Heads on frozen tokens, trained by gradient descent: an attentional pooler, a patch classifier.

A run of its own and no second trainer: the tokens do not change, so an epoch is a permutation of
rows, a step is one jitted function, and the result is a function of the recipe's seed.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer, Shaped
from rich import console, progress

from big_mm import mesh as mesh_lib
from big_mm.models.pooling import AttentionalPooler
from big_mm.spec import UserError

# The label of a pixel that does not count.
IGNORE = 255


class AttentionalHead(nn.Module):
    """One query that reads the tokens, and a linear classifier (arXiv:2205.01917, section 3.3).

    Attributes:
      width: of the query; 0 for the tokens' own.
    """

    classes: int
    heads: int = 8
    width: int = 0

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch tokens width"]) -> Float[Array, "batch classes"]:
        width = self.width or tokens.shape[-1]
        pooled = AttentionalPooler(1, width, self.heads, name="pooler")(tokens)[:, 0]
        zeros = nn.initializers.zeros
        return nn.Dense(self.classes, kernel_init=zeros, name="classifier")(pooled)


class PatchHead(nn.Module):
    """A linear classifier of each patch, its scores enlarged to pixels bilinearly.

    Attributes:
      size: side of the picture in pixels; the patches are a square of them.
    """

    classes: int
    size: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch size size classes"]:
        side = round(tokens.shape[1] ** 0.5)
        zeros = nn.initializers.zeros
        scores = nn.Dense(self.classes, kernel_init=zeros, name="classifier")(tokens)
        scores = scores.reshape(len(tokens), side, side, self.classes)
        shape = (len(tokens), self.size, self.size, self.classes)
        # Half-pixel centres, clamped at the edges: align_corners=False of the field's programs.
        return jax.image.resize(scores, shape, "bilinear", antialias=False)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
      epochs: passes over the training rows; the last step of a pass is filled up with its first
        rows.
      batch_size: rows of a step (a multiple of the devices, or it is rounded up to one).
      learning_rate: the peak, reached after the share `warmup` of the steps, then a half cosine.
      weight_decay: decoupled, of matrices.
      label_smoothing: share of the target that is spread over all classes.
      clip_norm: bound of the gradient's norm.
      direction: an optax transformation of gradients; None: Adam's.
      seed: of the initial values and of the order.
    """

    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    clip_norm: float = 1.0
    direction: Any = None
    seed: int = 0

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """For a run of so many steps."""
        warm = round(self.warmup * steps)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warm, steps)
        if not warm:
            schedule = optax.cosine_decay_schedule(self.learning_rate, steps)
        matrices = functools.partial(jax.tree.map, lambda x: x.ndim > 1)
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            self.direction or optax.scale_by_adam(),
            optax.add_decayed_weights(self.weight_decay, mask=matrices),
            optax.scale_by_learning_rate(schedule),
        )

    def protocol(self) -> dict[str, Any]:
        """What stands beside the numbers."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["direction"]
        return fields


def cross_entropy(
    scores: Float[Array, "*rows classes"], labels: Integer[Array, "*rows"], smoothing: float
) -> Float[Array, ""]:
    """The mean over what is not IGNORE."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, scores.shape[-1]), smoothing)
    losses = optax.softmax_cross_entropy(scores.astype(jnp.float32), targets)
    counted = labels != IGNORE
    return jnp.where(counted, losses, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def train(
    head: nn.Module,
    tokens: Shaped[np.ndarray, "n tokens width"],
    labels: Integer[np.ndarray, "n ..."],
    recipe: Recipe,
    mesh: Mesh,
    show: bool = False,
) -> Any:
    """The parameters of a head that tells the labels; tokens may be mapped from disk.

    Args:
      show: a progress bar, on a terminal.

    Raises:
      UserError: the loss is not finite in the end, as at too high a learning rate.
    """
    devices = mesh_lib.batch_devices(mesh)
    size = -(-min(recipe.batch_size, len(tokens)) // devices) * devices
    per_epoch = -(-len(tokens) // size)
    steps = recipe.epochs * per_epoch
    start, step = _programs(head, recipe, steps, mesh)
    params, state = start(np.zeros((1, *tokens.shape[1:]), np.float32))
    rng = np.random.default_rng(recipe.seed)
    value = jnp.zeros(())
    order: np.ndarray = np.empty(0, np.int64)
    for number in _track(range(steps), show):
        if number % per_epoch == 0:
            order = np.resize(rng.permutation(len(tokens)), per_epoch * size)
        rows = np.sort(order[number % per_epoch * size :][:size])  # a mapped file likes order
        params, state, value = step(params, state, *put((tokens[rows], labels[rows]), mesh))
    if not np.isfinite(float(value)):
        raise UserError(
            f"the probe's loss is {float(value)} after {steps} steps: lower its learning_rate "
            f"({recipe.learning_rate:g})"
        )
    return params


@functools.cache
def _programs(
    head: nn.Module, recipe: Recipe, steps: int, mesh: Mesh
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The initial parameters and optimizer state, and the step; compiled once for each recipe."""
    optimizer, everywhere = recipe.optimizer(steps), mesh_lib.replicated(mesh)

    def start(tokens: Array) -> tuple[Any, Any]:
        params = head.init(jax.random.key(recipe.seed), tokens)["params"]
        return params, optimizer.init(params)

    def step(params: Any, state: Any, tokens: Array, labels: Array) -> tuple[Any, Any, Array]:
        def loss(params: Any) -> Array:
            scores = head.apply({"params": params}, tokens.astype(jnp.float32))
            return cross_entropy(scores, labels, recipe.label_smoothing)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return (
        jax.jit(start, out_shardings=everywhere),
        jax.jit(step, out_shardings=everywhere, donate_argnums=(0, 1)),
    )


def apply(
    function: Callable[..., Any],
    arrays: Sequence[Shaped[np.ndarray, "n ..."]],
    mesh: Mesh,
    batch_size: int = 256,
) -> Any:
    """`function(*rows)` over batches of rows, joined; every process gets all of it."""
    devices = mesh_lib.batch_devices(mesh)
    count = len(arrays[0])
    size = -(-min(batch_size, count) // devices) * devices
    program = jax.jit(function, out_shardings=mesh_lib.replicated(mesh))
    results = []
    for start in range(0, count, size):
        at = np.minimum(np.arange(start, start + size), count - 1)
        results.append(jax.device_get(program(*put([array[at] for array in arrays], mesh))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)


def put(arrays: Sequence[np.ndarray], mesh: Mesh) -> list[jax.Array]:
    """On the devices, rows spread; every process has all of them."""
    sharding = mesh_lib.batch_sharding(mesh)
    return [jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for x in arrays]


def _track(work: range, show: bool) -> Any:
    stderr = console.Console(stderr=True)
    hidden = not (show and stderr.is_terminal)
    return progress.track(work, "training a probe", console=stderr, transient=True, disable=hidden)
