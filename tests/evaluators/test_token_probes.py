"""Probes of patch tokens: a perfect tower is recognised, masks follow their pictures."""

import dataclasses
import io
import json

import numpy as np
import oracles
import pytest
import tiny
from featured import Featured
from PIL import Image

from big_mm import report
from big_mm.data import scenes
from big_mm.data.contract import Contract
from big_mm.evaluators import AttentionalProbe, SegmentationProbe, masks, run_all
from big_mm.evaluators.masks import ClassMasks, SceneMasks
from big_mm.probing.heads import IGNORE, Recipe
from big_mm.spec import UserError

SIZE, GRID = tiny.IMAGE_SIZE, 4
NAMES = ("left", "right", "above")
RECIPE = Recipe(epochs=20, batch_size=16, learning_rate=3e-2)


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


def classes_of(n):
    """[GRID, GRID] the class of each patch of picture n."""
    return np.random.default_rng(n).integers(0, len(NAMES), (GRID, GRID))


def tokens(n):
    return np.eye(4)[classes_of(n).ravel()] + np.random.default_rng(n).normal(size=(16, 4)) * 0.05


def png(array):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, "PNG")
    return file.getvalue()


def masked(n):
    mask = classes_of(n).repeat(4, 0).repeat(4, 1)
    mask[0, :3] = IGNORE
    return {"mask": [png(mask)], "label": n % 2}


@dataclasses.dataclass(frozen=True)
class From(oracles.Numbered):
    first: int = 100

    def __getitem__(self, index):
        return oracles.Numbered(10**6, self.features).__getitem__(index + self.first)


train, test = oracles.Numbered(40, masked, damaged=(3,)), From(12, masked)


def test_a_tower_that_knows_the_classes_is_recognised(contract, tmp_path):
    predictor = Featured(contract, patch_tokens=tokens)
    probe = SegmentationProbe(train, test, ClassMasks(NAMES), recipe=RECIPE)
    metrics = run_all({"seg": probe}, predictor, workdir=tmp_path, bootstrap=50)
    # A patch's borders are blurred, its middle is not.
    assert metrics["seg/miou"] > 0.6 and metrics["seg/pixel_accuracy"] > 0.75
    assert metrics["seg/miou_low"] < metrics["seg/miou"] < metrics["seg/miou_high"]
    assert metrics["seg/miou_chance"] < 0.2 and metrics["seg/examples"] == 12
    stored = json.loads((tmp_path / "artifacts" / "seg.json").read_text())
    sheet = stored["artifacts"]["segmentation"]
    assert len(sheet["examples"]) == 8 and len(sheet["colours"]) == len(sheet["iou"]) == 3
    (tmp_path / "evaluation.json").write_text(json.dumps(metrics))
    assert "The first pictures, not chosen" in report.write(tmp_path).read_text()


def test_chance_is_the_most_frequent_training_class_everywhere(contract):
    predictor = Featured(contract, patch_tokens=lambda n: np.zeros((16, 4)))
    probe = SegmentationProbe(train, test, ClassMasks(NAMES), recipe=RECIPE)
    values = probe.run(predictor)
    assert values["miou"] == pytest.approx(values["miou_chance"])
    assert values["pixel_accuracy"] == pytest.approx(values["pixel_accuracy_chance"])
    truth = np.stack([masks.prepare(ClassMasks(NAMES)(test[i]), contract) for i in range(12)])
    share = (truth[truth != IGNORE][:, None] == np.arange(3)).mean(axis=0)
    assert values["pixel_accuracy_chance"] == pytest.approx(
        share[np.argmin(abs(share - values["pixel_accuracy_chance"]))]
    )
    assert values["miou_chance"] == pytest.approx(values["pixel_accuracy_chance"] / 3)


def test_the_attentional_probe_reads_what_one_token_says(contract):
    def needle(n):
        rows = np.random.default_rng(n).normal(size=(9, 8)) * 0.3
        rows[n * 7 % 9, [n % 2, 7]] += 3.0
        return rows

    predictor = Featured(contract, patch_tokens=needle)
    source = oracles.Numbered(200, lambda n: {"label": n % 2})
    recipe = Recipe(epochs=15, batch_size=32, learning_rate=1e-2)
    probe = AttentionalProbe(
        source, From(41, lambda n: {"label": n % 2}, first=300), heads=2, recipe=recipe
    )
    result = probe.evaluate(predictor, 0)
    assert result.values["accuracy"] > 0.95 and result.values["examples"] == 41
    assert result.protocol["epochs"] == 15 and result.protocol["features"] == "patch_tokens"
    json.dumps(result.protocol)


@pytest.mark.parametrize("kernel", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_masks_lie_where_their_pictures_lie(resize, kernel):
    """A mask drawn as a picture, prepared as a picture, then read as a mask."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, (6, 9)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    rules = Contract(image_size=24, resize=resize, kernel=kernel)
    prepared = masks.prepare(mask, rules)
    cover = np.stack([rules.image(255 * (mask == c).astype(np.uint8))[..., 0] for c in range(4)])
    sure = cover.max(axis=0) > 200
    assert sure.mean() > 0.4
    np.testing.assert_array_equal(prepared[sure], cover.argmax(axis=0)[sure])


def test_padding_does_not_count():
    mask = np.ones((8, 16), np.uint8)
    rules = Contract(image_size=16, resize="pad", kernel="bilinear", fill=127)
    prepared = masks.prepare(mask, rules)
    assert (prepared[:4] == IGNORE).all() and (prepared[5:11] == 1).all()


@pytest.mark.parametrize("by, names", [("shape", scenes.SHAPES), ("colour", scenes.COLOURS)])
def test_masks_of_scenes_are_the_objects(by, names):
    features = scenes.features("train", 0, 3, 32)
    record = {
        k: [v] if isinstance(v, bytes) else [v.encode()]
        for k, v in features.items()
        if k in ("mask", "scene")
    } | {"key": "k"}
    mask = SceneMasks(by)(record)
    instances = np.asarray(Image.open(io.BytesIO(features["mask"])))
    scene = scenes.Scene.from_json(features["scene"])
    for number, item in enumerate(scene.objects, start=1):
        assert set(mask[instances == number]) <= {1 + names.index(getattr(item, by))}
    assert (mask[instances == 0] == 0).all() and SceneMasks(by).classnames[0] == "background"


def test_numbers_may_begin_at_one(contract):
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    found = ClassMasks(("a", "b"), first=1)({"key": "k", "mask": [png(mask)]})
    assert found.tolist() == [[IGNORE, 0], [1, IGNORE]]


def test_bad_masks_are_refused(contract):
    predictor = Featured(contract, patch_tokens=tokens)
    with pytest.raises(UserError, match="record 'n0' has no 'mask': name it in the schema's extra"):
        SegmentationProbe(oracles.Numbered(4), test, ClassMasks(NAMES)).run(predictor)
    with pytest.raises(UserError, match="record 'n0' has class 2; there are 2 classnames"):
        SegmentationProbe(train, test, ClassMasks(NAMES[:2])).run(predictor)
    coloured = {"key": "k", "mask": [png(np.zeros((4, 4, 3)))]}
    with pytest.raises(UserError, match="mask of record 'k' is no picture of class numbers"):
        ClassMasks(NAMES)(coloured)
    with pytest.raises(UserError, match="2 to 255 classnames, not 1"):
        ClassMasks(("one",))
    with pytest.raises(UserError, match="by"):
        SceneMasks("size")
