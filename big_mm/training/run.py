"""The top of every config: `spec(Run, ...)`, and what is checked before any long work begins."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from big_mm import mesh as mesh_lib
from big_mm.data.contract import Contract
from big_mm.data.pipeline import Pipeline
from big_mm.spec import UserError
from big_mm.training import state as states
from big_mm.training.checkpoint import Checkpoints
from big_mm.training.guard import Guard
from big_mm.training.init_from import InitFrom
from big_mm.training.optimizer import Optimizer
from big_mm.training.state import State
from big_mm.training.step import Update
from big_mm.types import HOST_ONLY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
      objective: `Weighted`, or a class with its methods.
      data: training batches; step t sees f(seed, t).
      contract: how pictures and texts become arrays, here and wherever the model is used.
      optimizer: with its learning rate, schedule and path rules.
      steps: updates in all; 0 checks everything and trains nothing.
      batch_size: rows of the global batch.
      seed: of initialisation, data order and dropout.
      accumulate: microbatches that a batch is split into to save memory; the update is the same.
      ema: decay of the running average of the parameters; 0 keeps none.
      evaluators: by the name their metrics begin with.
      mesh: devices and sharding rules.
      log_every: steps between lines of metrics.jsonl.
      eval_every: steps between evaluations; 0 evaluates at the end only.
      checkpoint: when to save, what to keep.
      init_from: parts of another checkpoint to begin with.
      profile: first and last step of a profiler trace (workdir/profile).
      max_bad_share: more damaged records than this stop the run.
      guard: which updates are refused, and what becomes of the run then.
    """

    objective: Any
    data: Pipeline
    contract: Contract
    optimizer: Optimizer
    steps: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    ema: float = 0.0
    evaluators: dict[str, Any] = dataclasses.field(default_factory=dict)
    mesh: mesh_lib.MeshConfig = mesh_lib.MeshConfig()
    log_every: int = 50
    eval_every: int = 0
    checkpoint: Checkpoints = Checkpoints()
    init_from: InitFrom | None = None
    profile: tuple[int, int] | None = None
    max_bad_share: float = 0.01
    guard: Guard = Guard()

    def __post_init__(self) -> None:
        for field in ("batch_size", "accumulate", "log_every"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1")
        for field in ("steps", "eval_every"):
            if getattr(self, field) < 0:
                raise UserError(f"{field}={getattr(self, field)} must not be negative")
        if not 0.0 <= self.ema < 1.0:
            raise UserError(f"ema={self.ema} must be at least 0 and below 1")
        if self.profile is not None and not 0 < self.profile[0] <= self.profile[1]:
            raise UserError(f"profile={self.profile} must be (first step, last step), from 1")
        if self.guard.policy == "rollback" and not self.checkpoint.every:
            raise UserError("guard.policy='rollback' needs checkpoint.every above 0 to go back to")
        if (best := self.checkpoint.best) is not None:
            if best.split("/")[0] not in self.evaluators or not self.eval_every:
                raise UserError(
                    f"checkpoint.best={best!r} must be EVALUATOR/METRIC of one of the evaluators "
                    f"({', '.join(sorted(self.evaluators)) or 'there are none'}), and eval_every "
                    "above 0"
                )
        object.__setattr__(self, "objective", self.objective.bind(self.contract))
        self.objective.check_accumulation(self.accumulate)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run on its mesh: shapes, places, and the update, without any array yet.

    Attributes:
      batch: {key: shape and type} of the global batch as the device sees it.
      state: shapes with shardings.
      outputs: {key: shape and type} of the model's outputs for the batch.
      update: `(state, batch) -> (state, metrics)`, jitted; consumes the state it is given.
    """

    run: Run
    mesh: Mesh
    batch: dict[str, jax.ShapeDtypeStruct]
    state: State
    outputs: dict[str, jax.ShapeDtypeStruct]
    update: Any

    def create(self) -> State:
        """The fresh state, every leaf computed where it lies; `init_from` and the objective's
        `load_extra` are applied.
        """
        init, create = _creators(self.run, self.batch)
        placed = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        params = jax.jit(init, out_shardings=placed.params)()
        if self.run.init_from is not None:
            params = self.run.init_from.apply(params)
        state = jax.jit(create, out_shardings=placed, donate_argnums=0)(params)
        return dataclasses.replace(state, extra=self.run.objective.load_extra(state.extra))


def prepare(run: Run, host_batch: dict[str, np.ndarray]) -> Prepared:
    """Checks the run against its devices and its data.

    Raises:
      UserError: sizes that do not divide, rules that match nothing, a vocabulary that is too small.
    """
    prepared = lay_out(run, host_batch, run.mesh.make())
    check_vocabulary(run, prepared.outputs)
    return prepared


def lay_out(run: Run, host_batch: dict[str, np.ndarray], mesh: Mesh) -> Prepared:
    """`prepare` for any mesh, also of devices that are not here; the vocabulary is not checked.

    Args:
      host_batch: as many rows as one likes, in the run's shapes and types.

    Raises:
      UserError: sizes that do not divide, rules that match nothing.
    """
    run.optimizer.rate(0, run.steps)  # refuses a schedule that is longer than the run
    batch, state = shapes(run, host_batch, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    forward = functools.partial(run.objective.model.apply, train=False)
    outputs = jax.eval_shape(forward, {"params": state.params}, inputs(batch))
    update = Update(
        run.objective,
        run.optimizer,
        mesh,
        seed=run.seed,
        steps=run.steps,
        accumulate=run.accumulate,
        ema=run.ema,
        guard=run.guard,
    )
    return Prepared(
        run,
        mesh,
        batch,
        state,
        outputs,
        jax.jit(update, donate_argnums=0, out_shardings=(placed, mesh_lib.replicated(mesh))),
    )


def shapes(
    run: Run, host_batch: dict[str, np.ndarray], mesh: mesh_lib.AnyMesh
) -> tuple[dict[str, jax.ShapeDtypeStruct], State]:
    """Shapes of the global batch, and of the state with its shardings.

    Raises:
      UserError: sizes that do not divide, rules that match nothing.
    """
    check_divisible(run, mesh)
    batch = {
        key: jax.ShapeDtypeStruct((run.batch_size, *value.shape[1:]), value.dtype)
        for key, value in device_part(host_batch).items()
    }
    init, create = _creators(run, batch)
    state = jax.eval_shape(create, jax.eval_shape(init))
    return batch, states.with_shardings(state, states.shardings(state, mesh, run.mesh.rules))


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as the objective sees it."""
    return {key: leaf for key, leaf in batch.items() if key != "bad"}


def device_part(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a host batch goes to the device; damaged rows as the flag `bad`."""
    part = {
        key: value
        for key, value in batch.items()
        if key not in HOST_ONLY and isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    }
    if "bad_index" in batch:
        part["bad"] = np.asarray(batch["bad_index"]) >= 0
    return part


def check_divisible(run: Run, mesh: mesh_lib.AnyMesh) -> None:
    """Raises a UserError unless every device gets the same number of rows."""
    pieces = mesh_lib.batch_devices(mesh)
    for what, parts in (
        (f"{jax.process_count()} processes", jax.process_count()),
        (f"the {pieces} devices of the mesh's data and fsdp axes", pieces),
        (f"{pieces} devices times accumulate={run.accumulate}", pieces * run.accumulate),
    ):
        if run.batch_size % parts:
            below = run.batch_size // parts * parts
            near = " or ".join(str(n) for n in (below, below + parts) if n)
            raise UserError(f"batch_size={run.batch_size} is not divisible by {what}: take {near}")


def check_vocabulary(run: Run, outputs: dict[str, Any]) -> None:
    """Raises a UserError where the model has other tokens than the contract's tokenizer."""
    if "caption_logits" in outputs:
        run.contract.check_vocabulary(outputs["caption_logits"].shape[-1])
    elif hasattr(text := getattr(run.objective.model, "text", None), "vocab_size"):
        run.contract.check_vocabulary(text.vocab_size)


def _creators(run: Run, batch: dict[str, Any]) -> tuple[Any, Any]:
    """() -> params, and params -> state."""
    init = functools.partial(states.init_params, run.objective, inputs(batch), run.seed)
    create = functools.partial(
        states.create, run.objective, run.optimizer, seed=run.seed, ema=run.ema > 0
    )
    return init, create
