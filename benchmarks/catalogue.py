"""Tokenizing very many entities, and the memory of LightGCN and of the tokenizer as users and items grow.

``tokenize``: codes of ``--entities`` users or items from their vectors by an MQ-Tokenizer (Eq. 4 and 5) of the preset
``tuned``, and by one of the paper's three codebooks.
``memory``: training steps of LightGCNSoftmax at growing sizes, 20 interactions a user, each size in a process of its
own; beside what was measured stands what docs/scaling.md's formula says.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.harness import begin, finish, in_a_process, parser, seconds_of
from recbole_tokenrec.measure import Cost, peak_rss_mb
from recbole_tokenrec.registry import preset_values
from recbole_tokenrec.tokenizers import MQTokenizer

PER_USER, DIM, BATCH_USERS, SAMPLED = 20, 128, 256, 50_000


def books() -> dict[str, int]:
    """K of what can be tokenized."""
    preset = preset_values("tuned")
    return {"items": preset["mq_num_codebooks"], "users": preset["mq_user_num_codebooks"], "paper": 3}


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "catalogue", rounds=1)
    arguments_parser.add_argument("part", choices=("tokenize", "memory"))
    arguments_parser.add_argument("--entities", type=int, default=1_000_000)
    arguments_parser.add_argument("--of", nargs="+", choices=list(books()), default=list(books()))
    arguments_parser.add_argument("--sizes", type=int, nargs="+", default=[30_000, 100_000, 300_000, 1_000_000])
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    if arguments.part == "tokenize":
        results = {"rows": [in_a_process(tokenize, of, arguments) for of in arguments.of]}
    else:
        results = {"rows": [in_a_process(memory, size, arguments) for size in arguments.sizes]}
    finish(arguments, before, results)


def tokenize(of: str, arguments) -> dict:
    """Seconds and peak memory for the codes of all entities; the vectors themselves are counted in the peak."""
    begin(arguments)
    preset = preset_values("tuned")
    shape = {name: preset[f"mq_{name}"] for name in ("codebook_size", "codeword_dim", "hidden_size", "skip")}
    side_by_side = len(preset["cf_targets"]) * preset["cf_embedding_size"]
    tokenizer = MQTokenizer(DIM if of == "paper" else side_by_side, books()[of], **shape)
    vectors = torch.randn(arguments.entities, tokenizer.input_dim)
    tokenizer.fit_scale(vectors[:10_000])
    tokenizer.encode_all(vectors[:8192])  # warm-up
    with Cost() as cost:
        wall, cpu = seconds_of(lambda: tokenizer.encode_all(vectors))
    return {"of": of, "codebooks": tokenizer.num_codebooks, "entities": arguments.entities, "wall_s": wall,
            "cpu_s": cpu, "peak_rss_mb": cost.peak_rss_mb, "vectors_mb": vectors.numel() * 4 / 2**20}  # fmt: skip


def memory(size: int, arguments) -> dict:
    """Peak memory of ``size`` users and as many items in LightGCNSoftmax, over a step with AdamW."""
    from recbole_tokenrec.models.lightgcn_softmax import LightGCNSoftmax
    from recbole_tokenrec.training.adamw import adamw
    from recbole_tokenrec.training.loaders import PairsByUser, generator_for

    begin(arguments)
    base = peak_rss_mb()
    rng = np.random.default_rng(arguments.seed)
    users = np.repeat(np.arange(1, size + 1), PER_USER)
    items = rng.integers(1, size + 1, size=len(users))
    model = LightGCNSoftmax(configuration(), toy_dataset(users, items, size + 1))
    built = peak_rss_mb()
    optimizer = adamw(model.parameters(), lr=0.01)
    loader = PairsByUser(model.histories, BATCH_USERS, "user_id", "item_id")
    batches = loader.epoch(generator_for(arguments.seed, "memory"))
    for _ in range(2):
        start = time.process_time()
        model.calculate_loss(next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step = time.process_time() - start
    return {"users": size, "items": size, "interactions": len(users), "step_cpu_s": step, "built_mb": built - base,
            "peak_mb": peak_rss_mb() - base}


def formula(items: int, interactions: int) -> float:
    """Bytes of docs/scaling.md at the step's peak."""
    tables = 2 * items * DIM * 4 * 4  # item embedding and offset, each with its gradient and AdamW's two moments
    vectors = 10 * items * DIM * 4  # what items go through on the way and back: ten, as measured
    histories = 2 * 8 * interactions  # items, ages
    scores = 3 * BATCH_USERS * min(items, SAMPLED) * 4
    return tables + vectors + histories + scores


def configuration() -> dict:
    """As much of a RecBole configuration as the model reads."""
    return {
        "embedding_size": DIM, "n_layers": 1, "user_table": False, "item_offset": True, "temperature": 0.15,
        "targets": "all", "target_ratio": [0.02, 0.1], "target_weight": 1.0, "recency": 0.0, "target_recency": 0.0,
        "sampled_items": SAMPLED, "precision": "fp32", "device": torch.device("cpu"), "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id", "NEG_PREFIX": "neg_",
    }  # fmt: skip


def toy_dataset(users: np.ndarray, items: np.ndarray, size: int):
    """As much of a RecBole data set as the model reads."""
    features = {"user_id": torch.from_numpy(users), "item_id": torch.from_numpy(items)}
    numbers = {"user_id": size, "item_id": size}
    return SimpleNamespace(
        inter_feat=features, uid_field="user_id", iid_field="item_id", time_field="timestamp", user_num=size,
        num=numbers.__getitem__,
    )  # fmt: skip


if __name__ == "__main__":
    main()
