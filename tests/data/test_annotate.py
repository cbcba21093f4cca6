"""Shards with further features: the same records, no answer paid for twice, no half a shard."""

import contextlib
import io
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import chat_server
import pytest
import tfrecords
import tiny
from absl import logging
from PIL import Image

from big_mm import annotate as program
from big_mm.curation import annotation
from big_mm.curation.answers import Answers
from big_mm.curation.caption import Caption
from big_mm.curation.chat import Chat
from big_mm.curation.rewrite import Rewrite, cleaned
from big_mm.data import examples
from big_mm.data.contract import Decoding
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource, write_shards
from big_mm.spec import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAIRS = tuple((f"a {word}", f"one {word}") for word in ("cat", "dog", "hen", "owl"))
COUNT, THREADS = 12, 4
CONFIG = """
from big_mm.curation.chat import Chat
from big_mm.curation.rewrite import Rewrite
from big_mm.spec import spec

def get_config():
    model = spec(Chat, url={url!r}, model="m", key="TEST_KEY")
    return spec(Rewrite, writer=model, examples=({pairs!r},), count=2, threads={threads})
"""


def captions(i: int) -> list[str]:
    """Of record i: one or two, some of them those of another record too."""
    return [f"picture {i % 9}", *(["another"] if i % 3 == 0 else [])]


ALL = sorted({caption for i in range(COUNT) for caption in captions(i)})


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("TEST_KEY", "right")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with chat_server.serving() as made:
        yield made


@pytest.fixture
def shards(tmp_path) -> str:
    rows = ({"image": bytes([i]), "caption": captions(i), "n": [i], "f": 0.1} for i in range(COUNT))
    write_shards(map(examples.encode, rows), str(tmp_path / "in/train@2.tfrecord"))
    return str(tmp_path / "in/train-*.tfrecord")


def rewrite(service, timeout=10.0, **changes) -> Rewrite:
    model = Chat(service.url, "m", key="TEST_KEY", timeout=timeout)
    return Rewrite(model, **({"examples": (PAIRS,), "count": 2, "threads": THREADS} | changes))


def run(annotator, shards, out, **changes) -> annotation.Report:
    return annotation.annotate(annotator, shards, str(out), **({"pause": 0.01} | changes))


def features(folder: pathlib.Path) -> list[dict]:
    """Those of all records."""
    source = TFRecordSource(str(folder / "train-*"), Schema(None, None, None))
    return [examples.decode(source.read(i)) for i in range(len(source))]


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Without the answers, and the indices, which know when their shards were written."""
    kept = (path for path in folder.iterdir() if not path.name.startswith(annotation.ANSWERS))
    return {path.name: path.read_bytes() for path in kept if path.suffix != ".index"}


def test_records_keep_their_features_and_have_new_ones(service, shards, tmp_path):
    service.seconds = 0.02
    report = run(rewrite(service), shards, tmp_path / "out")
    asked = sorted(body["messages"][0]["content"].splitlines()[-1] for body in service.received)
    assert asked == sorted([f"{caption} =>" for caption in ALL] * 2)
    assert (report.records, report.written, report.asked) == (COUNT, 2, 2 * len(ALL))
    assert service.busiest == THREADS
    for old, new in zip(features(tmp_path / "in"), features(tmp_path / "out"), strict=True):
        rewrites = new.pop("rewrites")
        assert new == old
        said = [rewrite.decode().partition(" said in way ") for rewrite in rewrites]
        assert [text for text, _, _ in said] == [c.decode() for c in old["caption"] for _ in "12"]
        assert all(a != b for a, b in zip(rewrites[::2], rewrites[1::2], strict=True))
    # Training reads them straight away.
    schema = Schema(captions=("caption", "rewrites"), key=None)
    source = TFRecordSource(str(tmp_path / "out/train-*"), schema)
    assert [len(source[i]["captions"]) for i in range(4)] == [6, 3, 3, 6]


def test_finished_shards_are_left_alone(service, shards, tmp_path):
    run(rewrite(service), shards, tmp_path / "out")
    before, asked = files(tmp_path / "out"), len(service.received)
    service.key = "another"
    report = run(rewrite(service, threads=1), shards, tmp_path / "out")
    assert (report.finished, report.written, len(service.received)) == (2, 0, asked)
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_goes_on(service, shards, tmp_path, number):
    """Two requests of the second shard are under way when the signal comes."""
    config, out = tmp_path / "config.py", tmp_path / "out"
    config.write_text(CONFIG.format(url=service.url, pairs=PAIRS, threads=THREADS))
    released = threading.Event()

    def reply(_, body):
        if body["messages"][0]["content"].endswith(("picture 5 =>", "picture 7 =>")):
            return None if released.is_set() else (503 * released.wait(60), {}, b"")

    service.reply = reply
    command = ["--config", str(config), "--shards", shards, "--out", str(out)]
    program_of = [sys.executable, "-m", "big_mm.annotate", *command]
    process = subprocess.Popen(program_of, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while service.busy < 2 or known(out) < 2 * len(ALL) - 4:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(number)
    released.set()
    said = process.communicate()[1]
    assert process.returncode == (-number if number == signal.SIGKILL else os.EX_TEMPFAIL), said
    hidden = [path.name for path in out.iterdir() if path.suffix == ".tmp"]
    assert {path.name for path in out.glob("train-*")} == {"train-00000-of-00002.tfrecord"}
    assert len(hidden) == (number == signal.SIGKILL)
    assert program.main(command) == 0
    assert len(service.answered) == len(set(service.answered)) == 2 * len(ALL)
    run(rewrite(service), shards, tmp_path / "whole")
    # A lock that a killed process leaves is nobody's.
    assert files(out) == files(tmp_path / "whole")


def known(folder: pathlib.Path) -> int:
    """How many answers have been kept."""
    if not (folder / annotation.ANSWERS).exists():
        return 0
    with contextlib.closing(sqlite3.connect(folder / annotation.ANSWERS)) as database:
        tables = database.execute("SELECT * FROM sqlite_master").fetchall()
        return database.execute("SELECT count(*) FROM answers").fetchone()[0] if tables else 0


def test_a_service_that_fails_now_and_then_changes_nothing(service, shards, tmp_path):
    run(rewrite(service), shards, tmp_path / "whole")
    failures = {
        2: (429, {"Retry-After": "0.02"}, b"slow down"),
        4: (500, {}, b"<html>"),
        5: (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""),
        7: (0, {}, b""),
    }

    def reply(n, body):
        if n - first == 9:
            time.sleep(0.6)
            return 503, {}, b"nobody waits for this"
        return failures.get(n - first)

    first, service.reply = len(service.received), reply
    report = run(rewrite(service, timeout=0.3), shards, tmp_path / "out")
    assert report.asked == 2 * len(ALL)
    assert len(service.received) - first == 2 * len(ALL) + len(failures) + 1
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_service_says_when_it_is_to_be_asked_again(service, shards, tmp_path):
    service.reply = lambda n, body: (429, {"Retry-After": "0.4"}, b"") if n == 1 else None
    begun = time.monotonic()
    run(rewrite(service), shards, tmp_path / "out")
    assert 0.4 <= time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "reply, key, requests, message",
    [
        (None, "wrong", 1, r"401 Unauthorized .*Incorrect API key.*key='TEST_KEY'"),
        (None, "", 0, "TEST_KEY holds no key"),
        ((404, {}, b"no such model"), "right", 1, "404 Not Found no such model .*must be the part"),
        ((400, {}, b"bad"), "right", 1, "400 Bad Request bad"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "right", 1, "302 Found"),
        ((200, {}, b"<html>hello"), "right", 1, "no chat completion: '<html>hello'"),
        ((200, {}, b'{"choices": []}'), "right", 1, "no chat completion"),
        ((429, {}, b'{"error": {"code": "insufficient_quota"}}'), "right", 1, "insufficient_quota"),
        ((503, {}, b"later"), "right", 3, "503 .* later: given up after 3 attempts"),
    ],
)
def test_what_does_not_pass_ends_the_run_at_once(
    service, shards, tmp_path, monkeypatch, reply, key, requests, message
):
    monkeypatch.setenv("TEST_KEY", key)
    service.reply = lambda n, body: reply
    with pytest.raises(UserError, match=message):
        run(rewrite(service), shards, tmp_path / "out", retries=2)
    assert len(service.received) == requests
    assert not files(tmp_path / "out")


def test_another_annotator_or_input_is_refused(service, shards, tmp_path):
    run(rewrite(service), shards, tmp_path / "out")
    more = rewrite(service, count=3)
    with pytest.raises(
        UserError, match="out/train-00000-of-00002.tfrecord was made with another ann"
    ):
        run(more, shards, tmp_path / "out")
    # What was answered is not asked for again.
    answers = str(tmp_path / "out" / annotation.ANSWERS)
    assert run(more, shards, tmp_path / "more", answers=answers).asked == len(ALL)
    os.utime(tmp_path / "in/train-00001-of-00002.tfrecord", (1, 1))
    with pytest.raises(
        UserError, match="00001-of-00002.tfrecord was made with another input shard"
    ):
        run(rewrite(service), shards, tmp_path / "out")
    with pytest.raises(UserError, match="written over itself"):
        run(rewrite(service), shards, tmp_path / "in")
    (tmp_path / "out/.train-00000-of-00002.tfrecord.annotated").unlink()
    with pytest.raises(UserError, match="not of this job"):
        run(rewrite(service), shards, tmp_path / "out")


def test_a_feature_that_is_there_is_refused(service, shards, tmp_path):
    with pytest.raises(UserError, match=r"train-0000.* @ byte .* the feature 'n' already"):
        run(rewrite(service, feature="n"), shards, tmp_path / "out")
    assert not service.received and not files(tmp_path / "out")
    with pytest.raises(ValueError, match="'n' is there"):
        examples.extend(examples.encode({"n": 1}), {"n": 2})


def test_damaged_records_are_named_and_left_out(service, shards, tmp_path, caplog):
    shard = tmp_path / "in/train-00000-of-00002.tfrecord"
    shard.write_bytes(tfrecords.flip(shard.read_bytes(), 20))
    with pytest.raises(UserError, match=r"1 of the 6 records of .*\(data_crc 1\).*max_bad_share"):
        run(rewrite(service), shards, tmp_path / "out")
    assert not files(tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        report = run(rewrite(service), shards, tmp_path / "out", max_bad_share=0.2)
    assert report.bad == {"data_crc": 1}
    assert f"left out: {shard} @ byte 0 (record 0): data_crc" in caplog.text
    assert [found["n"][0] for found in features(tmp_path / "out")] == [
        2,
        4,
        6,
        8,
        10,
        *range(1, 12, 2),
    ]


def test_no_two_processes_write_a_shard(service, shards, tmp_path):
    with annotation._alone(str(tmp_path / "train-00000-of-00002.tfrecord")):
        with pytest.raises(UserError, match="another process writes"):
            run(rewrite(service), shards, tmp_path)


def test_a_remote_folder(service, shards, tmp_path):
    with pytest.raises(UserError, match="remote: name a local file"):
        run(rewrite(service), shards, "memory://annotated")
    answers = str(tmp_path / "answers")
    run(rewrite(service), shards, "memory://annotated", answers=answers)
    report = run(rewrite(service), shards, "memory://annotated", answers=answers)
    assert (report.finished, report.asked) == (2, 0)
    source = TFRecordSource("memory://annotated/train-*", Schema(None, None, None))
    assert [examples.decode(source.read(i))["n"] for i in range(3)] == [[0], [2], [4]]


def test_the_first_answer_stays_for_all_threads_and_processes(tmp_path):
    files = [Answers(str(tmp_path / "answers")) for _ in range(2)]

    def put(i: int) -> None:
        for n in range(40):
            files[i % 2].put({f"{n}": f"{i}", f"only {i} {n}": "x"})

    threads = [threading.Thread(target=put, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [f"{n}" for n in range(700)]
    first = files[0].get(keys)
    files[0].put(dict.fromkeys(keys, "late"))
    assert len(first) == 40 and first.items() <= files[1].get(keys).items()
    (tmp_path / "text").write_text("not a database at all, but long enough to be looked at " * 99)
    with pytest.raises(UserError, match="text: file is not a database"):
        Answers(str(tmp_path / "text"))


def test_the_model_is_shown_the_pairs_of_a_set(service):
    sets = (PAIRS, tuple((f"x{i}", f"y{i}") for i in range(9)))
    made = rewrite(service, examples=sets, count=4)
    made.answer([(caption, number) for caption in ("one\n two", "b") for number in range(4)])
    prompts = [body["messages"][0]["content"].split("\n\n") for body in service.received]
    for prompt, number in zip(prompts, [0, 1, 2, 3] * 2, strict=True):
        shown = [tuple(line.split(" => ")) for line in prompt[1:-1]]
        assert prompt[0] == made.instruction and len(set(shown)) == 3
        assert set(shown) <= set(sets[number % 2])
    assert {prompt[-1] for prompt in prompts} == {"one two =>", "b =>"}
    assert len({body["seed"] for body in service.received}) == 4
    assert len({str(prompt[1:-1]) for prompt in prompts[1::2]}) == 4  # of both captions


def test_a_rewrite_that_stays_empty_is_left_out(service, shards, tmp_path):
    def reply(n, body):
        caption = body["messages"][0]["content"].splitlines()[-1]
        return (200, {}, chat_server.completion(None)) if caption == "another =>" else None

    service.reply = reply
    run(rewrite(service), shards, tmp_path / "out")
    empty = [b for b in service.received if b["messages"][0]["content"].endswith("\nanother =>")]
    assert len(empty) == 6 == len({body["seed"] for body in empty})
    assert [len(found["rewrites"]) for found in features(tmp_path / "out")] == [2] * COUNT


@pytest.mark.parametrize(
    "answer, text",
    [
        ("A cat on a mat.", "A cat on a mat."),
        ('\n "A cat  on a mat."\nIt is red.', "A cat on a mat."),
        ("Sure, here it is:\n\n“A cat”", "A cat"),
        ("cat => 'A cat'", "A cat"),
        ("The dog's bone", "The dog's bone"),
        ('A sign that says "stop"', 'A sign that says "stop"'),
        ('""', ""),
        (" \n", ""),
    ],
)
def test_what_is_left_of_an_answer(answer, text):
    assert cleaned(answer) == text


def test_captions_are_those_of_the_predictor(tmp_path):
    run_of = tiny.workdir(tmp_path)
    images, encoded = tiny.images(5), []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        encoded.append(file.getvalue())
    rows = [{"image": encoded[i]} for i in (0, 1, 2, 3, 4, 1)] + [{"image": b"no picture"}]
    write_shards(map(examples.encode, rows), str(tmp_path / "in/train@1.tfrecord"))
    made = Caption(str(run_of), batch_size=8, decoding=Decoding(max_len=8))
    report = run(made, str(tmp_path / "in/*"), tmp_path / "out", max_bad_share=0.5)
    assert (report.asked, report.bad) == (5, {"undecodable_image": 1})
    wanted = made._predictor.caption(images, max_len=8)
    assert len(set(wanted)) > 1
    found = [found["synthetic"][0].decode() for found in features(tmp_path / "out")]
    assert found == [*wanted, wanted[1]]
    with pytest.raises(UserError, match="would be equal at temperature 0"):
        Caption(str(run_of), count=2).fingerprint()
