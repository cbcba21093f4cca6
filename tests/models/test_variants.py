"""Sizes are the published ones, counted without memory; configs survive JSON; unknown names."""

import jax
import jax.numpy as jnp
import pytest

from big_mm import spec, trees
from big_mm.models import variants
from big_mm.spec import UserError


def count(config) -> int:
    """Parameters of the model of a config."""
    model = spec.build(config)
    size, length = model.image.image_size, model.text.max_len
    batch = {
        "image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8),
        "tokens": jax.ShapeDtypeStruct((1, length), jnp.int32),
        "token_mask": jax.ShapeDtypeStruct((1, length), bool),
    }
    return trees.count(jax.eval_shape(model.init, jax.random.key(0), batch)["params"])


# What the paper's table gives, and by how much the poolers, which its counts leave out, exceed it;
# the giant's 1 B + 1.1 B are rounded down from 1.01 and 1.18.
@pytest.mark.parametrize(
    ("name", "parameters", "paper", "excess"),
    [
        ("base", 387_758_593, 383e6, 0.015),
        ("large", 796_092_417, 787e6, 0.015),
        ("giant", 2_208_274_177, 2.1e9, 0.055),
    ],
)
def test_coca(name, parameters, paper, excess):
    assert count(variants.coca(name)) == parameters
    assert 0 < parameters / paper - 1 < excess


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (variants.clip("B/32"), 151_277_313),
        (variants.clip("B/16"), 149_620_737),
        (variants.clip("L/14"), 427_616_513),
        (variants.siglip("B/16"), 203_155_970),
        (variants.lit("B/16"), 195_280_129),
        (variants.open_clip_coca("B/32"), 253_560_065),
    ],
)
def test_the_same_count_as_the_published_weights(config, parameters):
    assert count(config) == parameters


ROBERTA = {"token_types": 1, "position_offset": 2}


@pytest.mark.parametrize(
    ("size", "options", "parameters"),
    [
        ("B", {}, 109_482_240),
        ("L", {}, 335_141_888),
        ("B", {"vocab_size": 50_265, **ROBERTA}, 124_645_632),
        ("B", {"vocab_size": 250_002, **ROBERTA}, 278_043_648),
    ],
    ids=["bert-base", "bert-large", "roberta-base", "xlm-roberta-base"],
)
def test_bert_with_its_pooler(size, options, parameters):
    model = spec.build(variants.bert(size, rep_size=variants.TOWERS[size][0], **options))
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    made = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
    assert trees.count(made["params"]) == parameters


def test_tiny_is_tiny():
    config = variants.coca(
        "tiny", image_size=48, patch_size=8, vocab_size=256, max_len=32, queries=16
    )
    assert count(config) < 2_500_000


@pytest.mark.parametrize(
    "config",
    [variants.coca("tiny", blocks={"remat": "full"}), variants.siglip(), variants.captioner()],
    ids=["coca", "siglip", "captioner"],
)
def test_a_config_survives_json(config):
    again = spec.from_json(spec.to_json(spec.resolve(config)))
    assert spec.build(again) == spec.build(config)


def test_everything_is_reached_from_the_command_line():
    config = variants.coca("tiny", image_size=48, patch_size=8)
    spec.override(config, ["--config.image.blocks.remat=full", "--config.text.max_len=20"])
    model = spec.build(config)
    assert (model.image.blocks.remat, model.decoder.remat) == ("full", "none")
    assert model.text.max_len == 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: variants.coca("small"), "'small'; there are tiny, base, large, giant"),
        (lambda: variants.vision("X/16"), "'X'; there are tiny, Ti, S"),
        (lambda: variants.vision("B"), "like 'B/16', not 'B'"),
        (lambda: variants.coca("base", quries=3), "did you mean 'queries'"),
        (lambda: variants.coca("base", blocks={"remta": "full"}), "did you mean 'remat'"),
    ],
)
def test_unknown_names(make, message):
    with pytest.raises(UserError, match=message):
        make()
