"""The peer's part of `open_clip_coca.py`: open_clip itself, on the directory that we wrote.

Runs in an interpreter that has open_clip and transformers; never needs ours. The last line of
standard output is the versions.
"""

import contextlib
import importlib.metadata
import io
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from train_step_open_clip import tolerate_missing_operators


@contextlib.contextmanager
def mended(model: Any, forbidden: list[int], **stop: Any) -> Iterator[None]:
    """Beams of log-probabilities, and of lengths without bos; ids that are no words impossible.

    Args:
      stop: what transformers' scorer takes about when to stop, and open_clip does not hand on.
    """
    from open_clip import coca_model

    class Scorer(coca_model.BeamSearchScorer):
        def __init__(self, **options):
            super().__init__(**options, **stop)

        def process(self, *args, **options):
            return super().process(*args, **options, decoder_prompt_len=1)

        def finalize(self, *args, **options):
            return super().finalize(*args, **options, decoder_prompt_len=1)

    scorer, forward = coca_model.BeamSearchScorer, model.forward

    def log_probabilities(*args, **options):
        out = forward(*args, **options)
        out["logits"] = out["logits"].log_softmax(-1)
        out["logits"][..., forbidden] = -1e9
        return out

    coca_model.BeamSearchScorer, model.forward = Scorer, log_probabilities
    yield
    coca_model.BeamSearchScorer, model.forward = scorer, forward


def captions(model: Any, images: torch.Tensor, said: dict[str, int]) -> dict[str, np.ndarray]:
    """Token rows, greedy and of beams."""
    length = said["length"]
    common = {"seq_len": length, "max_seq_len": length, "fixed_output_length": True}
    common |= {"min_seq_len": 0, "sot_token_id": said["bos"], "eos_token_id": said["eos"]}
    common["pad_token_id"] = said["pad"]
    beams = {"num_beams": said["beams"], "num_beam_groups": 1}
    made = {"greedy": model.generate(images, generation_type="top_k", top_k=1, **common)}
    made["beams as is"] = model.generate(images, **beams, **common)
    forbidden, exact = [said["pad"], said["bos"]], {"max_length": length}
    for name, when in (("first", {"do_early_stopping": True}), ("exact", exact)):
        with mended(model, forbidden, **{"do_early_stopping": "never"} | when):
            made[f"beams, mended, {name}"] = model.generate(images, **beams, **common)
    return {name: torch.as_tensor(rows).numpy() for name, rows in made.items()}


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        tolerate_missing_operators()
        import open_clip

        arrays = dict(np.load(folder / "ours.npz"))
        said = json.loads((folder / "said.json").read_text())
        directory = f"local-dir:{folder / 'model'}"
        model, _, transform = open_clip.create_model_and_transforms(directory)
        model.eval()
        files = [arrays[f"file_{i}"].tobytes() for i in range(len(arrays["pictures"]))]
        images = torch.stack([transform(Image.open(io.BytesIO(file))) for file in files])
        given = open_clip.get_model_preprocess_cfg(model)
        mean, std = (np.array(given[name]) for name in ("mean", "std"))
        pixels = images.permute(0, 2, 3, 1).numpy() * std + mean
        with torch.no_grad():
            made = {
                "pictures": np.rint(255 * pixels).astype(np.uint8),
                "image": model.encode_image(images, normalize=True).numpy(),
                "text": model.encode_text(
                    torch.tensor(arrays["tokens"]).long(), normalize=True
                ).numpy(),
                **captions(model, images, said),
            }
        np.savez(folder / "theirs.npz", **made)
    names = ("open_clip_torch", "transformers", "torch")
    print(json.dumps({name: importlib.metadata.version(name) for name in names}))


if __name__ == "__main__":
    main()
