"""Order is a function of seed and step, whatever hosts, workers, threads and interruptions."""

import dataclasses
import itertools
import threading
import time

import grain
import numpy as np
import pytest
import simplejpeg

from big_mm.data import examples, records, tokenizers, transforms
from big_mm.data.contract import Contract
from big_mm.data.damage import DAMAGE
from big_mm.data.pipeline import Pipeline, prefetch_to_device
from big_mm.data.pipeline import examples as evaluation_batches
from big_mm.data.records import TFRecordSource
from big_mm.data.tokenizers import SentencePiece
from big_mm.spec import UserError

AUGMENT = (
    transforms.Decode(),
    transforms.RandomResizedCrop(scale=(0.3, 1.0), kernel="bilinear"),
    transforms.Flip(0.5),
    transforms.ChooseCaption(),
    transforms.Tokenize(),
)
COUNT = 30


def jpeg(seed):
    rng = np.random.default_rng(seed)
    picture = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    return simplejpeg.encode_jpeg(picture, quality=90)


def features(i, **changes):
    captions = [f"a red star {i}", f"{i} stars", f"the star number {i}"][: 1 + i % 3]
    return {"image": jpeg(i), "caption": captions, "key": f"k{i}", "class": i} | changes


def write(path, rows):
    with records.TFRecordWriter(str(path)) as writer:
        for row in rows:
            writer.write(examples.encode({k: v for k, v in row.items() if v is not None}))
    return TFRecordSource(str(path), examples.Schema(label="class"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def source(folder):
    return write(folder / "sound.tfrecord", map(features, range(COUNT)))


@pytest.fixture(scope="module")
def damaged(folder):
    """Records 3, 4 and 9 are damaged in three ways, and the last one in a fourth."""
    rows = [features(i) for i in range(12)]
    rows[3]["image"] = b"no picture"
    rows[4]["image"] = None
    rows[9]["caption"] = ["", " "]
    source = write(folder / "damaged.tfrecord", rows)
    path = folder / "damaged.tfrecord"
    data = bytearray(path.read_bytes())
    data[-40] ^= 0xFF
    path.write_bytes(data)
    return source


@pytest.fixture(scope="module")
def contract(folder):
    path = folder / "words.model"
    texts = [caption for i in range(COUNT) for caption in features(i)["caption"]]
    path.write_bytes(tokenizers.train(texts, 290, hard_vocab_limit=False))
    return Contract(SentencePiece(str(path)), image_size=8, max_len=12)


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys()
        for name in e:
            np.testing.assert_array_equal(a[name], e[name], err_msg=name)
            assert np.asarray(a[name]).dtype.kind == np.asarray(e[name]).dtype.kind


def joined(parts):
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def reference(source, contract):
    return take(Pipeline(source, transforms=AUGMENT, num_threads=0).batches(contract, 8, 7), 12)


def test_a_batch_has_the_documented_keys(reference):
    shapes = {name: (value.shape, value.dtype.kind) for name, value in reference[0].items()}
    assert shapes == {
        "image": ((8, 8, 8, 3), "u"),
        "tokens": ((8, 12), "i"),
        "text_id": ((8,), "i"),
        "token_mask": ((8, 12), "b"),
        "label": ((8,), "i"),
        "key": ((8,), "U"),
        "bad_index": ((8,), "i"),
        "bad_kind": ((8,), "i"),
    }
    assert [f"k{i}" for i in reference[0]["label"]] == reference[0]["key"].tolist()


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("threads", [0, 1, 5])
def test_hosts_and_threads_do_not_change_a_bit(source, contract, reference, hosts, threads):
    pipeline = Pipeline(source, transforms=AUGMENT, num_threads=threads)
    parts = [take(pipeline.batches(contract, 8, 7, 0, h, hosts), 12) for h in range(hosts)]
    assert_equal([joined(p) for p in zip(*parts, strict=True)], reference)


def test_worker_processes_do_not_change_a_bit(source, contract, reference):
    pipeline = Pipeline(source, transforms=AUGMENT, num_workers=2, cache=True)
    second_host = take(pipeline.batches(contract, 8, 7, 5, 1, 2), 5)
    assert_equal(second_host, [{k: v[4:] for k, v in b.items()} for b in reference[5:10]])


@pytest.mark.parametrize("step", [1, 4, 11])
def test_a_run_goes_on_where_it_was_interrupted(source, contract, reference, step):
    batches = Pipeline(source, transforms=AUGMENT).batches(contract, 8, 7, start_step=step)
    assert_equal(take(batches, 12 - step), reference[step:])


def test_starting_late_costs_nothing(source, contract):
    started = time.perf_counter()
    batches = Pipeline(source, num_threads=1).batches(contract, 8, 7, start_step=10**9)
    assert len(take(batches, 1)[0]["key"]) == 8
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("chunk", [2, 4, 30])
def test_chunks_do_not_show(source, contract, reference, monkeypatch, chunk):
    monkeypatch.setattr("big_mm.data.pipeline._CHUNK", chunk)
    assert_equal(take(Pipeline(source, transforms=AUGMENT).batches(contract, 8, 7), 12), reference)


def test_the_cache_does_not_show(source, contract, reference):
    pipeline = Pipeline(source, transforms=AUGMENT, cache=True)
    assert_equal(take(pipeline.batches(contract, 8, 7), 12), reference)


def test_every_epoch_has_every_record_once_in_an_order_of_its_own(source, contract):
    batches = take(Pipeline(source, transforms=AUGMENT).batches(contract, 10, 0), 9)
    epochs = [np.concatenate([b["key"] for b in batches[i : i + 3]]) for i in (0, 3, 6)]
    assert all(sorted(e) == sorted(f"k{i}" for i in range(COUNT)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    other = take(Pipeline(source).batches(contract, 10, 1), 3)
    assert tuple(np.concatenate([b["key"] for b in other])) not in {tuple(e) for e in epochs}


def test_augmentation_differs_between_epochs(source, contract):
    batches = take(Pipeline(source, transforms=AUGMENT).batches(contract, COUNT, 0), 2)
    first, second = (dict(zip(b["key"], b["image"], strict=True)) for b in batches)
    same = [np.array_equal(first[key], second[key]) for key in first]
    assert np.mean(same) < 0.2


def test_unshuffled_is_in_order(source, contract):
    batches = take(Pipeline(source, shuffle=False).batches(contract, 7, 0), 5)
    labels = np.concatenate([b["label"] for b in batches])
    np.testing.assert_array_equal(labels, np.arange(35) % COUNT)


def test_default_transforms_show_what_evaluation_shows(source, contract):
    batch = take(Pipeline(source, shuffle=False).batches(contract, 5, 0), 1)[0]
    evaluated = next(evaluation_batches(source, contract, 5))
    np.testing.assert_array_equal(batch["image"], evaluated["image"])


def test_a_mixture_keeps_its_shares_everywhere(folder, source, contract):
    other = write(
        folder / "other.tfrecord",
        [features(i, key=f"o{i}") | {"class": None} for i in range(7)],
    )
    other = dataclasses.replace(other, schema=examples.Schema())
    pipeline = Pipeline((source, other), weights=(3.0, 1.0), transforms=AUGMENT)
    reference = take(pipeline.batches(contract, 20, 3), 8)
    counts = [sum(key.startswith("o") for key in b["key"]) for b in reference]
    assert all(4 <= c <= 6 for c in counts)
    assert all((b["label"][np.char.startswith(b["key"], "o")] == -1).all() for b in reference)
    first = [key for b in reference for key in b["key"] if key.startswith("o")][:7]
    assert sorted(first) == sorted(f"o{i}" for i in range(7))
    parts = [take(pipeline.batches(contract, 20, 3, 2, h, 2), 6) for h in range(2)]
    assert_equal([joined(p) for p in zip(*parts, strict=True)], reference[2:])
    by_length = take(Pipeline((source, other)).batches(contract, COUNT + 7, 0), 1)[0]
    assert 5 <= sum(key.startswith("o") for key in by_length["key"]) <= 9


def test_damaged_records_are_replaced_by_the_next_and_named(damaged, contract):
    pipeline = Pipeline(damaged, shuffle=False)
    batch = take(pipeline.batches(contract, 12, 0), 1)[0]
    assert batch["key"].tolist() == [f"k{i}" for i in (0, 1, 2, 5, 5, 5, 6, 7, 8, 10, 10, 0)]
    kinds = {i: DAMAGE[k] for i, k in zip(batch["bad_index"], batch["bad_kind"], strict=True)}
    del kinds[-1]
    assert kinds == {
        3: "undecodable_image",
        4: "missing_image",
        9: "empty_caption",
        11: "data_crc",
    }
    assert "damaged.tfrecord @ byte" in pipeline.where(4) and "(record 4)" in pipeline.where(4)


def test_damage_in_a_mixture_is_found_in_its_source(source, damaged, contract):
    pipeline = Pipeline((source, damaged), weights=(1.0, 1.0))
    batches = take(pipeline.batches(contract, 24, 0), 1)
    numbers = [i for i in batches[0]["bad_index"] if i >= 0]
    assert sorted(i - COUNT for i in numbers) == [3, 4, 9, 11]
    assert all("damaged.tfrecord" in pipeline.where(i) for i in numbers)


@pytest.mark.parametrize("cache", [False, True])
def test_damage_is_part_of_the_order(damaged, contract, cache):
    pipeline = Pipeline(damaged, transforms=AUGMENT, cache=cache)
    reference = take(Pipeline(damaged, transforms=AUGMENT).batches(contract, 4, 0), 6)
    parts = [take(pipeline.batches(contract, 4, 0, 0, h, 2), 6) for h in range(2)]
    assert_equal([joined(p) for p in zip(*parts, strict=True)], reference)
    numbers = np.concatenate([b["bad_index"] for b in reference])
    assert sorted(numbers[numbers >= 0]) == [3, 3, 4, 4, 9, 9, 11, 11]


@pytest.mark.parametrize("workers", [0, 1])
def test_when_nothing_decodes_the_run_stops(folder, contract, workers):
    source = write(folder / "hopeless.tfrecord", [features(i, image=b"x") for i in range(5)])
    pipeline = Pipeline(source, num_workers=workers)
    with pytest.raises(UserError, match=r"all records from .*hopeless.*undecodable") as error:
        next(pipeline.batches(contract, 4, 0))
    assert "\n" not in str(error.value)


class Filter(grain.transforms.Filter):
    def filter(self, element):
        return True


class Ragged(grain.transforms.Map):
    def map(self, record):
        return record | {"boxes": np.zeros((int(record["label"]) % 2 + 1, 4))}


class Partial(grain.transforms.Map):
    def map(self, record):
        return record | ({"odd": 1} if record["label"] % 2 else {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": (transforms.Decode(), Filter())}, "no Map or RandomMap"),
        ({"transforms": transforms.DEFAULT[2:]}, "must end with uint8 images .* not bytes"),
        ({"transforms": transforms.DEFAULT[:2]}, "leave no tokens"),
        (
            {"transforms": (transforms.Decode(), *transforms.DEFAULT[2:])},
            r"not uint8 \(20, 25, 3\)",
        ),
        ({"transforms": (*transforms.DEFAULT, Ragged())}, "'boxes' is float64"),
        ({"transforms": (*transforms.DEFAULT, Partial())}, r"only some .*\['odd'\]"),
        ({"sources": ()}, "at least one source"),
        ({"weights": (1.0, 2.0)}, "weights"),
        ({"weights": (0.0,)}, "weights"),
    ],
)
def test_mistakes_are_said(source, contract, options, message):
    with pytest.raises(UserError, match=message):
        next(Pipeline(**{"sources": source} | options).batches(contract, 8, 0))


def test_a_batch_that_the_hosts_cannot_share(source, contract):
    with pytest.raises(UserError, match="batch_size=10 is not divisible by the 4 hosts"):
        Pipeline(source).batches(contract, 10, 0, 0, 0, 4)
    with pytest.raises(UserError, match="not divisible"):
        next(evaluation_batches(source, contract, 10, 0, 4))


def test_text_is_kept_on_request(source, contract):
    batch = take(Pipeline(source, keep=("captions",)).batches(contract, 4, 0), 1)[0]
    for label, captions in zip(batch["label"], batch["captions"], strict=True):
        assert captions == features(int(label))["caption"]


def test_a_row_may_have_two_texts(source, contract, reference):
    second = (
        transforms.ChooseCaption(weights=(1.0,), out="first"),
        transforms.Tokenize(),
        transforms.Tokenize(key="first", suffix="_first"),
    )
    pipeline = Pipeline(source, transforms=(*AUGMENT[:4], *second))
    for batch, expected in zip(take(pipeline.batches(contract, 8, 7), 4), reference, strict=False):
        tokens, token_mask = contract.text([f"a red star {i}" for i in batch["label"]])
        np.testing.assert_array_equal(batch["tokens"], expected["tokens"])
        np.testing.assert_array_equal(batch["tokens_first"], tokens)
        np.testing.assert_array_equal(batch["token_mask_first"], token_mask)
        assert len(set(batch["text_id_first"])) == len(set(batch["label"]))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_sees_every_sound_record_once_in_order(damaged, contract, hosts, caplog):
    parts = [list(evaluation_batches(damaged, contract, 8, h, hosts)) for h in range(hosts)]
    assert [len(p) for p in parts] == [2] * hosts
    rows = []
    for step in zip(*parts, strict=True):
        for part in step:
            assert part["image"].shape == (8 // hosts, 8, 8, 3)
            for i in np.flatnonzero(part["mask"]):
                rows.append((part["key"][i], part["captions"][i], int(part["label"][i])))
            assert not part["image"][~part["mask"]].any()
            assert (part["label"][~part["mask"]] == -1).all()
    sound = [i for i in range(12) if i not in (3, 4, 9, 11)]
    assert rows == [(f"k{i}", features(i)["caption"], i) for i in sound]
    bad = np.concatenate([p["bad_index"] for part in parts for p in part])
    assert sorted(bad[bad >= 0]) == [3, 4, 9, 11]


def test_evaluation_without_one_sound_record(folder, contract):
    source = write(folder / "dead.tfrecord", [features(i, image=b"x") for i in range(5)])
    with pytest.raises(UserError, match="none of the 5 records .*dead.tfrecord"):
        list(evaluation_batches(source, contract, 4))


def test_evaluation_passes_extra_features(folder, contract):
    rows = [features(i, boxes=list(range(i % 3))) for i in range(5)]
    source = write(folder / "extra.tfrecord", rows)
    source = dataclasses.replace(source, schema=examples.Schema(extra=("boxes",)))
    batches = list(evaluation_batches(source, contract, 4))
    assert [b["boxes"] for b in batches] == [[[], [0], [0, 1], []], [[0], None, None, None]]
    assert (batches[1]["label"] == -1).all()
    np.testing.assert_array_equal(
        batches[0]["tokens"], contract.text([r["caption"][0] for r in rows[:4]])[0]
    )


def test_evaluation_without_text(folder):
    source = write(folder / "labels.tfrecord", [features(i, caption=None) for i in range(3)])
    source = dataclasses.replace(source, schema=examples.Schema(captions=None, label="class"))
    (batch,) = evaluation_batches(source, Contract(image_size=8), 4)
    assert batch["label"].tolist() == [0, 1, 2, -1] and "tokens" not in batch


def test_closing_ends_the_threads(source, contract):
    batches = Pipeline(source, num_threads=3).batches(contract, 8, 0)
    next(batches)
    batches.close()
    deadline = time.time() + 10
    while any(t.name.startswith("grain-prefetch") for t in threading.enumerate()):
        assert time.time() < deadline
        time.sleep(0.05)


class Closable:
    """Counts, and notices when it is closed."""

    def __init__(self, fail_at=None):
        self.count, self.fail_at, self.closed = 0, fail_at, threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        if self.count == self.fail_at:
            raise UserError("the data ends here")
        self.count += 1
        return self.count

    def close(self):
        self.closed.set()


def test_prefetch_keeps_order_and_stays_a_little_ahead():
    batches = Closable()
    with prefetch_to_device(batches, lambda x: -x, depth=2) as ahead:
        assert [next(ahead) for _ in range(5)] == [-1, -2, -3, -4, -5]
        time.sleep(0.3)
        assert batches.count <= 5 + 2 + 1
    assert batches.closed.wait(5)
    with pytest.raises(StopIteration):
        next(ahead)


def test_prefetch_ends_with_its_data():
    assert list(prefetch_to_device(iter(range(5)), str)) == list("01234")


def test_prefetch_hands_on_errors_in_their_place():
    ahead = prefetch_to_device(Closable(fail_at=3), lambda x: x)
    assert [next(ahead) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(UserError, match="ends here"):
        next(ahead)
    ahead = prefetch_to_device(Closable(), lambda x: 1 // (x - 2))
    assert next(ahead) == -1
    with pytest.raises(ZeroDivisionError):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
