"""Converts checkpoints between big_mm, open_clip, Hugging Face and big_vision.

    python -m big_mm.interop.convert --from ViT-B-16-SigLIP --to big_mm --out siglip
    python -m big_mm.interop.convert --from b16.npz --tokenizer c4.model --to big_mm --out siglip
    python -m big_mm.interop.convert --from B.pt --config ViT-B-32-quickgelu --to big_mm --out b32
    python -m big_mm.interop.convert --from runs/clip --to open_clip --out exported

Read: directories of open_clip and Hugging Face (CLIP, SigLIP, SigLIP 2, CoCa, text towers of BERT
and RoBERTa), single files of their weights with --config, big_vision's .npz (SigLIP, SigLIP 2,
NaFlex, LiT, CapPa); and whatever big_mm.load reads. Files that would have to be unpickled are
refused, PyTorch's own format is read without running anything.

Written: what big_mm.load reads anywhere (parameters, specs, tokenizer), open_clip's or Hugging
Face's config, weights and preprocessing, or big_vision's .npz, where they can express the model.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence

import jax
from etils import epath

from big_mm import export, exported, predictor, spec, trees
from big_mm.interop import reading, writing
from big_mm.mesh import single_device_mesh
from big_mm.spec import UserError

FORMATS = ("big_mm", *writing.WRITERS)


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was done.

    Attributes:
      source: what the weights were read as, and from which file.
      parameters: their number.
      ignored: names in the file that carry no weights.
      files: that were written.
    """

    source: str
    parameters: int
    ignored: Sequence[str]
    files: Sequence[str]


def convert(
    source: str | os.PathLike[str],
    form: str,
    out: str | os.PathLike[str],
    *,
    config: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    which: str = "ema",
    trusted: Sequence[str] = spec.TRUSTED,
) -> Converted:
    """Converts into the new directory `out`, all of it or nothing.

    Args:
      source, config, tokenizer, which, trusted: as in `big_mm.load`.
      form: one of FORMATS.
      dtype: of the weights written for other programs; big_mm's are float32.

    Raises:
      UserError: what cannot be read, or not be expressed in that form; an `out` that holds
        something.
    """
    if form not in FORMATS:
        raise UserError(f"--to {form!r} is none of {', '.join(FORMATS)}")
    if dtype not in writing.DTYPES or (form == "big_mm" and dtype != "float32"):
        raise UserError(f"--dtype {dtype} with --to {form}: big_mm's parameters are float32")
    mesh = single_device_mesh()
    with export.new_directory(pathlib.Path(out)) as folder:
        path = epath.Path(source)
        if reading.recognises(path):
            imported = reading.read(path, config, tokenizer)
            components, params = imported.components, exported.place(imported.params, mesh)
            said, ignored = f"{imported.kind}, {imported.source}", imported.ignored
        else:
            components, params = predictor.read(
                source, trusted=trusted, which=which, mesh=mesh, config=config, tokenizer=tokenizer
            )
            said, ignored = f"big_mm, {source}", ()
        built = spec.build(components, trusted=trusted)
        loaded = predictor.Predictor(built["model"], params, built["contract"], mesh)
        loaded.check()
        if form == "big_mm":
            exported.write(folder, components, params, loaded.contract)
        else:
            writing.WRITERS[form](folder, loaded.model, params, loaded.contract, dtype)
        files = sorted(file.name for file in folder.iterdir())
        return Converted(said, trees.count(jax.eval_shape(lambda: params)), ignored, files)


def main(argv: Sequence[str] | None = None) -> int:
    """Converts as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.interop.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", required=True, metavar="PATH", dest="source")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, metavar="DIR", help="new, or empty")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the model's config, if not beside the weights, or a name like ViT-B-32-quickgelu",
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer file (default: what lies beside the weights)"
    )
    parser.add_argument("--dtype", choices=writing.DTYPES, default="float32")
    parser.add_argument(
        "--which",
        choices=("ema", "params"),
        default="ema",
        help="of a big_mm checkpoint: the running average of the parameters, if the run kept one",
    )
    parser.add_argument(
        "--trusted",
        nargs="+",
        default=spec.TRUSTED,
        metavar="PACKAGE",
        help="whose classes a stored big_mm config may name (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        done = convert(
            arguments.source,
            arguments.to,
            arguments.out,
            config=arguments.config,
            tokenizer=arguments.tokenizer,
            dtype=arguments.dtype,
            which=arguments.which,
            trusted=arguments.trusted,
        )
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"read {done.parameters:,} parameters ({done.source})")
    if done.ignored:
        print(f"ignored, as they carry no weights: {', '.join(done.ignored)}")
    print("\n".join(f"wrote {arguments.out}/{name}" for name in done.files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
