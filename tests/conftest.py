"""What every test runs under: the CPU, eight devices, enforced annotations, fixed randomness.

Set before anything imports JAX or big_mm:
- the platform is the CPU, unless JAX_PLATFORMS says otherwise (cuda,cpu for pytest -m gpu);
- this process sees eight CPU devices, so that sharding is tested as such; a subprocess sees one, as
  a user's would;
- every annotation in big_mm, shapes included, is checked at each call;
- programs are compiled once and kept in the repository's own cache directory, in the way that takes
  the least time to compile, which is longer than most of them run: without LLVM's optimisations,
  and by the older of the CPU's two code generators.
"""

import importlib.util
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "jax"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Whoever can write a compilation cache can run code in its readers.
CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from absl import logging  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jaxtyping.install_import_hook(("big_mm", "experiments"), "beartype.beartype")
hypothesis.settings.register_profile(
    "big_mm", deadline=None, derandomize=True, max_examples=50, print_blob=True
)
hypothesis.settings.load_profile("big_mm")


def _has_gpu() -> bool:
    return any(device.platform == "gpu" for device in jax.devices())


def _has_cuda_plugin() -> bool:
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _has_interop() -> bool:
    return all(importlib.util.find_spec(name) for name in ("tokenizers", "ftfy"))


# marker: (is what it needs here, what is missing)
NEEDS = {
    "gpu": (_has_gpu, "no NVIDIA GPU among JAX's devices"),
    "tpu_compiler": (lambda: importlib.util.find_spec("libtpu") is not None, "no libtpu"),
    "cuda_compiler": (_has_cuda_plugin, "no CUDA plugin of JAX"),
    "interop": (_has_interop, "no tokenizers or no ftfy"),
    "peer": (lambda: importlib.util.find_spec("torch") is not None, "no torch"),
}


@pytest.fixture(autouse=True)
def verbosity():
    """A program that a test runs in this process leaves the next one its warnings."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, with the reason."""
    for marker, (available, missing) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {missing}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was not tested, so that a green run is not mistaken for a complete one."""
    skipped = [str(r.longrepr) for r in terminalreporter.stats.get("skipped", [])]
    for marker, (_, missing) in NEEDS.items():
        if count := sum(f"{marker}: {missing}" in reason for reason in skipped):
            terminalreporter.write_line(
                f"NOT TESTED HERE: {count} tests marked {marker} ({missing})", yellow=True
            )
