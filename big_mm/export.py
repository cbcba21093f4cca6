"""Writes a checkpoint as files that others can read.

    python -m big_mm.export --checkpoint runs/quickstart --format safetensors --out exported
    python -m big_mm.export --checkpoint runs/quickstart --format jax --out exported

safetensors: the parameters by path ("image/blocks/..."), the specs and input rules as JSON, and the
tokenizer. `big_mm.load(DIR)` reads it; so does anything that reads safetensors.

jax: the same, and programs that run without this code, in JAX alone, on CPU, CUDA and TPU, for any
batch size: encode_image, encode_text and caption, as far as the model has them. They take the
parameters as an argument, so that a large model is stored once. run.py there shows their use.
"""

import argparse
import functools
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from big_mm import decoding, exported, exported_run, predictor, programs, spec, trees
from big_mm.data.contract import Contract
from big_mm.mesh import single_device_mesh
from big_mm.spec import UserError
from big_mm.types import Outputs

FORMATS = ("safetensors", "jax")
PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "{}.jaxexport"


def export(
    checkpoint: str | os.PathLike[str],
    form: str,
    out: str | os.PathLike[str],
    *,
    which: str = "ema",
    platforms: Sequence[str] = PLATFORMS,
    trusted: Sequence[str] = spec.TRUSTED,
) -> list[str]:
    """Exports a checkpoint into the new directory `out`, all of it or nothing.

    Args:
      checkpoint, which, trusted: as in `big_mm.load`.
      form: one of FORMATS.
      platforms: that the programs of form "jax" are compiled for.

    Returns:
      The names of the files written.

    Raises:
      UserError: an unknown form or platform, no checkpoint, or an `out` that holds something.
    """
    if form not in FORMATS:
        raise UserError(f"format {form!r} is none of {', '.join(FORMATS)}")
    if unknown := sorted(set(platforms) - set(PLATFORMS)):
        raise UserError(f"platforms {unknown} are not among {', '.join(PLATFORMS)}")
    with new_directory(pathlib.Path(out)) as folder:
        components, params = predictor.read(
            checkpoint, trusted=trusted, which=which, mesh=single_device_mesh()
        )
        built = spec.build(components, trusted=trusted)
        loaded = predictor.Predictor(built["model"], params, built["contract"])
        outputs = loaded.check()
        exported.write(folder, components, params, loaded.contract)
        if form == "jax":
            _write_programs(folder, loaded, outputs, platforms)
        return sorted(path.name for path in folder.iterdir())


def _write_programs(
    folder: pathlib.Path,
    loaded: predictor.Predictor,
    outputs: Outputs,
    platforms: Sequence[str],
) -> None:
    """The programs that the model's outputs allow, and how to run them."""
    contract = loaded.contract
    (rows,) = jax.export.symbolic_shape("rows")
    size = contract.image_size
    image = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((rows, contract.max_len), jnp.int32)
    token_mask = jax.ShapeDtypeStruct((rows, contract.max_len), jnp.bool_)
    wanted: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    if "image_embedding" in outputs:
        wanted["encode_image"] = functools.partial(programs.encode_image, loaded.model), (image,)
    if "text_embedding" in outputs:
        encode_text = functools.partial(programs.encode_text, loaded.model)
        wanted["encode_text"] = encode_text, (tokens, token_mask)
    if "caption_logits" in outputs:
        wanted["caption"] = functools.partial(_caption, loaded.model, contract), (image, tokens)
    for name, (function, arguments) in wanted.items():
        (folder / PROGRAM.format(name)).write_bytes(
            serialize(function, loaded.params, arguments, platforms)
        )
    shutil.copy(exported_run.__file__, folder / "run.py")


def serialize(
    function: Callable[..., Any], params: Any, arguments: Sequence[Any], platforms: Sequence[str]
) -> bytes:
    """A function of (nested params, *arguments) as a portable one of (flat params, *arguments)."""

    def flat_function(flat: dict[str, jax.Array], *arguments: jax.Array) -> Any:
        return function(trees.unflatten(flat), *arguments)

    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in trees.flatten(params).items()
    }
    trace = jax.export.export(jax.jit(flat_function), platforms=tuple(platforms))
    return bytes(trace(shapes, *arguments).serialize())


def _caption(
    model: Any, contract: Contract, params: Any, image: jax.Array, prefix: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Greedy captions."""
    how = decoding.options(min_len=contract.decoding.min_len)
    vocabulary = decoding.Vocabulary.of(contract.tokenizer)
    rows = jnp.zeros(image.shape[0], jnp.int32)
    return programs.generate(model, params, image, prefix, rows, 0, how, vocabulary=vocabulary)


@contextmanager
def new_directory(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary directory that becomes `out` if nothing goes wrong, and vanishes otherwise."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty directory: name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Exports as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a workdir (its latest step), its checkpoints/, one step's folder, or an export",
    )
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, metavar="DIR", help="new, or empty")
    parser.add_argument(
        "--which",
        choices=("ema", "params"),
        default="ema",
        help="ema: the running average of the parameters, where the run kept one (the default)",
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=PLATFORMS,
        default=PLATFORMS,
        help="that the programs of --format jax run on (default: all of them)",
    )
    parser.add_argument(
        "--trusted",
        nargs="+",
        default=spec.TRUSTED,
        metavar="PACKAGE",
        help="whose classes the stored config may name (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        files = export(
            arguments.checkpoint,
            arguments.format,
            arguments.out,
            which=arguments.which,
            platforms=arguments.platforms,
            trusted=arguments.trusted,
        )
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{arguments.out}/{name}" for name in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
