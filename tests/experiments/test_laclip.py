"""LaCLIP's draws: as often as configured, the same after an interruption, CLIP's where none are."""

import collections
import itertools

import numpy as np
import pytest

from big_mm import spec
from big_mm.curation.asking import Annotator
from big_mm.data.transforms import ChooseCaption

CONFIG = "experiments/laclip/config.py"


def batches(run, start=0):
    return run.data.batches(run.contract, run.batch_size, run.seed, start)


def built(arm, in_world, repository):
    config = spec.load_config(f"{repository / CONFIG}:{arm}")
    config.data.keep = ("caption", "captions")
    return spec.build(config)


@pytest.fixture
def repository(pytestconfig):
    return pytestconfig.rootpath


def test_the_original_and_its_rewrites_are_drawn_alike(in_world, repository):
    drawn, offered = collections.Counter(), 0
    for batch in itertools.islice(batches(built("laclip", in_world, repository)), 60):
        for caption, captions in zip(batch["caption"], batch["captions"], strict=True):
            if len(set(captions)) == 4:
                offered += 1
                drawn[captions.index(caption)] += 1
    assert offered > 800
    shares = np.array([drawn[place] for place in range(4)]) / offered
    np.testing.assert_allclose(shares, 0.25, atol=4 * (0.1875 / offered) ** 0.5)


def test_clip_has_the_original_alone_on_the_same_images(in_world, repository):
    pairs = zip(
        batches(built("laclip", in_world, repository)),
        batches(built("clip", in_world, repository)),
        strict=False,
    )
    for ours, plain in itertools.islice(pairs, 3):
        np.testing.assert_array_equal(ours["key"], plain["key"])
        np.testing.assert_array_equal(ours["image"], plain["image"])
        firsts = [captions[0] for captions in plain["captions"]]
        assert plain["caption"].tolist() == firsts != ours["caption"].tolist()


def test_draws_are_the_same_from_any_step_and_new_in_every_epoch(in_world, repository):
    run = built("laclip", in_world, repository)
    first = [batch["tokens"] for batch in itertools.islice(batches(run), 6)]
    later = [batch["tokens"] for batch in itertools.islice(batches(run, 4), 2)]
    np.testing.assert_array_equal(first[4:], later)
    said = collections.defaultdict(set)
    for batch in itertools.islice(batches(run), 20):
        for key, caption in zip(batch["key"], batch["caption"], strict=True):
            said[key].add(caption)
    assert np.mean([len(captions) for captions in said.values()]) > 2


def test_with_one_caption_it_is_clip():
    record = {"captions": ["two rings"]}
    for weights in (None, (1.0,)):
        rng = np.random.default_rng(0)
        assert ChooseCaption(weights=weights).random_map(record, rng)["caption"] == "two rings"


def test_the_config_of_the_rewrites_asks_four_things_of_a_caption(repository):
    config = spec.load_config(str(repository / "experiments/laclip/rewrite.py"))
    assert spec.to_json(spec.from_json(spec.to_json(config))) == spec.to_json(config)
    annotator = spec.build(config)
    assert isinstance(annotator, Annotator) and annotator.adds == ("rewrites",)
    questions = annotator.questions({"captions": ["two red circles"]})
    assert len({question.key for question in questions}) == 4
    assert {question.content for question in questions} == {
        ("two red circles", n) for n in range(4)
    }
