"""Fair timing of programs against one another on a machine that also does other work.

Each contestant is a process of its own. It prepares, says so, and then works only when told to: the
parent gives every contestant its turn in each round, so that all see the same disturbances, and
compares medians of ratios within a round. CPU time (user and system, all threads) stands beside the
wall, since it hardly depends on what else runs. Needs nothing but the standard library: a
contestant's interpreter may have none of ours.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


class Contestant:
    """A process that ends in `serve`."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]):
        self.name = name
        self.turns: list[dict[str, float]] = []
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def take_turn(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.turns.append(self._read())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def median(self, key: str) -> float:
        return statistics.median(turn[key] for turn in self.turns)

    def ratio(self, other: "Contestant", key: str) -> float:
        """How many times as much of `key` the other takes, by round."""
        pairs = zip(self.turns, other.turns, strict=True)
        return statistics.median(theirs[key] / ours[key] for ours, theirs in pairs)


def race(contestants: Sequence[Contestant], rounds: int) -> None:
    """Gives everyone `rounds` turns, in turns, after one that does not count."""
    for number in range(rounds + 1):
        for contestant in contestants:
            contestant.take_turn()
            if not number:
                contestant.turns.clear()


def serve(step: Callable[[], Any], steps: int, facts: dict[str, Any]) -> None:
    """The contestant's side: `steps` steps a turn; a turn's figures are seconds a step."""
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        for _ in range(steps):
            step()
        turn = {
            "wall": (time.perf_counter() - wall) / steps,
            "cpu": (_cpu_seconds() - cpu) / steps,
        }
        print(json.dumps(turn), flush=True)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
