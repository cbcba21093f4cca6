import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from big_mm import allocator
if sys.argv[1] == "keep" and not allocator.keep_freed_memory():
    sys.exit("not glibc")
import jax, jax.numpy as jnp

@jax.jit
def step(x):  # temporaries of 16 MB
    y = x @ x
    return (jnp.sin(y) @ y).sum()

x = jnp.ones((2048, 2048))
faults = []
for repeat in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# The kernel may take pages back from a heap at rest: of any step, not of all.
print(min(faults[1:]))
"""


def page_faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=False
    )
    if "not glibc" in done.stderr:
        pytest.skip("the C library has no mallopt")
    return int(done.stdout)


def test_a_step_reuses_the_memory_of_the_step_before():
    assert page_faults("keep") < 100 < 4_000 < page_faults("default")
