"""Conversions lose nothing, leave nothing half done, and name what cannot be converted."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

import big_mm
from big_mm import mesh, spec, trees
from big_mm.data.contract import Contract
from big_mm.interop import convert, open_clip, reading, tensors, writing
from big_mm.models import vision
from big_mm.spec import UserError
from big_mm.training import init_from
from tests import tiny
from tests.interop import cases, foreign


@pytest.fixture(autouse=True)
def tiny_towers(monkeypatch):
    foreign.register_tiny_towers(monkeypatch)


def stored(folder: pathlib.Path) -> dict[str, np.ndarray]:
    (file,) = folder.glob("*.safetensors")
    return safetensors.numpy.load_file(file)


def equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def source(folder: pathlib.Path, family: str, name: str) -> tuple[pathlib.Path, dict]:
    """A directory of a peer and the weights in it."""
    folder.mkdir()
    if family == "open_clip":
        weights = cases.weights(foreign.open_clip_names(name))
        return foreign.open_clip_folder(folder, cases.OPEN_CLIP[name], weights), weights
    weights = cases.weights(foreign.hugging_face_names(name))
    return foreign.hugging_face_folder(folder, cases.HUGGING_FACE[name], weights), weights


@pytest.mark.parametrize(
    ("family", "name"), [("open_clip", "siglip"), ("open_clip", "bert"), ("hugging_face", "clip")]
)
def test_their_weights_come_back_bit_for_bit(tmp_path, family, name):
    given, weights = source(tmp_path / "given", family, name)
    convert.convert(given, "big_mm", tmp_path / "ours")
    convert.convert(tmp_path / "ours", family, tmp_path / "back")
    equal(stored(tmp_path / "back"), weights)
    convert.convert(tmp_path / "back", "big_mm", tmp_path / "again")
    equal(stored(tmp_path / "again"), stored(tmp_path / "ours"))
    config = [json.loads((tmp_path / x / "config.json").read_text()) for x in ("ours", "again")]
    assert config[0]["components"]["model"] == config[1]["components"]["model"]


def test_between_the_peers(tmp_path):
    given, weights = source(tmp_path / "given", "hugging_face", "clip")
    convert.convert(given, "open_clip", tmp_path / "open_clip")
    convert.convert(tmp_path / "open_clip", "hugging_face", tmp_path / "back")
    equal(stored(tmp_path / "back"), weights)


def test_load_and_convert_give_the_same_predictor(tmp_path, capsys):
    given, weights = source(tmp_path / "given", "open_clip", "coca")
    arguments = ["--from", str(given), "--to", "big_mm", "--out", str(tmp_path / "ours")]
    assert convert.main(arguments) == 0
    count = sum(value.size for value in weights.values())
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"read {count:,} parameters (open_clip, ")
    assert said[1:] == [
        f"wrote {tmp_path / 'ours'}/{x}" for x in ("config.json", "model.safetensors")
    ]
    direct, converted = big_mm.load(given), big_mm.load(tmp_path / "ours")
    assert direct.model == converted.model
    images = cases.images()
    np.testing.assert_array_equal(direct.encode_image(images), converted.encode_image(images))
    theirs = cases.golden("open_clip")["cases"]
    assert np.abs(direct.encode_image(images) - theirs["coca"]["image"]).max() > 1e-3  # other seed


def test_half_precision(tmp_path):
    given, weights = source(tmp_path / "given", "open_clip", "clip")
    for name in ("bfloat16",):
        convert.convert(given, "open_clip", tmp_path / name, dtype=name)
        expected = {key: value.astype(jnp.dtype(name)) for key, value in weights.items()}
        equal(stored(tmp_path / name), expected)
        found = reading.read(epath.Path(tmp_path / name)).params["text/embedding"]
        expected = expected["token_embedding.weight"].astype(np.float32)
        np.testing.assert_array_equal(found, expected)


def test_single_files_shards_and_wrappers(tmp_path):
    given, weights = source(tmp_path / "given", "open_clip", "clip")
    config = str(given / "open_clip_config.json")
    expected = reading.read(epath.Path(given)).params
    # As a trainer of several devices wrote it, far from its config.
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    wrapped["module.attn_mask"] = np.zeros((7, 7), np.float32)
    safetensors.numpy.save_file(wrapped, tmp_path / "epoch_1.safetensors")
    found = reading.read(epath.Path(tmp_path / "epoch_1.safetensors"), config)
    equal(found.params, expected)
    assert found.ignored == ["attn_mask"]
    names = sorted(weights)
    for number in range(2):
        part = {name: weights[name] for name in names[number::2]}
        safetensors.numpy.save_file(part, tmp_path / f"model-{number}.safetensors")
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    equal(reading.read(epath.Path(index), config).params, expected)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match="names the shard 'model-1.safetensors', which is not"):
        tensors.open_tensors(epath.Path(index))


def test_training_can_begin_with_a_converted_directory(tmp_path):
    given, _ = source(tmp_path / "given", "open_clip", "clip")
    convert.convert(given, "big_mm", tmp_path / "ours")
    expected = stored(tmp_path / "ours")
    fresh = {name: np.zeros_like(value) for name, value in expected.items()}
    placed = mesh.shardings(fresh, mesh.MeshConfig(fsdp=8).make())
    params = {name: jax.device_put(value, placed[name]) for name, value in fresh.items()}
    start = init_from.InitFrom(str(tmp_path / "ours"))
    after = trees.flatten(start.apply(trees.unflatten(params)))
    equal({name: np.asarray(value) for name, value in after.items()}, expected)
    assert all(after[name].sharding == placed[name] for name in after)


def test_training_at_another_resolution(tmp_path):
    given, _ = source(tmp_path / "given", "open_clip", "clip")
    convert.convert(given, "big_mm", tmp_path / "ours")
    theirs = stored(tmp_path / "ours")["image/position_embedding"]
    start = init_from.InitFrom(
        str(tmp_path / "ours"), (("image/position.*", r"\g<0>"), (".*", None))
    )
    after = start.apply({"image": {"position_embedding": on_a_device(np.zeros((17, 24)))}})
    found = np.asarray(after["image"]["position_embedding"])
    np.testing.assert_array_equal(found[0], theirs[0])
    np.testing.assert_allclose(found[1:], vision.resize_grid(jnp.asarray(theirs[1:]), 16))
    with pytest.raises(UserError, match="is another program's checkpoint; convert it first"):
        init_from.InitFrom(str(given)).apply({})
    without = {"image": {"position_embedding": on_a_device(np.zeros((16, 24)))}}
    with pytest.raises(UserError, match="does not fit"):
        start.apply(without)


def on_a_device(array):
    return jax.device_put(array.astype(np.float32), mesh.replicated(mesh.single_device_mesh()))


def test_a_model_trained_here(tmp_path):
    run = tiny.workdir(tmp_path, tiny.siglip, padding="attended")
    with pytest.raises(UserError, match="open_clip cannot express this model|none of the names"):
        convert.convert(run, "open_clip", tmp_path / "out")
    convert.convert(run, "hugging_face", tmp_path / "out")
    ours, theirs = big_mm.load(run), foreign.Loaded(tmp_path / "out")
    images = tiny.images(3)
    found = jax.jit(theirs.model.apply, static_argnames="method")(
        theirs.variables, jnp.asarray(images), method="encode_image"
    )
    np.testing.assert_allclose(found["image_embedding"], ours.encode_image(images), atol=1e-6)


def test_what_the_peers_cannot_express(tmp_path):
    run = tiny.workdir(tmp_path)
    message = r"cannot express this model: .*decoder.self_mlp=False \(needs True\)"
    with pytest.raises(UserError, match=message):
        convert.convert(run, "open_clip", tmp_path / "out")
    with pytest.raises(UserError, match="Hugging Face has no model like CoCa"):
        convert.convert(run, "hugging_face", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "tokenizer.model"}


def test_nothing_is_overwritten_or_left_half_done(tmp_path, capsys):
    given, _ = source(tmp_path / "given", "open_clip", "clip")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    arguments = ["--from", str(given), "--to", "big_mm", "--out", str(tmp_path / "full")]
    assert convert.main(arguments) == 2
    assert "is not an empty directory" in capsys.readouterr().err
    file = given / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    arguments[-1] = str(tmp_path / "new")
    assert convert.main(arguments) == 2
    assert "cannot be read as safetensors" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "given"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("ln_final.bias"), "1 missing:\n  ln_final.bias"),
        (lambda w: w.update(extra=np.zeros(2)), "1 not in the architecture:\n  extra"),
        (
            lambda w: w.update({"visual.proj": np.zeros((24, 13), np.float32)}),
            r"1 shapes:\n  visual.proj: expected \(24, 12\), found \(24, 13\)",
        ),
        (
            lambda w: w.update({"visual.proj": np.zeros((24, 12), np.int32)}),
            "visual.proj is of type int32, not a float",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if "resblocks.1" in name],
            r"24 missing:(\n  .*){20}\n  and 4 more",
        ),
    ],
)
def test_weights_of_another_architecture(tmp_path, change, message):
    given, weights = source(tmp_path / "given", "open_clip", "clip")
    change(weights)
    safetensors.numpy.save_file(weights, given / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=message):
        reading.read(epath.Path(given))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"timm_model_name": "vit_base_patch16_siglip_225"}, "nearest known: vit_base_patch16_sig"),
        ({"layers": [3, 4, 6, 3]}, r"vision_cfg.layers=\[3, 4, 6, 3\] is a ResNet"),
        ({"pool_type": "none"}, "vision_cfg.pool_type='none' is not supported; supported: 'tok'"),
        ({"widht": 3}, "vision_cfg.widht=3 is not known; the nearest known: width"),
        ({"qk_norm": True}, "vision_cfg.qk_norm=True is not supported; supported: False"),
        (
            {"image_size": [16, 32]},
            r"image_size=\[16, 32\] is not supported; supported are squares",
        ),
        ({"attentional_pool": True}, "attentional_pool=True is not supported; supported: False"),
        ({"act_kwargs": {"approximate": "x"}}, "act_kwargs.approximate='x' is not supported"),
    ],
)
def test_architectures_that_are_not_supported(tmp_path, config, message):
    given, _ = source(tmp_path / "given", "open_clip", "clip")
    said = json.loads((given / "open_clip_config.json").read_text())
    said["model_cfg"]["vision_cfg"] |= config
    (given / "open_clip_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message):
        reading.read(epath.Path(given))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hf_model_name": "xlm-roberta-bas"}, "'xlm-roberta-bas' is not supported; the nearest"),
        ({"hf_pooler_type": "max_pooler"}, "hf_pooler_type='max_pooler' is not supported; supp"),
        ({"hf_proj_type": "clap_mlp"}, "hf_proj_type='clap_mlp' is not supported; supported: 'm"),
        ({"hf_modle_name": "x"}, "text_cfg.hf_modle_name='x' is not known; the nearest known: hf"),
    ],
)
def test_text_towers_that_are_not_supported(tmp_path, config, message):
    given, _ = source(tmp_path / "given", "open_clip", "bert")
    said = json.loads((given / "open_clip_config.json").read_text())
    said["model_cfg"]["text_cfg"] |= config
    (given / "open_clip_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message):
        reading.read(epath.Path(given))


def test_new_parts_of_towers_are_not_dropped_in_silence(tmp_path):
    built = spec.build(open_clip.model_spec(cases.OPEN_CLIP["clip"], "config"))

    def message(form, model):
        with pytest.raises(UserError) as error:
            writing.WRITERS[form](tmp_path, model, {}, Contract())
        return str(error.value)

    for form in ("open_clip", "hugging_face"):
        rep = built.clone(image=built.image.clone(rep_size=3))
        assert "image.rep_size=3 (needs 0)" in message(form, rep)
        grid = built.clone(image=built.image.clone(position_grid=3))
        assert "image.position_grid=3 (needs 0)" in message(form, grid)
        typed = built.clone(text=built.text.clone(token_types=2, position_offset=2))
        assert "text.token_types=2 (needs 0)" in message(form, typed)
        assert "text.position_offset=2 (needs 0)" in message(form, typed)
        hidden = built.clone(text_projection_hidden=9)
        assert "model.text_projection_hidden=9 (needs 0)" in message(form, hidden)
        post = built.clone(image=built.image.clone(blocks=built.image.blocks.clone(norm="post")))
        assert "image.blocks.norm='post' (needs 'pre')" in message(form, post)
    bert = spec.build(open_clip.model_spec(cases.OPEN_CLIP["bert"], "config"))
    unknown = bert.clone(text=bert.text.clone(vocab_size=21))
    assert "none of the names known here has width=16, depth=2" in message("open_clip", unknown)
    last = bert.clone(text=bert.text.clone(pool="last"))
    assert "text.pool='last' (needs 'first' or 'mean')" in message("open_clip", last)
    assert "text.rep_size=16 (needs 0)" in message("hugging_face", bert)
    siglip = bert.clone(image=bert.image.clone(pool="map"))
    assert "text.blocks.norm='post' (needs 'pre')" in message("hugging_face", siglip)
    assert not list(tmp_path.iterdir())


def test_other_kinds_of_directories_and_files(tmp_path):
    def message(path, **options):
        with pytest.raises(UserError) as error:
            reading.read(epath.Path(path), **options)
        return str(error.value)

    given, _ = source(tmp_path / "given", "hugging_face", "clip")
    config = {"model_type": "blip"}
    (given / "config.json").write_text(json.dumps(config))
    assert "model_type='blip' is not supported; the nearest known: clip" in message(given)
    lonely = tmp_path / "lonely.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(2)}, lonely)
    assert "says nothing of its model: give its open_clip_config.json" in message(lonely)
    wrong = message(lonely, config="ViT-B-34")
    assert "'ViT-B-34' is neither a config file nor an architecture known by name" in wrong
    assert "the nearest known: ViT-B-32" in wrong
    wrong = message(lonely, config="coca_ViT-B-32")
    assert "missing:\n  text.token_embedding.weight" in wrong
    (tmp_path / "text.json").write_text("[]")
    assert "is not a JSON object" in message(lonely, config=str(tmp_path / "text.json"))
    with pytest.raises(UserError, match="is no other program's checkpoint"):
        big_mm.load(tmp_path, config="some.json")
