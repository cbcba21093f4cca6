"""Composed retrieval by each benchmark's rules, from its own files."""

import dataclasses
import functools
import io
import json
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
import tiny
from PIL import Image

from big_mm.evaluators import run_all
from big_mm.evaluators.composed_benchmarks import (
    Circo,
    Cirr,
    FashionIq,
    GeneCis,
    Triplets,
)
from big_mm.evaluators.composed_retrieval import ComposedRetrieval
from big_mm.evaluators.composition import (
    CaptionAndRewrite,
    Fill,
    PromptDirection,
    References,
    Sum,
    unit,
)
from big_mm.evaluators.crops import Crops, square
from big_mm.metrics import composed
from big_mm.spec import UserError

IMAGES = 60


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


@functools.cache
def vector(name):
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=16)


@pytest.fixture
def oracle(contract):
    """Random but fixed embeddings."""
    return oracles.Oracle(contract, lambda n: vector(f"image {n}"), vector)


@pytest.fixture
def write(tmp_path):
    def file(name, content):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return str(path)

    return file


def names(oracle, reference, edit, gallery):
    """A plain reference: the gallery's names, best first, by the normalised sum."""
    image = oracle.encode_image([oracles.picture(n) for n in gallery])
    query = oracle.encode_image([oracles.picture(reference)])[0] + oracle.encode_text([edit])[0]
    order = np.argsort(-(image @ query), kind="stable")
    return [gallery[i] for i in order]


def cirr_files(write, withheld=False):
    """24 queries over the first 50 of 60 records."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        members = rng.permutation(50)[:6].tolist()
        row = {
            "pairid": 100 + number,
            "reference": f"n{members[0]}",
            "target_hard": f"n{members[1]}",
            "caption": f"edit {number}",
            "img_set": {"members": [f"n{m}" for m in members]},
        }
        if withheld:
            del row["target_hard"]
        rows.append(row)
    split = {f"n{i}": f"./dev/n{i}.png" for i in range(50)}
    return rows, Cirr(write("cap.json", rows), write("split.json", split))


def number(key):
    return int(key.removeprefix("n"))


@pytest.mark.parametrize("batch_size", [7, 64])
def test_cirr(oracle, write, batch_size):
    rows, benchmark = cirr_files(write)
    evaluator = ComposedRetrieval(oracles.Numbered(IMAGES), benchmark, batch_size=batch_size)
    result = evaluator.evaluate(oracle, 0)
    places, subset_places = [], []
    for row in rows:
        gallery = [i for i in range(50) if i != number(row["reference"])]
        ranked = names(oracle, number(row["reference"]), row["caption"], gallery)
        places.append(ranked.index(number(row["target_hard"])))
        members = {number(m) for m in row["img_set"]["members"]}
        subset = [i for i in ranked if i in members]
        assert len(subset) == 5
        subset_places.append(subset.index(number(row["target_hard"])))
    for k in (1, 5, 10, 50):
        assert result.values[f"r@{k}"] == np.mean(np.array(places) < k)
    for k in (1, 2, 3):
        assert result.values[f"subset_r@{k}"] == np.mean(np.array(subset_places) < k)
        assert result.values[f"subset_r@{k}_chance"] == pytest.approx(k / 5)
    assert result.values["r@1_chance"] == pytest.approx(1 / 49)
    both = result.values["r@5"] + result.values["subset_r@1"]
    assert result.values["mean"] == pytest.approx(both / 2)
    assert result.values["images"] == 50 and len(result.keys) == 24
    assert result.artifacts["edits"]["queries"][0]["text"] == "edit 0"


def test_cirr_submissions(oracle, write, tmp_path):
    rows, benchmark = cirr_files(write, withheld=True)
    rows_of = {}
    pattern = str(tmp_path / "{}.json")
    source = oracles.Numbered(IMAGES)
    with pytest.raises(UserError, match="the server wants 50 images for query 100, .* gives 49"):
        ComposedRetrieval(source, benchmark, submission=pattern).run(oracle)
    large = write("large.json", {f"n{i}": "" for i in range(IMAGES)})
    benchmark = dataclasses.replace(benchmark, split=large)
    values = ComposedRetrieval(source, benchmark, submission=pattern).run(oracle)
    assert values == {"queries": 24, "images": IMAGES}
    for metric, top in (("recall", 50), ("recall_subset", 3)):
        content = json.loads((tmp_path / f"{metric}.json").read_text())
        assert (content.pop("version"), content.pop("metric")) == ("rc2", metric)
        assert list(content) == [str(row["pairid"]) for row in rows]
        assert all(len(set(row)) == top for row in content.values())
        rows_of[metric] = content
    for row in rows:
        first = rows_of["recall"][str(row["pairid"])]
        assert row["reference"] not in first
        assert set(rows_of["recall_subset"][str(row["pairid"])]) < set(row["img_set"]["members"])
    with pytest.raises(UserError, match="targets are withheld"):
        ComposedRetrieval(source, benchmark).run(oracle)


def official_circo(predictions, right, ranks=(5, 10, 25, 50)):
    """evaluation.py of the benchmark, in its own few lines."""
    found = np.isin(predictions, right)
    precisions = np.cumsum(found) * found / np.arange(1, len(found) + 1)
    ap = {k: precisions[:k].sum() / min(len(right), k) for k in ranks}
    recall = {k: float(right[0] in predictions[:k]) for k in ranks}
    return ap, recall


def test_circo(oracle, write, tmp_path):
    rng = np.random.default_rng(1)
    rows = []
    for i in range(12):
        chosen = rng.permutation(IMAGES)[: 2 + i].tolist()
        rows.append(
            {
                "id": i,
                "reference_img_id": chosen[0],
                "relative_caption": f"has {i}",
                "shared_concept": "x",
                "target_img_id": chosen[1],
                "gt_img_ids": chosen[1:],
                "semantic_aspects": ["negation"] if i % 3 else ["negation", "addition"],
            }
        )
    path = write("val.json", rows)
    evaluator = ComposedRetrieval(
        oracles.Numbered(IMAGES), Circo(path, "n{}"), submission=str(tmp_path / "{}.json")
    )
    values = evaluator.evaluate(oracle, 0).values
    ranked = [
        names(oracle, r["reference_img_id"], r["relative_caption"], list(range(IMAGES)))[:50]
        for r in rows
    ]
    official = [official_circo(p, r["gt_img_ids"]) for p, r in zip(ranked, rows, strict=True)]
    for k in (5, 10, 25, 50):
        assert values[f"map@{k}"] == pytest.approx(np.mean([ap[k] for ap, _ in official]))
        assert values[f"r@{k}"] == pytest.approx(np.mean([recall[k] for _, recall in official]))
    addition = np.mean([ap[10] for ap, _ in official[::3]])
    assert values["map@10_addition"] == pytest.approx(addition)
    assert values["map@10_negation"] == pytest.approx(values["map@10"])
    submitted = json.loads((tmp_path / "map.json").read_text())
    assert submitted == {str(i): row for i, row in enumerate(ranked)}


def test_fashion_iq(oracle, write):
    captions, splits, rows = {}, {}, {}
    for offset, category in enumerate(("dress", "shirt")):
        rows[category] = [
            {
                "target": f"n{offset * 30 + 3 * i}",
                "candidate": f"n{offset * 30 + 3 * i + 1}",
                "captions": [f"is {i}. ", "has sleeves"],
            }
            for i in range(8)
        ]
        captions[category] = write(f"cap.{category}.json", rows[category])
        gallery = [f"n{offset * 30 + i}" for i in range(29)]
        splits[category] = write(f"split.{category}.json", gallery)
    source = oracles.Numbered(IMAGES)
    result = ComposedRetrieval(source, FashionIq(captions, splits)).evaluate(oracle, 0)
    means = []
    for offset, category in enumerate(("dress", "shirt")):
        gallery = [offset * 30 + i for i in range(29)]
        hits = [
            number(row["target"])
            in names(oracle, number(row["candidate"]), f"is {i} and has sleeves", gallery)[:10]
            for i, row in enumerate(rows[category])
        ]
        means.append(np.mean(hits))
        assert result.values[f"r@10_{category}"] == pytest.approx(means[-1])
    assert result.values["r@10"] == pytest.approx(np.mean(means))
    assert result.values["r@10_chance"] == pytest.approx(10 / 29)
    assert result.protocol["gallery sizes"] == {"dress": 29, "shirt": 29}
    assert result.protocol["captions joined by"] == " and "
    union = FashionIq(captions, gallery="union")
    easier = ComposedRetrieval(source, union).evaluate(oracle, 0)
    assert easier.protocol["gallery sizes"] == {"dress": 16, "shirt": 16}
    with pytest.raises(UserError, match="need a split file for each category"):
        FashionIq(captions)
    cut = splits | {"shirt": splits["dress"]}
    with pytest.raises(UserError, match="query shirt/0: its target 'n30' is not in the gallery"):
        ComposedRetrieval(source, FashionIq(captions, cut)).run(oracle)


def test_genecis(oracle, write):
    rng = np.random.default_rng(2)
    rows, hits = [], []
    for i in range(20):
        reference, target, *others = rng.permutation(IMAGES)[:12].tolist()
        entry = [{"val_image_id": number} for number in (reference, target, *others)]
        row = {"condition": f"c {i}", "reference": entry[0], "target": entry[1]}
        rows.append(row | {"gallery": entry[2:]})
        hits.append(names(oracle, reference, f"c {i}", [target, *others]).index(target) < 2)
    benchmark = GeneCis(write("change_object.json", rows), "n{}")
    evaluator = ComposedRetrieval(oracles.Numbered(IMAGES), benchmark)
    values = evaluator.run(oracle)
    assert values["subset_r@2"] == np.mean(hits)
    assert values["subset_r@2_chance"] == pytest.approx(2 / 11)
    assert "r@1" not in values
    assert dataclasses.replace(benchmark, key=None).queries[0].reference.isdigit()
    with pytest.raises(UserError, match="shows whole images: it has no boxes"):
        len(Crops(benchmark, oracles.Numbered(IMAGES)))
    broken = [rows[0] | {"target": {"id": 3}}]
    with pytest.raises(UserError, match="an image has neither val_image_id nor image_id"):
        ComposedRetrieval(oracles.Numbered(IMAGES), GeneCis(write("x.json", broken))).run(oracle)


@dataclasses.dataclass(frozen=True)
class Fields:
    """Two pictures of four fields each; field i has the colour of the numbered picture i."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = np.zeros((80, 80, 3), np.uint8)
        for i in range(4):
            y, x = 40 * (i // 2), 40 * (i % 2)
            image[y : y + 40, x : x + 40] = (4 * index + i, 0, 77)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return {"image": file.getvalue(), "key": f"v{index}"}

    def where(self, index):
        return f"field {index}"


def test_genecis_cuts_objects_out_of_images(contract, write):
    """A box inside of each field, near enough to the right and the bottom to show nothing else."""

    def named(i):
        x, y = 40 * (i % 2), 40 * (i // 2 % 2)
        return {"image_id": str(i // 4), "instance_bbox": [x + 25, y + 25, 15, 15]}

    rows = [
        {"reference": named(i), "target": named((i + 1) % 8), "condition": "next"}
        | {"gallery": [named((i + j) % 8) for j in (2, 3, 4)]}
        for i in range(8)
    ]
    task = GeneCis(write("change_attribute.json", rows), "v{}")
    crops = Crops(task, Fields())
    assert len(crops) == 8 and crops[0]["key"] == "v0@25,25,15,15"
    turn = 2 * np.pi / 8
    circle = oracles.Oracle(
        contract,
        lambda n: np.array([np.cos(n * turn), np.sin(n * turn)]),
        lambda text: np.array([1.0, 0.0]),
    )
    alone = ComposedRetrieval(crops, task, Sum(0.0)).run(circle)
    assert alone["subset_r@1"] == 1 and alone["images"] == 8  # the next on the circle is nearest
    rows[0]["target"]["instance_bbox"] = [90, 0, 5, 5]
    outside = GeneCis(write("outside.json", rows), "v{}")
    with pytest.raises(UserError, match="object v0@90,0,5,5: the box .* shows nothing"):
        ComposedRetrieval(Crops(outside, Fields()), outside).run(circle)


@hypothesis.given(*[st.floats(0, 30)] * 2, *[st.floats(1, 25)] * 2)
def test_crops_are_those_of_the_program(x, y, width, height):
    """Pixel by pixel: enlarged at the left and the top, cut at the borders, padded with black."""
    picture = np.arange(1, 41 * 36 * 3 + 1).reshape(36, 41, 3).astype(np.uint8) | 1
    left, top = max(0, x - 0.7 * width), max(0, y - 0.7 * height)
    right, bottom = min(41, left + 1.7 * width), min(36, top + 1.7 * height)
    part = picture[round(top) : round(bottom), round(left) : round(right)]
    if part.size:
        made = np.asarray(square(Image.fromarray(picture), (x, y, width, height)))
        side = max(part.shape[:2])
        assert made.shape == (side, side, 3)
        y0, x0 = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
        inside = made[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
        np.testing.assert_array_equal(inside, part)
        assert (made > 0).sum() == part.size  # all else is black


# The embedded world's kinds: record 4 c + s shows colour c and shape s.
def kind(n):
    return tiny.COLOURS[n // 4], tiny.SHAPES[n % 4]


def words(text):
    """A bag of the colours and shapes that a text names, a bit of a constant otherwise."""
    said = text.split()
    return np.array([said.count(w) for w in (*tiny.COLOURS, *tiny.SHAPES)] + [0.1])


def recolour(caption, edit):
    """A rewriter that knows its grammar: "make it red"."""
    return caption.replace(caption.split()[1], edit.split()[-1], 1)


@pytest.fixture
def edits(write):
    """Every picture in the three other colours."""
    rows = []
    for n in range(16):
        for colour in range(4):
            if colour != n // 4:
                text, target = f"make it {tiny.COLOURS[colour]}", f"n{4 * colour + n % 4}"
                row = {"id": len(rows), "reference": f"n{n}", "edit": text, "targets": [target]}
                rows.append(row)
    return Triplets(write("edits.json", rows))


@pytest.fixture
def world(contract):
    return oracles.Oracle(
        contract,
        image_vector=lambda n: words(" ".join(kind(n))),
        text_vector=words,
        says=lambda n: "a " + " ".join(kind(n)),
    )


def test_compositions_in_the_embedded_world(world, edits):
    """Neither image nor edit alone say what is wanted; all ways to join them do."""
    rewrite = CaptionAndRewrite(recolour)
    scores = {
        name: ComposedRetrieval(oracles.Numbered(16), edits, composition).run(world)["r@1"]
        for name, composition in {
            "image": Sum(0.0),
            "text": Sum(1.0),
            "sum": Sum(),
            "rewrite": rewrite,
            "direction": PromptDirection(mapper=rewrite),
            "still": PromptDirection(0.0, 0.0, mapper=rewrite),
        }.items()
    }
    assert scores["image"] == scores["text"] == scores["still"] == 0
    assert scores["sum"] == scores["rewrite"] == scores["direction"] == 1


def test_compositions_reduce_to_their_parts(world):
    images = np.stack([oracles.picture(n) for n in (1, 6)])
    known = References(world.encode_image(images), images, ["make it white", "make it red"])
    mapper = CaptionAndRewrite(recolour)
    captions, rewritten = mapper.texts(world, known)
    assert captions == ["a red square", "a green star"]
    assert rewritten == ["a white square", "a red star"]
    image, text = known.embeddings, world.encode_text(rewritten)
    plain = world.encode_text(captions)
    shifted, scaled = image + 1.4 * (text - plain), plain + 0.9 * (text - plain)
    for composition, expected in (
        (PromptDirection(9.0, 1.0, 1.0, mapper), text),
        (PromptDirection(9.0, 0.0, 1.0, mapper), plain),
        (PromptDirection(0.0, 9.0, 0.0, mapper), image),
        (PromptDirection(1.4, 0.9, 0.8, mapper), unit(0.2 * shifted + 0.8 * scaled)),
        (mapper, text),
        (Sum(0.0), image),
        (Sum(1.0, "so "), world.encode_text(["so make it white", "so make it red"])),
    ):
        np.testing.assert_allclose(composition(world, known), expected, atol=1e-6)
    half = unit(image + world.encode_text(known.edits))
    np.testing.assert_allclose(Sum()(world, known), half, atol=1e-6)
    assert Fill("{edit} {caption}")("a", "b") == "b a"
    with pytest.raises(UserError, match="must hold {edit} exactly once"):
        Fill("{caption}")


def test_captions_of_the_gallery_take_part(contract, world, edits):
    """Blind images, telling captions: the score is (1 - w) image + w mean caption."""
    blind = oracles.Oracle(contract, lambda n: np.ones(9), words)
    source = oracles.Numbered(16, lambda i: {"captions": ["a " + " ".join(kind(i)), "a red"]})
    plain = ComposedRetrieval(source, edits, Sum(1.0))
    assert plain.run(blind)["r@1"] == 0  # all equal
    weighted = dataclasses.replace(plain, captions="captions", caption_weight=0.5)
    rows = [["a " + " ".join(kind(i)), "a red"] for i in range(16)]
    gallery = [
        0.5 * blind.encode_image([oracles.picture(0)])[0] + 0.5 * blind.encode_text(r).mean(axis=0)
        for r in rows
    ]
    hits = []
    for query in edits.queries:
        scores = np.array(gallery) @ blind.encode_text([query.edit])[0]
        scores[number(query.reference)] = -1
        right = number(query.targets[0])
        hits.append(np.sum(scores >= scores[right] - 1e-6) <= 5)
    assert weighted.run(blind)["r@5"] == pytest.approx(np.mean(hits))
    with pytest.raises(UserError, match="captions and caption_weight go together"):
        dataclasses.replace(plain, captions="captions")


def test_missing_images_and_bad_files_are_named(world, edits, write):
    def run(source, benchmark):
        run_all({"mine": ComposedRetrieval(source, benchmark)}, world)

    with pytest.raises(UserError, match="'mine': 1 images of the benchmark .*such as 'n15'"):
        run(oracles.Numbered(15), edits)
    with pytest.raises(UserError, match="1 images of the benchmark .*'n7'"):
        run(oracles.Numbered(16, damaged=(7,)), edits)
    with pytest.raises(UserError, match="'n0' comes up twice"):
        run(oracles.Numbered(16, lambda i: {"key": "n0"}), edits)
    with pytest.raises(UserError, match="no file .*nowhere"):
        run(oracles.Numbered(16), Triplets("nowhere"))
    with pytest.raises(UserError, match="entry 0 has no 'edit'"):
        run(oracles.Numbered(16), Triplets(write("bad.json", [{"id": 1, "reference": "n0"}])))
    with pytest.raises(UserError, match="the benchmark has no queries"):
        run(oracles.Numbered(16), Triplets(write("empty.json", [])))
    rows, _ = cirr_files(write)
    with pytest.raises(UserError, match="pairid 100 comes up twice"):
        run(oracles.Numbered(16), Cirr(write("twice.json", rows + rows[:1]), "split"))
    rows[0]["target_hard"] = "n55"
    with pytest.raises(UserError, match="the target of pair 100 is not in its img_set"):
        run(oracles.Numbered(16), Cirr(write("other.json", rows), "split"))
    with pytest.raises(UserError, match="the ids must be 0, 1, 2"):
        rows = [{"id": 1, "reference_img_id": 0, "relative_caption": "x"}]
        run(oracles.Numbered(16), Circo(write("ids.json", rows)))


@hypothesis.given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 255)
)
def test_equal_scores_count_against_the_model(levels, k, mask):
    """The order is (score, wrong first, position), however many are asked for."""
    gallery = np.array(levels, np.float64)[:, None]
    right = [i for i in range(len(levels)) if mask >> i & 1]
    found = composed.nearest(np.ones((1, 1)), gallery, [np.arange(len(levels))], [right], k)[0]
    expected = sorted(range(len(levels)), key=lambda i: (-levels[i], i in right, i))[:k]
    assert found.tolist() == expected


def test_a_diverged_model_is_refused():
    bad = np.full((1, 2), np.nan)
    with pytest.raises(UserError, match="query embeddings are not finite"):
        composed.nearest(bad, np.ones((3, 2)), [np.arange(3)], [[0]], 1)
