"""FAISS: approximate search for large catalogues (the extra ``faiss``).

``hnsw`` (default) is a graph over the full vectors: fast, high recall, memory of the vectors and their links.
``ivf`` sorts the full vectors into cells and looks into ``nprobe`` of them: built in seconds where a graph of a million
items takes minutes, and as good and fast there; with fewer items it finds less (docs/results/performance.md).
``ivf_pq`` compresses a vector to ``pq_bytes`` bytes and looks into ``nprobe`` of the cells: for catalogues that do
not fit memory otherwise, at a lower recall. ``flat`` is exact: FAISS's own scan.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recbole_tokenrec.errors import CheckpointError, ConfigError
from recbole_tokenrec.retrieval.base import ItemIndex, unit_rows

KINDS = ("hnsw", "flat", "ivf", "ivf_pq")
_MOST_CELLS = 4096
_ROWS_PER_CELL = 64  # that cells are trained on; more moves them no further


def import_faiss():
    """The module ``faiss``, or a ConfigError that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("the index backend faiss needs: pip install 'recbole-tokenrec[faiss]'") from error
    return faiss


class FaissIndex(ItemIndex):
    """See the module's docstring. Item j lies at FAISS's place j - 1: the padding item is not stored.

    Args:
        vectors: (n, d).
        kind: one of :data:`KINDS`.
        links: of each item in the HNSW graph (M); more: better recall, more memory.
        ef_construction: candidates that are looked at to link an item; more: better recall, slower to build.
        ef_search: candidates that a search of the graph holds at least (at least as many as are asked for); more:
            better recall, slower. 512 is for a million items; a tenth of them are found as well with 256.
        cells: 0 takes sqrt(n) for ``ivf`` and 4 sqrt(n) for ``ivf_pq``, at most 4096: training them is the dear part of
            a large index.
        nprobe: cells that a search looks into; 0 takes a sixteenth of them.
        pq_bytes: bytes of one compressed vector; must divide d.
    """

    def __init__(
        self, vectors, kind: str = "hnsw", links: int = 32, ef_construction: int = 160, ef_search: int = 512,
        cells: int = 0, nprobe: int = 0, pq_bytes: int = 32,
    ):  # fmt: skip
        super().__init__(vectors)
        faiss = import_faiss()
        if kind not in KINDS:
            raise ConfigError(f"kind: {kind!r} is not allowed; allowed: {', '.join(KINDS)}")
        self.kind, self.ef_search = kind, ef_search
        rows = unit_rows(torch.as_tensor(vectors))[1:].numpy()
        if kind == "flat":
            self.index = faiss.IndexFlatIP(self.dim)
        elif kind == "hnsw":
            self.index = faiss.IndexHNSWFlat(self.dim, links, faiss.METRIC_INNER_PRODUCT)
            self.index.hnsw.efConstruction = ef_construction
        else:
            cells = cells or max(1, min(int((1 if kind == "ivf" else 4) * len(rows) ** 0.5), _MOST_CELLS))
            quantizer = faiss.IndexFlatIP(self.dim)
            if kind == "ivf":
                self._check_rows(len(rows), cells)
                self.index = faiss.IndexIVFFlat(quantizer, self.dim, cells, faiss.METRIC_INNER_PRODUCT)
            else:
                self._check_pq(len(rows), cells, pq_bytes)
                self.index = faiss.IndexIVFPQ(quantizer, self.dim, cells, pq_bytes, 8, faiss.METRIC_INNER_PRODUCT)
                self.index.pq.cp.min_points_per_centroid = 1
            self.index.nprobe = nprobe or max(1, cells // 16)
            self.index.cp.min_points_per_centroid = 1  # small catalogues train on what there is, without a warning
            self.index.cp.max_points_per_centroid = _ROWS_PER_CELL
            self.index.train(rows)
        self.index.add(rows)

    def _check_pq(self, rows: int, cells: int, pq_bytes: int) -> None:
        if self.dim % pq_bytes:
            raise ConfigError(f"pq_bytes: {pq_bytes} is not allowed; allowed: divisors of d = {self.dim}")
        self._check_rows(rows, max(cells, 256))

    def _check_rows(self, rows: int, least: int) -> None:
        if rows < least:
            raise ConfigError(f"kind: {self.kind} needs at least {least} items, there are {rows}; allowed: hnsw")

    def _nearest(self, queries, k, candidates):
        if candidates is not None and self.kind in ("hnsw", "flat"):
            # A graph walked through forbidden items misses allowed ones; these are few, and their vectors are there.
            rows = torch.from_numpy(self.index.reconstruct_batch((candidates.cpu() - 1).numpy()))
            scores, places = (queries @ rows.T).topk(k, dim=1)
            return candidates.cpu()[places], scores
        faiss = import_faiss()
        parameters = None
        if self.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(self.ef_search, 2 * k))
        elif candidates is not None:  # in every cell, since the nearest cells may hold none of them
            selector = faiss.IDSelectorBatch(np.ascontiguousarray((candidates.cpu() - 1).numpy()))
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=self.index.nlist)
        rows = np.ascontiguousarray(queries.numpy())
        scores, places = self.index.search(rows, k, params=parameters)
        if self.kind in ("ivf", "ivf_pq") and candidates is None:
            self._open_cells(rows, k, scores, places)
        return torch.from_numpy(places) + 1, torch.from_numpy(scores)

    def _open_cells(self, rows: np.ndarray, k: int, scores: np.ndarray, places: np.ndarray) -> None:
        """Where the cells looked into held fewer than ``k`` items, look into twice as many, in place."""
        nprobe = self.index.nprobe
        while nprobe < self.index.nlist and len(short := np.flatnonzero((places < 0).any(axis=1))):
            nprobe = min(2 * nprobe, self.index.nlist)
            wider = import_faiss().SearchParametersIVF(nprobe=nprobe)
            scores[short], places[short] = self.index.search(rows[short], k, params=wider)

    def extended(self, vectors):
        faiss = import_faiss()
        rows = unit_rows(self._checked_new(vectors)).numpy()
        twin = FaissIndex.__new__(FaissIndex)
        twin.__dict__.update(self.__dict__, index=faiss.clone_index(self.index), size=self.size + len(rows))
        if self.kind in ("ivf", "ivf_pq"):
            twin.index.nprobe = self.index.nprobe
        twin.index.add(rows)
        return twin

    def save(self, path) -> None:
        """Write FAISS's own file; any FAISS program reads it (item j is its vector j - 1)."""
        import_faiss().write_index(self.index, str(path))

    @classmethod
    def load(cls, path, ef_search: int = 512) -> FaissIndex:
        """Read a file that :meth:`save` wrote.

        Raises:
            CheckpointError: no such file, or FAISS cannot read it.
        """
        faiss = import_faiss()
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: no such file")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{path}: FAISS cannot read it ({error})") from error
        kinds = {"IndexHNSWFlat": "hnsw", "IndexFlatIP": "flat", "IndexFlat": "flat", "IndexIVFFlat": "ivf",
                 "IndexIVFPQ": "ivf_pq"}  # fmt: skip
        if type(index).__name__ not in kinds:
            raise CheckpointError(f"{path}: a {type(index).__name__} is no index of this package")
        found = cls.__new__(cls)
        found.kind, found.ef_search, found.index = kinds[type(index).__name__], ef_search, index
        found.size, found.dim = index.ntotal + 1, index.d
        return found
