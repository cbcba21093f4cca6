"""Names of shards, positioned reads, and files that are whole or not there."""

import importlib
import os
import threading

import fsspec
import pytest

from big_mm.data import shards
from big_mm.spec import UserError


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tfrecord", ["a.tfrecord"]),
        ("a-{0..2}", ["a-0", "a-1", "a-2"]),
        ("a-{008..011}", ["a-008", "a-009", "a-010", "a-011"]),
        ("a-{8..11}", ["a-8", "a-9", "a-10", "a-11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{c,d}", ["a/c", "a/d", "b/c", "b/d"]),
        ("{a,{b,c}}x", ["ax", "bx", "cx"]),
        ("a{,.old}", ["a", "a.old"]),
        ("{a}{", ["{a}{"]),
        ("d@2/x@2", ["d@2/x-00000-of-00002", "d@2/x-00001-of-00002"]),
        ("x@2.tfrecord", ["x-00000-of-00002.tfrecord", "x-00001-of-00002.tfrecord"]),
        ("me@home.tfrecord", ["me@home.tfrecord"]),
        ("gs://b/{x,y}@1", ["gs://b/x-00000-of-00001", "gs://b/y-00000-of-00001"]),
    ],
)
def test_names_are_enumerated_like_a_shell_does(pattern, names):
    assert shards.enumerate_names(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..99999999}", "x@99999999", "{0..999}-{0..999}"])
def test_an_absurd_number_of_names_is_refused(pattern):
    with pytest.raises(UserError, match="names more than 100,000 shards"):
        shards.enumerate_names(pattern)


def test_globs_are_sorted_and_leave_out_indexes_and_directories(tmp_path):
    for name in ("b.tfrecord", "a.tfrecord", "c.tfrecord.index", ".a.tfrecord.index"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "d.tfrecord").mkdir()
    found = shards.expand(f"{tmp_path}/*")
    assert [os.path.basename(path) for path in found] == ["a.tfrecord", "b.tfrecord"]
    assert found[f"{tmp_path}/a.tfrecord"] == shards.stat(f"{tmp_path}/a.tfrecord")
    assert found[f"{tmp_path}/a.tfrecord"].size == len("a.tfrecord")


def test_patterns_keep_their_order(tmp_path):
    for name in "abc":
        (tmp_path / name).touch()
    found = shards.expand((f"{tmp_path}/c", f"{tmp_path}/[ab]"))
    assert [os.path.basename(path) for path in found] == ["c", "a", "b"]


def test_a_name_that_exists_is_no_pattern(tmp_path):
    for name in ("x@2", "{a,b}", "[1]"):
        (tmp_path / name).touch()
        assert list(shards.expand(str(tmp_path / name))) == [str(tmp_path / name)]


def test_home_and_file_urls(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").touch()
    assert list(shards.expand("~/a")) == list(shards.expand(f"file://{tmp_path}/a"))


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "x-00000-of-00003").touch()
    with pytest.raises(UserError, match=r"2 of the 3 shards .*x@3.* missing.*x-00001-of-00003"):
        shards.expand(f"{tmp_path}/x@3")
    with pytest.raises(UserError, match=r"no shard matches '.*nothing-\*'"):
        shards.expand(f"{tmp_path}/nothing-*")
    with pytest.raises(UserError, match=r"there is no directory .*/absent"):
        shards.expand(f"{tmp_path}/absent/a")
    with pytest.raises(UserError, match=r"it is a directory; name its files, like .*/\*.tfrecord"):
        shards.expand(str(tmp_path))
    with pytest.raises(UserError, match="named twice"):
        shards.expand((f"{tmp_path}/x*", f"{tmp_path}/x-00000-of-00003"))
    with pytest.raises(UserError, match="no shards are named"):
        shards.expand(())


def test_unknown_protocols_and_missing_packages_are_the_users(monkeypatch):
    with pytest.raises(UserError, match="nowhere://a"):
        shards.expand("nowhere://a")
    monkeypatch.setitem(
        importlib.import_module("fsspec.registry").known_implementations,
        "absent",
        {"class": "no_such_package.FileSystem", "err": "Please install no_such_package"},
    )
    with pytest.raises(UserError, match="Please install no_such_package"):
        shards.expand("absent://bucket/a")


def test_remote_patterns(memory):
    for name in ("a-0", "a-1", ".a-0.index", "b"):
        memory.pipe(f"/bucket/{name}", name.encode())
    found = shards.expand("memory://bucket/a-*")
    assert [name.rsplit("/", 1)[1] for name in found] == ["a-0", "a-1"]
    assert [stamp.size for stamp in found.values()] == [3, 3]
    assert found == {name: shards.stat(name) for name in found}
    assert list(shards.expand("memory://bucket/{b,a-1}")) == [
        "memory://bucket/b",
        "memory://bucket/a-1",
    ]
    with pytest.raises(UserError, match="1 of the 2 shards .* missing"):
        shards.expand("memory://bucket/{b,c}")


@pytest.mark.parametrize("remote", [False, True])
def test_reads_are_positioned(tmp_path, memory, remote):
    data = os.urandom(10_000)
    url = "memory://x" if remote else str(tmp_path / "x")
    with shards.atomic_write(url) as file:
        file.write(data)
    file = shards.open_file(url)
    assert file.stamp == shards.stat(url)
    assert file.read(0, 10_000) == data
    assert file.read(9_990, 100) == data[9_990:]
    assert file.read(10_000, 1) == file.read(20_000, 5) == file.read(5, 0) == b""
    wrong = []

    def read_many(seed: int) -> None:
        for i in range(300):
            at = (seed * 7919 + i * 104729) % 9_900
            if file.read(at, 100) != data[at : at + 100]:
                wrong.append(at)

    threads = [threading.Thread(target=read_many, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_short_reads_of_the_system_are_continued(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(200)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, min(count, 7), at))
    file = shards.open_file(str(path))
    assert file.read(3, 100) == bytes(range(3, 103))
    assert file.read(190, 100) == bytes(range(190, 200))


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_appears_whole_or_not_at_all(tmp_path, memory, remote):
    url = "memory://dir/x" if remote else str(tmp_path / "x")
    with pytest.raises(KeyboardInterrupt), shards.atomic_write(url) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError):
        shards.stat(url)
    with shards.atomic_write(url) as file:
        file.write(b"old")
    with pytest.raises(KeyboardInterrupt), shards.atomic_write(url) as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert shards.open_file(url).read(0, 99) == b"old"
    assert os.listdir(tmp_path) == ([] if remote else ["x"])


def test_written_files_have_ordinary_permissions(tmp_path):
    with shards.atomic_write(str(tmp_path / "x")) as file:
        file.write(b"")
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode
