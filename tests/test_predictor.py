"""The predictor gives each input the model's own output, whatever the list, batch or devices."""

import dataclasses
import functools
import io
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from jaxtyping import TypeCheckError
from PIL import Image

import big_mm
from big_mm import spec, trees
from big_mm.mesh import MeshConfig, single_device_mesh
from big_mm.predictor import Predictor
from big_mm.spec import UserError

MIXED = [f"a {word}" for word in ("red star", "blue ring", "white", "zebra", "")]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    built = spec.build(tiny.config(tmp_path_factory.mktemp("tiny")))
    model, contract = built["objective"].model, built["contract"]
    params = tiny.parameters(model, contract)
    return Predictor(model, params, contract, single_device_mesh(), batch_size=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return tiny.workdir(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def inputs(predictor):
    """Nineteen rows of a batch."""
    tokens, token_mask = predictor.contract.text([tiny.TEXTS[i % 16] for i in range(19)])
    return {"image": tiny.images(19), "tokens": tokens, "token_mask": token_mask}


@pytest.fixture(scope="module")
def expected(predictor, inputs):
    """What the model itself gives for them."""
    return plain(predictor, inputs)


def plain(predictor, inputs):
    return jax.device_get(jax.jit(predictor.model.apply)({"params": predictor.params}, inputs))


def first(tree, rows):
    return {key: value[:rows] if value.ndim else value for key, value in tree.items()}


@pytest.mark.parametrize("count", [1, 5, 8, 19])
def test_lists_of_any_length_are_cut_exactly(predictor, inputs, expected, count):
    texts = [tiny.TEXTS[i % 16] for i in range(count)]
    images, texts = predictor.encode_image(inputs["image"][:count]), predictor.encode_text(texts)
    np.testing.assert_allclose(images, expected["image_embedding"][:count], atol=2e-4)
    np.testing.assert_allclose(texts, expected["text_embedding"][:count], atol=2e-4)


def test_a_program_compiles_for_few_sizes(predictor):
    assert {predictor._batch_rows(n) for n in range(1, 300)} == {1, 8}
    spread = dataclasses.replace(predictor, mesh=MeshConfig().make(), batch_size=60)
    assert {spread._batch_rows(n) for n in range(1, 300)} == {8, 64}


def test_devices_do_not_matter(predictor, inputs, expected):
    mesh = MeshConfig(data=4, fsdp=2).make()
    params = jax.device_put(jax.device_get(predictor.params))
    spread = Predictor(predictor.model, params, predictor.contract, mesh)
    found, wanted = spread.outputs(first(inputs, 11)), first(expected, 11)
    assert found.keys() == wanted.keys()
    for key in found:
        np.testing.assert_allclose(found[key], wanted[key], atol=2e-3, err_msg=key)
    images = inputs["image"][:11]
    assert spread.caption(images, num_beams=2) == predictor.caption(images, num_beams=2)


ONE_OF_TWO_PROCESSES = """
import pathlib, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from big_mm import distributed, mesh, spec, trees
distributed.init()
import tiny
from big_mm.predictor import Predictor

folder = pathlib.Path(sys.argv[1])
built = spec.build(tiny.config(folder))
model, contract = built["objective"].model, built["contract"]
devices = mesh.MeshConfig(data=2, fsdp=2).make()
flat = trees.flatten(jax.device_get(tiny.parameters(model, contract)))
place = mesh.shardings(flat, devices)
put = jax.make_array_from_callback
params = {key: put(leaf.shape, place[key], leaf.__getitem__) for key, leaf in flat.items()}

class Images(list):
    read = []
    def __getitem__(self, i):
        self.read.append(i)
        return super().__getitem__(i)

predictor = Predictor(model, trees.unflatten(params), contract, devices, batch_size=8)
images = tiny.images(5)
mine = images[2 * jax.process_index() :][:2]
tokens, token_mask = contract.text(tiny.TEXTS[:2])
batch = {"image": mine, "tokens": tokens, "token_mask": token_mask}
np.savez(
    folder / "out.npz",
    embedding=predictor.encode_image(Images(images)),
    read=Images.read,
    outputs=predictor.outputs(batch, ["image_embedding"])["image_embedding"],
)
"""


def test_every_process_gets_everything_and_prepares_its_own_rows(predictor, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    here = pathlib.Path(__file__).resolve().parent
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    running = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        command = [sys.executable, "-c", ONE_OF_TWO_PROCESSES, str(tmp_path / str(i))]
        running.append(subprocess.Popen(command, env=common | {"JAX_PROCESS_ID": str(i)}))
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    expected = predictor.encode_image(tiny.images(5))
    found = [np.load(tmp_path / str(i) / "out.npz") for i in range(2)]
    for arrays in found:
        np.testing.assert_allclose(arrays["embedding"], expected, atol=2e-4)
        np.testing.assert_allclose(arrays["outputs"], expected[:4], atol=2e-4)
    assert [sorted(arrays["read"]) for arrays in found] == [[0, 1, 2, 3], [4]]


def test_outputs_are_the_models(predictor, inputs, expected):
    rows = first(inputs, 5)
    found = predictor.outputs(rows | {"key": np.array(["a"] * 5)})
    assert found.keys() == expected.keys()
    for key, wanted in first(expected, 5).items():
        np.testing.assert_allclose(found[key], wanted, atol=2e-3, err_msg=key)
    assert list(predictor.outputs(rows, ["text_embedding"])) == ["text_embedding"]
    with pytest.raises(UserError, match="CoCa has no nonsense; its outputs here are .*image_emb"):
        predictor.outputs(rows, ["nonsense"])


def test_similarity_is_the_cosine(predictor):
    images = tiny.images(3)
    cosines = predictor.similarity(images, tiny.TEXTS[:4])
    assert cosines.shape == (3, 4)
    expected = predictor.encode_image(images) @ predictor.encode_text(tiny.TEXTS[:4]).T
    np.testing.assert_allclose(cosines, expected)
    np.testing.assert_allclose(np.linalg.norm(predictor.encode_image(images), axis=1), 1, rtol=1e-5)


def test_a_long_text_is_cut_and_keeps_its_eos(predictor):
    text = " ".join(tiny.TEXTS)
    tokens, token_mask = predictor.contract.text([text])
    assert tokens[0, -1] == predictor.contract.tokenizer.eos_id
    expected = plain(predictor, {"tokens": tokens, "token_mask": token_mask})["text_embedding"]
    np.testing.assert_allclose(predictor.encode_text([text]), expected, atol=2e-4)


def test_every_form_of_a_picture_is_the_same_picture(predictor, tmp_path):
    array = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(buffer.getvalue())
    forms = [array, Image.fromarray(array), buffer.getvalue(), path, str(path)]
    embeddings = predictor.encode_image(forms)
    np.testing.assert_allclose(embeddings, np.repeat(embeddings[:1], 5, axis=0), atol=2e-4)
    prepared = predictor.contract.image(array)[None]
    np.testing.assert_allclose(predictor.encode_image(prepared), embeddings[:1], atol=2e-4)


def test_a_picture_that_cannot_be_read_is_named(predictor, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"not a picture")
    good = tiny.images(1)[0]
    with pytest.raises(UserError, match=r"images\[1\] \(.*cat.jpg\): undecodable_image"):
        predictor.encode_image([good, tmp_path / "cat.jpg"])
    with pytest.raises(UserError, match=r"images\[0\] \(.*dog.jpg\): .*[Nn]o such file"):
        predictor.encode_image([tmp_path / "dog.jpg"])
    with pytest.raises(UserError, match=r"images\[0\]: a picture must be uint8"):
        predictor.encode_image([np.zeros((4, 4, 3))])
    with pytest.raises(UserError, match="captions: the list is empty"):
        predictor.caption([])


def test_one_picture_is_not_a_list_of_them(predictor):
    array = tiny.images(1)[0]
    for one in (array, Image.fromarray(array), "cat.jpg", pathlib.Path("cat.jpg"), b"bytes"):
        for method in (predictor.encode_image, predictor.caption):
            with pytest.raises((UserError, TypeCheckError)):
                method(one)
    with pytest.raises(UserError, match=r"images must be a list of pictures .* \[picture\]"):
        predictor.encode_image(array)


def test_a_relative_path_loads(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    whole, relative = (trees.digest(big_mm.load(path).params) for path in (run, run.name))
    assert whole == relative


def uncached(predictor, images, starts, guidance=1.0, min_len=0):
    """Greedy decoding that feeds the whole rows at every step, in an empty cache."""
    variables = {"params": predictor.params}
    encode = jax.jit(functools.partial(predictor.model.apply, method="encode_image"))
    step = jax.jit(
        lambda rows, tokens: predictor.model.apply(
            variables, rows, tokens, method="decode_step", mutable=["cache"]
        )[0]["caption_logits"]
    )
    seen = encode(variables, images)["image_tokens"]
    ids = predictor.contract.tokenizer
    rows = np.full((len(images), predictor.contract.max_len), ids.pad_id, np.int32)
    for row, start in zip(rows, starts, strict=True):
        row[: len(start)] = start
    for t in range(1, rows.shape[1]):
        logits, blind = (np.array(step(rows, x))[:, t - 1] for x in (seen, 0 * seen))
        logits = blind + guidance * (logits - blind)
        logits[:, [ids.pad_id, ids.bos_id, ids.cls_id]] = -np.inf
        if t + 1 < min_len:
            logits[:, ids.eos_id] = -np.inf
        ended = (rows[:, :t] == ids.eos_id).any(axis=1)
        chosen = np.where(ended, ids.pad_id, logits.argmax(axis=1))
        rows[:, t] = np.where(rows[:, t] == ids.pad_id, chosen, rows[:, t])
    return rows


def test_captions_equal_uncached_decoding(predictor, inputs):
    images = inputs["image"][:6]
    tokens, scores = predictor.generate(images, predictor.contract.decoding)
    np.testing.assert_array_equal(tokens, uncached(predictor, images, [[1]] * 6))
    assert len({tuple(row) for row in tokens.tolist()}) > 1, "the image should matter"
    assert predictor.caption(images) == predictor.contract.detokenize(tokens)

    # The score is the log-probability that the training forward pass gives the row.
    mask = tokens != 0
    rows = {"image": images, "tokens": tokens, "token_mask": mask}
    table = jax.nn.log_softmax(predictor.outputs(rows, ["caption_logits"])["caption_logits"])
    chosen = np.take_along_axis(np.array(table)[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(scores, (chosen * mask[:, 1:]).sum(1), rtol=1e-3)


def test_guided_captions_with_prefixes_equal_uncached_decoding(predictor, inputs):
    images = inputs["image"][:5]
    tokenizer = predictor.contract.tokenizer
    how = dataclasses.replace(predictor.contract.decoding, guidance=2.5, min_len=9)
    tokens, _ = predictor.generate(images, how, prefix=MIXED)
    starts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in MIXED]
    np.testing.assert_array_equal(tokens, uncached(predictor, images, starts, 2.5, min_len=9))
    captions = predictor.caption(images, prefix=MIXED, guidance=2.5, min_len=9)
    assert all(c.startswith(p.strip()) for c, p in zip(captions, MIXED, strict=True))
    assert captions != predictor.caption(images, prefix=MIXED, guidance=1.5, min_len=9)


def test_samples_depend_on_seed_and_place_alone(predictor):
    images = tiny.images(11)
    options = {"temperature": 1.5, "top_p": 0.95}
    captions = predictor.caption(images, **options)
    assert predictor.caption(images, **options) == captions
    assert predictor.caption(images[:5], **options) == captions[:5]
    assert predictor.caption(images, seed=1, **options) != captions
    how = dataclasses.replace(predictor.contract.decoding, **options)
    tokens, _ = predictor.generate(images[4:7], how, rows=(4, 5, 6))
    assert predictor.contract.detokenize(tokens) == captions[4:7]
    repeated = predictor.caption(np.repeat(images[:1], 8, axis=0), **options)
    assert len(set(repeated)) > 4


def test_defaults_are_the_contracts(predictor):
    decoding = dataclasses.replace(predictor.contract.decoding, num_beams=2, min_len=9)
    contract = dataclasses.replace(predictor.contract, decoding=decoding)
    images = tiny.images(3)
    captions = dataclasses.replace(predictor, contract=contract).caption(images)
    assert captions == predictor.caption(images, num_beams=2, min_len=9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prefix": " ".join(tiny.TEXTS)}, "leaves no room in max_len=12"),
        ({"prefix": "a red circle", "max_len": 3}, "leaves no room in max_len=3"),
        ({"prefix": ["a", "b", "c"]}, "3 prefixes for 2 images"),
        ({"min_len": 9, "max_len": 8}, "min_len=9 is above max_len=8"),
        ({"max_len": 13}, "from 2 to the contract's 12"),
        ({"num_beams": 2, "temperature": 1.0}, "choose"),
    ],
)
def test_caption_options_that_make_no_sense(predictor, options, message):
    with pytest.raises(UserError, match=message):
        predictor.caption(tiny.images(2), **options)


def test_new_parameters_reuse_the_programs(predictor):
    images = tiny.images(3)
    before = predictor.encode_image(images), predictor.caption(images, num_beams=2)
    sizes = {key: run._cache_size() for key, run in predictor.compiled.items()}
    changed = predictor.replace(params=jax.tree.map(lambda x: x * 0.9, predictor.params))
    after = changed.encode_image(images), changed.caption(images, num_beams=2)
    assert np.abs(before[0] - after[0]).max() > 1e-3
    assert {key: run._cache_size() for key, run in changed.compiled.items()} == sizes
    # Nor do other values of the decoding options.
    changed.caption(images, num_beams=2, length_penalty=0.3)
    assert {key: run._cache_size() for key, run in changed.compiled.items()} == sizes


def test_another_model_has_programs_of_its_own(predictor):
    images = tiny.images(3)
    before = predictor.encode_image(images)
    parallel = predictor.model.clone(pooling="parallel")
    params = tiny.parameters(parallel, predictor.contract)
    changed = dataclasses.replace(predictor, model=parallel, params=params)
    assert not changed.compiled and not changed.kept
    expected = Predictor(parallel, params, predictor.contract, predictor.mesh, batch_size=8)
    np.testing.assert_array_equal(changed.encode_image(images), expected.encode_image(images))
    assert np.abs(changed.encode_image(images) - before).max() > 1e-3


def other(tmp_path, model, **contract) -> Predictor:
    built = spec.build(tiny.config(tmp_path, model, **contract))
    model, contract = built["objective"].model, built["contract"]
    params = tiny.parameters(model, contract)
    return Predictor(model, params, contract, single_device_mesh(), batch_size=8)


def test_a_dual_encoder_has_no_captions(tmp_path):
    predictor = other(tmp_path, tiny.siglip, padding="attended")
    assert predictor.similarity(tiny.images(2), tiny.TEXTS[:3]).shape == (2, 3)
    with pytest.raises(UserError, match="DualEncoder cannot write captions: it has no init_cache"):
        predictor.caption(tiny.images(2))


def test_a_captioner_has_no_embeddings(tmp_path):
    predictor = other(tmp_path, tiny.captioner)
    images = tiny.images(4)
    tokens, _ = predictor.generate(images, predictor.contract.decoding)
    np.testing.assert_array_equal(tokens, uncached(predictor, images, [[1]] * 4))
    for encode, inputs, missing in (
        (predictor.encode_image, images, "has no image_embedding"),
        (predictor.encode_text, tiny.TEXTS, "cannot embed texts: it has no encode_text"),
    ):
        with pytest.raises(UserError, match=f"Captioner {missing}"):
            encode(inputs)


def test_a_contract_without_tokenizer_takes_no_text(predictor):
    contract = dataclasses.replace(predictor.contract, tokenizer=None)
    images_only = dataclasses.replace(predictor, contract=contract)
    assert len(images_only.encode_image(tiny.images(2))) == 2
    for attempt in (images_only.caption, images_only.encode_text):
        with pytest.raises(UserError, match="the contract has no tokenizer"):
            attempt([tiny.images(1)[0]] if attempt == images_only.caption else ["a"])


def test_parameters_of_another_model_are_refused(predictor):
    flat = trees.flatten(predictor.params)
    flat.pop("text/position_embedding")
    flat["text/cls"] = flat["text/cls"][:3]
    with pytest.raises(UserError, match=r"(?s)2 parameters .*text/cls: \(3,\) stored, \(16,\) in"):
        predictor.replace(params=trees.unflatten(flat)).check()


def assert_same(loaded, predictor):
    assert loaded.model == predictor.model
    assert loaded.contract.describe() == predictor.contract.describe()
    ours, theirs = trees.flatten(loaded.params), trees.flatten(predictor.params)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_load_takes_a_workdir_a_folder_of_checkpoints_or_one_step(run, predictor):
    for directory in (run, run / "checkpoints", str(run / "checkpoints" / "3")):
        assert_same(big_mm.load(directory), predictor)


def test_load_needs_nothing_but_the_step_folder(run, predictor, tmp_path):
    moved = (run / "checkpoints" / "3").rename(tmp_path / "elsewhere")
    (run / "../tokenizer.model").rename(tmp_path / "hidden")
    try:
        loaded = big_mm.load(moved, mesh=predictor.mesh)
        images = tiny.images(2)
        embeddings = loaded.encode_image(images), predictor.encode_image(images)
        np.testing.assert_allclose(*embeddings, atol=1e-6)
    finally:
        moved.rename(run / "checkpoints" / "3")


def test_load_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        big_mm.load(tmp_path)


def test_load_refuses_classes_of_untrusted_packages(run):
    with pytest.raises(UserError, match="outside the trusted packages"):
        big_mm.load(run, trusted=("optax",))
