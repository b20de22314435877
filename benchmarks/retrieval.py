"""Exact search against FAISS (HNSW, IVF, IVF-PQ): latency, recall@20, memory and build time over catalogue sizes.

Items are made around trained ones: the LightGCNSoftmax item vectors of a data set (trained here, briefly), each item
a randomly chosen trained one plus noise that turns it by about 33 degrees, so that the neighbourhood structure is
that of a real catalogue (crowded directions, empty ones) and not of a uniform ball, which no graph index can search.
How much noise: as many synthetic items as there are trained ones then have about the same local intrinsic dimension,
which is what decides how hard a search is; the JSON file has both. Queries are that model's user vectors, as users ask
in earnest. Every query is searched by itself (one user) and in a batch. An index that takes long to build can be kept:
--keep FOLDER reads the ones it holds and adds those it lacks.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path

import torch
from recbole.utils import get_model, get_trainer, init_seed
from torch.nn import functional as F

from benchmarks.harness import begin, finish, parser, side_by_side
from benchmarks.workload import QUIET, paths
from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.retrieval import build_index
from recbole_tokenrec.retrieval.faiss_index import FaissIndex

TURN = 0.65  # length of the noise beside a unit vector: 33 degrees
KINDS = {"exact": {}, "hnsw": {"kind": "hnsw"}, "ivf": {"kind": "ivf"}, "ivf_pq": {"kind": "ivf_pq"}}


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "retrieval", rounds=5)
    arguments_parser.add_argument("--dataset", default="lastfm")
    arguments_parser.add_argument("--data_path", default="../shared/data")
    arguments_parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments_parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments_parser.add_argument("--dim", type=int, default=64)
    arguments_parser.add_argument("--queries", type=int, default=64, help="users that ask (default: 64)")
    arguments_parser.add_argument("--keep", type=Path, help="folder of finished FAISS indexes")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    users, trained = trained_vectors(arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    queries = users[1 + torch.randperm(len(users) - 1, generator=generator)[: arguments.queries]]
    rows = []
    for number in arguments.items:
        vectors = synthetic_items(trained, number, arguments.seed)
        rows += at_size(vectors, queries, arguments)
        del vectors
        gc.collect()
    as_many = synthetic_items(trained, len(trained) - 1, arguments.seed)
    dimensions = {"trained": local_dimension(trained[1:]), "synthetic": local_dimension(as_many[1:])}
    finish(arguments, before, {"trained_items": len(trained) - 1, "local_dimension": dimensions, "rows": rows})


def trained_vectors(arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Users (n_users, d) and items (n_items, d) of a LightGCNSoftmax."""
    keys = {**QUIET, **paths(arguments.data_path), "embedding_size": arguments.dim, "epochs": 10, "eval_step": 100}
    config = make_config("LightGCNSoftmax", arguments.dataset, overrides={**keys, "seed": arguments.seed})
    init_seed(arguments.seed, True)
    train_data = load_data(config)[1][0]
    model = get_model("LightGCNSoftmax")(config, train_data._dataset)
    get_trainer(config["MODEL_TYPE"], "LightGCNSoftmax")(config, model).fit(train_data, verbose=False, saved=False)
    with torch.no_grad():
        return tuple(vectors.detach() for vectors in model.forward())


def synthetic_items(trained: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """(number + 1, d): row 0 is the padding item."""
    generator = torch.Generator().manual_seed(seed)
    sources = F.normalize(trained[1:], dim=-1)
    chosen = torch.randint(len(sources), (number,), generator=generator)
    noise = torch.randn(number, trained.shape[1], generator=generator).mul_(TURN / trained.shape[1] ** 0.5)
    return torch.cat([torch.zeros(1, trained.shape[1]), F.normalize(sources[chosen] + noise, dim=-1)])


def local_dimension(vectors: torch.Tensor, k: int = 20) -> float:
    """Local intrinsic dimension of directions (n, d): the median over them of Levina and Bickel's estimate.

    It reads how fast the distances to the k nearest others grow: with the r-th root of their number in r dimensions.
    """
    unit = F.normalize(vectors, dim=-1)
    distances = torch.cdist(unit, unit).fill_diagonal_(torch.inf).topk(k, largest=False).values  # (n, k)
    return float((-(k - 1) / (distances[:, :-1] / distances[:, -1:]).log().sum(dim=1)).median())


def at_size(vectors: torch.Tensor, queries: torch.Tensor, arguments, k: int = 20) -> list[dict]:
    """One row for each kind of index."""
    indexes, built = {}, {}
    for kind in arguments.kinds:
        indexes[kind], built[kind] = made(kind, vectors, arguments)
    truth = build_index("exact", vectors).search(queries, k)[0]
    cases = {}
    for kind, index in indexes.items():
        cases[kind, "batch"] = lambda index=index: index.search(queries, k)
        cases[kind, "single"] = lambda index=index: [index.search(query, k) for query in queries.split(1)]
    timings = side_by_side(cases, arguments.rounds)
    rows = []
    for kind, index in indexes.items():
        found = index.search(queries, k)[0]
        recall = (found.unsqueeze(2) == truth.unsqueeze(1)).any(dim=2).float().mean()
        row = {"items": len(vectors) - 1, "dim": vectors.shape[1], "kind": kind, "recall_at_20": float(recall)}
        row.update(built[kind])
        for way in ("single", "batch"):
            timing = timings[kind, way]
            row[f"{way}_ms_per_query"] = 1000 * timing.median("cpu") / len(queries)
            row[f"{way}_wall_ms_per_query"] = 1000 * timing.median() / len(queries)
        rows.append(row)
        print(row, flush=True)
    exact = next((row for row in rows if row["kind"] == "exact"), None)
    for row in rows if exact else []:
        for way in ("single", "batch"):
            row[f"{way}_times_faster"] = exact[f"{way}_ms_per_query"] / row[f"{way}_ms_per_query"]
    return rows


def made(kind: str, vectors: torch.Tensor, arguments) -> tuple[object, dict]:
    """The index, and what building it took; FAISS's own file says how large it is."""
    if kind == "exact":
        start = time.process_time()
        index = build_index("exact", vectors)
        return index, {"build_cpu_s": time.process_time() - start, "mib": vectors.numel() * 4 / 2**20}
    folder = arguments.keep or arguments.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}-{len(vectors) - 1}-{vectors.shape[1]}-{arguments.seed}.faiss"
    about = file.with_suffix(".json")
    if arguments.keep and about.exists():
        return FaissIndex.load(file), json.loads(about.read_text())
    start = time.process_time()
    index = build_index("faiss", vectors, **KINDS[kind])
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
