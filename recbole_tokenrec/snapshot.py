"""What a trained model must know of its data, kept inside the checkpoint: raw ids, training histories, item titles.

RecBole's checkpoints hold numbers only: to recommend for a raw id they need the data files, read and split again. A
:class:`DataSnapshot` stands in for RecBole's ``Dataset`` where one of our models is rebuilt, so that a checkpoint
file is enough. It grows by :meth:`DataSnapshot.extended`, which is how new users and items come in.

Raw ids are kept as RecBole reads them, as text; number 0 is RecBole's padding.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction

from recbole_tokenrec.errors import CheckpointError
from recbole_tokenrec.histories import Histories

PADDING = "[PAD]"


class DataSnapshot:
    """Raw ids, and who took what in training.

    Args:
        users, items: raw ids by number, the padding at 0.
        histories: of n_users users.
        titles: of items by number, "" where unknown; None if the data has none.
        fields: RecBole's names of the user and the item column.
    """

    time_field = None  # histories are in order already

    def __init__(
        self,
        users: list[str],
        items: list[str],
        histories: Histories,
        titles: list[str] | None = None,
        fields: tuple[str, str] = ("user_id", "item_id"),
    ):
        self.users, self.items, self.histories, self.titles = users, items, histories, titles
        self.uid_field, self.iid_field = fields

    @classmethod
    def from_dataset(cls, dataset, histories: Histories | None = None) -> DataSnapshot:
        """Of a RecBole data set after its split; ``histories`` if they are made already."""
        items = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
        return cls(
            [str(token) for token in dataset.field2id_token[dataset.uid_field]],
            items,
            Histories.from_dataset(dataset) if histories is None else histories,
            read_titles(
                Path(dataset.dataset_path) / f"{dataset.dataset_name}.item",
                items,
                dataset.iid_field,
                dataset.config["field_separator"] or "\t",
                dataset.config["encoding"] or "utf-8",
            ),
            (dataset.uid_field, dataset.iid_field),
        )

    # ---- in a checkpoint --------------------------------------------------------------------------------------

    def payload(self) -> dict:
        """Tensors and plain data, for ``save_checkpoint``."""
        return {
            "users": _packed(self.users),
            "items": _packed(self.items),
            "titles": None if self.titles is None else _packed(self.titles),
            "history_ends": self.histories.indptr,
            "history_items": self.histories.items,
            "fields": [self.uid_field, self.iid_field],
        }

    @classmethod
    def from_payload(cls, payload: dict) -> DataSnapshot:
        """Inverse of :meth:`payload`.

        Raises:
            CheckpointError: a part is missing or two do not fit together.
        """
        try:
            users, items = _unpacked(payload["users"]), _unpacked(payload["items"])
            titles = None if payload["titles"] is None else _unpacked(payload["titles"])
            ends, taken = payload["history_ends"].cpu(), payload["history_items"].cpu()
            fields = tuple(payload["fields"])
        except (KeyError, AttributeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"the checkpoint's ids and histories cannot be read ({error!r})") from error
        arrays = all(part.dim() == 1 and part.dtype == torch.int64 for part in (ends, taken))
        fits = arrays and len(ends) == len(users) + 1 and ends[0] == 0 and ends[-1] == len(taken)
        fits = fits and bool((ends.diff() >= 0).all())
        known = not len(taken) or (taken.min() >= 0 and taken.max() < len(items))
        if not fits or not known or (titles and len(titles) != len(items)):
            raise CheckpointError("the checkpoint's ids and histories do not fit together")
        histories = Histories.__new__(Histories)
        histories.n_users, histories.indptr, histories.items = len(users), ends, taken
        return cls(users, items, histories, titles, fields)

    # ---- raw ids ----------------------------------------------------------------------------------------------

    @cached_property
    def user_numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.users) if number}

    @cached_property
    def item_numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.items) if number}

    @cached_property
    def item_names(self) -> np.ndarray:
        """``items`` as an array of objects, to be indexed by many numbers at once."""
        return np.asarray(self.items, dtype=object)

    @cached_property
    def counts(self) -> torch.Tensor:
        """(n_users,) items of each user."""
        return self.histories.counts()

    @cached_property
    def popularity(self) -> torch.Tensor:
        """(n_items,) share of the users with a history who took each item."""
        people = max(int((self.counts > 0).sum()), 1)
        return torch.bincount(self.histories.items, minlength=len(self.items)).float() / people

    def extended(self, users: Iterable[str], items: Iterable[str]) -> DataSnapshot:
        """A copy with later interactions (raw ids, in time order), their new users and items numbered at the end."""
        users, items = list(users), list(items)
        new_users = [token for token in dict.fromkeys(users) if token not in self.user_numbers]
        new_items = [token for token in dict.fromkeys(items) if token not in self.item_numbers]
        grown = DataSnapshot(
            self.users + new_users,
            self.items + new_items,
            self.histories,
            None if self.titles is None else self.titles + [""] * len(new_items),
            (self.uid_field, self.iid_field),
        )
        rows = np.array([grown.user_numbers[token] for token in users], dtype=np.int64)
        taken = np.array([grown.item_numbers[token] for token in items], dtype=np.int64)
        old = self.histories
        grown.histories = Histories(
            np.concatenate([old.rows().numpy(), rows]), np.concatenate([old.items.numpy(), taken]), grown.user_num
        )
        return grown

    # ---- what models ask of RecBole's Dataset ------------------------------------------------------------------

    @property
    def user_num(self) -> int:
        return len(self.users)

    @property
    def item_num(self) -> int:
        return len(self.items)

    def num(self, field: str) -> int:
        return {self.uid_field: self.user_num, self.iid_field: self.item_num}[field]

    @property
    def inter_feat(self) -> Interaction:
        return Interaction({self.uid_field: self.histories.rows(), self.iid_field: self.histories.items})

    def inter_matrix(self, form: str = "coo", value_field: str | None = None):
        rows, items = self.histories.rows().numpy(), self.histories.items.numpy()
        matrix = sp.coo_matrix((np.ones(len(rows), np.float32), (rows, items)), shape=(self.user_num, self.item_num))
        return matrix.asformat(form)


def read_titles(
    path: Path, items: list[str], iid_field: str = "item_id", separator: str = "\t", encoding: str = "utf-8"
) -> list[str] | None:
    """Titles by item number out of RecBole's ``.item`` file: its first column called after a title or a name.

    None if there is no such file or column, or none of the item ids.
    """
    if not path.is_file():
        return None
    with path.open(encoding=encoding, errors="replace") as file:
        header = file.readline().rstrip("\r\n").split(separator)
    fields = {column: column.partition(":")[0] for column in header}
    ids = [column for column, field in fields.items() if field == iid_field]
    found = [column for word in ("title", "name") for column, field in fields.items() if word in field.lower()]
    found = [column for column in found if column not in ids]
    if not ids or not found:
        return None
    options = {"dtype": str, "keep_default_na": False, "quoting": csv.QUOTE_NONE, "encoding_errors": "replace"}
    table = pd.read_csv(path, sep=separator, encoding=encoding, usecols=[ids[0], found[0]], **options)
    known = dict(zip(table[ids[0]], table[found[0]]))
    return ["", *(known.get(token, "").replace("\n", " ") for token in items[1:])]


def _packed(texts: list[str]) -> torch.Tensor:
    """Texts without line breaks as one tensor of bytes: a million ids then load in no time."""
    return torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8)


def _unpacked(packed: torch.Tensor) -> list[str]:
    return packed.cpu().numpy().tobytes().decode().split("\n")
