"""From a checkpoint to embeddings, similarities and captions.

    predictor = big_mm.load("runs/quickstart")
    predictor.similarity(images, ["a red circle", "two green stars"])
    predictor.caption(images, num_beams=3)

It knows a model only by its documented methods and outputs, and its inputs only by the contract
stored with it. Evaluators, notebooks and the trainer use the same class; the trainer hands over new
parameters with `replace`, which keeps the compiled programs.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Float32, Int32
from rich import console, progress

from big_mm import decoding, exported, programs, spec, trees
from big_mm import mesh as mesh_lib
from big_mm.data import contract as contract_lib
from big_mm.data import pictures, token_rows
from big_mm.data.pictures import Pictures
from big_mm.interop import reading
from big_mm.spec import UserError
from big_mm.training import checkpoint
from big_mm.types import HOST_ONLY, Batch, Outputs


def load(
    directory: str | os.PathLike[str],
    *,
    trusted: Sequence[str] = spec.TRUSTED,
    which: str = "ema",
    mesh: Mesh | None = None,
    config: str | None = None,
    tokenizer: str | None = None,
) -> "Predictor":
    """The predictor of a checkpoint; nothing but its directory is needed.

    Args:
      directory: a workdir (its latest step), its checkpoints/, one step's folder, what
        `python -m big_mm.export --format safetensors` wrote, or another program's checkpoint (see
        `interop.reading`); local or gs://.
      trusted: packages whose classes the stored config may name.
      which: "ema" takes the running average of the parameters where the run kept one, "params"
        never does.
      mesh: default: all devices, each with all parameters.
      config, tokenizer: of another program's checkpoint, where they do not lie beside it.

    Raises:
      UserError: no checkpoint, a damaged one, or one that this code cannot rebuild.
    """
    mesh = mesh or mesh_lib.MeshConfig().make()
    components, params = read(
        directory, trusted=trusted, which=which, mesh=mesh, config=config, tokenizer=tokenizer
    )
    built = spec.build(components, trusted=trusted)
    predictor = Predictor(built["model"], params, built["contract"], mesh, progress=True)
    predictor.check()
    return predictor


def read(
    directory: str | os.PathLike[str],
    *,
    trusted: Sequence[str],
    which: str,
    mesh: Mesh,
    config: str | None = None,
    tokenizer: str | None = None,
) -> tuple[ml_collections.ConfigDict, Any]:
    """The specs of `model` and `contract`, and the parameters; as `load`, without building them."""
    path = epath.Path(directory)
    if reading.recognises(path):
        imported = reading.read(path, config, tokenizer)
        return imported.components, exported.place(imported.params, mesh)
    for name, value in (("config", config), ("tokenizer", tokenizer)):
        if value is not None:
            raise UserError(f"{name}={value!r}, but {path} is no other program's checkpoint")
    if exported.is_exported(path):
        return exported.read(path, trusted, mesh)
    wanted = ("objective.model", "contract")
    run = checkpoint.load_config(directory, trusted=trusted, parts=wanted)
    components = {"model": run.objective.model, "contract": run.contract}
    return ml_collections.ConfigDict(components), checkpoint.load_params(directory, which, mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A model, its parameters and its contract.

    Every process of a run makes the same calls with the same lists; each prepares only the rows of
    its own devices, and each gets all results. Lists of any length are cut into batches of few
    sizes, so that a program compiles at most three times.

    Attributes:
      mesh: where `params` lie; default: all devices.
      batch_size: rows of a full batch over all devices.
      threads: that prepare pictures.
      progress: show a progress bar for long work, on a terminal.
      features: a local folder that keeps the outputs of whole sources (`evaluators.features`).
      kept: the same in memory, for this predictor alone.
      compiled: the programs of its model and mesh.
    """

    model: nn.Module
    params: Any
    contract: contract_lib.Contract
    mesh: Mesh | None = None
    batch_size: int = 64
    threads: int = min(os.cpu_count() or 1, 16)
    progress: bool = False
    features: str | os.PathLike[str] | None = None
    # Not given, so that `dataclasses.replace` begins with none: another model has other programs.
    kept: dict[Any, Any] = dataclasses.field(init=False, default_factory=dict, repr=False)
    compiled: dict[Any, Any] = dataclasses.field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.mesh is None:
            object.__setattr__(self, "mesh", mesh_lib.MeshConfig().make())

    def replace(self, *, params: Any) -> "Predictor":
        """The same predictor, programs compiled so far included, with other parameters."""
        made = dataclasses.replace(self, params=params)
        object.__setattr__(made, "compiled", self.compiled)
        return made

    def encode_image(self, images: Pictures) -> Float32[np.ndarray, "n dim"]:
        """Unit embeddings of pictures: Pillow images, uint8 arrays, files' paths or bytes.

        Raises:
          UserError: a picture that cannot be read (by its place in the list and its name), or a
            model without image embeddings.
        """
        return self.image_outputs(images, ("image_embedding",))["image_embedding"]

    def image_outputs(
        self, images: Pictures, keys: Sequence[str], dtype: str = "float32"
    ) -> Outputs:
        """Documented outputs (`types.OUTPUTS`) of pictures, one row each, such as `image_features`.

        Raises:
          UserError: as `encode_image`; an output that the model does not have.
        """
        program = self._program(programs.image_outputs, keys=tuple(keys), dtype=dtype)
        return self._collect(
            "images",
            pictures.count(images),
            lambda at: (self._pictures(images, at),),
            functools.partial(program, self.params),
        )

    def encode_text(self, texts: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """Unit embeddings of texts. A text longer than the contract's `max_len` is cut and keeps
        its eos.

        Raises:
          UserError: a model without text embeddings, or a contract without tokenizer.
        """
        return self.text_outputs(texts, ("text_embedding",))["text_embedding"]

    def text_outputs(self, texts: Sequence[str], keys: Sequence[str]) -> Outputs:
        """Outputs (`types.OUTPUTS`) of texts in float32, one row each. Raises as `encode_text`."""
        tokens, token_mask = self.contract.text(texts)
        program = self._program(programs.text_outputs, keys=tuple(keys))
        return self._collect(
            "texts",
            len(texts),
            lambda at: (tokens[at], token_mask[at]),
            functools.partial(program, self.params),
        )

    def similarity(
        self, images: Pictures, texts: Sequence[str]
    ) -> Float32[np.ndarray, "images texts"]:
        """The cosine of each image with each text."""
        return self.encode_image(images) @ self.encode_text(texts).T

    def caption(
        self,
        images: Pictures,
        *,
        prefix: str | Sequence[str] = "",
        num_beams: int | None = None,
        length_penalty: float | None = None,
        min_len: int | None = None,
        max_len: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """A caption of each picture, the prefix included; see `decoding.options` for the arguments.

        What is None is as the contract's decoding defaults have it.

        Args:
          prefix: the words that captions begin with: one for all, or one for each picture.
          min_len, max_len: tokens of a caption, with bos, prefix and eos.
          seed: of the samples, which do not depend on what else is in the list.

        Raises:
          UserError: as `encode_image`; a model that does not caption; options out of range.
        """
        given = dict(num_beams=num_beams, length_penalty=length_penalty, guidance=guidance)
        given |= dict(min_len=min_len, max_len=max_len)
        given |= dict(temperature=temperature, top_k=top_k, top_p=top_p)
        given = {key: value for key, value in given.items() if value is not None}
        how = dataclasses.replace(self.contract.decoding, **given)
        tokens, _ = self.generate(images, how, prefix=prefix, seed=seed)
        return self.contract.detokenize(tokens)

    def generate(
        self,
        images: Pictures,
        how: contract_lib.Decoding,
        *,
        prefix: str | Sequence[str] | Int32[np.ndarray, "n prefix"] = "",
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> tuple[Int32[np.ndarray, "n length"], Float32[np.ndarray, " n"]]:
        """`caption` as tokens (bos, words, eos, pad ...) and their log-probabilities.

        A prefix may also be tokens: bos and what follows, then the tokenizer's `free_id`. A
        picture's number, by which its samples differ from others', is its place or is in `rows`.
        """
        settings = dataclasses.asdict(how)
        length = self._length(settings.pop("max_len"), how.min_len)
        options = decoding.options(**settings)
        count = pictures.count(images)
        vocabulary = decoding.Vocabulary.of(self.contract.require_tokenizer())
        prefixes, given = self._prefixes(prefix, count, length)
        # Powers of two: few programs, and at most half of a prefix is fed token by token.
        prefill = 1 << (int(given.min()).bit_length() - 1)
        numbers = np.arange(count, dtype=np.int32) if rows is None else np.array(rows, np.int32)

        def prepare(at: np.ndarray) -> tuple[np.ndarray, ...]:
            start = prefixes[at]
            # A padding row ends at once, so that the loop does not wait for it.
            start[at < 0, prefill] = vocabulary.eos_id
            return self._pictures(images, at), start, numbers[at]

        program = self._program(programs.generate, vocabulary=vocabulary, prefill=prefill)
        return self._collect(
            "captions", count, prepare, lambda *x: program(self.params, *x, seed, options)
        )

    def caption_log_likelihood(
        self, images: Pictures, captions: Sequence[str]
    ) -> tuple[Float32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """log p(caption | image) of each pair, and over how many tokens (eos included).

        Raises:
          UserError: as `caption`; lists of different lengths.
        """
        count = pictures.count(images)
        if count != len(captions):
            raise UserError(f"{count} images for {len(captions)} captions")
        tokens, token_mask = self.contract.text(captions)
        counted = (
            np.arange(tokens.shape[1]) <= token_rows.ends(tokens, self.contract.tokenizer)[:, None]
        )
        return self._collect(
            "captions",
            count,
            lambda at: (self._pictures(images, at), tokens[at], token_mask[at], counted[at]),
            functools.partial(self._program(programs.caption_log_likelihood), self.params),
        )

    def texts_log_likelihood(
        self, images: Pictures, texts: Sequence[Sequence[str]], prefix: str | Sequence[str] = ""
    ) -> tuple[Float32[np.ndarray, "n texts"], Int32[np.ndarray, "n texts"]]:
        """log p(text | image, prefix) of several texts of each image, and over how many tokens.

        Each image is encoded once. The tokens of prefix + text are counted (eos included) from the
        first in which one of the image's texts differs from the prefix alone, so that the texts of
        an image compare exactly, however a tokenizer joins them to the prefix. Where an image has
        fewer texts than another, the rest is -inf of 0 tokens. A program compiles for each largest
        number of texts.

        Args:
          prefix: for all, or one for each image; put before each text as it is.

        Raises:
          UserError: as `caption`; lists of different lengths; an image without texts.
        """
        count = pictures.count_with_texts(images, texts)
        shared, given = self._prefixes(prefix, count, self.contract.max_len)
        prefixes = [prefix] * count if isinstance(prefix, str) else prefix
        whole = [first + text for first, row in zip(prefixes, texts, strict=True) for text in row]
        encoded, _ = self.contract.text(whole)
        there = np.arange(max(map(len, texts))) < np.array([len(row) for row in texts])[:, None]
        tokens, counted = token_rows.continuations(
            encoded, there, shared, np.broadcast_to(given, count), self.contract.tokenizer
        )
        totals, counts = self._collect(
            "texts",
            count,
            lambda at: (self._pictures(images, at), tokens[at], counted[at]),
            functools.partial(self._program(programs.texts_log_likelihood), self.params),
        )
        return np.where(there, totals, -np.inf).astype(np.float32), counts

    def texts_match(
        self, images: Pictures, texts: Sequence[Sequence[str]]
    ) -> Float32[np.ndarray, "n texts"]:
        """The log odds that each of several texts belongs to its image, by a model's `match`.

        Each image is encoded once. Where it has fewer texts than another, the rest is -inf.

        Raises:
          UserError: as `texts_log_likelihood`; a model that does not match.
        """
        count = pictures.count_with_texts(images, texts)
        there = np.arange(max(map(len, texts))) < np.array([len(row) for row in texts])[:, None]
        tokens, token_mask = (
            token_rows.by_image(rows, there)
            for rows in self.contract.text([text for row in texts for text in row])
        )
        scores = self._collect(
            "texts",
            count,
            lambda at: (self._pictures(images, at), tokens[at], token_mask[at]),
            functools.partial(self._program(programs.texts_match), self.params),
        )
        return np.where(there, scores, -np.inf).astype(np.float32)

    def outputs(self, batch: Batch, keys: Sequence[str] | None = None) -> Outputs:
        """The model's outputs for this process's rows of a batch, of any number of rows.

        Args:
          batch: arrays, the batch axis first; all processes give equally many rows.
          keys: the outputs to compute and return; default: all.

        Returns:
          Outputs of the rows of all processes, in their order.

        Raises:
          UserError: an output that the model does not have.
        """
        arrays = {k: v for k, v in batch.items() if k not in HOST_ONLY}
        rows = len(next(iter(arrays.values())))
        pieces = max(1, mesh_lib.batch_devices(self.mesh) // jax.process_count())
        local = -(-rows // pieces) * pieces
        padded = {k: v[np.minimum(np.arange(local), rows - 1)] for k, v in arrays.items()}
        program = self._program(programs.forward, keys=None if keys is None else tuple(keys))
        outputs = jax.device_get(program(self.params, mesh_lib.to_global(padded, self.mesh)))

        def cut(x: np.ndarray) -> np.ndarray:
            if x.ndim == 0:
                return x
            return x.reshape(-1, local, *x.shape[1:])[:, :rows].reshape(-1, *x.shape[1:])

        return {key: cut(value) for key, value in outputs.items()}

    def check(self) -> Outputs:
        """The shapes of the model's outputs for one row, if the parameters and the vocabulary are
        the model's.

        Raises:
          UserError: they are not; lists the paths that differ.
        """
        size, batch = self.contract.image_size, {}
        batch["image"] = np.zeros((1, size, size, 3), np.uint8)
        if self.contract.tokenizer is not None:
            batch["tokens"], batch["token_mask"] = self.contract.text([""])
        elif any(path.startswith("text/") for path in trees.flatten(self.params)):
            # Without a tokenizer the caller makes the ids.
            batch["tokens"] = np.zeros((1, self.contract.max_len), np.int32)
            batch["token_mask"] = np.ones((1, self.contract.max_len), bool)
        init = functools.partial(self.model.init_with_output, train=False)
        outputs, variables = jax.eval_shape(init, jax.random.key(0), batch)
        ours = {k: v.shape for k, v in trees.flatten(variables["params"]).items()}
        given = {k: v.shape for k, v in trees.flatten(self.params).items()}
        if differ := sorted(k for k in ours | given if ours.get(k) != given.get(k)):
            shown = "\n  ".join(
                f"{k}: {given.get(k, 'absent')} stored, {ours.get(k, 'absent')} in the model"
                for k in differ[:10]
            )
            raise UserError(f"{len(differ)} parameters are not of this model:\n  {shown}")
        if "caption_logits" in outputs and self.contract.tokenizer is not None:
            self.contract.check_vocabulary(outputs["caption_logits"].shape[-1])
        return outputs

    def _program(self, function: Callable[..., Any], **static: Any) -> Callable[..., Any]:
        key = (function, tuple(static.items()))
        if key not in self.compiled:
            bound = functools.partial(function, self.model, **static)
            self.compiled[key] = jax.jit(bound, out_shardings=mesh_lib.replicated(self.mesh))
        return self.compiled[key]

    def _collect(
        self,
        name: str,
        count: int,
        prepare: Callable[[np.ndarray], tuple[np.ndarray, ...]],
        run: Callable[..., Any],
    ) -> Any:
        """`run(*prepare(at))` over batches of positions, joined and cut to `count` rows.

        A padding row has position -1, which stands for the last row. The next batch is prepared
        while the devices work.
        """
        if not count:
            raise UserError(f"{name}: the list is empty")
        size = self._batch_rows(count)
        sharding = mesh_lib.batch_sharding(self.mesh)

        def inputs(start: int) -> list[jax.Array]:
            at = np.arange(start, start + size)
            at[at >= count] = -1
            return [
                jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for x in prepare(at)
            ]

        results: list[Any] = []
        with futures.ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(inputs, 0)
            for start in self._track(range(0, count, size), name):
                arrays = pending.result()
                if start + size < count:
                    pending = ahead.submit(inputs, start + size)
                results.append(run(*arrays))
                if len(results) > 1:
                    results[-2] = jax.device_get(results[-2])
        return jax.tree.map(lambda *x: np.concatenate(x)[:count], *jax.device_get(results))

    def _batch_rows(self, count: int) -> int:
        """The rows to compile for: 1 or 8 for each device, or a full batch."""
        devices = mesh_lib.batch_devices(self.mesh)
        full = -(-self.batch_size // devices) * devices
        return next((n for n in (devices, 8 * devices) if count <= n < full), full)

    def _pictures(self, images: Pictures, at: np.ndarray) -> np.ndarray:
        """The prepared pictures at positions `at`; those of other processes' devices stay black."""
        size = self.contract.image_size
        if isinstance(images, np.ndarray) and images.dtype == np.uint8:
            if images.shape[-3:] == (size, size, 3):
                return images[at]
        out = np.zeros((len(at), size, size, 3), np.uint8)
        sharding = mesh_lib.batch_sharding(self.mesh)
        here = np.zeros(len(at), bool)
        for index in sharding.addressable_devices_indices_map((len(at),)).values():
            here[index] = True

        def prepare(row: int) -> None:
            position = int(at[row])
            out[row] = pictures.prepared(images[position], self.contract, position)

        with futures.ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(prepare, np.flatnonzero(here & (at >= 0)).tolist()))
        return out

    def _length(self, max_len: int | None, min_len: int) -> int:
        longest = self.contract.max_len
        length = longest if max_len is None else max_len
        if not 2 <= length <= longest:
            raise UserError(f"max_len={length} must be from 2 to the contract's {longest}")
        if min_len > length:
            raise UserError(f"min_len={min_len} is above max_len={length}")
        return length

    def _prefixes(
        self, prefix: str | Sequence[str] | np.ndarray, count: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token rows [count, length] that captions begin with, and how many tokens each gives."""
        texts = [prefix] if isinstance(prefix, str) else list(prefix)
        if not isinstance(prefix, str) and len(texts) != count:
            raise UserError(f"{len(texts)} prefixes for {count} images")
        tokenizer = self.contract.require_tokenizer()
        if isinstance(prefix, np.ndarray):
            tokens, given = prefix, (prefix != tokenizer.free_id).sum(axis=1)
        else:
            tokens, _ = self.contract.text(texts)
            given = token_rows.ends(tokens, tokenizer)
        if (given >= min(length, self.contract.max_len - 1)).any():
            text = texts[int(given.argmax())]
            raise UserError(f"the prefix {text!r} leaves no room in max_len={length} tokens")
        tokens = np.where(np.arange(length) < given[:, None], tokens[:, :length], tokenizer.free_id)
        return np.broadcast_to(tokens, (count, length)), given

    def _track(self, work: range, name: str) -> Iterable[int]:
        stderr = console.Console(stderr=True)
        hidden = not (self.progress and stderr.is_terminal and len(work) > 4)
        return progress.track(work, name, console=stderr, transient=True, disable=hidden)
