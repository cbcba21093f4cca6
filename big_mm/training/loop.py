"""The only training loop: batches in, updates, then metrics, evaluations and checkpoints out."""

import collections
import contextlib
import itertools
import json
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from big_mm import mesh as mesh_lib
from big_mm import spec
from big_mm.data.damage import DAMAGE
from big_mm.evaluators import base as evaluators
from big_mm.losses import captioning, contrastive
from big_mm.predictor import Predictor
from big_mm.spec import UserError
from big_mm.training import state as states
from big_mm.training import workdir as workdir_lib
from big_mm.training import writers
from big_mm.training.checkpoint import Store
from big_mm.training.run import Prepared, Run, device_part, prepare
from big_mm.training.state import State
from big_mm.types import Batch

EVALUATION = "evaluation.json"
# The share of damaged records means little among fewer rows than this.
_MIN_ROWS = 1000
_MAX_NAMED = 32

# A step whose metrics are still on the device, and the keys of its records.
Queued = tuple[int, dict[str, jax.Array], list[str]]


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
    """Trains to the last step, from the latest checkpoint in `workdir` if there is one.

    Returns the final evaluation's metrics by name; nothing if SIGTERM ended the run early, which
    saves it.

    Raises:
      UserError: anything that the config, the data or the folder makes impossible.
    """
    run = spec.build(config)
    folder = epath.Path(workdir)
    workdir_lib.check_same_run(folder, config)
    workdir_lib.enable_compilation_cache(folder)
    store = Store(folder / "checkpoints", run.checkpoint, workdir_lib.checkpoint_files(run, config))
    latest = max(store.steps(), default=0)
    example, batches = open_data(run, latest)
    prepared = prepare(run, example)
    items = store.restore(states.to_items(prepared.state))
    state = prepared.create() if items is None else states.from_items(prepared.state, items)
    start = int(state.step)
    if start > run.steps:
        raise UserError(f"{folder} is at step {start}, past the steps={run.steps} asked for")
    if start != latest:
        _, batches = open_data(run, start)
    workdir_lib.claim(folder, config)
    loop = Loop(prepared, folder, store, start)
    try:
        state = loop.fit(state, device_batches(run, prepared.mesh, batches))
        return loop.finish(state) if int(state.step) == run.steps else {}
    finally:
        loop.close()


def open_data(run: Run, step: int) -> tuple[dict[str, np.ndarray], Iterator[dict[str, np.ndarray]]]:
    """The first host batch after `step`, and all batches from it on."""
    batches = run.data.batches(
        run.contract, run.batch_size, run.seed, step, jax.process_index(), jax.process_count()
    )
    first = next(batches)
    return first, itertools.chain([first], batches)


def device_batches(
    run: Run, mesh: Any, batches: Iterator[dict[str, np.ndarray]]
) -> Iterator[tuple[Batch, list[str]]]:
    """Global batches on their devices, one ahead of the step that uses it, with the rows' keys."""
    ready: collections.deque[tuple[Batch, list[str]]] = collections.deque()
    for host in batches:
        for index, kind in _damaged(host):
            where = run.data.where(index)
            logging.warning("damaged record (%s) replaced: %s", DAMAGE[kind], where)
        keys = [str(key) for key in host.get("key", ())]
        ready.append((mesh_lib.to_global(device_part(host), mesh), keys))
        if len(ready) > 1:
            yield ready.popleft()


def _damaged(host: dict[str, np.ndarray]) -> Iterator[tuple[int, int]]:
    if "bad_index" in host:
        for row in np.flatnonzero(host["bad_index"] >= 0):
            yield int(host["bad_index"][row]), int(host["bad_kind"][row])


class Loop:
    """What the host remembers between steps: metrics still on the device, clocks and writers."""

    def __init__(self, prepared: Prepared, folder: epath.Path, store: Store, start: int):
        self.prepared, self.run = prepared, prepared.run
        self.folder, self.store = folder, store
        self.baselines = baselines(prepared)
        self.queued: collections.deque[Queued] = collections.deque()
        self.skipped_in_a_row = 0
        self.predictor: Predictor | None = None
        self.clock = writers.Throughput(self.run.batch_size)
        primary = jax.process_index() == 0
        self.writer = writers.MetricsWriter(folder, start) if primary else None
        self.progress = writers.ProgressLine(start, self.run.steps) if primary else None

    def fit(self, state: State, batches: Iterator[tuple[Batch, list[str]]]) -> State:
        """Steps to the end, or to SIGTERM; either way the last state is saved."""
        run, start = self.run, int(state.step)
        self.skipped = int(state.skipped)
        if start and self.due(start) and start < run.steps and not self.evaluated():
            self.evaluate(state, start)  # the run was killed during this evaluation
        with stop_signal() as stopped, profiler(run.profile, self.folder) as profile:
            for step in range(start + 1, run.steps + 1):
                self.store.check()
                batch, keys = next(batches)
                batch = run.objective.prepare(state, batch)
                profile(step, state)
                state, metrics = self.prepared.update(state, batch)
                self.queue(step, metrics, keys)
                last = stopped(step) or step == run.steps
                save, evaluate = last or run.checkpoint.due(step), self.due(step) and not last
                # One step stays queued, so that the device never waits for the host.
                self.report(keep=0 if save or evaluate or step == start + 1 else 1)
                with self.clock.pause():
                    if save:
                        self.save(state, step)
                    if evaluate:
                        self.evaluate(state, step)
                if last:
                    break
        return state

    def due(self, step: int) -> bool:
        return self.run.eval_every > 0 and step % self.run.eval_every == 0

    def evaluated(self) -> bool:
        """Whether the step that a resumed run begins with has its evaluation in metrics.jsonl."""
        names = () if self.writer is None else self.writer.names()
        found = any(name.split("/")[0] in self.run.evaluators for name in names)
        return bool(multihost_utils.broadcast_one_to_all(np.int32(found)))

    def finish(self, state: State) -> dict[str, float]:
        """The final evaluation, evaluation.json and the report."""
        metrics = self.evaluate(state, self.run.steps)
        if self.writer is not None:
            path = self.folder / EVALUATION
            path.write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
            self.writer.flush()
        return metrics

    def queue(self, step: int, metrics: dict[str, jax.Array], keys: list[str]) -> None:
        for value in metrics.values():
            value.copy_to_host_async()
        self.queued.append((step, metrics, keys))

    def report(self, keep: int) -> None:
        """Takes the metrics of all but the last `keep` queued steps from the device."""
        while len(self.queued) > keep:
            step, metrics, keys = self.queued.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self.watch(step, values, keys)
            if self.clock.step is None:
                self.clock.start(step)  # compilation is over
            if step % self.run.log_every == 0 or step in (1, self.run.steps):
                self.log(step, values)

    def log(self, step: int, values: dict[str, float]) -> None:
        rate = self.clock.measure(step)
        if rate is not None:
            values = values | {"images_per_second": rate}
        if self.writer is None or self.progress is None:
            return
        self.writer.add(step, values | self.baselines)
        text = writers.describe(values, self.baselines)
        if rate is not None:
            left = (self.run.steps - step) * self.run.batch_size / rate
            text += f"  {rate:,.0f} images/s  {writers.duration(left)} left"
        self.progress.update(step, text)

    def watch(self, step: int, values: dict[str, float], keys: list[str]) -> None:
        """Reports refused updates, and stops a run that has gone wrong.

        Raises:
          UserError: too many refused updates in a row, or too many damaged records.
        """
        refused, self.skipped = int(values["skipped"]) > self.skipped, int(values["skipped"])
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if refused else 0
        if refused:
            named = ", ".join(keys[:_MAX_NAMED]) + (", ..." if len(keys) > _MAX_NAMED else "")
            logging.warning(
                "step %d skipped: loss %g, gradient norm %g; its records: %s",
                step,
                values["loss"],
                values["grad_norm"],
                named or "(without keys)",
            )
        if self.skipped_in_a_row >= self.run.max_skipped:
            raise UserError(
                f"{self.skipped_in_a_row} updates in a row were skipped, the last at step {step}: "
                "the run has diverged. Lower optimizer.learning_rate or its clip_norm, and start "
                "from a checkpoint before that"
            )
        rows = max(step * self.run.batch_size, _MIN_ROWS)
        if values["data/bad"] > self.run.max_bad_share * rows:
            raise UserError(
                f"{values['data/bad']:.0f} damaged records by step {step}, more than "
                f"max_bad_share={self.run.max_bad_share}: see the warnings above, examine the "
                "shards with python -m big_mm.doctor, or raise max_bad_share"
            )

    def evaluate(self, state: State, step: int) -> dict[str, float]:
        """All evaluators on the averaged parameters; names become `<evaluator>/<metric>`."""
        if not self.run.evaluators:
            return {}
        params = state.averaged_params()
        model = self.run.objective.model
        if self.predictor is None:
            self.predictor = Predictor(model, params, self.run.contract, self.prepared.mesh)
        predictor = self.predictor.replace(params=params)
        metrics = evaluators.run_all(
            self.run.evaluators,
            predictor,
            step,
            workdir=self.folder,
            announce=lambda name: self.say(step, f"evaluating {name}"),
        )
        if self.writer is not None:
            self.writer.add(step, metrics)
        return metrics

    def say(self, step: int, text: str) -> None:
        if self.progress is not None:
            self.progress.update(step, text)

    def save(self, state: State, step: int) -> None:
        if self.writer is not None:
            self.writer.flush()  # no line may be missing that a resumed run does not write again
        self.store.save(step, states.to_items(state))

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()
        if self.writer is not None:
            self.writer.close()
        self.store.close()


def baselines(prepared: Prepared) -> dict[str, float]:
    """What guessing would reach: a loss that stays there is flat because nothing is learnt."""
    out = {}
    for name, term in prepared.run.objective.losses.items():
        if isinstance(term, contrastive.Softmax):
            out[f"baseline/{name}"] = math.log(prepared.run.batch_size)
        elif isinstance(term, captioning.CrossEntropy):
            out[f"baseline/{name}"] = math.log(prepared.outputs["caption_logits"].shape[-1])
    return out


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Yields `stopped(step)`: whether to save and leave, at the same step on every process."""
    if jax.process_count() > 1:
        # JAX's own SIGTERM handler agrees on a step that no process has passed.
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def profiler(
    steps: tuple[int, int] | None, folder: epath.Path
) -> Iterator[Callable[[int, State], None]]:
    """Yields what to call before each step; traces the steps from the first to the last given."""
    first, last = steps or (0, 0)
    running = False

    def before(step: int, state: State) -> None:
        nonlocal running
        if step == first or (running and step > last):
            jax.block_until_ready(state)
        if step == first:
            jax.profiler.start_trace(str(folder / "profile"))
            running = True
        elif running and step > last:
            jax.profiler.stop_trace()
            running = False

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()
