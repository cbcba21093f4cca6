"""Checkpoints: Orbax underneath, asynchronous and atomic, with checksums of our own.

A step folder is self-sufficient:

    params/ ema/ optimizer/ extra/ progress/   the state's items, each an Orbax tree
    files/config.json                          the resolved config
    files/tokenizer.model                      the vocabulary of its contract (or .json, ...)
    files/manifest.json                        shape, type and checksum of every leaf and file

Orbax does not notice a flipped bit in an array, hence the checksums: they are taken on the device
before the save and compared on the device after the restore. Nothing is ever unpickled.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.sharding import Mesh

from big_mm import mesh as mesh_lib
from big_mm import spec, trees
from big_mm.spec import UserError

CONFIG, TOKENIZER, MANIFEST = "config.json", "tokenizer.", "manifest.json"
_FILES = "files"
# Of an error's lines, and of the letters in a message of Orbax, which runs to pages.
_SHOWN, _LONGEST = 12, 300

# {item: {path: array, or shape with sharding}}: a training state as it is stored.
Items = dict[str, dict[str, Any]]


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another model."""


class _Damaged(Exception):
    """A step folder does not hold what was saved."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save and what to keep.

    Attributes:
      every: steps between saves; the last step is always saved. 0 saves the last step only.
      keep: how many of the latest of these to keep.
      keep_every: also keep, for good, the steps that this divides.
      best: a metric of an evaluation ("retrieval/image_to_text_r@1"): the step where it was best is
        kept as well. Every step that is evaluated is then saved.
      best_mode: "max" or "min".
    """

    every: int = 1000
    keep: int = 2
    keep_every: int | None = None
    best: str | None = None
    best_mode: str = "max"

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise UserError(f"checkpoints need every >= 0 and keep >= 1, not {self}")
        if self.best_mode not in ("max", "min"):
            raise UserError(f"best_mode={self.best_mode!r} is neither 'max' nor 'min'")

    def due(self, step: int) -> bool:
        """Whether a step is saved because of its number."""
        return self.every > 0 and step % self.every == 0

    def best_of(self, scores: Mapping[int, float]) -> int | None:
        """The step with the best score, of equal ones the first; None if there is none."""
        sign = 1 if self.best_mode == "max" else -1
        return max(scores, key=lambda step: (sign * scores[step], -step), default=None)

    def kept(self, steps: Iterable[int], scores: Mapping[int, float]) -> set[int]:
        """Which of the saved steps stay.

        The newest; the last `keep` that were due, whatever was saved between them (SIGTERM); those
        that `keep_every` divides; the best by `scores`. A function of nothing else, so that a run
        that was killed keeps what an undisturbed one keeps.
        """
        steps = sorted(steps)
        chosen = {*steps[-1:], *[step for step in steps if self.due(step)][-self.keep :]}
        if self.keep_every:
            chosen |= {step for step in steps if step % self.keep_every == 0}
        best = self.best_of({step: scores[step] for step in steps if step in scores})
        return chosen if best is None else chosen | {best}


class Store:
    """The checkpoints of one run.

    Attributes:
      scores: {step: the metric that `policy.best` names}, as far as it is known.
    """

    def __init__(self, directory: epath.PathLike, policy: Checkpoints, files: Mapping[str, bytes]):
        """`files` ({name: content}) go into every step folder."""
        self.directory = epath.Path(directory).resolve()
        self.policy = policy
        self.scores: dict[int, float] = {}
        self._files = dict(files)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Preservation(self),
                cleanup_tmp_directories=True,
            ),
        )

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def prune(self) -> None:
        """Deletes what the policy does not keep; a run that was killed may not have come to it."""
        steps = self.steps()
        for step in set(steps) - self.policy.kept(steps, self.scores):
            self._manager.delete(step)

    def best(self) -> int | None:
        """The saved step with the best score, if the policy asks for one."""
        steps = self.steps()
        return self.policy.best_of({s: v for s, v in self.scores.items() if s in steps})

    def save(self, step: int, items: Items) -> None:
        """Copies the arrays before it returns; the writing goes on in the background.

        Raises:
          CheckpointError: this save, or an earlier one, has failed.
        """
        if step in self.steps():
            # Only a step that `restore` has refused is reached again.
            self._manager.delete(step)
        items = {name: flat for name, flat in items.items() if flat}
        manifest = seal(_describe(items, self._files))
        arguments: dict[str, Any] = {
            name: ocp.args.StandardSave(trees.unflatten(flat)) for name, flat in items.items()
        }
        arguments[_FILES] = _SaveFiles(self._files | {MANIFEST: manifest})
        with self._naming_failures():
            self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)

    def restore(self, wanted: Items) -> Items | None:
        """The newest intact step, laid out as `wanted` says; None if nothing was ever saved.

        A damaged step is refused with a warning, and the one before it is taken.

        Raises:
          CheckpointError: the checkpoint is of another model, or none is intact.
        """
        return self._newest_intact(self.steps(), wanted)

    def rewind(self, before: int, wanted: Items) -> Items | None:
        """The newest intact step of the schedule before that one; later ones are deleted.

        Steps that were saved between (SIGTERM) do not count, so that all runs go back equally far.
        None if none was saved yet.

        Raises:
          CheckpointError: none is intact, or a save has failed.
        """
        self.wait()
        steps = [step for step in self.steps() if step < before]
        due = [step for step in steps if self.policy.due(step)]
        scheduled = steps[-1] // self.policy.every * self.policy.every if steps else 0
        # Without the schedule's own last step, the schedule was another one: any step will do.
        items = self._newest_intact(due if scheduled in (0, *due[-1:]) else steps, wanted)
        reached = 0 if items is None else int(items["progress"]["step"])
        for step in self.steps():
            if step > reached:
                self._manager.delete(step)
        self.scores = {step: score for step, score in self.scores.items() if step <= reached}
        return items

    def _newest_intact(self, steps: Sequence[int], wanted: Items) -> Items | None:
        for step in reversed(steps):
            folder = self.directory / str(step)
            try:
                manifest = _load_manifest(folder)
                _check_same_shapes(folder, manifest, wanted)
                return {
                    name: _read_item(folder, manifest, name, flat)
                    for name, flat in wanted.items()
                    if flat
                }
            except _Damaged as error:
                logging.warning("REFUSED the checkpoint %s: %s", folder, error)
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self.directory} is intact (steps {list(steps)} were tried): "
                "put back a copy, or start again in another --workdir"
            )
        return None

    def check(self) -> None:
        """Raises a CheckpointError if a save has failed in the background."""
        with self._naming_failures():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is written. Raises a CheckpointError if a save has failed."""
        with self._naming_failures():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits, and lets go. Raises a CheckpointError if a save has failed."""
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore have many ways to say "cannot write".
            reason = _first_line(error)
            folders = (p.name for p in self.directory.iterdir()) if self.directory.exists() else ()
            steps = [int(name) for name in folders if name.isdigit()]
            good = f"step {max(steps)}" if steps else "none"
            raise CheckpointError(
                f"a checkpoint could not be written to {self.directory} ({reason}); the last good "
                f"one there: {good}. Make room or mend the disk; the same command continues"
            ) from error


class _Preservation:
    """A store's policy, as Orbax asks for it before each save."""

    def __init__(self, store: Store):
        self._store = store

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self._store.policy.kept(steps, self._store.scores)
        return [step in kept for step in steps]


# ---- reading a step folder -----------------------------------------------------------------------


def find_checkpoint(directory: epath.PathLike) -> epath.Path:
    """The step folder meant by a workdir, its checkpoints/ folder, or a step folder itself.

    Raises:
      CheckpointError: there is none.
    """
    root = epath.Path(directory)
    if (root / _FILES / MANIFEST).exists():
        return root
    for parent in (root / "checkpoints", root):
        if parent.is_dir():
            # Unfinished saves bear temporary names, which are not numbers.
            if steps := [p for p in parent.iterdir() if p.name.isdigit()]:
                return max(steps, key=lambda p: int(p.name))
    raise CheckpointError(
        f"no checkpoint in {directory}: give a workdir, its checkpoints/ or one step's folder"
    )


def digest(directory: epath.PathLike) -> str:
    """A digest of all that a checkpoint holds, without reading it: that of its manifest, which has
    the checksums of the rest.

    Raises:
      CheckpointError: no checkpoint, or a damaged manifest.
    """
    manifest = _manifest_or_error(find_checkpoint(directory))
    return hashlib.sha256(seal(manifest)).hexdigest()


def load_config(
    directory: epath.PathLike, *, trusted: Sequence[str] = spec.TRUSTED, parts: Sequence[str] = ()
) -> Any:
    """The config of the run, or parts of it; its contract's tokenizer is the one stored beside it.

    Args:
      trusted, parts: as `spec.from_json` takes them; "contract" must be among the parts.

    Raises:
      CheckpointError: no checkpoint, or a damaged one.
      UserError: the config names a class outside the `trusted` packages.
    """
    folder = find_checkpoint(directory)
    try:
        digests = _load_manifest(folder)["files"]
        content = {name: _read_file(folder, name, digest) for name, digest in digests.items()}
    except _Damaged as error:
        raise CheckpointError(f"the checkpoint {folder} is damaged: {error}") from error
    config = spec.from_json(content[CONFIG].decode(), trusted=trusted, parts=parts)
    for name in content:
        if name.startswith(TOKENIZER):
            config.contract.tokenizer.path = str(folder / _FILES / name)
    return config


def load_params(
    directory: epath.PathLike, which: str = "ema", mesh: Mesh | None = None, rules: trees.Rules = ()
) -> Any:
    """The nested parameters of a checkpoint, verified, laid out over `mesh` (default: one device).

    Args:
      which: "ema" takes the running averages if the run kept them, "params" never does.

    Raises:
      CheckpointError: no checkpoint, or a damaged one.
    """
    if which not in ("ema", "params"):
        raise UserError(f"which={which!r} is neither 'ema' nor 'params'")
    folder = find_checkpoint(directory)
    mesh = mesh or mesh_lib.single_device_mesh()
    shapes = parameter_shapes(folder)
    placed = trees.flatten(mesh_lib.shardings(shapes, mesh, rules))
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[path])
        for path, leaf in shapes.items()
    }
    return trees.unflatten(read_params(folder, wanted, which))


def parameter_shapes(folder: epath.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape and type} of a checkpoint's parameters, without reading them."""
    return _shapes(_manifest_or_error(epath.Path(folder)), "params")


def read_params(
    folder: epath.PathLike, wanted: Mapping[str, jax.ShapeDtypeStruct], which: str
) -> dict[str, jax.Array]:
    """The parameters {path: shape with sharding} of one step folder; see `load_params`."""
    folder = epath.Path(folder)
    manifest = _manifest_or_error(folder)
    averaged = _shapes(manifest, "ema") if which == "ema" else {}
    try:
        params = _read_item(folder, manifest, "params", dict(wanted))
        if averaged:
            chosen = {path: leaf for path, leaf in wanted.items() if path in averaged}
            params |= _read_item(folder, manifest, "ema", chosen)
    except _Damaged as error:
        raise CheckpointError(f"the checkpoint {folder} is damaged: {error}") from error
    return params


def _read_item(
    folder: epath.Path, manifest: Any, name: str, wanted: dict[str, Any]
) -> dict[str, jax.Array]:
    try:
        with ocp.StandardCheckpointer() as reader:
            # Orbax takes no relative path.
            nested = reader.restore((folder / name).resolve(), trees.unflatten(wanted))
    except Exception as error:  # Orbax and TensorStore have many ways to say "unreadable".
        raise _Damaged(f"{name}/ cannot be read: {_first_line(error)}") from error
    flat = trees.flatten(nested)
    for path, digest in trees.digest(flat).items():
        if digest != manifest["leaves"][f"{name}/{path}"]["digest"]:
            raise _Damaged(f"{name}/{path} does not have the checksum it was saved with")
    return flat


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:_LONGEST]


def _read_file(folder: epath.Path, name: str, digest: str) -> bytes:
    try:
        content = (folder / _FILES / name).read_bytes()
    except OSError as error:
        raise _Damaged(f"{_FILES}/{name} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _Damaged(f"{_FILES}/{name} does not have the checksum it was saved with")
    return content


# ---- the manifest --------------------------------------------------------------------------------


def _describe(items: Items, files: Mapping[str, bytes]) -> dict[str, Any]:
    flat = {f"{name}/{path}": leaf for name, part in items.items() for path, leaf in part.items()}
    digests = trees.digest(flat)
    return {
        "leaves": {
            path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": digests[path]}
            for path, leaf in flat.items()
        },
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "versions": {"jax": jax.__version__, "orbax-checkpoint": ocp.__version__},
    }


def seal(manifest: Mapping[str, Any]) -> bytes:
    """The file of a manifest, with a checksum of its own."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    checksum = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps(rest | {"checksum": checksum}, indent=1).encode()


def _load_manifest(folder: epath.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _FILES / MANIFEST).read_text())
        if json.loads(seal(manifest)) != manifest:
            raise ValueError("it does not have its checksum")
    except (OSError, ValueError, AttributeError) as error:
        raise _Damaged(f"{_FILES}/{MANIFEST} cannot be read: {error}") from error
    return manifest


def _manifest_or_error(folder: epath.Path) -> dict[str, Any]:
    try:
        return _load_manifest(folder)
    except _Damaged as error:
        raise CheckpointError(f"the checkpoint {folder} is damaged: {error}") from error


def _shapes(manifest: Any, item: str) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        path.removeprefix(f"{item}/"): jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
        for path, leaf in manifest["leaves"].items()
        if path.startswith(f"{item}/")
    }


def _check_same_shapes(folder: epath.Path, manifest: Any, wanted: Items) -> None:
    stored = {path: (leaf["shape"], leaf["dtype"]) for path, leaf in manifest["leaves"].items()}
    ours = {
        f"{name}/{path}": (list(leaf.shape), str(leaf.dtype))
        for name, flat in wanted.items()
        for path, leaf in flat.items()
    }

    def show(leaf: tuple[list[int], str] | None) -> str:
        return "absent" if leaf is None else f"{'x'.join(map(str, leaf[0])) or 'scalar'} {leaf[1]}"

    # The parameters first: the moments only repeat what is wrong with them.
    paths = sorted(stored.keys() | ours.keys(), key=lambda p: (not p.startswith("params/"), p))
    lines = [
        f"{path}: {show(stored.get(path))} in the checkpoint, {show(ours.get(path))} here"
        for path in paths
        if stored.get(path) != ours.get(path)
    ]
    if lines:
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise CheckpointError(
            f"the checkpoint {folder} is of another model or optimizer:\n  "
            + "\n  ".join(lines[:_SHOWN] + more)
            + "\nUse another --workdir; init_from=spec(InitFrom, ...) loads parts of a checkpoint"
        )


# ---- files in a step folder ----------------------------------------------------------------------


class _FilesHandler(ocp.CheckpointHandler):
    """Writes named files as one item, so that they are committed with the arrays or not at all."""

    def save(self, directory: epath.Path, args: "_SaveFiles") -> None:
        if jax.process_index() == 0:
            for name, content in args.files.items():
                (directory / name).write_bytes(content)

    def restore(self, directory: epath.Path, args: Any = None) -> dict[str, bytes]:
        del args
        return {path.name: path.read_bytes() for path in directory.iterdir()}


@ocp.args.register_with_handler(_FilesHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _SaveFiles(ocp.args.CheckpointArgs):
    files: dict[str, bytes]
