"""Asks the official CAPTURE program: writes capture_scores.json.

    git clone https://github.com/foundation-multimodal-models/CAPTURE
    python tests/metrics/golden/make_capture.py CAPTURE/capture/capture_metric/capture.py

Made with commit 52eeb2781e8b4b1854c07a57b573c75edfd45688. Only its matching and F1 are asked, with
graphs from here: the parser, the lemmatiser and the sentence encoder are replaced by stand-ins,
synonyms by "one word contains the other" (the program's own first rule). Imports nothing of big_mm.
"""

import importlib.util
import json
import pathlib
import random
import sys
import types
import zlib

import numpy as np

WORDS = "dog dogs cat mat tree red blue large small hat".split()
STAND_INS = {
    "tabulate": {name: lambda *a, **k: None for name in ("TableFormat", "Line", "DataRow")},
    "nltk": {},
    "nltk.corpus": {"wordnet": types.SimpleNamespace(synsets=lambda word: [])},
    "nltk.stem": {"WordNetLemmatizer": object},
    "nltk.tokenize": {"sent_tokenize": None},
    "torch": {"device": None},
    "tqdm": {},
    "sentence_transformers": {"SentenceTransformer": None},
    "factual_scene_graph": {},
    "factual_scene_graph.parser": {},
    "factual_scene_graph.parser.scene_graph_parser": {"SceneGraphParser": None},
    "factual_scene_graph.evaluation": {},
    "factual_scene_graph.evaluation.soft_spice_evaluation": {},
}


def embed(phrases: list[str]) -> np.ndarray:
    """Unit vectors with positive entries; tests/metrics/test_caption_measures.py has the same."""
    rows = [np.random.default_rng(zlib.crc32(p.encode())).random(6) for p in phrases]
    return np.array([row / np.linalg.norm(row) for row in rows])


def graph(rng: random.Random) -> tuple[list, dict, list]:
    objects = list(dict.fromkeys(rng.choices(WORDS, k=rng.randint(0, 4))))
    attributes = {o: rng.sample(WORDS, rng.randint(0, 3)) for o in objects}
    triples = [[rng.choice(WORDS), rng.choice(["on", "by"]), rng.choice(WORDS)] for _ in range(3)]
    distinct = dict.fromkeys(map(tuple, triples[: rng.randint(0, 3)]))
    return objects, attributes, list(distinct)


def main() -> None:
    for name, content in STAND_INS.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(content)
    soft = sys.modules["factual_scene_graph.evaluation.soft_spice_evaluation"]
    soft.encode_phrases = lambda encoder, a, b, batch_size: (embed(a), embed(b))
    spec = importlib.util.spec_from_file_location("capture", sys.argv[1])
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    rng, lines = random.Random(0), []
    for number in range(120):
        judge = program.CAPTURE.__new__(program.CAPTURE)
        judge.alpha = judge.beta = 0.5
        judge.gamma, judge.eps, judge.text_encoder = 0.2, 1e-6, None
        judge.synonym_matching, judge.soft_matching = number % 2 == 1, number % 4 > 1
        reference, candidate = graph(rng), graph(rng)
        capture, *scores = judge.compute_f_score(reference, candidate)
        flat = [
            [objects, [w for words in attributes.values() for w in words], relations]
            for objects, attributes, relations in (candidate, reference)
        ]
        rules = [judge.synonym_matching, judge.soft_matching]
        lines.append(json.dumps([*flat, *rules, float(capture), [float(s) for s in scores]]))
    path = pathlib.Path(__file__).parent / "capture_scores.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
