"""What holds for the repository as a whole: everything imports, every config takes a step, imports
point one way, and the rules of the house that a program can check.
"""

import ast
import functools
import graphlib
import importlib
import importlib.util
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from big_mm import mesh, spec
from big_mm.training import state as states
from big_mm.training.step import Update

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "big_mm").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
CODE = sorted(
    path
    for folder in ("big_mm", "configs", "experiments", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)

# Imports point from later layers to the same or earlier ones, never back. `spec` is before all;
# `training.checkpoint`, which the predictor reads, knows of nothing else that trains.
LAYERS = (
    ("spec",),
    ("types", "trees", "mesh", "distributed", "allocator", "flops"),
    (
        "losses",
        "models",
        "data",
        "metrics",
        "probing",
        "decoding",
        "similarity",
        "training.checkpoint",
    ),
    ("objectives", "evaluators", "predictor", "programs", "exported", "search", "interop"),
    ("training", "curation"),
    (
        "train",
        "ablate",
        "evaluate",
        "compare",
        "export",
        "interop.convert",
        "exported_run",
        "plan",
        "planning",
        "report",
        "doctor",
        "annotate",
    ),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

# What unpickles runs code; what is another framework makes the library two.
FORBIDDEN = {"pickle", "dill", "joblib", "marshal", "shelve", "tensorflow", "torch", "clu"}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# exported_run.py is copied beside an exported model, and runs there.
ENTRY_POINTS = [
    module_name(path)
    for path in LIBRARY
    if '__name__ == "__main__"' in path.read_text() and path.stem != "exported_run"
]


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: pathlib.Path, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports; `from a import b` gives a.b."""
    tree = parsed(path)
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: pathlib.Path, top_level: bool) -> set[str]:
    """The modules of big_mm that a file imports."""
    modules = {module_name(p) for p in LIBRARY}
    names = {n for n in imports(path, top_level) if n.split(".")[0] == "big_mm"}
    return {n if n in modules else n.rpartition(".")[0] for n in names}


def layer(module: str) -> int:
    parts = module.split(".")[1:]
    for end in range(len(parts), 0, -1):
        if (name := ".".join(parts[:end])) in LAYER:
            return LAYER[name]
    raise AssertionError(f"{module} is in no layer of {pathlib.Path(__file__).name}")


def tracked_files() -> list[pathlib.Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def variants(config: pathlib.Path) -> list[str]:
    """What to load of a config file: each of its variants."""
    return [f"{config}:{name}" if name else str(config) for name in spec.variants(str(config))]


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_every_module_imports(path):
    if path.stem != "__main__":
        importlib.import_module(module_name(path))


def test_imports_point_one_way():
    for path in LIBRARY:
        module = module_name(path)
        others = ours(path, top_level=False) - {"big_mm", module}
        if module == "big_mm.spec":
            assert not others, "big_mm.spec must import nothing of ours"
        for other in others if module != "big_mm" else ():
            assert layer(other) <= layer(module), f"{module} imports {other}, of a later layer"


def test_imports_have_no_circle():
    graph = {module_name(path): ours(path, top_level=True) - {"big_mm"} for path in LIBRARY}
    for module, others in graph.items():
        others.discard(module)
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", LIBRARY + CONFIGS + EXPERIMENTS, ids=name_of)
def test_the_library_stands_alone(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & FORBIDDEN
    assert "allow_pickle=True" not in path.read_text()
    if path in LIBRARY:
        assert not roots & {"configs", "experiments", "tests", "benchmarks"}


@pytest.mark.parametrize(
    "source",
    [variant for config in CONFIGS for variant in variants(config)],
    ids=lambda source: source.removeprefix(f"{ROOT}/"),
)
def test_every_config_takes_a_step_in_shapes(source):
    config = spec.load_config(source)
    assert spec.to_json(spec.from_json(spec.to_json(config))) == spec.to_json(config)
    run = spec.build({key: config[key] for key in ("objective", "optimizer")})
    side, length = config.contract.image_size, config.contract.max_len
    rows = jax.ShapeDtypeStruct((config.batch_size, length), jnp.int32)
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8),
        "tokens": rows,
        "token_mask": rows,
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    objective, optimizer = run["objective"], run["optimizer"]
    ids = {getattr(loss, "positives", "") for loss in objective.losses.values()} - {""}
    batch |= dict.fromkeys(ids, batch["label"])
    params = jax.eval_shape(functools.partial(states.init_params, objective, batch, 0))
    create = functools.partial(states.create, objective, optimizer, seed=0, ema=True)
    devices = mesh.single_device_mesh()
    update = Update(objective, optimizer, devices, seed=0, steps=config.steps, ema=0.9)
    state = jax.eval_shape(create, params)
    new, metrics = jax.eval_shape(update, state, batch)
    assert new == state
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_every_entry_point_explains_itself(module, monkeypatch, capsys):
    name = module.removesuffix(".__main__")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    # A second copy, so that nothing the first holds is replaced.
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(name, run_name="__main__")
    assert stop.value.code == 0
    assert f"python -m {name}" in capsys.readouterr().out


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_everything_public_has_a_docstring(path):
    tree = parsed(path)
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            # The docstring of an entry point's main is its module's.
            assert ast.get_docstring(node) or node.name == "main", f"{node.name} has no docstring"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_files_and_functions_stay_short(path):
    assert len(path.read_text().splitlines()) <= 500
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{node.name} is longer than 80 lines"


def test_tracked_files_are_small_and_name_no_machine():
    machine_path = re.compile(r"(?<![\w.~$}])/(?:work|tmp|root|home)/\w")
    for path in tracked_files():
        assert path.stat().st_size <= 2**20, f"{name_of(path)} is larger than 1 MB"
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = machine_path.search(text)
        assert not found, f"{name_of(path)} names a path of one machine: {found.group()}"
