"""SEARLE's evaluation functions on given embeddings; run by composed_retrieval.py, needs torch."""

import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import torch

# What validate.py imports and its metrics do not need.
UNUSED = {
    "clip": (),
    "clip.model": ("CLIP",),
    "tqdm": (),
    "data_utils": ("collate_fn", "PROJECT_ROOT", "targetpad_transform"),
    "datasets": ("FashionIQDataset", "CIRRDataset", "CIRCODataset"),
    "encode_with_pseudo_tokens": ("encode_with_pseudo_tokens",),
    "phi": ("Phi",),
    "utils": ("extract_image_features", "extract_pseudo_tokens_with_phi"),
}


def main() -> None:
    for name, members in UNUSED.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(dict.fromkeys(members, object))
    sys.modules["tqdm"].tqdm = lambda rows: rows
    sys.modules["utils"].device = torch.device("cpu")
    spec = importlib.util.spec_from_file_location("validate", sys.argv[1])
    searle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(searle)
    folder = pathlib.Path(sys.argv[2])
    sets = json.loads((folder / "sets.json").read_text())
    arrays = {k: torch.tensor(v) for k, v in np.load(folder / "arrays.npz").items()}
    gallery = arrays.pop("gallery")
    queries = {k: torch.nn.functional.normalize(v) for k, v in arrays.items()}
    names = [f"n{i}" for i in range(len(gallery))]
    found = {}

    rows, size = sets["cirr"], sets["cirr_images"]
    members = [row["img_set"]["members"] for row in rows]
    given = [row["reference"] for row in rows], [row["target_hard"] for row in rows], members
    searle.cirr_generate_val_predictions = lambda *arguments: (queries["cirr"], *given)
    scores = searle.cirr_compute_val_metrics(None, None, gallery[:size], names[:size], None, None)
    for key, value in scores.items():
        kind, k = key.removeprefix("cirr_").split("recall_at")
        found[f"cirr {'subset_' if kind else ''}r@{k}"] = value

    rows = sets["circo"]
    right = [[f"n{i}" for i in row["gt_img_ids"]] for row in rows]
    padded = [row + [""] * (23 - len(row)) for row in right]
    firsts = [row[0] for row in right]
    searle.circo_generate_val_predictions = lambda *arguments: (queries["circo"], firsts, padded)
    scores = searle.circo_compute_val_metrics(None, None, gallery, names, None, None)
    for key, value in scores.items():
        kind, k = key.removeprefix("circo_").split("_at")
        found[f"circo {'map' if kind == 'map' else 'r'}@{k}"] = float(value)

    for category, (first, last) in sets["categories"].items():
        given = queries[category], [row["target"] for row in sets["fashion"][category]]
        searle.fiq_generate_val_predictions = lambda *arguments, given=given: given
        part = gallery[first:last], names[first:last]
        scores = searle.fiq_compute_val_metrics(None, None, *part, None, None)
        for key, value in scores.items():
            found[f"fashion r@{key.removeprefix('fiq_recall_at')}_{category}"] = value
    print(json.dumps(found))


if __name__ == "__main__":
    main()
