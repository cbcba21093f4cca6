"""The directory that export writes and `big_mm.load` reads.

model.safetensors   the parameters by path ("image/blocks/layers/...")
tokenizer.model     the SentencePiece model, where there is one; or tokenizer.json
config.json         "components": the specs of model and contract, which rebuild them;
                    "inputs": the contract's rules and the tokenizer's special ids, for people
                    without this code; "digests": a checksum of each parameter
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import safetensors.numpy
from etils import epath
from jax.sharding import Mesh

from big_mm import mesh as mesh_lib
from big_mm import spec, trees
from big_mm.data.contract import Contract
from big_mm.spec import UserError

CONFIG, PARAMS = "config.json", "model.safetensors"
_SPECIAL = ("pad_id", "bos_id", "eos_id", "cls_id", "free_id", "vocab_size")


def is_exported(directory: epath.Path) -> bool:
    """Whether the directory is of this kind."""
    return (directory / PARAMS).exists()


def read(
    directory: epath.Path, trusted: Sequence[str], mesh: Mesh
) -> tuple[ml_collections.ConfigDict, Any]:
    """The specs of `model` and `contract`, and the nested parameters, laid out over `mesh`.

    Raises:
      UserError: a damaged file, or a class outside the `trusted` packages.
    """
    found, params = components(directory, trusted), place(_stored(directory), mesh)
    _check(directory, _description(directory), params)
    return found, params


def components(
    directory: epath.Path, trusted: Sequence[str] = spec.TRUSTED, parts: Sequence[str] = ()
) -> ml_collections.ConfigDict:
    """The specs of `model` and `contract`, whose tokenizer is the one stored here.

    Args:
      trusted, parts: as `spec.from_json` takes them; "contract" must be among the parts.
    """
    described = json.dumps(_description(directory)["components"])
    found = spec.from_json(described, trusted=trusted, parts=parts)
    if found.contract.get("tokenizer"):
        name = pathlib.PurePath(found.contract.tokenizer.path).name
        found.contract.tokenizer.path = str(directory / name)
    return found


def parameter_shapes(directory: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape and type} of the parameters."""
    stored = _stored(directory)
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in stored.items()}


def read_params(
    directory: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """The parameters {path: shape with sharding}, so laid out.

    Raises:
      UserError: a damaged file.
    """
    stored = _stored(directory)
    params = {path: jax.device_put(stored[path], leaf.sharding) for path, leaf in wanted.items()}
    _check(directory, _description(directory), params)
    return params


def _description(directory: epath.Path) -> dict[str, Any]:
    try:
        description = json.loads((directory / CONFIG).read_text())
        return {key: description[key] for key in ("components", "digests")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory / CONFIG} cannot be read: {error!r}") from error


def _stored(directory: epath.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load((directory / PARAMS).read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory / PARAMS} cannot be read: {error!r}") from error


def _check(directory: epath.Path, description: Mapping[str, Any], params: Any) -> None:
    found, expected = trees.digest(params), description["digests"]
    if damaged := sorted(k for k in found | expected if found.get(k) != expected.get(k)):
        raise UserError(f"{directory / PARAMS} is damaged: checksum of {damaged[0]}")


def place(stored: Mapping[str, np.ndarray], mesh: Mesh) -> Any:
    """Parameters by path as a nested tree, laid out over `mesh`."""
    shardings = mesh_lib.shardings(dict(stored), mesh)
    params = {path: jax.device_put(leaf, shardings[path]) for path, leaf in stored.items()}
    return trees.unflatten(params)


def write(
    folder: pathlib.Path,
    components: ml_collections.ConfigDict,
    params: Any,
    contract: Contract,
) -> None:
    """Writes the files into an existing directory."""
    flat = trees.flatten(params)
    inputs = contract.describe() | {"tokenizer": None}
    components = components.copy_and_resolve_references()
    if contract.tokenizer is not None:
        contract.tokenizer.save(folder / contract.tokenizer.file_name)
        name, content = contract.tokenizer.portable()
        (folder / name).write_bytes(content)
        components.contract.tokenizer.path = contract.tokenizer.file_name
        inputs["tokenizer"] = {name: getattr(contract.tokenizer, name) for name in _SPECIAL}
    description = {
        "components": json.loads(spec.to_json(spec.resolve(components))),
        "inputs": inputs,
        "digests": trees.digest(flat),
    }
    (folder / CONFIG).write_text(json.dumps(description, indent=1) + "\n")
    safetensors.numpy.save_file(jax.device_get(flat), folder / PARAMS)
