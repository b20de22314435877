"""Nearest items of a query by cosine (Eq. 19): one small interface, :class:`~.base.ItemIndex`, and three backends.

``exact``
    torch, all items, in chunks that obey a memory budget. The default, and the truth that the others are measured by.
``faiss``
    approximate and fast for large catalogues; the extra ``faiss``.
``lancedb``
    an embedded vector database in a folder; the extra ``lancedb``.

Both extras are imported only when such an index is built.
"""

from __future__ import annotations

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.retrieval.base import ItemIndex
from recbole_tokenrec.retrieval.exact import ExactIndex

__all__ = ["BACKENDS", "ExactIndex", "ItemIndex", "build_index"]

BACKENDS = ("exact", "faiss", "lancedb")


def build_index(backend: str, vectors, **options) -> ItemIndex:
    """An index over item vectors (n, d); row 0 is RecBole's padding item.

    Args:
        backend: one of :data:`BACKENDS`.
        options: the backend's own: ``memory_budget_gb`` (exact); ``kind``, … (faiss); ``folder``, … (lancedb).

    Raises:
        ConfigError: no such backend, its package is not installed, or a wrong option.
    """
    if backend == "exact":
        return ExactIndex(vectors, **options)
    if backend == "faiss":
        from recbole_tokenrec.retrieval.faiss_index import FaissIndex

        return FaissIndex(vectors, **options)
    if backend == "lancedb":
        from recbole_tokenrec.retrieval.lancedb_index import LanceIndex

        return LanceIndex(vectors, **options)
    raise ConfigError(f"index backend: {backend!r} is not known; allowed: {', '.join(BACKENDS)}")
