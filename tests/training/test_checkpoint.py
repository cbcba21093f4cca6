"""Checkpoints: what is saved comes back, or is refused."""

import json
import pathlib
import shutil

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import mesh as mesh_lib
from big_mm import spec, trees
from big_mm.spec import UserError
from big_mm.training import checkpoint
from tests import tiny

FILES = {checkpoint.CONFIG: b"{}"}


def items(seed: int) -> checkpoint.Items:
    rng = np.random.default_rng(seed)
    params = {
        "tower/kernel": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32),
        "tower/bias": jnp.asarray(rng.normal(size=32), jnp.bfloat16),
        "temperature": jnp.float32(seed),
    }
    return {
        "params": params,
        "ema": {"tower/kernel": params["tower/kernel"] + 1},
        "optimizer": {"0/mu/tower/kernel": params["tower/kernel"] * 2, "0/count": jnp.int32(seed)},
        "extra": {},
        "progress": {"step": jnp.int32(seed)},
    }


def shapes(tree: checkpoint.Items, sharding=None) -> checkpoint.Items:
    sharding = sharding or mesh_lib.replicated(mesh_lib.single_device_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def saved(directory: pathlib.Path, steps=(1, 2), **policy) -> pathlib.Path:
    store = open_store(directory, **policy)
    for step in steps:
        store.save(step, items(step))
    store.close()
    return directory / "checkpoints"


def open_store(directory: pathlib.Path, **policy) -> checkpoint.Store:
    policy = checkpoint.Checkpoints(**{"every": 1} | policy)
    return checkpoint.Store(directory / "checkpoints", policy, FILES)


def restored(directory: pathlib.Path) -> checkpoint.Items:
    store = open_store(directory)
    found = store.restore(shapes(items(0)))
    store.close()
    return found


def same(left: checkpoint.Items, right: checkpoint.Items) -> bool:
    left, right = ({name: flat for name, flat in x.items() if flat} for x in (left, right))
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert restored(tmp_path) is None


def test_the_latest_comes_back(tmp_path):
    saved(tmp_path)
    assert same(restored(tmp_path), items(2))


def test_restores_onto_another_mesh(tmp_path):
    saved(tmp_path)
    mesh = mesh_lib.MeshConfig(fsdp=8).make()
    wanted = shapes(items(0), mesh_lib.replicated(mesh))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    leaf = wanted["params"]["tower/kernel"]
    wanted["params"]["tower/kernel"] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)
    store = open_store(tmp_path)
    found = store.restore(wanted)
    store.close()
    assert found["params"]["tower/kernel"].sharding == split
    assert same(found, items(2))


def test_keeps_the_latest_and_the_chosen(tmp_path):
    folder = saved(tmp_path, steps=range(1, 8), keep=2, keep_every=3)
    assert sorted(int(p.name) for p in folder.iterdir()) == [3, 6, 7]


def test_the_best_stays_besides_the_latest(tmp_path):
    store = open_store(tmp_path, keep=1, best="loss", best_mode="min")
    for step, score in enumerate([5.0, 3.0, 4.0, 3.0, 9.0], start=1):
        store.save(step, items(step))
        store.scores[step] = score
    store.close()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 5]


def test_a_deletion_that_was_interrupted_is_made_up_for(tmp_path):
    folder = saved(tmp_path, steps=(3, 6), every=3, keep=9)
    shutil.rmtree(folder / "3" / "params")
    shutil.copytree(folder / "6", folder / "5")
    store = open_store(tmp_path, every=3, keep=1)
    store.prune()
    store.close()
    assert [path.name for path in folder.iterdir()] == ["6"]


@hypothesis.given(
    steps=st.sets(st.integers(1, 60), min_size=1),
    scores=st.dictionaries(st.integers(1, 60), st.sampled_from([0.1, 0.2, 0.3])),
    every=st.integers(0, 7),
    keep=st.integers(1, 3),
    keep_every=st.sampled_from([None, 4, 9]),
    mode=st.sampled_from(["max", "min"]),
)
def test_what_is_kept_does_not_depend_on_when_it_was_asked(
    steps, scores, every, keep, keep_every, mode
):
    """Step by step, each score known after its save, or all at once."""
    policy = checkpoint.Checkpoints(every, keep, keep_every, "metric", mode)
    alive: set[int] = set()
    for step in sorted(steps):
        known = {at: score for at, score in scores.items() if at < step}
        alive = policy.kept(alive | {step}, known)
    assert policy.kept(alive, scores) == policy.kept(steps, scores)
    assert max(steps) in alive
    due = [step for step in sorted(steps) if policy.due(step)]
    assert set(due[-keep:]) <= alive, "whatever was saved off the schedule"


def test_a_saved_buffer_may_be_overwritten_at_once(tmp_path):
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    store, state = open_store(tmp_path, keep=9), items(0)
    expected = jax.tree.map(np.array, state)["params"]
    for step in range(5):
        store.save(step, state)
        state = double(state)
    store.close()
    for step in range(5):
        folder = tmp_path / "checkpoints" / str(step)
        found = checkpoint.read_params(folder, shapes(items(0))["params"], "params")
        for path, leaf in expected.items():
            np.testing.assert_array_equal(found[path], leaf * leaf.dtype.type(2**step))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_never_restored(tmp_path, damage):
    """Whatever happens to a file, the result is the last step or the one before it."""
    pristine = saved(tmp_path / "pristine")
    files = sorted(p for p in (pristine / "2").rglob("*") if p.is_file())
    rng = np.random.default_rng(0)
    fell_back = 0
    for number, file in enumerate(files):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(pristine, copy / "checkpoints")
        victim = copy / "checkpoints" / file.relative_to(pristine)
        content = bytearray(victim.read_bytes())
        if damage == "remove" or not content:
            victim.unlink()
        elif damage == "cut":
            victim.write_bytes(content[: len(content) // 2])
        else:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            victim.write_bytes(content)
        found = restored(copy)
        fell_back += same(found, items(1))
        assert same(found, items(1)) or same(found, items(2)), file
    assert fell_back > len(files) // 5


def test_every_bit_of_an_array_is_watched(tmp_path):
    """Flips in the payload itself, which Orbax does not notice."""
    pristine = saved(tmp_path / "pristine")
    raw = np.asarray(items(2)["params"]["tower/kernel"]).tobytes()
    payloads = [p for p in (pristine / "2" / "params").rglob("*") if p.is_file()]
    payload = max(payloads, key=lambda p: p.stat().st_size)
    rng = np.random.default_rng(1)
    content = payload.read_bytes()
    assert len(content) > len(raw) // 2
    fell_back = 0
    for place in rng.integers(0, len(content), 8):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        payload.write_bytes(damaged)
        found = restored(tmp_path / "pristine")
        fell_back += same(found, items(1))
        assert same(found, items(1)) or same(found, items(2)), place  # 2: an unused bit
    assert fell_back >= 6


def test_a_manifest_that_was_changed_is_damaged_not_of_another_model(tmp_path):
    folder = saved(tmp_path)
    file = folder / "2" / "files" / checkpoint.MANIFEST
    assert '"dtype": "float32"' in file.read_text()
    file.write_text(file.read_text().replace('"dtype": "float32"', '"dtype": "float31"', 1))
    assert same(restored(tmp_path), items(1))


def test_going_back_takes_the_schedule_and_deletes_what_came_after(tmp_path):
    saved(tmp_path, steps=(3, 4, 6, 7, 8), every=3)
    store = open_store(tmp_path, every=3)
    assert same(store.rewind(8, shapes(items(0))), items(6))
    assert store.steps() == [3, 6]
    assert same(store.rewind(6, shapes(items(0))), items(3))
    assert store.rewind(3, shapes(items(0))) is None and store.steps() == []
    store.close()


def test_going_back_after_the_schedule_was_changed_does_not_go_far(tmp_path):
    saved(tmp_path, steps=(30, 40, 50), every=10, keep=3)
    store = open_store(tmp_path, every=15)
    assert same(store.rewind(55, shapes(items(0))), items(50))
    store.close()


def test_a_refused_step_is_reported_and_written_anew(tmp_path, caplog):
    folder = saved(tmp_path)
    (folder / "2" / "files" / checkpoint.MANIFEST).write_text("{")
    store = open_store(tmp_path)
    assert same(store.restore(shapes(items(0))), items(1))
    assert "REFUSED" in caplog.text and "manifest.json" in caplog.text
    store.save(2, items(2))
    store.close()
    assert same(restored(tmp_path), items(2))


def test_no_intact_checkpoint_is_an_error(tmp_path):
    folder = saved(tmp_path)
    for step in ("1", "2"):
        (folder / step / "files" / checkpoint.MANIFEST).unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint.*intact.*\[1, 2\]"):
        restored(tmp_path)


def test_another_architecture_is_named_before_anything_is_read(tmp_path):
    folder = saved(tmp_path)
    shutil.rmtree(folder / "2" / "params")
    wanted = shapes(items(0))
    wanted["params"]["tower/gate"] = wanted["params"].pop("tower/bias")
    leaf = wanted["params"]["tower/kernel"]
    wanted["params"]["tower/kernel"] = jax.ShapeDtypeStruct((64, 16), leaf.dtype)
    store = open_store(tmp_path)
    with pytest.raises(checkpoint.CheckpointError) as error:
        store.restore(wanted)
    store.close()
    text = str(error.value)
    assert "params/tower/bias: 32 bfloat16 in the checkpoint, absent here" in text
    assert "params/tower/gate: absent in the checkpoint, 32 bfloat16 here" in text
    assert "params/tower/kernel: 64x32 float32 in the checkpoint, 64x16 float32 here" in text


def test_a_failed_save_is_an_error_before_the_next_and_the_last_good_one_stays(
    tmp_path, monkeypatch
):
    saved(tmp_path, steps=(1,))
    store = open_store(tmp_path, keep=1)

    def full(self, directory, args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(checkpoint.CheckpointError) as error:
        broken.setattr(checkpoint._FilesHandler, "save", full)
        store.save(2, items(2))
        store.wait()
    assert "No space left on device" in str(error.value) and "step 1" in str(error.value)
    assert same(restored(tmp_path), items(1))


def test_params_and_averages_by_any_of_the_three_folders(tmp_path, monkeypatch):
    folder = saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, folder, folder / "2", folder.relative_to(tmp_path)):
        params = trees.flatten(checkpoint.load_params(place, "params"))
        assert same({"params": params}, {"params": items(2)["params"]})
        averaged = trees.flatten(checkpoint.load_params(place))
        expected = items(2)["params"] | items(2)["ema"]
        assert same({"params": averaged}, {"params": expected})


def test_a_step_folder_may_be_moved_and_renamed(tmp_path):
    shutil.move(saved(tmp_path) / "2", tmp_path / "best")
    params = trees.flatten(checkpoint.load_params(tmp_path / "best", "params"))
    assert same({"params": params}, {"params": items(2)["params"]})


def test_params_of_a_damaged_folder_are_an_error(tmp_path):
    folder = saved(tmp_path) / "2"
    payload = max((folder / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(payload.read_bytes())
    content[len(content) // 2] ^= 4
    payload.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="damaged.*params"):
        checkpoint.load_params(folder, "params")


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        checkpoint.find_checkpoint(tmp_path)


def test_the_config_names_the_tokenizer_beside_it(tmp_path):
    run = tiny.workdir(tmp_path)
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    (tmp_path / "tokenizer.model").unlink()
    contract = spec.build(checkpoint.load_config(moved).contract)
    assert contract.tokenizer.model_bytes == tiny.tokenizer_bytes()


def test_a_damaged_tokenizer_is_an_error(tmp_path):
    run = tiny.workdir(tmp_path)
    file = checkpoint.find_checkpoint(run) / "files" / "tokenizer.model"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="tokenizer.model does not have the check"):
        checkpoint.load_config(run)


def test_a_config_of_another_origin_is_not_trusted(tmp_path):
    run = tiny.workdir(tmp_path)
    folder = checkpoint.find_checkpoint(run) / "files"
    text = json.dumps({"_class_": "subprocess.run", "args": "true"})
    (folder / checkpoint.CONFIG).write_text(text)
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    manifest["files"][checkpoint.CONFIG] = checkpoint.hashlib.sha256(text.encode()).hexdigest()
    (folder / checkpoint.MANIFEST).write_bytes(checkpoint.seal(manifest))
    with pytest.raises(UserError, match="trusted"):
        checkpoint.load_config(run)
