import importlib
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from big_mm import trees

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
CONFIG = """
import ml_collections
from big_mm.losses import captioning, contrastive
from big_mm.models import variants
from big_mm.objectives.base import Weighted
from big_mm.spec import spec

def get_config():
    model = variants.coca(
        "tiny", image_size=16, patch_size=8, vocab_size=32, max_len=6, queries=3,
    )
    losses = {
        "contrastive": spec(contrastive.Softmax, positives="text_id"),
        "captioning": spec(captioning.CrossEntropy),
    }
    weights = {"captioning": 2.0}
    objective = spec(Weighted, model=model, losses=losses, weights=weights)
    return ml_collections.ConfigDict({"batch_size": 4, "objective": objective})
"""


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def problem(benchmark, tmp_path, *overrides):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return benchmark("train_step").Problem.load(str(tmp_path / "tiny.py"), list(overrides))


def test_model_flops_are_three_forward_passes(benchmark, tmp_path):
    shallow = problem(benchmark, tmp_path, "--config.objective.model.image.blocks.depth=3")
    less, flops = (
        benchmark("train_step").model_flops(p.objective, p.params(), p.batch)
        for p in (shallow, problem(benchmark, tmp_path))
    )
    width, mlp_dim, patches = 128, 512, 4
    block = 4 * patches * (width * 4 * width + 2 * width * mlp_dim + 2 * patches * width)
    assert flops - less == 3 * 2 * block
    assert flops > 4 * 3 * 2 * block


def test_the_faster_contestant_is_found_faster(benchmark):
    interleaved = benchmark("interleaved")
    program = (
        f"import sys, time; sys.path.append({str(BENCHMARKS)!r}); import interleaved; "
        "interleaved.serve(lambda: time.sleep({}), 2, {{}})"
    )
    slow, fast = (
        interleaved.Contestant(str(s), [sys.executable, "-c", program.format(s)], {})
        for s in (0.09, 0.03)
    )
    interleaved.race([slow, fast], rounds=3)
    assert len(slow.turns) == len(fast.turns) == 3
    assert 2 < fast.ratio(slow, "wall") < 4 and slow.median("cpu") < 0.03
    for contestant in (slow, fast):
        contestant.close()


@pytest.mark.peer
@pytest.mark.parametrize("pooling", ["cascade", "parallel"])
def test_pytorch_computes_the_same_loss(benchmark, tmp_path, pooling):
    ours = problem(benchmark, tmp_path, f"--config.objective.model.pooling={pooling}")
    params = ours.params()
    loss, _ = ours.objective.loss(params, {}, ours.batch, jax.random.key(0))
    (tmp_path / "sizes.json").write_text(json.dumps(ours.sizes()))
    np.savez(tmp_path / "batch.npz", **ours.batch)
    np.savez(tmp_path / "params.npz", **trees.flatten(params))
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "train_step_torch.py", tmp_path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout)
    assert facts["parameters"] == trees.count(params)
    assert facts["loss"] == pytest.approx(float(loss), rel=1e-5)
