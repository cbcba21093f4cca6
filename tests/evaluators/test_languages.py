"""One entry for several languages gives what one entry each would, and their mean."""

import json

import numpy as np
import oracles
import pytest

from big_mm import evaluate
from big_mm.evaluators import Languages, Retrieval, ZeroShot, prompts, run_all
from big_mm.metrics.statistics import Mean, MeanOfMeans
from big_mm.report import examples
from big_mm.spec import UserError

WORDS = {"en": ("zero", "one", "two", "three"), "de": ("null", "eins", "zwei", "drei")}
LANGUAGES = tuple(WORDS)


def record(i):
    captions = {f"caption_{name}": [f"{w[i % 4]} {i // 4}"] for name, w in WORDS.items()}
    return {"label": i % 4, "captions": ["x"], **captions}


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


@pytest.fixture
def oracle(contract):
    """Knows English; of German numbers it takes each for the next one."""

    def text(words):
        name, tail = words.split()[0], words.split()[1:]
        german = name in WORDS["de"]
        number = WORDS["de" if german else "en"].index(name)
        place = (number + german * (number > 1)) % 4
        return np.r_[np.eye(4)[place], 0.1 * float(tail[0]) if tail else 0]

    made = oracles.Oracle(contract, lambda n: np.r_[np.eye(4)[n % 4], 0.1 * (n // 4)], text)
    object.__setattr__(made, "asked", [])
    encode = made.image_outputs

    def image_outputs(images, *arguments):
        made.asked.append(len(images))
        return encode(images, *arguments)

    object.__setattr__(made, "image_outputs", image_outputs)
    return made


def test_each_language_is_what_it_would_be_alone(oracle):
    source = oracles.Numbered(12, record, damaged=(5,))
    evaluator = Languages(
        Retrieval(source, captions="caption_{language}", map_at=(5,), batch_size=5), LANGUAGES
    )
    result = evaluator.evaluate(oracle, 0)
    assert sum(oracle.asked) == 11  # embedded once for both
    values = result.values
    for language in LANGUAGES:
        alone = Retrieval(source, captions=f"caption_{language}", map_at=(5,)).run(oracle)
        for name, value in alone.items():
            if name.endswith("_chance"):
                name = f"{name.removesuffix('_chance')}_{language}_chance"
            elif name != "images":
                name = f"{name}_{language}"
            assert values[name] == value
    assert values["text_to_image_r@1_en"] == 1 > values["text_to_image_r@1_de"]
    name = "image_to_text_r@1"
    assert values[name] == pytest.approx((values[f"{name}_en"] + values[f"{name}_de"]) / 2)
    assert values["images"] == 11 and "images_de" not in values
    bounds = run_all({"mine": evaluator}, oracle, bootstrap=20)
    assert bounds[f"mine/{name}_low"] < values[name] < bounds[f"mine/{name}_high"]
    assert evaluator.about[f"{name}_de"].label == "Image to text R@1, de"
    shown = result.artifacts["languages"]
    assert shown["columns"][name] == ["Image to text R@1", "share"]
    assert {k: row[name] for k, row in shown["rows"].items()} == {
        k: values[f"{name}_{k}"] for k in LANGUAGES
    }
    page = examples.languages(shown)
    assert page.count("<tr>") == 3 and f"{100 * values[f'{name}_de']:.1f} %" in page


def test_class_names_and_templates_by_language(oracle, tmp_path):
    names, own = tmp_path / "names.json", tmp_path / "de.txt"
    names.write_text(json.dumps(WORDS))
    own.write_text("{}\n")
    (tmp_path / "en.txt").write_text("{}\n{} 0\n")
    source = oracles.Numbered(8, record)
    evaluator = Languages(
        ZeroShot(
            source, f"{names}#{{language}}", prompts.Templates(f"{tmp_path}/{{language}}.txt")
        ),
        LANGUAGES,
    )
    result = evaluator.evaluate(oracle, 0)
    values = result.values
    assert values["accuracy_en"] == 1 and values["accuracy_de"] == 0.25  # "null" ties with "drei"
    assert values["accuracy"] == values["mean_per_class"] == 0.625
    assert values["accuracy_de_chance"] == values["accuracy_chance"] == 0.25
    assert result.protocol["languages"] == ["en", "de"]
    assert result.protocol["templates"] == "differs" and result.protocol["classes"] == 4
    before = evaluate._data(evaluator)
    own.write_text("{} 1\n")
    assert evaluate._data(evaluator) != before  # a file of one language alone


def test_the_mean_of_means_draws_images():
    first, second = Mean.of([1, 0, 1]), Mean(np.array([2.0, 1, 0]), np.array([2.0, 2, 0]))
    both = MeanOfMeans(
        *(np.stack([getattr(m, f) for m in (first, second)], 1) for f in ("total", "count"))
    )
    for weights in (np.ones(3), np.array([0, 1, 2])):
        assert both(weights) == pytest.approx((first(weights) + second(weights)) / 2)
    assert np.isnan(both(np.array([0, 0, 3])))  # the second has no such image


def test_bad_languages_are_named(oracle):
    source = oracles.Numbered(4, record)
    with pytest.raises(UserError, match="nothing in Retrieval holds {language}"):
        Languages(Retrieval(source), LANGUAGES)
    some = Retrieval(source, captions="caption_{language}")
    with pytest.raises(UserError, match="must be different"):
        Languages(some, ("en", "en"))
    with pytest.raises(UserError, match="language 'sw': the records have no 'caption_sw'"):
        Languages(some, ("en", "sw")).run(oracle)
