"""Raw ids, histories and titles in a checkpoint: nothing is lost, and what does not fit together is refused."""

import numpy as np
import pytest
import torch

from recbole_tokenrec.checkpoints import load_checkpoint, save_checkpoint
from recbole_tokenrec.errors import CheckpointError
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.snapshot import DataSnapshot, read_titles

pytestmark = pytest.mark.unit


def small():
    histories = Histories(np.array([1, 1, 2, 3, 3, 3]), np.array([2, 1, 3, 1, 2, 3]), 5)
    users, items = ["[PAD]", "a", "b b", "çé", "nobody"], ["[PAD]", "x", "7", "z,;\"'"]
    return DataSnapshot(users, items, histories, ["", "Ex", "", "Zed – ü"], ("who", "what"))


def test_round_trip_through_a_file(tmp_path):
    save_checkpoint(tmp_path / "c.pth", {"data": small().payload()})
    again = DataSnapshot.from_payload(load_checkpoint(tmp_path / "c.pth")["data"])
    for name in ("users", "items", "titles", "uid_field", "iid_field"):
        assert getattr(again, name) == getattr(small(), name)
    assert torch.equal(again.histories.indptr, small().histories.indptr)
    assert again.histories.of_user(3).tolist() == [1, 2, 3]
    assert again.user_numbers == {"a": 1, "b b": 2, "çé": 3, "nobody": 4}


def test_stands_in_for_recboles_dataset():
    data = small()
    assert (data.num("who"), data.num("what"), data.user_num, data.item_num) == (5, 4, 5, 4)
    again = Histories.from_dataset(data)
    assert torch.equal(again.items, data.histories.items) and torch.equal(again.indptr, data.histories.indptr)
    matrix = data.inter_matrix(form="csr").toarray()
    assert matrix.shape == (5, 4) and matrix.sum() == 6 and matrix[2].tolist() == [0, 0, 0, 1]
    assert data.popularity.tolist() == pytest.approx([0, 2 / 3, 2 / 3, 2 / 3])


def test_grows_at_the_end_and_leaves_the_old_one_alone():
    data = small()
    grown = data.extended(["a", "new", "a", "new"], ["z,;\"'", "y", "x", "x"])
    assert grown.users == [*data.users, "new"] and grown.items == [*data.items, "y"]
    assert grown.titles == [*data.titles, ""]
    assert grown.histories.of_user(1).tolist() == [2, 3, 1]  # x again: its last occurrence counts
    assert grown.histories.of_user(5).tolist() == [4, 1]
    assert data.user_num == 5 and data.histories.of_user(1).tolist() == [2, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("users"),
        lambda p: p.update(items=p["items"][:-8]),
        lambda p: p.update(history_ends=p["history_ends"][:-1]),
        lambda p: p.update(history_items=p["history_items"] + 9),
        lambda p: p.update(history_items=p["history_items"] - 9),
        lambda p: p.update(history_items=p["history_items"].double()),
        lambda p: p.update(history_ends=p["history_ends"][[0, 3, 2, 3, 4, 5]]),
        lambda p: p.update(history_ends=p["history_ends"].clamp_min(1)),
        lambda p: p.update(titles=p["users"]),
        lambda p: p.update(users=torch.tensor([255, 254], dtype=torch.uint8)),
    ],
)
def test_parts_that_do_not_fit_are_refused(change):
    payload = small().payload()
    change(payload)
    with pytest.raises(CheckpointError, match="ids and histories"):
        DataSnapshot.from_payload(payload)


def test_titles(tmp_path):
    file = tmp_path / "d.item"
    assert read_titles(file, ["[PAD]", "1"]) is None
    header = "item_id:token\tyear:float\tmovie_title:token_seq\n"
    file.write_text(header + '2\t1995\tNA\n1\t\t"Quoted, and\' more\n', "utf-8")
    assert read_titles(file, ["[PAD]", "1", "3", "2"]) == ["", "\"Quoted, and' more", "", "NA"]
    shop = "title:token_seq,class_name:token,article:token\nÉté,a,1\nHiver,b,2\n"
    file.write_text(shop, "latin-1")
    assert read_titles(file, ["[PAD]", "2", "1"], "article", ",", "latin-1") == ["", "Hiver", "Été"]
    assert read_titles(file, ["[PAD]", "2", "1"], "item_id", ",", "latin-1") is None
    file.write_text("item_id:token\tyear:float\n1\t1995\n")
    assert read_titles(file, ["[PAD]", "1"]) is None
