"""What holds for every experiment: its configs take a step, and the catalogue lists it."""

import pathlib

import jax
import pytest

from big_mm import spec
from big_mm.training import loop
from big_mm.training.run import prepare

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/config.py"))
CONFIGS = [ROOT / "experiments/base.py", *(folder / "config.py" for folder in FOLDERS)]
VARIANTS = [f"{file}:{name}".rstrip(":") for file in CONFIGS for name in spec.variants(str(file))]


@pytest.mark.parametrize("source", VARIANTS, ids=lambda source: source.removeprefix(f"{ROOT}/"))
def test_every_variant_takes_a_step_in_shapes(source, in_world):
    config = spec.load_config(source)
    assert spec.to_json(spec.from_json(spec.to_json(config))) == spec.to_json(config)
    run = spec.build(config)
    example, batches = loop.open_data(run, 0)
    batches.close()
    prepared = prepare(run, example)
    state, metrics = jax.eval_shape(prepared.update, prepared.state, prepared.batch)
    assert jax.tree.structure(state) == jax.tree.structure(prepared.state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_experiment_is_documented(folder):
    text = (folder / "README.md").read_text()
    assert f"experiments/{folder.name}/config.py" in text
    assert f"({folder.name}/" in (folder.parent / "README.md").read_text()
