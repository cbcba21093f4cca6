"""The table of modules, against closed forms and a step that is laid out without its data."""

import dataclasses

import pytest

from big_mm import spec, trees
from big_mm.data.contract import Contract
from big_mm.data.pipeline import Pipeline
from big_mm.data.records import TFRecordSource
from big_mm.data.tokenizers import SentencePiece
from big_mm.data.transforms import ChooseCaption, Decode, Resize, Tokenize
from big_mm.losses import captioning, contrastive
from big_mm.mesh import MeshConfig
from big_mm.models import variants
from big_mm.objectives.base import Weighted
from big_mm.planning import analytic, chips, example, plans, sweep, tables
from big_mm.planning.collectives import Collective
from big_mm.planning.compiler import Compiled
from big_mm.spec import UserError
from big_mm.training import optimizer
from big_mm.training import run as runs

SIDE, LENGTH, ROWS, WIDTH, MLP, PATCHES = 32, 16, 64, 128, 512, 16


def config(transforms=None, **options):
    """A small CoCa whose shards and tokenizer do not exist."""
    if transforms is None:
        transforms = (
            spec.spec(Decode),
            spec.spec(Resize),
            spec.spec(ChooseCaption),
            spec.spec(Tokenize),
        )
    return spec.spec(
        runs.Run,
        objective=spec.spec(
            Weighted,
            model=variants.coca(
                "tiny",
                image_size=SIDE,
                patch_size=8,
                vocab_size=256,
                max_len=LENGTH,
                queries=8,
                blocks=options.pop("blocks", {"remat": "full"}),
            ),
            losses={
                "contrastive": spec.spec(contrastive.Softmax),
                "captioning": spec.spec(captioning.CrossEntropy),
            },
        ),
        contract=spec.spec(
            Contract,
            tokenizer=spec.spec(SentencePiece, path="absent.model"),
            image_size=SIDE,
            max_len=LENGTH,
        ),
        data=spec.spec(
            Pipeline,
            sources=(spec.spec(TFRecordSource, shards="absent-*.tfrecord"),),
            transforms=transforms,
        ),
        optimizer=spec.spec(optimizer.AdamW, learning_rate=1e-3),
        steps=100,
        batch_size=ROWS,
        **{"mesh": spec.spec(MeshConfig, data=-1, fsdp=4), **options},
    )


def analyse(made, count=8):
    run = example.build(made)
    return analytic.analyse(run, *runs.shapes(run, example.batch(run), run.mesh.abstract(count)))


def test_a_batch_is_imagined_from_the_transforms():
    batch = example.batch(example.build(config()))
    device = runs.device_part(batch)
    assert {key: (value.dtype.name, value.shape) for key, value in device.items()} == {
        "image": ("uint8", (1, SIDE, SIDE, 3)),
        "tokens": ("int32", (1, LENGTH)),
        "token_mask": ("bool", (1, LENGTH)),
        "text_id": ("int32", (1,)),
        "label": ("int32", (1,)),
        "bad": ("bool", (1,)),
    }


def test_transforms_that_read_what_only_the_data_have():
    made = config((spec.spec(Decode), spec.spec(Resize), spec.spec(Tokenize, key="absent")))
    with pytest.raises(UserError, match="--read-data"):
        example.batch(example.build(made))


def test_modules_by_closed_forms():
    found = {row.module: row for row in analyse(config()).rows}
    block = WIDTH * 4 * WIDTH + 2 * WIDTH * MLP
    biases = 4 * WIDTH + MLP + WIDTH + 4 * WIDTH  # and two norms
    assert found["image/blocks"].parameters == 4 * (block + biases)
    products = block + 2 * PATCHES * WIDTH  # of weights, and the scores and sums of attention
    assert found["image/blocks"].flops == 4 * 2 * ROWS * PATCHES * products
    # With full rematerialisation the input of each of four blocks is kept, in float32 here.
    assert found["image/blocks"].saved_bytes == 4 * ROWS * PATCHES * WIDTH * 4


def test_less_is_kept_when_more_is_computed_again():
    def kept(remat):
        rows = analyse(config(blocks={"remat": remat})).rows
        return sum(row.saved_bytes for row in rows)

    assert kept("full") < kept("attention") < kept("none")


def test_what_a_chip_holds():
    one, eight = (analyse(config(mesh=spec.spec(MeshConfig, fsdp=n)), n).memory for n in (1, 8))
    made = example.build(config())
    _, state = runs.shapes(made, example.batch(made), made.mesh.abstract(4))
    assert one["parameters"] == trees.size(state.params)
    assert one["optimizer"] == pytest.approx(2 * one["parameters"], rel=0.01)
    assert one["activations"] == pytest.approx(8 * eight["activations"], rel=0.01)
    assert eight["parameters"] < one["parameters"] / 4  # small ones are on every chip


def test_the_points_of_a_sweep():
    topology = chips.parse("v5e:2x4")
    assert [settings for settings, _ in sweep.points(config(), topology, [])] == [{}]
    found = list(sweep.points(config(), topology, ["mesh", "remat", "microbatch"]))
    assert len({str((point.mesh, settings)) for settings, point in found}) == len(found)
    for settings, point in found:
        sizes = point.mesh.data * point.mesh.fsdp * point.mesh.tensor
        assert sizes == 8 and point.accumulate == settings["accumulate"]
        stacks = point.objective.model.image.blocks, point.objective.model.decoder
        assert {stack.remat for stack in stacks} == {settings["remat"]}
    assert {point.accumulate for _, point in found} == {1, 2, 4, 8}
    with pytest.raises(UserError, match="--sweep depth: there are mesh, remat, microbatch"):
        list(sweep.points(config(), topology, ["depth"]))


def plan(**changes):
    topology = chips.parse("v5e:4x4")
    mesh = {"data": 1, "fsdp": 16, "tensor": 1}
    made = plans.refused(config(mesh=spec.spec(MeshConfig, **mesh)), topology, {}, "too large")
    return dataclasses.replace(made, **changes)


def fitting(seconds, peak, **changes):
    bound = {"compute": seconds, "hbm": seconds / 2, "ici": 0.0}
    return plan(
        fits=True, peak_hbm_bytes=peak, seconds=bound, step_seconds_bound=seconds, mfu_bound=0.5,
        **changes,
    )  # fmt: skip


def test_the_plan_to_choose():
    assert plans.best([plan()]) is None and "no plan for v5e:4x4 fits" in tables.advice([plan()])
    slow, fast, lean = fitting(2.0, 10), fitting(1.0, 10), fitting(1.001, 5)
    assert plans.best([plan(), slow, fast]) is fast
    assert plans.best([fast, lean, slow]) is lean  # as fast, and more memory stays free
    # The compiler's own estimate decides where all have one.
    a = dataclasses.replace(slow, estimated_seconds=3.0)
    b = dataclasses.replace(fast, estimated_seconds=4.0)
    assert plans.best([a, b]) is a and plans.best([a, fast]) is fast
    # Chips of different kinds are compared by price alone.
    said = tables.advice([plan(), fast, plan(topology="v6e:4x4")]).splitlines()
    assert "choose v5e:4x4 1x16x1" in said[0] and "no plan for v6e:4x4 fits" in said[1]
    cheap = fitting(3.0, 10, topology="v6e:4x4", dollars_per_million=1.0)
    dear = fitting(1.0, 10, dollars_per_million=2.0)
    assert plans.best([cheap, dear]) is cheap and "choose v6e:4x4" in tables.advice([cheap, dear])


def test_times_and_bounds_follow_from_the_peaks():
    topology = chips.parse("v5e:16x16")
    one = Collective("all-gather", 16, tuple(range(16)), 10, 9 * 10**9, 0, "")
    said = Compiled(peak_bytes=2**30, hbm_bytes=82 * 10**10, cycles=3 * 10**9, collectives=(one,))
    places = [(i // 16, i % 16) for i in range(256)]
    made = plans._plan(
        topology, {"data": 16, "fsdp": 16, "tensor": 1}, {}, 65_536, "default", said, {},
        2 * 197e12, 197e12, places, 1.0,
    )  # fmt: skip
    assert made.seconds == pytest.approx({"compute": 2.0, "hbm": 1.0, "ici": 1.0})
    assert (made.step_seconds_bound, made.mfu_bound) == pytest.approx((2.0, 0.5))
    assert (made.estimated_seconds, made.estimated_mfu) == pytest.approx((2.0, 0.5))
    assert made.collective_bytes == 9 * 10**10
    assert made.dollars_per_million == pytest.approx(2 * 256 / 3600 * 1e6 / 65_536)
    assert made.collectives == {"all-gather@16": {"runs": 10, "bytes": 9 * 10**10}}
