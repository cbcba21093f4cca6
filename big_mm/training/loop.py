"""The only training loop: batches in, updates, then metrics, evaluations and checkpoints out."""

import collections
import contextlib
import faulthandler
import json
import math
import sys
from collections.abc import Callable, Generator, Iterator
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
from big_mm.evaluators import suite
from big_mm.losses import captioning, contrastive
from big_mm.predictor import Predictor
from big_mm.spec import UserError
from big_mm.training import guard, writers
from big_mm.training import state as states
from big_mm.training import workdir as workdir_lib
from big_mm.training.checkpoint import Store
from big_mm.training.run import Prepared, Run, device_part, prepare
from big_mm.training.state import State
from big_mm.training.stopping import Stop, Stopped, stop_signal
from big_mm.types import Batch

EVALUATION = "evaluation.json"
# The share of damaged records means little among fewer rows than this.
_MIN_ROWS = 1000
# Seconds without a finished step after which stderr gets the stack of every thread.
_SILENCE = 1800.0

# A step whose metrics are still on the device, and the keys of its records.
Queued = tuple[int, dict[str, jax.Array], list[str]]


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict[str, float] | None:
    """Trains to the last step, from the latest checkpoint in `workdir` if there is one.

    Returns the final evaluation's metrics by name; None if SIGTERM ended the run early, which
    saves it.

    Raises:
      UserError: anything that the config, the data or the folder makes impossible.
    """
    run = spec.build(config)
    folder = epath.Path(workdir)
    workdir_lib.check_same_run(folder, config)
    workdir_lib.check_writable(folder)
    workdir_lib.enable_compilation_cache(folder)
    store = Store(folder / "checkpoints", run.checkpoint, workdir_lib.checkpoint_files(run, config))
    guess = max(store.steps(), default=0)
    example, batches = open_data(run, guess)
    prepared = prepare(run, example)
    items = store.restore(states.to_items(prepared.state))
    state = prepared.create() if items is None else states.from_items(prepared.state, items)
    start = int(state.step)
    if start > run.steps:
        raise UserError(f"{folder} is at step {start}, past the steps={run.steps} asked for")
    if position(state) != guess:
        batches.close()
        _, batches = open_data(run, position(state))
    workdir_lib.claim(folder, config)
    loop = Loop(prepared, folder, store, state, batches)
    try:
        with stop_signal() as loop.stop:
            metrics = loop.fit()
    except BaseException:
        try:
            loop.close()
        except (UserError, OSError) as error:  # Often by the same cause, which is raised.
            logging.warning("in closing %s: %s", folder, error)
        raise
    loop.close()
    return metrics


def position(state: State) -> int:
    """How many batches of the data lie behind a state."""
    return int(state.step) + int(state.jumped)


def open_data(
    run: Run, position: int
) -> tuple[dict[str, np.ndarray], Generator[dict[str, np.ndarray], None, None]]:
    """The first host batch behind `position` others, and all batches from it on; close those."""
    batches = run.data.batches(
        run.contract, run.batch_size, run.seed, position, jax.process_index(), jax.process_count()
    )
    first = next(batches)

    def from_first() -> Generator[dict[str, np.ndarray], None, None]:
        with contextlib.closing(batches):
            yield first
            yield from batches

    return first, from_first()


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

    def __init__(
        self,
        prepared: Prepared,
        folder: epath.Path,
        store: Store,
        state: State,
        batches: Generator[dict[str, np.ndarray], None, None],
    ):
        """`state` is fresh or a checkpoint's; `batches` are from `open_data` at its position."""
        self.prepared, self.run = prepared, prepared.run
        self.folder, self.store = folder, store
        self.state, self.batches = state, batches
        self.stop = Stop()
        self.baselines = baselines(prepared)
        self.queued: collections.deque[Queued] = collections.deque()
        self.predictor: Predictor | None = None
        self.clock = writers.Throughput(self.run.batch_size)
        start = self.saved = int(state.step)
        self.jumped = int(state.jumped)
        store.scores = writers.read_metric(folder, self.run.checkpoint.best, until=start)
        if start == max(store.steps(), default=0):  # else what is older may still be needed
            store.prune()
        primary = jax.process_index() == 0
        self.writer = writers.MetricsWriter(folder, start) if primary else None
        self.incidents = writers.IncidentLog(folder, position(state)) if primary else None
        self.progress = writers.ProgressLine(self.run.steps, "step") if primary else None
        self.say(start, "compiling")

    def fit(self) -> dict[str, float] | None:
        """Steps to the end and evaluates; None if SIGTERM came first. The last state is saved."""
        with profiler(self.run.profile, self.folder) as profile:
            while True:
                try:
                    try:
                        return self.finish() if self.advance(profile) else None
                    except Stopped:
                        self.report(keep=0)
                        self.save(int(self.state.step))
                        return None
                except guard.Rollback as refused:
                    self.roll_back(refused)

    def advance(self, profile: Callable[[int, State], None]) -> bool:
        """Steps to the end or to SIGTERM, and saves; returns whether this is the end.

        Raises:
          guard.Rollback: an update was refused, and that is the policy.
          Stopped: SIGTERM came while the state was at rest; nothing has been saved.
        """
        run, start = self.run, int(self.state.step)
        if start and self.due(start) and start < run.steps and not self.evaluated():
            self.evaluate(start)  # the run was killed during this evaluation
        with contextlib.closing(device_batches(run, self.prepared.mesh, self.batches)) as batches:
            for step in range(start + 1, run.steps + 1):
                self.store.check()
                with self.stop.at_once():
                    batch, keys = next(batches)
                batch = run.objective.prepare(self.state, batch)
                profile(step, self.state)
                self.state, metrics = self.prepared.update(self.state, batch)
                self.queue(step, metrics, keys)
                stopped, end = self.stop(step + self.jumped), step == run.steps
                evaluate = self.due(step) and not (stopped or end)
                best = evaluate and run.checkpoint.best is not None
                save = stopped or end or best or run.checkpoint.due(step)
                # One step stays queued, so that the device never waits for the host.
                self.report(keep=0 if save or evaluate or step == start + 1 else 1)
                with self.clock.pause():
                    if save:
                        self.save(step)
                    if evaluate:
                        self.evaluate(step)
                if stopped and not end:
                    return False
        return True

    def roll_back(self, refused: guard.Rollback) -> None:
        """Goes back to the last checkpoint of the schedule, behind the batches since then."""
        rollbacks = int(self.state.guard["rollbacks"]) + 1
        self.queued.clear()
        self.batches.close()
        items = self.store.rewind(refused.step, states.to_items(self.prepared.state))
        if items is None:
            self.state = self.prepared.create()
        else:
            self.state = states.from_items(self.prepared.state, items)
        step = self.saved = int(self.state.step)
        self.jumped = refused.batch - step
        self.state = states.with_counters(self.state, jumped=self.jumped, rollbacks=rollbacks)
        logging.warning(
            "back to step %d, rollback %d: batches %d to %d are left out",
            *(step, rollbacks, refused.batch - refused.step + step + 1, refused.batch),
        )
        _, self.batches = open_data(self.run, refused.batch)
        if self.writer is not None:
            self.writer.close()
            self.writer = writers.MetricsWriter(self.folder, step)

    def due(self, step: int) -> bool:
        return self.run.eval_every > 0 and step % self.run.eval_every == 0

    def evaluated(self) -> bool:
        """Whether the step that a resumed run begins with has its evaluation in metrics.jsonl."""
        names = () if self.writer is None else self.writer.names()
        found = any(name.split("/")[0] in self.run.evaluators for name in names)
        return bool(multihost_utils.broadcast_one_to_all(np.int32(found)))

    def finish(self) -> dict[str, float]:
        """The final evaluation, evaluation.json and the report."""
        metrics = self.evaluate(self.run.steps)
        if self.writer is not None:
            text = json.dumps(metrics, indent=1, sort_keys=True) + "\n"
            writers.write_whole(self.folder / EVALUATION, text)
            self.writer.flush()
        if (best := self.store.best()) is not None:
            where = self.store.directory / str(best)
            self.say(self.run.steps, f"{self.run.checkpoint.best} was best at step {best}: {where}")
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
            faulthandler.dump_traceback_later(_SILENCE, repeat=True, file=sys.__stderr__)
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
        """Reports refused updates, and stops or turns back a run that has gone wrong.

        Raises:
          UserError: a refused update, if the guard says so, or too many damaged records.
          Rollback: a refused update, if the guard says so.
        """
        if values["refused_in_a_row"]:
            refusal = guard.Refusal.of(step, values, keys)
            if self.incidents is not None:
                self.incidents.add(refusal.batch, refusal.line())
            self.run.guard.follow(refusal)
        rows = max(step * self.run.batch_size, _MIN_ROWS)
        if values["data/bad"] > self.run.max_bad_share * rows:
            raise UserError(
                f"{values['data/bad']:.0f} damaged records by step {step}, more than "
                f"max_bad_share={self.run.max_bad_share}: see the warnings above, examine the "
                "shards with python -m big_mm.doctor, or raise max_bad_share"
            )

    def evaluate(self, step: int) -> dict[str, float]:
        """All evaluators on the averaged parameters; names become `<evaluator>/<metric>`."""
        if not self.run.evaluators:
            return {}
        params = self.state.averaged_params()
        model = self.run.objective.model
        if self.predictor is None:
            self.predictor = Predictor(model, params, self.run.contract, self.prepared.mesh)
        predictor = self.predictor.replace(params=params)
        with self.stop.at_once():
            metrics = suite.run_all(
                self.run.evaluators,
                predictor,
                step,
                workdir=self.folder,
                announce=lambda name: self.say(step, f"evaluating {name}"),
            )
        if (best := self.run.checkpoint.best) is not None:
            if best not in metrics:
                raise UserError(
                    f"checkpoint.best={best!r} is none of the metrics: {', '.join(sorted(metrics))}"
                )
            if math.isfinite(metrics[best]):
                self.store.scores[step] = metrics[best]
        if self.writer is not None:
            self.writer.add(step, metrics)
            self.writer.flush()
        return metrics

    def say(self, step: int, text: str) -> None:
        if self.progress is not None:
            self.progress.update(step, text)

    def save(self, step: int) -> None:
        """Saves the state, unless it is the one that is there."""
        if step == self.saved:
            return
        if self.writer is not None:
            self.writer.flush()  # no line may be missing that a resumed run does not write again
        self.store.save(step, states.to_items(self.state))
        self.saved = step

    def close(self) -> None:
        """Closes all that is open, in this order, whatever goes wrong with one of them."""
        faulthandler.cancel_dump_traceback_later()
        with contextlib.ExitStack() as last_to_first:
            last_to_first.callback(self.store.close)
            last_to_first.callback(self.batches.close)
            if self.writer is not None:
                last_to_first.callback(self.writer.close)
            if self.progress is not None:
                last_to_first.callback(self.progress.close)


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
