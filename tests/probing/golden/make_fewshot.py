"""Writes big_vision_fewshot.json: what big_vision's few-shot functions make of a problem.

    python tests/probing/golden/make_fewshot.py BIG_VISION/big_vision/evaluators/fewshot_lsr.py

needs JAX, not TensorFlow: the two functions are taken from the file by name and run by themselves,
in float32 as there. The file names the versions that made it.
"""

import ast
import functools
import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import problems  # noqa: E402

WANTED = ("BIAS_CONSTANT", "_precompute_cache", "_eig_fewshot_acc_fn")


def functions(path):
    """The namespace of the file's arithmetic alone."""
    tree = ast.parse(pathlib.Path(path).read_text())
    kept = [
        node
        for node in tree.body
        if getattr(node, "name", None) in WANTED
        or (isinstance(node, ast.Assign) and node.targets[0].id in WANTED)
    ]
    jit_cpu = lambda **options: functools.partial(jax.jit, **options)  # noqa: E731
    space = {"jax": jax, "jnp": jnp, "u": types.SimpleNamespace(jit_cpu=jit_cpu)}
    exec(compile(ast.Module(kept, []), path, "exec"), space)
    return space


def main(path):
    theirs = functions(path)
    results = []
    for count, width in ((25, 40), (100, 12)):
        settings = {"count": 400, "width": width, "classes": 5}
        features, labels = problems.problem(**settings)
        test, truth = problems.problem(**settings, seed=1)
        cache = theirs["_precompute_cache"](features[:count], labels[:count], 5)
        accuracies = {
            str(power): float(theirs["_eig_fewshot_acc_fn"](cache, test, truth, 2.0**power))
            for power in (-4, 2, 10, 16)
        }
        results.append({"problem": settings, "rows": count, "accuracies": accuracies})
    golden = {
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "results": results,
    }
    (HERE / "big_vision_fewshot.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
