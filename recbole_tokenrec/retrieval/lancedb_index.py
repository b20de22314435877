"""LanceDB: item vectors in an embedded vector database, a folder that other programs can query too.

Of the vector databases with an embedded mode it is the one whose embedded mode is the product itself (docs/serving.md
says what else was looked at). The table has the columns ``item`` (RecBole's number), ``vector`` (unit length) and
whatever ``columns`` are given, e.g. ``item_id`` and ``title``.

Every LanceDB write is a new version of the table: a reader of the old version is not disturbed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recbole_tokenrec.errors import CheckpointError, ConfigError
from recbole_tokenrec.retrieval.base import ItemIndex, unit_rows

TABLE = "items"
KINDS = {"flat": None, "hnsw": "IVF_HNSW_SQ", "ivf_pq": "IVF_PQ"}


def _import_lancedb():
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        raise ConfigError("the index backend lancedb needs: pip install 'recbole-tokenrec[lancedb]'") from error
    return lancedb, pyarrow


class LanceIndex(ItemIndex):
    """See the module's docstring.

    Args:
        vectors: (n, d); the padding item is not stored.
        folder: of the database; made if need be. A table of items that lies there is replaced.
        kind: ``flat`` (exact scan, the default), or an ANN index over it: ``hnsw``, ``ivf_pq`` (256 items or more).
        columns: further columns, each with n values (that of the padding item is left out).
    """

    def __init__(self, vectors, folder, kind: str = "flat", columns: dict | None = None):
        super().__init__(vectors)
        if kind not in KINDS:
            raise ConfigError(f"kind: {kind!r} is not allowed; allowed: {', '.join(KINDS)}")
        if kind != "flat" and self.size <= 256:
            raise ConfigError(f"kind: {kind} needs at least 256 items, there are {self.size - 1}; allowed: flat")
        lancedb, _ = _import_lancedb()
        self.folder, self.kind = str(folder), kind
        rows = self._rows(unit_rows(torch.as_tensor(vectors))[1:], 1, columns, skip=1)
        self.table = lancedb.connect(self.folder).create_table(TABLE, rows, mode="overwrite")
        if KINDS[kind]:
            self.table.create_index(metric="cosine", vector_column_name="vector", index_type=KINDS[kind])

    @classmethod
    def open(cls, folder) -> LanceIndex:
        """The index that lies in ``folder``.

        Raises:
            CheckpointError: there is no table of items.
        """
        lancedb, _ = _import_lancedb()
        if not Path(folder).is_dir():
            raise CheckpointError(f"{folder}: no such folder")
        try:
            table = lancedb.connect(str(folder)).open_table(TABLE)
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: holds no table '{TABLE}' of LanceDB") from error
        found = cls.__new__(cls)
        found.folder, found.table = str(folder), table
        kinds = {str(index.index_type) for index in table.list_indices()}
        found.kind = next((k for k, name in KINDS.items() if name and any(_same(name, i) for i in kinds)), "flat")
        found.size = table.count_rows() + 1
        found.dim = table.schema.field("vector").type.list_size
        return found

    @staticmethod
    def _rows(vectors: torch.Tensor, first: int, columns: dict | None, skip: int):
        _, pa = _import_lancedb()
        flat = pa.array(vectors.numpy().ravel(), type=pa.float32())
        content = {
            "item": pa.array(np.arange(first, first + len(vectors)), type=pa.int64()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
        for name, values in (columns or {}).items():
            content[name] = pa.array(list(values)[skip:])
        return pa.table(content)

    def _nearest(self, queries, k, candidates):
        found = torch.zeros(len(queries), k, dtype=torch.long)
        scores = torch.full((len(queries), k), -torch.inf)
        if not len(queries):
            return found, scores
        search = self.table.search(queries.numpy() if len(queries) > 1 else queries[0].numpy())
        search = search.distance_type("cosine").limit(k).select(["item", "_distance"])
        if self.kind == "hnsw":
            search = search.ef(max(128, 2 * k))
        elif self.kind == "ivf_pq":
            search = search.refine_factor(4)  # four times as many, ranked again by their full vectors
        if candidates is not None:
            search = search.where(f"item IN ({', '.join(map(str, candidates.tolist()))})", prefilter=True)
        result = search.to_arrow()
        rows = result["query_index"].to_numpy() if "query_index" in result.column_names else np.zeros(len(result), int)
        items, distance = result["item"].to_numpy(), result["_distance"].to_numpy()
        order = np.lexsort((items, distance, rows))
        rows, items, distance = rows[order], items[order], distance[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        found[rows, place] = torch.from_numpy(items.copy())
        scores[rows, place] = torch.from_numpy(1 - distance.astype(np.float32))
        return found, scores

    def extended(self, vectors, columns: dict | None = None):
        """Adds a version with further items to the same folder; this object goes on reading the version it has."""
        lancedb, _ = _import_lancedb()
        vectors = unit_rows(self._checked_new(vectors))
        version = self.table.version
        twin = LanceIndex.__new__(LanceIndex)
        twin.__dict__.update(self.__dict__, size=self.size + len(vectors))
        twin.table = lancedb.connect(self.folder).open_table(TABLE)
        twin.table.add(self._rows(vectors, self.size, columns, skip=0))
        self.table.checkout(version)
        return twin


def _same(name: str, found: str) -> bool:
    return name.replace("_", "").lower() == found.replace("_", "").lower()
