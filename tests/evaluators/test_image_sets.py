"""Planted skews in sets of images are found, and data types told apart."""

import io

import numpy as np
import oracles
import pytest
import tiny
from PIL import Image

from big_mm.evaluators import (
    AttributeShares,
    Choice,
    ClusterBias,
    PromptBias,
    SetDistances,
    run_all,
)
from big_mm.evaluators.choice import Options
from big_mm.evaluators.data_types import NAMES, PROMPTS, DataTypes, prompts
from big_mm.evaluators.prompt_bias import ContentWords
from big_mm.metrics import clip_score
from big_mm.spec import UserError


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


def bag(text):
    said = text.split()
    return np.array([said.count(w) for w in (*tiny.COLOURS, *tiny.SHAPES)] + [0.1])


# Picture n shows shows(n): in the set "few" red ones are 2 of 10, in "many" 9 of 10.
def shows(n):
    red = n % 10 < (2 if n < 10 else 9)
    return f"a {'red' if red else 'blue'} {tiny.SHAPES[n % 2]}"


def record(i):
    return {"group": ["few" if i < 10 else "many"], "prompt": [f"a {tiny.SHAPES[0]}"]}


@pytest.fixture
def oracle(contract):
    return oracles.Oracle(contract, lambda n: bag(shows(n)), bag, says=shows)


def test_planted_shares_are_recovered(oracle):
    source, attributes = oracles.Numbered(20, record), ("red", "blue")
    evaluator = AttributeShares(source, attributes, prompt="prompt", batch_size=7)
    result = evaluator.evaluate(oracle, 0)
    shares = result.artifacts["shares"]["sets"]
    assert shares == {"few": {"red": 0.2, "blue": 0.8}, "many": {"red": 0.9, "blue": 0.1}}
    assert result.values["deviation_few"] == pytest.approx(0.3)
    assert result.values["deviation_many"] == pytest.approx(0.4)
    assert result.values["deviation"] == pytest.approx(0.35)
    image = oracle.encode_image([oracles.picture(n) for n in range(20)])
    text = oracle.encode_text([clip_score.PREFIX + "a circle"])[0]
    expected = clip_score.clip_score(image, np.tile(text, (20, 1))).mean()
    assert result.values["alignment"] == pytest.approx(expected, rel=1e-6)
    given = AttributeShares(source, attributes, reference=(0.9, 0.1)).run(oracle)
    assert given["deviation_many"] == pytest.approx(0) and given["deviation_few"] == pytest.approx(
        0.7
    )
    bounds = run_all({"mine": evaluator}, oracle, bootstrap=20)
    assert bounds["mine/deviation_low"] < bounds["mine/deviation_high"]
    with pytest.raises(UserError, match="must be 2 shares that sum to 1"):
        AttributeShares(source, attributes, reference=(0.5,))
    with pytest.raises(UserError, match="at least two different attributes"):
        AttributeShares(source, ("red", "red"))


def test_languages_are_kept_apart(contract):
    """Opposite skews of two occupations, which pooled would look fair; German half as skewed."""
    planted = {("de", "nurse"): 3, ("de", "pilot"): 7, ("en", "nurse"): 1, ("en", "pilot"): 9}
    sets = list(planted)

    def of(n):
        return sets[n // 10], n % 10 < planted[sets[n // 10]]

    oracle = oracles.Oracle(contract, lambda n: bag("red" if of(n)[1] else "blue"), bag)

    def record(n):
        (language, group), _ = of(n)
        return {"group": [group], "lang": [language], "prompt": ["red"]}

    evaluator = AttributeShares(
        oracles.Numbered(40, record),
        ("red", "blue"),
        language="lang",
        errors=(0.0, 0.1, 0.3),
        prompt="prompt",
    )
    result = evaluator.evaluate(oracle, 0)
    values = result.values
    assert values["deviation_de"] == pytest.approx(0.2)
    assert values["deviation_en"] == pytest.approx(0.4)
    assert values["deviation"] == values["deviation_error_0"] == pytest.approx(0.3)
    assert values["gap"] == pytest.approx(0.2) and values["groups"] == 4
    assert values["deviation_error_0.1"] == pytest.approx(((0.7 - 0.1) / 0.8 - 0.5 + 0.5) / 2)
    assert values["deviation_error_0.3"] == pytest.approx((0.5 + 0.5) / 2)  # cut off at one
    mean = (values["alignment_de"] + values["alignment_en"]) / 2
    assert values["alignment"] == pytest.approx(mean)
    assert result.artifacts["shares"]["sets"]["en: pilot"] == {"red": 0.9, "blue": 0.1}
    with pytest.raises(UserError, match="errors=0.5: an attribute must be right more often"):
        AttributeShares(oracles.Numbered(1), ("red", "blue"), errors=(0.5,))


def test_the_nearest_set_is_the_most_alike(contract):
    """Three clouds of embeddings: the anchor's, one near, one far."""
    centre = {0: 0.0, 1: 0.3, 2: 2.0}

    def vector(n):
        noise = np.random.default_rng(n).normal(size=6) * 0.1
        return np.eye(6)[0] + centre[n % 3] * np.eye(6)[1] + noise

    names = ("plain", "near", "far")
    source = oracles.Numbered(60, lambda i: {"group": [names[i % 3]]})
    result = SetDistances(source, "plain").evaluate(oracles.Oracle(contract, vector), 0)
    assert 0 < result.values["distance_near"] < result.values["distance_far"]
    assert result.artifacts["distances"]["nearest"] == "near"
    with pytest.raises(UserError, match="needs 'nowhere' and another set; there are far, near"):
        SetDistances(source, "nowhere").run(oracles.Oracle(contract, vector))


def test_skewed_sets_spread_over_fewer_clusters(contract):
    """Identities are four directions; three sets with planted skews, the most diverse last."""
    kinds = np.eye(8)[:4]
    planted = {"one": [0] * 8, "two": [0, 1] * 4, "all": [0, 1, 2, 3] * 2}
    rows = [(f"identity {k}", k) for k in range(4) for _ in range(6)]
    rows += [(name, k) for name, chosen in planted.items() for k in chosen]

    def vector(n):
        return kinds[rows[n][1]] + 0.02 * np.random.default_rng(n).normal(size=8)

    source = oracles.Numbered(len(rows), lambda i: {"group": [rows[i][0]]})
    identities = tuple(f"identity {k}" for k in range(4))
    evaluator = ClusterBias(source, identities, clusters=4)
    result = evaluator.evaluate(oracles.Oracle(contract, vector), 0)
    values = result.values
    assert values["entropy_one"] == 0
    assert values["entropy_two"] == pytest.approx(np.log(2))
    assert values["entropy_all"] == values["entropy_largest"] == pytest.approx(np.log(4))
    assert values["entropy"] == pytest.approx((0 + np.log(2) + np.log(4)) / 3)
    assert values["over_representation"] == pytest.approx(1 - 1 / 4)
    table = result.artifacts["clusters"]["identities"]
    assert sorted(map(tuple, table)) == [(name,) for name in identities]
    assert len(result.keys) == 24
    with pytest.raises(UserError, match="no record has the group 'nobody'"):
        ClusterBias(source, ("nobody",)).run(oracles.Oracle(contract, vector))


def things(text):
    return [word for word in text.split() if word in (*tiny.COLOURS, *tiny.SHAPES)]


@pytest.mark.parametrize("captions", [None, "captions"])
def test_prompt_bias_grows_with_what_nobody_asked_for(contract, captions):
    """k of 16 images show a star beside what was asked for."""
    found = []
    for k in (0, 4, 12):

        def said(n, k=k):
            return "a red circle star" if n < k else "a red circle"

        source = oracles.Numbered(
            16, lambda i, said=said: {"prompt": ["a circle"], "captions": [said(i)]}
        )
        oracle = oracles.Oracle(contract, lambda n, said=said: bag(said(n)), bag, says=said)
        found.append(PromptBias(source, things, captions=captions).run(oracle))
    assert [f["hallucination"] for f in found] == pytest.approx(
        [1 / 2, (12 / 2 + 4 * 2 / 3) / 16, (4 / 2 + 12 * 2 / 3) / 16]
    )
    assert [f["objects"] for f in found] == [1, 2, 2]
    assert all(f["miss_rate"] == 0 for f in found)
    missing = oracles.Oracle(contract, lambda n: bag("white"), bag)
    values = PromptBias(source, things, captions="captions").run(missing)
    assert values["miss_rate"] == 1.0


def test_content_words():
    words = ContentWords(("red",))("A photo of a dog, two dogs and the red ball on a mat.")
    assert words == ["dog", "dogs", "ball", "mat"]


def test_data_types_are_made_and_named(contract):
    source = DataTypes(oracles.Numbered(3, lambda i: {"captions": ["x"]}))
    assert len(source) == 3 * len(NAMES) == 3 * len(PROMPTS)
    records = [source[i] for i in range(len(NAMES))]
    assert [r["label"] for r in records] == list(range(len(NAMES)))
    assert records[1]["key"] == "n0/left_rotated"
    again = [np.asarray(source[i]["image"]) for i in range(len(NAMES))]
    for first, second in zip(records, again, strict=True):
        np.testing.assert_array_equal(np.asarray(first["image"]), second)
    sees = oracles.Oracle(
        contract,
        image_vector=lambda n: np.eye(2)[0] + 0.1,
        text_vector=lambda text: np.eye(2)[int(text != "a photo")] + 0.1,
    )
    chosen = Choice(source, Options(PROMPTS)).run(sees)
    assert chosen["accuracy"] == pytest.approx(1 / len(NAMES))
    assert chosen["informedness"] == pytest.approx(0)  # "a photo" whatever was done to it
    assert prompts(("noisy", "original")) == ("a noisy photo", "a photo")
    with pytest.raises(UserError, match="no data type 'sepia'; there are original, left_rotated"):
        DataTypes(source, ("sepia",))


def test_each_data_type_does_what_its_name_says():
    class Photo(oracles.Numbered):
        def __getitem__(self, index):
            array = np.random.default_rng(index).integers(40, 200, (24, 36, 3)).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(array).save(file, "PNG")
            return {"image": file.getvalue(), "key": "p"}

    source = DataTypes(Photo(1))
    pictures = {n: np.asarray(source[i]["image"]).astype(float) for i, n in enumerate(NAMES)}
    plain = pictures["original"]
    np.testing.assert_array_equal(pictures["left_rotated"], np.rot90(plain))
    np.testing.assert_array_equal(pictures["right_rotated"], np.rot90(plain, -1))
    np.testing.assert_array_equal(pictures["flipped"], plain[::-1])
    assert sorted(pictures["shuffled"].ravel()) == sorted(plain.ravel())
    assert pictures["zoomed"].shape == plain.shape
    for calmer, name in ((True, "blurred"), (True, "low_contrast"), (False, "high_contrast")):
        assert (pictures[name].std() < plain.std()) == calmer
    assert pictures["dark"].mean() < plain.mean() < pictures["bright"].mean()
    changed = {n for n, p in pictures.items() if p.shape != plain.shape or (p != plain).any()}
    assert changed == set(NAMES) - {"original"}
