"""Shots: so many of each class, by the seed alone, with the classes' new numbers."""

import collections

import numpy as np
import pytest

from big_mm.data.damage import BadRecord
from big_mm.data.shots import Shots
from big_mm.spec import UserError

LABELS = [3, 1, -1, 3, 7, 1, 3, 7, [1], 7, 7]


class Numbered:
    """Records whose label is that of LABELS; the one at 4 is damaged. `reads` counts."""

    def __init__(self):
        self.reads = collections.Counter()

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        self.reads[index] += 1
        if index == 4:
            raise BadRecord("malformed")
        return {"key": str(index), "label": LABELS[index]}

    def where(self, index):
        return f"record {index}"


def chosen(**options):
    made = Shots(Numbered(), **options)
    return [(made[i]["key"], made[i]["label"]) for i in range(len(made))]


def test_so_many_of_each_class():
    found = chosen(shots=2)
    labels = [np.ravel(label).item() for _, label in found]
    assert collections.Counter(labels) == {1: 2, 3: 2, 7: 2}
    assert len({key for key, _ in found}) == 6
    assert labels == [np.ravel(LABELS[int(key)]).item() for key, _ in found]


def test_the_seed_chooses():
    draws = [chosen(shots=1, seed=seed) for seed in range(6)]
    assert draws == [chosen(shots=1, seed=seed) for seed in range(6)]
    assert any(draw != draws[0] for draw in draws)


def test_some_classes_with_numbers_of_their_own():
    found = chosen(shots=None, classes=(7, 1))
    assert found == [("1", 1), ("5", 1), ("7", 0), ("8", 1), ("9", 0), ("10", 0)]
    made = Shots(Numbered(), shots=None, classes=(7, 1))
    assert made.where(2) == "record 7"


def test_labels_are_read_once():
    source = Numbered()
    made = Shots(source, shots=1, classes=(3,))
    for _ in range(3):
        assert len(made) == 1 and made[0]["label"] == 0
    assert source.reads[2] == 1 and max(source.reads.values()) <= 4


def test_what_cannot_be_drawn():
    with pytest.raises(UserError, match="class 3 has 3 of 4 records"):
        chosen(shots=4, classes=(3, 1))
    with pytest.raises(UserError, match="class 9 has 0 of 1 records"):
        chosen(shots=None, classes=(9,))
    with pytest.raises(UserError, match="shots=0 must be at least 1"):
        chosen(shots=0)
    with pytest.raises(UserError, match="names a class twice"):
        chosen(shots=1, classes=(1, 1))
    with pytest.raises(UserError, match="record 0 has no 'colour'"):
        chosen(shots=1, label="colour")
