"""Records with the texts of others: which, whose, and nothing else."""

import dataclasses
import pickle

import pytest

from big_mm.data.noise import Mismatched
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Numbers:
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": b"%d" % index, "captions": [f"text {index}"], "long": [f"long {index}"]}

    def where(self, index):
        return f"number {index}"


def owner(record, key):
    return int(record[key][0].split()[1])


def test_the_share_has_texts_of_others_and_the_rest_its_own():
    source = Mismatched(Numbers(4000), 0.4, seed=3, texts=("captions", "long"))
    records = [source[i] for i in range(len(source))]
    wrong = [i for i, record in enumerate(records) if owner(record, "captions") != i]
    assert [i for i, record in enumerate(records) if record["mismatched"]] == wrong
    assert len(wrong) / 4000 == pytest.approx(0.4, abs=4 * (0.24 / 4000) ** 0.5)
    for i, record in enumerate(records):
        assert record["image"] == b"%d" % i
        assert owner(record, "captions") == owner(record, "long")
    lenders = {owner(records[i], "captions") for i in wrong}
    assert len(lenders) > 0.3 * 4000  # spread over the source: 4000 (1 - exp(-0.4)) are expected


def test_it_is_a_function_of_seed_and_record():
    one = Mismatched(Numbers(100), 0.5, seed=1)
    again = pickle.loads(pickle.dumps(one))
    assert [again[i] for i in reversed(range(100))] == [one[i] for i in range(99, -1, -1)]
    assert [one[i] for i in range(100)] != [Mismatched(Numbers(100), 0.5)[i] for i in range(100)]
    assert one.where(7) == "number 7"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_and_all(share):
    source = Mismatched(Numbers(50), share)
    assert {source[i]["mismatched"] for i in range(50)} == {int(share)}


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="share=1.5"):
        Mismatched(Numbers(5), 1.5)
    with pytest.raises(UserError, match="no other texts"):
        Mismatched(Numbers(1), 1.0)[0]
    with pytest.raises(UserError, match=r"number 0 have no \['alt'\]"):
        Mismatched(Numbers(5), 1.0, texts=("alt",))[0]
