"""Whose folder it is, and where compiled programs go."""

import stat
import subprocess
import sys

import jax
import pytest

from big_mm import spec
from big_mm.spec import UserError
from big_mm.training import workdir as workdir_lib
from big_mm.training import writers
from tests.training import runs


@pytest.fixture
def begun(tmp_path):
    """A folder in which `config` has begun, and the config."""
    made = runs.config(tmp_path / "data")
    folder = workdir_lib.epath.Path(tmp_path / "run")
    workdir_lib.check_writable(folder)
    workdir_lib.claim(folder, made)
    (folder / writers.METRICS).write_text("")
    return folder, made


def test_the_same_config_may_continue(begun):
    workdir_lib.check_same_run(*begun)


@pytest.mark.parametrize(
    "change",
    [
        "steps=100",
        "log_every=7",
        "eval_every=3",
        "checkpoint.every=5",
        "mesh.fsdp=2",
        "data.num_threads=1",
        "profile=(3, 4)",
    ],
)
def test_what_does_not_change_the_updates_may_differ(begun, change):
    folder, made = begun
    made = spec.resolve(made)
    if change.startswith("mesh"):
        made.mesh = spec.spec(runs.run.mesh_lib.MeshConfig)
    spec.override(made, [f"--config.{change}"])
    workdir_lib.check_same_run(folder, made)


def test_another_config_is_refused_with_the_keys_that_differ(begun):
    folder, made = begun
    spec.override(made, ["--config.optimizer.learning_rate=0.5", "--config.batch_size=32"])
    with pytest.raises(UserError) as error:
        workdir_lib.check_same_run(folder, made)
    text = str(error.value)
    assert "batch_size: 16 there, 32 now" in text
    assert "optimizer.learning_rate: 0.003 there, 0.5 now" in text
    assert "seed" not in text and "--workdir" in text


def test_a_default_that_is_written_out_is_no_difference(begun):
    folder, made = begun
    made.seed = 0
    workdir_lib.check_same_run(folder, made)


def test_a_run_that_never_began_does_not_block(begun):
    folder, made = begun
    (folder / writers.METRICS).unlink()
    made.batch_size = 32
    workdir_lib.check_same_run(folder, made)


PROGRAM = """
import sys, jax
from etils import epath
from big_mm.training import workdir
workdir.enable_compilation_cache(epath.Path(sys.argv[1]))
print(jax.config.jax_compilation_cache_dir)
"""


def cache_directory(tmp_path, **environment) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd=runs.pathlib.Path(__file__).resolve().parents[2],
    )
    return done.stdout.strip()


def test_compiled_programs_go_to_a_private_directory(tmp_path):
    found = cache_directory(tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert found == str(tmp_path / "xdg" / "big_mm" / "jax")
    assert stat.S_IMODE((tmp_path / "xdg" / "big_mm" / "jax").stat().st_mode) == 0o700


def test_a_directory_that_others_may_write_to_is_not_used(tmp_path):
    shared = tmp_path / "xdg" / "big_mm" / "jax"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    found = cache_directory(tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert found == str(tmp_path / "run" / ".jax_cache")


def test_an_existing_setting_is_respected(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before, "the tests themselves set one"
    workdir_lib.enable_compilation_cache(workdir_lib.epath.Path(tmp_path))
    assert jax.config.jax_compilation_cache_dir == before
