"""Beginning with parts of another checkpoint: one tower, renamed paths, another resolution."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from big_mm import exported, spec, trees
from big_mm import mesh as mesh_lib
from big_mm.data.contract import Contract
from big_mm.interop import reading
from big_mm.models.vision import resize_grid
from big_mm.spec import UserError
from big_mm.training import checkpoint


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Loads parameters of a checkpoint into a fresh model before its first step.

    For instance the image tower alone: `rules=(("image/.*", r"\\g<0>"), (".*", None))`.

    Attributes:
      path: a workdir, its checkpoints/ folder, one step's folder, or a directory written by
        `python -m big_mm.export` or `big_mm.interop.convert`.
      rules: ((pattern of the checkpoint's path, its path here, or None to leave it out), ...); the
        replacement may use groups (`re.Match.expand`). A path that no rule matches keeps its name.
      which: "ema" or "params".
      grids: which parameters here are position embeddings of a square grid of patches (and a cls
        token before them); they are resized if the checkpoint's grid is another one.
    """

    path: str
    rules: trees.Rules = ()
    which: str = "ema"
    grids: str = r"(.*/)?image/(.*/)?position_embedding"

    def apply(self, params: Any) -> Any:
        """`params` with the checkpoint's values in place of its own, on the same devices.

        Raises:
          UserError: a rule matches nothing, two paths meet, a path or shape is not the model's.
        """
        folder, ours = epath.Path(self.path), trees.flatten(params)
        if reading.recognises(folder):
            raise UserError(
                f"init_from: {folder} is another program's checkpoint; convert it first: "
                f"python -m big_mm.interop.convert --from {folder} --to big_mm --out DIR"
            )
        if exported.is_exported(folder):
            theirs = exported.parameter_shapes(folder)
        else:
            folder = checkpoint.find_checkpoint(self.path)
            theirs = checkpoint.parameter_shapes(folder)
        sources = self.sources(theirs, ours)
        wanted = {path: _place(path, leaf, sources, ours) for path, leaf in theirs.items()}
        if exported.is_exported(folder):
            loaded = exported.read_params(folder, wanted)
        else:
            loaded = checkpoint.read_params(folder, wanted, self.which)
        for target, source in sources.items():
            ours[target] = _fit(loaded[source], ours[target])
        untouched = sorted(ours.keys() - sources.keys())
        logging.warning(
            "init_from: %d parameters from %s; freshly initialised: %s",
            len(sources),
            folder,
            ", ".join(untouched) or "none",
        )
        return trees.unflatten(ours)

    def contract(self) -> Contract:
        """Of the checkpoint."""
        folder = epath.Path(self.path)
        if exported.is_exported(folder):
            return spec.build(exported.components(folder, parts=("contract",)).contract)
        return spec.build(checkpoint.load_config(folder, parts=("contract",)).contract)

    def sources(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
        """{path in this model: path in the checkpoint}."""
        patterns = tuple((pattern, (pattern, new)) for pattern, new in self.rules)
        chosen = trees.match_paths(theirs, patterns, (".*", r"\g<0>"))
        sources: dict[str, str] = {}
        for source, (pattern, replacement) in chosen.items():
            if replacement is None:
                continue
            match = re.fullmatch(pattern, source)
            assert match is not None
            target = match.expand(replacement)
            if target in sources:
                raise UserError(f"{sources[target]} and {source} would both load into {target}")
            if target not in ours:
                known = "\n  ".join(ours)
                raise UserError(
                    f"the checkpoint's {source} has no place here: there is no {target}. Add a "
                    f"rule ({source!r}, its path here, or None to leave it out); the paths are\n"
                    f"  {known}"
                )
            self._check_shape(source, theirs[source].shape, target, ours[target].shape)
            sources[target] = source
        if not sources:
            raise UserError(f"the rules of init_from leave nothing of {self.path} to load")
        return sources

    def _check_shape(
        self, source: str, theirs: tuple[int, ...], target: str, ours: tuple[int, ...]
    ) -> None:
        if theirs == ours:
            return
        grids = re.fullmatch(self.grids, target) and _side(theirs) and _side(ours)
        cls = _cls(theirs) == _cls(ours)
        if not (grids and cls and theirs[1:] == ours[1:]):
            raise UserError(f"{source} of shape {theirs} does not fit {target} of shape {ours}")


def _side(shape: tuple[int, ...]) -> int:
    """The side of a square grid of embeddings [(cls +) side * side, width]; 0 if it is none."""
    side = math.isqrt(shape[0])
    return side if len(shape) == 2 and side * side in (shape[0], shape[0] - 1) else 0


def _cls(shape: tuple[int, ...]) -> int:
    """How many embeddings stand before those of the grid: that of a cls token, or none."""
    return shape[0] - _side(shape) ** 2


def _place(path: str, leaf: Any, sources: Mapping[str, str], ours: Mapping[str, Any]) -> Any:
    """Where to read a leaf to: as its target lies if shapes agree, else on every device."""
    targets = [target for target, source in sources.items() if source == path]
    some = next(iter(ours.values())).sharding
    sharding = mesh_lib.replicated(some.mesh)
    if targets and ours[targets[0]].shape == leaf.shape:
        sharding = ours[targets[0]].sharding
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _fit(value: jax.Array, like: jax.Array) -> jax.Array:
    if value.shape != like.shape:
        cls = _cls(like.shape)
        grid = resize_grid(value[cls:].astype(jnp.float32), like.shape[0] - cls)
        value = jnp.concatenate([value[:cls].astype(jnp.float32), grid])
    return jax.device_put(value.astype(like.dtype), like.sharding)
