"""What share of the machine's matrix-product peak training and inference reach, and where the rest of the time goes.

The peak is measured in the same run (the best of square fp32 products). Floating-point operations are counted by
torch's ``FlopCounterMode``: matrix products only, so that dropout, softmax, norms and the optimiser count as nothing
and lower the share. Shares are by CPU time, of one step at a time. "transformers' own" is the same work with
its attention and torch's dropout in place of ``llm/dropout.py`` and ``llm/cross_attention.py``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import begin, finish, gemm_gflops, parser, side_by_side
from benchmarks.throughput import Inference, Steps
from benchmarks.workload import TOKEN_PROMPT, untrained
from recbole_tokenrec.llm.cross_attention import ask_as_transformers, ask_once
from recbole_tokenrec.llm.dropout import ATTENTION, Dropout
from recbole_tokenrec.measure import peak_rss_mb

# What an operator's own time is counted as.
KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "baddbmm", "_scaled_dot_product", "mkldnn_linear"),
    "dropout masks": ("bernoulli_", "random_", "sub_", "clamp_", "mul_"),
    "softmax": ("_softmax", "_softmax_backward_data", "_safe_softmax"),
    "optimiser": ("sqrt", "lerp_", "addcdiv_", "addcmul_", "_foreach", "linalg_vector_norm"),
    "copies": ("copy_", "clone", "contiguous", "cat", "index", "index_put_", "embedding_dense_backward"),
    "element-wise": ("mul", "add", "add_", "pow", "where", "relu", "clamp_min", "threshold_backward", "div", "div_"),
}


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "peak", rounds=3)
    arguments_parser.add_argument("part", choices=("small", "mini"), help="backbone: T5-small's shape or the default")
    arguments_parser.add_argument("--dataset", default="lastfm")
    arguments_parser.add_argument("--data_path", default="../shared/data")
    arguments_parser.add_argument("--users", type=int, default=16, help="users of a batch (default: 16)")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    backbone = f"t5-scratch-{arguments.part}"
    model, train_data = untrained(
        arguments.dataset,
        arguments.data_path,
        arguments.seed,
        preset="tuned",
        llm_backbone=backbone,
        llm_train_batch_size=arguments.users,
        precision="fp32",
        **TOKEN_PROMPT,
    )
    step, infer = Steps(model, train_data), Inference(model, model, arguments.users)
    step.batches = RepeatedBatch(step)
    cases = {"training": step, "training, transformers' own": AsTransformers(step, model),
             "inference": infer, "inference, transformers' own": AsTransformers(infer, model)}  # fmt: skip
    gflop = {name: counted(case, model) for name, case in cases.items()}
    peak = gemm_gflops()
    timings = side_by_side(cases, arguments.rounds)
    again = gemm_gflops()
    best = max(peak["best_per_cpu_s"], again["best_per_cpu_s"])
    rows = {}
    for name, timing in timings.items():
        rate = arguments.threads * gflop[name] / timing.median("cpu")
        rows[name] = {**timing.report(), "gflop": gflop[name], "gflops_per_cpu_s": rate, "share_of_peak": rate / best}
    results = {
        "backbone": backbone,
        "prompt_tokens": step.batches.tokens,
        "gemm": {"float32": peak, "float32 again": again, "bfloat16": gemm_gflops(torch.bfloat16, (512,), 2)},
        "cases": rows,
        "profile": {name: profiled(case) for name, case in cases.items()},
        "peak_rss_mb": peak_rss_mb(),
    }
    finish(arguments, before, results)


class RepeatedBatch:
    """One batch again and again, so that every step does the same work."""

    def __init__(self, step: Steps):
        step()
        limit = step.model.settings.prompt_max_history
        self.batch = next(
            batch
            for batch in step.stage.batches(0)
            if int(batch["history_length"].min()) == limit and len(batch["user_id"]) == step.stage.loader.batch_size
        )
        books = step.model.item_codes.shape[1]
        self.tokens = limit * books + step.model.user_codes.shape[1]

    def __next__(self):
        return self.batch


class AsTransformers:
    """The same work with what transformers itself would compute."""

    def __init__(self, work, model):
        self.work, self.llm = work, model.llm

    def __call__(self) -> None:
        modules = [(parent, name, child) for parent in self.llm.modules()
                   for name, child in parent.named_children() if isinstance(child, Dropout)]  # fmt: skip
        backbone = self.llm.backbone
        chosen = backbone.config._attn_implementation
        for parent, name, child in modules:
            setattr(parent, name, nn.Dropout(child.p))
        ask_as_transformers(backbone)
        if chosen == ATTENTION:
            backbone.set_attn_implementation("sdpa")
        try:
            self.work()
        finally:
            for parent, name, child in modules:
                setattr(parent, name, child)
            ask_once(backbone)
            backbone.set_attn_implementation(chosen)


def counted(work, model) -> float:
    """GFLOP of the matrix products of one call; attention by plain products, which the counter knows."""
    backbone = model.llm.backbone
    chosen = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        work()
    backbone.set_attn_implementation(chosen)
    return counter.get_total_flops() / 1e9


def profiled(work) -> dict:
    """Shares of the CPU time of one call, by kind of operator."""
    with profile() as record:
        work()
    times = {event.key.split("::")[-1]: event.self_cpu_time_total for event in record.key_averages()}
    total = sum(times.values())
    shares = {kind: sum(times.get(name, 0) for name in names) / total for kind, names in KINDS.items()}
    shares["other"] = 1 - sum(shares.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:12]
    return {"shares": shares, "largest": {name: spent / total for name, spent in largest}}


if __name__ == "__main__":
    main()
