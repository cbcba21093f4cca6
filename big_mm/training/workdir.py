"""A run's folder: whose it is, what goes into its checkpoints, and where compiled programs go."""

import json
import os
import pathlib
import re
import stat
from typing import Any

import jax
import ml_collections
from absl import logging
from etils import epath

from big_mm import spec, trees
from big_mm.spec import UserError
from big_mm.training import checkpoint, writers
from big_mm.training.run import Run

CONFIG = checkpoint.CONFIG
# What may differ between a run and its continuation, as patterns over "/"-joined config keys.
FREE = (
    r"steps|log_every|eval_every|profile(/.*)?|max_bad_share",
    r"(checkpoint|guard|mesh|evaluators)(/.*)?",
    r"data/(num_workers|num_threads|prefetch|cache|timeout)",
    r"(.*/)?(remat|unroll)",
)


def check_same_run(folder: epath.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses to continue in the folder of another config; FREE says what may differ.

    Raises:
      UserError: naming the keys that differ.
    """
    path = folder / CONFIG
    if not path.exists() or not _has_results(folder):
        return
    theirs = trees.flatten(_leaves(json.loads(path.read_text())))
    ours = trees.flatten(_leaves(json.loads(spec.to_json(spec.resolve(config)))))
    lines = [
        f"{key.replace('/', '.')}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} now"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
        and not any(re.fullmatch(pattern, key) for pattern in FREE)
    ]
    if lines:
        raise UserError(
            f"{folder} holds a run of another config:\n  "
            + "\n  ".join(lines)
            + "\nGive another --workdir, or the same config to continue, or remove the folder"
        )


def check_writable(folder: epath.Path) -> None:
    """Raises a UserError if results cannot be written to `folder`, which is made if need be."""
    probe = folder / f".writable-{jax.process_index()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"results cannot be written to --workdir {folder}: {error}") from error


def claim(folder: epath.Path, config: ml_collections.ConfigDict) -> None:
    """Writes config.json, once it is known that the run can begin."""
    if jax.process_index() == 0:
        writers.write_whole(folder / CONFIG, spec.to_json(spec.resolve(config)))


def _has_results(folder: epath.Path) -> bool:
    steps = folder / "checkpoints"
    return (folder / writers.METRICS).exists() or (steps.exists() and any(steps.iterdir()))


def _leaves(node: Any) -> Any:
    """A config's values as text: as leaves, a tree would drop None and empty containers."""
    if isinstance(node, dict) and node:
        return {key: _leaves(value) for key, value in node.items()}
    if isinstance(node, list) and node:
        return [_leaves(value) for value in node]
    return repr(node)


def checkpoint_files(run: Run, config: ml_collections.ConfigDict) -> dict[str, bytes]:
    """What makes a step folder self-sufficient."""
    files = {checkpoint.CONFIG: spec.to_json(spec.resolve(config)).encode()}
    if run.contract.tokenizer is not None:
        files[run.contract.tokenizer.file_name] = run.contract.tokenizer.model_bytes
    return files


def enable_compilation_cache(folder: epath.Path) -> None:
    """Keeps compiled programs where only this user can write: whoever writes there runs code here.

    The directory is JAX's own setting if there is one, else big_mm/jax in the user's cache, else
    (if others own or may write to it) in the workdir.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    directory = private_cache("jax") or _private(pathlib.Path(folder) / ".jax_cache")
    if directory is None:
        logging.warning("no private directory for compiled programs: every start compiles anew")
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def private_cache(name: str) -> pathlib.Path | None:
    """big_mm/`name` in XDG_CACHE_HOME or ~/.cache; None if others own or may write to it."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return _private(pathlib.Path(home) / "big_mm" / name)


def _private(directory: pathlib.Path) -> pathlib.Path | None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError:
        return None
    own = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return directory if own else None
