"""Exact search against FAISS (HNSW, IVF, IVF-PQ): latency, recall@20, memory and build time over catalogue sizes.

    python -m benchmarks.retrieval --checkpoint C

C is a trained TokenRec. Its users' vectors ask, as its language model makes them; its item vectors say what a catalogue
looks like. Catalogues of any size are drawn from a manifold Parzen window estimate (Vincent and Bengio, NIPS 2002) of
those: an item is a randomly chosen trained one plus Gaussian noise that has the covariance of the trained item's
differences to its 20 nearest, so that there are new items where trained ones have company, in the directions in which
these lie apart, and none elsewhere. How hard a search is, is decided by the local intrinsic dimension around the query
(how fast the number of items grows with the distance) and by how near the nearest are; the JSON file has both, for the
trained catalogue, parts of it and every synthetic one.

Every query is searched by itself (one user) and in a batch. --dim D keeps the D principal directions of the trained
vectors, for catalogues that would not fit memory otherwise. An index that takes long to build can be kept:
--keep FOLDER reads the ones it holds and adds those it lacks.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import recbole_tokenrec
from benchmarks.harness import begin, finish, parser, side_by_side
from recbole_tokenrec.retrieval import build_index
from recbole_tokenrec.retrieval.faiss_index import FaissIndex

NEAR = 20  # trained items whose differences to one shape the noise around it
KINDS = {"exact": {}, "hnsw": {"kind": "hnsw"}, "ivf": {"kind": "ivf"}, "ivf_pq": {"kind": "ivf_pq"}}


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "retrieval", rounds=5)
    arguments_parser.add_argument("--checkpoint", type=Path, required=True, help="a trained TokenRec")
    arguments_parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments_parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments_parser.add_argument("--dim", type=int, help="keep so many principal directions (default: all)")
    arguments_parser.add_argument("--queries", type=int, default=64, help="users that ask (default: 64)")
    arguments_parser.add_argument("--keep", type=Path, help="folder of finished FAISS indexes")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    about, queries, trained = trained_vectors(arguments)
    searched = [hardness(build_index("exact", part), queries, "trained") for part in parts_of(trained, arguments.seed)]
    rows = []
    for number in arguments.items:
        index = build_index("exact", synthetic_items(trained, number, arguments.seed))
        searched.append(hardness(index, queries, "synthetic"))
        print(searched[-1], flush=True)
        rows += at_size(index, queries, arguments)
        del index
        gc.collect()
    finish(arguments, before, {"trained": about, "hardness": searched, "rows": rows})


@torch.no_grad()
def trained_vectors(arguments) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """What the model is, unit vectors of the users who ask (queries, d) and of its items (n_items, d)."""
    recommender = recbole_tokenrec.load(arguments.checkpoint)
    model = recommender.model.eval()
    users = 1 + torch.randperm(model.n_users - 1)[: arguments.queries]
    tables = model.encode_users(users), model.retrieval_vectors
    queries, items = (F.normalize(vectors, dim=-1) for vectors in tables)
    about = {"model": recommender.name, "dataset": recommender.config["dataset"], "items": model.n_items - 1}
    about.update(preset=recommender.config["config_dict"].get("preset"), dim=items.shape[1])
    if arguments.dim:
        centre = items[1:].mean(dim=0)
        directions = torch.linalg.svd(items[1:] - centre, full_matrices=False).Vh[: arguments.dim].T  # (d, dim)
        queries, items = queries @ directions, items @ directions
    return about, queries, items


def parts_of(vectors: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """A quarter, a half and all of the items (n, d), each with the padding item before them."""
    order = 1 + torch.randperm(len(vectors) - 1, generator=torch.Generator().manual_seed(seed))
    return [torch.cat([vectors[:1], vectors[order[: len(order) // share]]]) for share in (4, 2, 1)]


def synthetic_items(trained: torch.Tensor, number: int, seed: int, chunk: int = 4096) -> torch.Tensor:
    """(number + 1, d) unit vectors, see the module's docstring; row 0 is the padding item."""
    generator = torch.Generator().manual_seed(seed)
    sources = F.normalize(trained[1:], dim=-1)
    near = (sources @ sources.T).fill_diagonal_(-torch.inf).topk(NEAR, dim=1).indices  # (n, NEAR)
    items = torch.zeros(number + 1, sources.shape[1])
    for start in range(1, number + 1, chunk):
        chosen = torch.randint(len(sources), (min(chunk, number + 1 - start),), generator=generator)
        differences = sources[near[chosen]] - sources[chosen].unsqueeze(1)  # (chunk, NEAR, d)
        weights = torch.randn(len(chosen), 1, NEAR, generator=generator) / NEAR**0.5
        items[start : start + chunk] = F.normalize(sources[chosen] + (weights @ differences).squeeze(1), dim=-1)
    return items


def hardness(index, queries: torch.Tensor, which: str, k: int = 20, sample: int = 256) -> dict:
    """Local intrinsic dimension around queries and around some of the items, and the cosines of what is nearest."""
    own = 1 + torch.randperm(index.size - 1, generator=torch.Generator().manual_seed(0))[:sample]
    exclude = (torch.arange(len(own)), own)
    found = {"query": index.search(queries, k)[1], "item": index.search(index.vectors[own], k, exclude)[1]}
    row = {"which": which, "items": index.size - 1, "dim": index.dim}
    for name, cosines in found.items():
        row[f"{name}_dimension"] = local_dimension((2 - 2 * cosines).clamp_min(1e-12).sqrt())
        row[f"{name}_cosines"] = [float(cosines[:, place].median()) for place in (0, k - 1)]
    return row


def local_dimension(distances: torch.Tensor) -> float:
    """The median of Levina and Bickel's estimate over points, from distances (points, k) to their k nearest others.

    It reads how fast the distances grow: with the r-th root of the number of others in r dimensions.
    """
    k = distances.shape[1]
    return float((-(k - 1) / (distances[:, :-1] / distances[:, -1:]).log().sum(dim=1)).median())


def at_size(exact, queries: torch.Tensor, arguments, k: int = 20) -> list[dict]:
    """One row for each kind of index over the items of ``exact``."""
    indexes, built = {}, {}
    for kind in arguments.kinds:
        indexes[kind], built[kind] = made(kind, exact, arguments)
    truth = exact.search(queries, k)[0]
    cases = {}
    for kind, index in indexes.items():
        cases[kind, "batch"] = lambda index=index: index.search(queries, k)
        cases[kind, "single"] = lambda index=index: [index.search(query, k) for query in queries.split(1)]
    timings = side_by_side(cases, arguments.rounds)
    rows = []
    for kind, index in indexes.items():
        found = index.search(queries, k)[0]
        recall = (found.unsqueeze(2) == truth.unsqueeze(1)).any(dim=2).float().mean()
        row = {"items": exact.size - 1, "dim": exact.dim, "kind": kind, "recall_at_20": float(recall)}
        row.update(built[kind])
        for way in ("single", "batch"):
            timing = timings[kind, way]
            row[f"{way}_ms_per_query"] = 1000 * timing.median("cpu") / len(queries)
            row[f"{way}_wall_ms_per_query"] = 1000 * timing.median() / len(queries)
        rows.append(row)
        print(row, flush=True)
    base = next((row for row in rows if row["kind"] == "exact"), None)
    for row in rows if base else []:
        for way in ("single", "batch"):
            row[f"{way}_times_faster"] = base[f"{way}_ms_per_query"] / row[f"{way}_ms_per_query"]
    return rows


def made(kind: str, exact, arguments) -> tuple[object, dict]:
    """The index, and what building it took; FAISS's own file says how large it is."""
    if kind == "exact":
        return exact, {"build_cpu_s": 0.0, "mib": exact.vectors.numel() * 4 / 2**20}
    folder = arguments.keep or arguments.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}-{exact.size - 1}-{exact.dim}-{arguments.seed}.faiss"
    about = file.with_suffix(".json")
    if arguments.keep and about.exists():
        return FaissIndex.load(file), json.loads(about.read_text())
    start = time.process_time()
    index = build_index("faiss", exact.vectors, **KINDS[kind])
    built = {"build_cpu_s": time.process_time() - start}
    index.save(file)
    built["mib"] = file.stat().st_size / 2**20
    if arguments.keep:
        about.write_text(json.dumps(built))
    else:
        file.unlink()
    return index, built


if __name__ == "__main__":
    main()
