"""Every backend against the plain matrix product, with exclusions, candidates, growth and a tiny memory budget."""

import pytest
import torch
from torch.nn import functional as F

from recbole_tokenrec.errors import CheckpointError, ConfigError
from recbole_tokenrec.retrieval import build_index

pytestmark = pytest.mark.unit
N, D, B, K = 600, 16, 23, 10
GENERATOR = torch.Generator().manual_seed(3)
VECTORS = torch.randn(N, D, generator=GENERATOR) * torch.rand(N, 1, generator=GENERATOR)
VECTORS[0] = VECTORS[1:].mean(dim=0) * 100  # the padding item must not be found, whatever its vector
QUERIES = torch.randn(B, D, generator=GENERATOR)


def truth(queries, vectors, k, exclude=None, candidates=None):
    scores = F.normalize(queries, dim=-1) @ F.normalize(vectors, dim=-1).T
    scores[:, 0] = -torch.inf
    if exclude is not None:
        scores[exclude] = -torch.inf
    if candidates is not None:
        outside = torch.ones(len(vectors), dtype=torch.bool)
        outside[candidates] = False
        scores[:, outside] = -torch.inf
    value, item = scores.topk(k, dim=1)
    return item.masked_fill(value == -torch.inf, 0), value


@pytest.fixture(params=["exact", "exact-small", "faiss-flat", "faiss-hnsw", "faiss-ivf", "lancedb-flat"])
def make(request, tmp_path):
    """``make(vectors)``: an index of one kind."""
    backend, _, kind = request.param.partition("-")
    if backend != "exact":
        pytest.importorskip(backend)
    options = {"kind": kind} if backend != "exact" else {}
    if kind == "ivf":  # all cells: exact
        options.update(cells=8, nprobe=8)
    if kind == "small":  # 8 bytes a score: 300 of them, so that the items of a single query take two blocks
        options = {"memory_budget_gb": 2400 / 2**30}
    if backend == "lancedb":
        options["folder"] = tmp_path / "db"
    return lambda vectors: build_index(backend, vectors, **options)


def assert_equal(found, expected):
    items, scores = found
    torch.testing.assert_close(items, expected[0])
    torch.testing.assert_close(scores, expected[1].to(scores), rtol=1e-4, atol=1e-5)


def test_finds_what_the_product_finds(make):
    assert_equal(make(VECTORS).search(QUERIES, K), truth(QUERIES, VECTORS, K))


def test_excludes_pairs(make):
    best = truth(QUERIES, VECTORS, 200)[0]
    counts = torch.tensor([0, 1, 3, 40, 200] * 5)[:B]  # from nothing to far more than is asked for
    rows = torch.repeat_interleave(torch.arange(B), counts)
    items = torch.cat([best[row, : counts[row]] for row in range(B)])
    shuffled = torch.randperm(len(rows), generator=GENERATOR)
    pairs = rows[shuffled], items[shuffled]
    assert_equal(make(VECTORS).search(QUERIES, K, exclude=pairs), truth(QUERIES, VECTORS, K, pairs))


def test_searches_among_candidates_only(make):
    candidates = torch.tensor([5, 0, 17, 99, 17, 400, 599])
    pairs = torch.tensor([0, 0, 2]), torch.tensor([5, 17, 123])
    found = make(VECTORS).search(QUERIES, 8, pairs, candidates)
    assert_equal(found, truth(QUERIES, VECTORS, 8, pairs, candidates[candidates > 0]))
    assert (found[0][1] == 0).sum() == 3 and (found[0][0] == 0).sum() == 5  # five candidates, eight places


def test_grows_and_leaves_the_old_one_alone(make):
    old = make(VECTORS[:500])
    new = old.extended(VECTORS[500:])
    assert (old.size, new.size) == (500, N)
    assert_equal(new.search(QUERIES, K), truth(QUERIES, VECTORS, K))
    assert_equal(old.search(QUERIES, K), truth(QUERIES, VECTORS[:500], K))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((QUERIES[:, :3], K), r"queries: shape \(23, 3\)"),
        ((QUERIES, 0), "k: 0 is not allowed"),
        ((QUERIES, K, None, torch.tensor([N])), r"candidates: items lie in \[1, 599\]"),
    ],
)
def test_wrong_questions(make, arguments, text):
    with pytest.raises(ConfigError, match=text):
        make(VECTORS).search(*arguments)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [("faiss", "hnsw"), ("faiss", "ivf"), ("faiss", "ivf_pq"), ("lancedb", "hnsw"), ("lancedb", "ivf_pq")],
)
def test_compressed_indexes_find_most(backend, kind, tmp_path):
    pytest.importorskip(backend)
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(40, 32, generator=generator)
    vectors = centres[torch.randint(40, (4000,), generator=generator)]
    vectors = vectors + 0.5 * torch.randn(4000, 32, generator=generator)
    queries = vectors[100:150] + 0.1 * torch.randn(50, 32, generator=generator)
    options = {"kind": kind, **({"folder": tmp_path / "db"} if backend == "lancedb" else {})}
    options.update({"pq_bytes": 16, "cells": 32} if (backend, kind) == ("faiss", "ivf_pq") else {})
    options.update({"cells": 32, "nprobe": 8} if kind == "ivf" else {})
    items, scores = build_index(backend, vectors, **options).search(queries, 10)
    expected, _ = truth(queries, vectors, 10)
    recall = (items.unsqueeze(2) == expected.unsqueeze(1)).any(2).float().mean()
    assert recall > (0.95 if kind in ("hnsw", "ivf") and backend == "faiss" else 0.5)
    assert (scores.diff(dim=1) <= 1e-6).all() and (items > 0).all()


@pytest.mark.parametrize("kind", ["ivf", "ivf_pq"])
def test_cells_are_opened_until_enough_items_are_left(kind):
    pytest.importorskip("faiss")
    options = {"pq_bytes": 8} if kind == "ivf_pq" else {}
    index = build_index("faiss", VECTORS, kind=kind, cells=50, nprobe=1, **options)
    rows = torch.repeat_interleave(torch.arange(B), 100)
    exclude = rows, torch.cat([torch.randperm(N - 1, generator=GENERATOR)[:100] + 1 for _ in range(B)])
    for k, found in ((400, index.search(QUERIES, 400)[0]), (N - 101, index.search(QUERIES, N - 101, exclude)[0])):
        assert (found > 0).all() and all(len(set(row)) == k for row in found.tolist())


def test_faiss_file_round_trip(tmp_path):
    pytest.importorskip("faiss")
    from recbole_tokenrec.retrieval.faiss_index import FaissIndex

    for kind in ("hnsw", "flat", "ivf", "ivf_pq"):
        index = build_index("faiss", VECTORS, kind=kind, pq_bytes=8, cells=20)
        index.save(tmp_path / kind)
        again = FaissIndex.load(tmp_path / kind)
        assert (again.kind, again.size, again.dim) == (kind, N, D)
        for left, right in zip(index.search(QUERIES, K), again.search(QUERIES, K)):
            torch.testing.assert_close(left, right)
        among = again.search(QUERIES, 3, candidates=torch.tensor([7, 8, 9]))[0]
        assert (among.sort(dim=1).values == torch.tensor([7, 8, 9])).all()
    (tmp_path / "flat").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="FAISS cannot read it"):
        FaissIndex.load(tmp_path / "flat")


def test_lancedb_opens_again(tmp_path):
    pytest.importorskip("lancedb")
    from recbole_tokenrec.retrieval.lancedb_index import LanceIndex

    names = [f"item {i}" for i in range(N)]
    for kind in ("flat", "hnsw"):
        index = build_index("lancedb", VECTORS, folder=tmp_path / kind, kind=kind, columns={"item_id": names})
        again = LanceIndex.open(tmp_path / kind)
        assert (again.kind, again.size, again.dim) == (kind, N, D)
        torch.testing.assert_close(index.search(QUERIES, K)[0], again.search(QUERIES, K)[0])
    rows = again.table.search().where("item = 7").to_list()
    assert rows[0]["item_id"] == "item 7"
    with pytest.raises(CheckpointError, match="no table 'items'"):
        LanceIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("backend", "options", "text"),
    [
        ("exakt", {}, "allowed: exact, faiss, lancedb"),
        ("exact", {"memory_budget_gb": 0}, "memory_budget_gb: 0 is not allowed"),
        ("faiss", {"kind": "lsh"}, "allowed: hnsw, flat, ivf, ivf_pq"),
        ("faiss", {"kind": "ivf_pq", "pq_bytes": 5}, "divisors of d = 16"),
        ("lancedb", {"kind": "lsh", "folder": "x"}, "allowed: flat, hnsw, ivf_pq"),
    ],
)
def test_wrong_options(backend, options, text):
    if backend in ("faiss", "lancedb"):
        pytest.importorskip(backend)
    with pytest.raises(ConfigError, match=text):
        build_index(backend, VECTORS, **options)


@pytest.mark.parametrize(("backend", "missing"), [("faiss", "faiss"), ("lancedb", "lancedb")])
def test_a_missing_extra_is_named(backend, missing, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    options = {"folder": tmp_path} if backend == "lancedb" else {}
    with pytest.raises(ConfigError, match=rf"pip install 'recbole-tokenrec\[{backend}\]'"):
        build_index(backend, VECTORS, **options)
