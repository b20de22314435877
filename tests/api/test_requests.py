"""What people pass in: in time order, whatever form the times have."""

import datetime

import pandas as pd
import pytest

from recbole_tokenrec.api.requests import read_histories, read_interactions
from recbole_tokenrec.errors import DataError

pytestmark = pytest.mark.unit
FIELDS = ("user_id", "item_id", "timestamp")


@pytest.mark.parametrize(
    "times",
    [
        ["121", "41", "9"],  # of read_csv(..., dtype=str): as texts they would come as 121, 41, 9
        [121, 41, 9],
        [121.5, 41, 9],
        ["1.21e2", "41", "9"],
        pd.to_datetime(["2024-03-01", "2024-02-01", "2023-12-31"]),
        [datetime.date(2024, 3, 1), datetime.date(2024, 2, 1), datetime.date(2023, 12, 31)],
    ],
)
def test_time_order(times):
    frame = pd.DataFrame({"user_id:token": "u", "item_id:token": ["last", "second", "first"], "timestamp:float": times})
    assert read_interactions(frame, *FIELDS)[1] == ["first", "second", "last"]
    assert read_histories(frame, *FIELDS) == {"u": ["first", "second", "last"]}


@pytest.mark.parametrize("wrong", ["yesterday", "2024-02-01"])
def test_a_time_that_is_none(wrong):
    frame = pd.DataFrame({"user_id": "u", "item_id": ["a", "b"], "timestamp": ["7", wrong]})
    with pytest.raises(DataError, match=f"column 'timestamp' has '{wrong}'; allowed: numbers, or dates"):
        read_interactions(frame, *FIELDS)
