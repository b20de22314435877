"""Data sets that cannot be used say so in words, before RecBole reads them."""

import gzip

import pytest

from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.errors import ConfigError, DataError

pytestmark = pytest.mark.unit
HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
ROWS = "".join(f"u{u}\ti{(u + i) % 9}\t{i}\n" for u in range(4) for i in range(6))


def load(folder, content, model="TokenRec", **keys):
    target = folder / "mini"
    target.mkdir(exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    (target / "mini.inter").write_bytes(data)
    small = {"topk": [2], "valid_metric": "NDCG@2", "state": "ERROR"}
    return load_data(make_config(model, "mini", (), {"data_path": str(folder), **small, **keys}))


def test_good_data_loads(tmp_path):
    dataset, (train, valid, test) = load(tmp_path, HEADER + ROWS)
    assert (dataset.user_num, dataset.item_num) == (5, 10)
    assert len(train._dataset) == 16 and len(valid._dataset) == len(test._dataset) == 4


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("user_id:token\ttimestamp:float\nu\t1\n", "has no column 'item_id'"),
        ("user_id:token\titem_id:token\nu\ti\n", "has no column 'timestamp'"),
        ("user_id\titem_id\ttimestamp\nu\ti\t1\n", "column 'user_id' .* has no type"),
        (HEADER, "holds no interactions"),
        ("", "is empty"),
        (gzip.compress((HEADER + ROWS).encode(), mtime=0), "gzip-compressed"),
        (b"\xff\xfe" + HEADER.encode("utf-16-le"), "is not text"),
        (HEADER + "u\ti1\t1\nu\ti2\t2\nu\ti3\t3\nu\ti4\t4\n", r"1 user\(s\)"),
        (HEADER + "u\ta\t1\nu\tb\t2\nv\tc\t1\nv\ta\t2\n", "no user has 3 interactions"),
        (HEADER + "".join(f"{u}\t{i}\t{i}\n" for u in "vw" for i in range(5)), "interacted with all items"),
        (HEADER + "u\ta\tsoon\nu\tb\t2\n", "no finite 'timestamp'"),
    ],
)
def test_bad_data(tmp_path, content, text):
    with pytest.raises(DataError, match=text):
        load(tmp_path, content)


def test_missing_data_says_what_to_do(tmp_path):
    config = make_config("TokenRec", "nowhere", (), {"data_path": str(tmp_path), "state": "ERROR"})
    with pytest.raises(DataError, match="--data_path DIR") as caught:
        load_data(config)
    assert len(str(caught.value).splitlines()) == 2
    assert not (tmp_path / "nowhere").exists()


def test_first_interactions_of_each_user(tmp_path):
    rows = "".join(f"u{u}\ti{(u + i) % 9}\t{9 - i}\n" for u in range(4) for i in range(6))  # newest first in the file
    dataset, (train, valid, test) = load(tmp_path, HEADER + rows, user_first_interactions=4)
    assert len(train._dataset) == 8 and len(test._dataset) == 4
    names = dataset.field2id_token["item_id"]
    features = test._dataset.inter_feat
    held_out = {int(user): names[item] for user, item in zip(features["user_id"], features["item_id"])}
    assert held_out[dataset.field2token_id["user_id"]["u0"]] == "i2"  # the fourth oldest of u0: i5, i4, i3, i2
    with pytest.raises(ConfigError, match="user_first_interactions: 2 is not allowed"):
        load(tmp_path, HEADER + rows, user_first_interactions=2)
