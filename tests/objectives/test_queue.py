"""A queue keeps the last rows that were pushed, wherever its end is, and when interrupted."""

import dataclasses
import signal
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import spec
from big_mm.objectives import queue
from big_mm.objectives.teacher import Teacher
from big_mm.spec import UserError
from big_mm.types import Mean
from tests.training import runs

ROW = {"x": jax.ShapeDtypeStruct((2,), jnp.float32), "id": jax.ShapeDtypeStruct((), jnp.int32)}


def batch(start, rows=3):
    ids = jnp.arange(start, start + rows, dtype=jnp.int32)
    return {"id": ids, "x": jnp.stack([ids, -ids], axis=1).astype(jnp.float32)}


@pytest.mark.parametrize("size", [3, 5, 9])
def test_the_last_rows_are_there_and_each_is_whole(size):
    made, push = queue.init(size, ROW), jax.jit(queue.push)
    for step in range(5):
        made = push(made, batch(1 + 3 * step), jnp.arange(3) != (step % 3))
        pushed = np.arange(1, 4 + 3 * step)
        valid = np.array([i % 3 != (i // 3) % 3 for i in range(len(pushed))])
        last, kept = pushed[-size:], valid[-size:]
        found = np.asarray(made["id"])[np.asarray(made[queue.VALID])]
        assert sorted(found.tolist()) == last[kept].tolist()
        np.testing.assert_array_equal(made["x"], np.stack([made["id"], -made["id"]], axis=1))
        assert int(made[queue.POINTER]) == 3 * (step + 1) % size


def test_what_does_not_fit_is_refused():
    made = queue.init(2, ROW)
    with pytest.raises(UserError, match="a queue of 2 rows does not hold a batch of 3"):
        queue.push(made, batch(0), jnp.ones(3, bool))
    with pytest.raises(UserError, match=r"a queue of \['id', 'x'\] is given \['id'\]"):
        queue.push(made, {"id": batch(0)["id"]}, jnp.ones(3, bool))
    with pytest.raises(UserError, match="its size must be at least 1"):
        queue.init(0, ROW)


@dataclasses.dataclass(frozen=True)
class Apart:
    """Images are to differ from what the queue holds."""

    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs, batch):
        cosines = outputs["image_embedding"] @ outputs["queue"].T
        return Mean.of(cosines, outputs["queue_valid"]), {}


@dataclasses.dataclass(frozen=True, eq=False)
class Remembering(runs.Faulty, Teacher):
    """A teacher whose image embeddings are kept, forty of them."""

    def init_extra(self, rng, params):
        row = {"image": jax.ShapeDtypeStruct((self.model.width,), jnp.float32)}
        return super().init_extra(rng, params) | {"queue": queue.init(40, row)}

    def forward(self, params, extra, batch, rng):
        found = {"queue": extra["queue"]["image"], "queue_valid": extra["queue"][queue.VALID]}
        return super().forward(params, extra, batch, rng) | found

    def carry(self, outputs, batch):
        return outputs["teacher_image_embedding"]

    def update_extra(self, extra, params, aux):
        valid = jnp.ones(len(aux.carry), bool)
        new = {"queue": queue.push(extra["queue"], {"image": aux.carry}, valid)}
        return super().update_extra(extra, params, aux) | new


def test_an_interrupted_run_ends_with_the_same_queue_bit_for_bit(tmp_path):
    ended = []
    for name, fault in (("whole", {}), ("stopped", {"at": 3, "signal": int(signal.SIGTERM)})):
        folder = tmp_path / name
        made = runs.config(folder)
        made.objective = spec.spec(
            Remembering,
            model=made.objective.model,
            losses={"apart": spec.spec(Apart)},
            momentum=0.9,
            **{"at": -1, "marker": str(folder / "marker")} | fault,
        )
        if fault:
            assert runs.train(made, folder / "run") is None
        runs.train(made, folder / "run")
        ended.append(runs.digests(folder / "run"))
    assert ended[0] == ended[1]
    assert {"extra/queue/image", "extra/queue/valid", "extra/queue/pointer"} <= set(ended[0])
    assert any(path.startswith("extra/teacher/") for path in ended[0])
