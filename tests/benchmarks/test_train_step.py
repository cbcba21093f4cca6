import functools
import importlib
import pathlib
import sys

import jax
import pytest

from big_mm.models import variants

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize(
    ("name", "released"),
    # open_clip's own configurations of these names, release 3.3.
    [
        ("clip:B/32", {"width": 768, "layers": 12, "text_width": 512, "image_size": 224}),
        ("coca:L/14", {"width": 1024, "layers": 24, "text_width": 768, "image_size": 224}),
    ],
)
def test_the_peer_gets_the_sizes_of_its_own_model(benchmark, name, released):
    train_step = benchmark("train_step")
    sizes = train_step.peer_sizes(train_step.objective(name, {}).model)
    image, text = sizes["vision_cfg"], sizes["text_cfg"]
    assert {k: image[k] for k in ("width", "layers", "image_size")} == {
        k: v for k, v in released.items() if k != "text_width"
    }
    assert (image["head_width"], image["mlp_ratio"]) == (64, 4.0)
    assert text["width"] == sizes["embed_dim"] == released["text_width"]
    assert ("multimodal_cfg" in sizes) == (sizes["kind"] == "coca") == name.startswith("coca")


def test_a_batch_is_what_the_model_takes(benchmark):
    train_step = benchmark("train_step")
    objective = train_step.objective("coca:tiny", {"dtype": "float32"})
    batch = train_step.batch_of(objective.model, 2)
    init = functools.partial(objective.model.init_with_output, train=False)
    outputs, _ = jax.eval_shape(init, jax.random.key(0), batch)
    assert outputs["caption_logits"].shape == (2, objective.model.text.max_len, 512)
    assert variants.open_clip_coca("B/32").image.image_size == 224, "the released size is kept"


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
