"""What a run tells the world: metrics.jsonl, TensorBoard events, a live line; from one process."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rich.console
import rich.live
import rich.text
import tensorboardX
from etils import epath

METRICS, INCIDENTS = "metrics.jsonl", "incidents.jsonl"


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file whole, so that whoever reads it or is killed sees the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


class MetricsWriter:
    """metrics.jsonl and TensorBoard events of a workdir.

    A step has one line, whatever is added to it before a later step begins. Values that are not
    finite are left out, as JSON has no name for them.
    """

    def __init__(self, workdir: epath.Path, step: int):
        """Continues after `step`: later lines are cut, that step's own can still be added to."""
        self._path = workdir / METRICS
        lines = _read_lines(self._path)
        current = next((line for line in lines if line["step"] == step), {})
        # The file is these lines and the current step's, which is rewritten when it changes.
        self._lines = [json.dumps(line) + "\n" for line in lines if line["step"] < step]
        self._step, self._values = step, {k: v for k, v in current.items() if k != "step"}
        self._logged = set(self._values)
        self._write_all()
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if step != self._step:
            self.flush()
            if self._values:
                self._lines.append(self._line())
            self._step, self._values, self._logged = step, {}, set()
        finite = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        self._values |= finite

    def names(self) -> tuple[str, ...]:
        """Of the values that the current step has."""
        return tuple(self._values)

    def flush(self) -> None:
        new = {name: v for name, v in self._values.items() if name not in self._logged}
        if not new:
            return
        if self._logged or "://" in str(self._path):  # object stores cannot append
            self._write_all()
        else:
            with self._path.open("a") as file:
                file.write(self._line())
        for name, value in new.items():
            self._events.add_scalar(name, value, self._step)
        self._logged |= new.keys()

    def close(self) -> None:
        self.flush()
        self._events.close()

    def _line(self) -> str:
        return json.dumps({"step": self._step, **dict(sorted(self._values.items()))}) + "\n"

    def _write_all(self) -> None:
        write_whole(self._path, "".join(self._lines) + (self._line() if self._values else ""))


class IncidentLog:
    """incidents.jsonl of a workdir: a line for every update that was refused.

    The lines are in the order of the batches, which a run that goes back does not take again.
    """

    def __init__(self, workdir: epath.Path, batch: int):
        """Continues after that many batches; lines of later ones are cut."""
        self._path = workdir / INCIDENTS
        found = _read_lines(self._path)
        self._lines = [json.dumps(line) + "\n" for line in found if line["batch"] <= batch]
        if len(self._lines) < len(found):
            write_whole(self._path, "".join(self._lines))

    def add(self, batch: int, line: Mapping[str, Any]) -> None:
        """Appends what is said of `batch`, which is a later one than before."""
        self._lines.append(json.dumps({"batch": batch, **line}) + "\n")
        write_whole(self._path, "".join(self._lines))


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl; a last line that was cut off is left out."""
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        raise FileNotFoundError(f"no {METRICS} in {workdir}")
    return _read_lines(path)


def read_metric(workdir: epath.Path, name: str | None, until: int) -> dict[int, float]:
    """{step: value} of one metric up to the step `until`; nothing where there is no file yet."""
    lines = _read_lines(workdir / METRICS) if name is not None else []
    return {line["step"]: line[name] for line in lines if name in line and line["step"] <= until}


def _read_lines(path: epath.Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Throughput:
    """Images a second while training, pauses (evaluation, saving) left out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._mark, self._paused = time.perf_counter(), 0.0
        self.step: int | None = None

    def start(self, step: int) -> None:
        """Begins to measure after `step`; called when compilation is over."""
        self._mark, self._paused, self.step = time.perf_counter(), 0.0, step

    @contextmanager
    def pause(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begun

    def measure(self, step: int) -> float | None:
        """Images a second since the last call; None if nothing was measured."""
        seconds = max(time.perf_counter() - self._mark - self._paused, 1e-9)
        steps = 0 if self.step is None else step - self.step
        self.start(step)
        return steps * self._batch_size / seconds if steps > 0 else None


class ProgressLine:
    """One live line on a terminal (more if it is narrow); elsewhere a plain line an update."""

    def __init__(self, total: int, unit: str):
        """`unit`: what is counted, "step"."""
        self._total, self._unit = total, unit
        console = rich.console.Console(file=sys.stderr)
        self._live: rich.live.Live | None = None
        if console.is_terminal:
            self._live = rich.live.Live(console=console, refresh_per_second=2)
            self._live.start()

    def update(self, done: int, text: str) -> None:
        line = f"{self._unit} {done:,}/{self._total:,}  {text}"
        if self._live is not None:
            self._live.update(rich.text.Text(line))
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def describe(metrics: Mapping[str, float], baselines: Mapping[str, float]) -> str:
    """The loss terms, each with what a guess would reach."""
    parts = []
    for name, value in metrics.items():
        term = name.removeprefix("loss/")
        if term != name:
            chance = baselines.get(f"baseline/{term}")
            parts.append(f"{term} {value:.3f}" + (f" (chance {chance:.2f})" if chance else ""))
    return "  ".join(parts or [f"loss {metrics['loss']:.4f}"])


def duration(seconds: float) -> str:
    """ "1h 02m", "3m 05s" or "12s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
