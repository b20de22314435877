"""What bfloat16 saves in training: steps of the last stage in fp32 and in bf16, side by side in one run.

Beside them stand the best square matrix products of either type: what the processor could give. Whether accuracy holds
is not a benchmark's question; docs/results/performance.md has whole trainings of both.
"""

from __future__ import annotations

import torch

from benchmarks.harness import begin, finish, gemm_gflops, parser, side_by_side
from benchmarks.throughput import Steps
from benchmarks.workload import untrained
from recbole_tokenrec.training.losses import fast_bf16

PRECISIONS = ("fp32", "bf16")


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "precision", rounds=15)
    arguments_parser.add_argument("--datasets", nargs="+", default=["lastfm", "beauty", "ml-1m"])
    arguments_parser.add_argument("--data_path", default="../shared/data")
    arguments_parser.add_argument("--preset", default="tuned")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    rows = [compared(dataset, arguments) for dataset in arguments.datasets]
    gemm = {"float32": gemm_gflops(), "bfloat16": gemm_gflops(torch.bfloat16)}
    finish(arguments, before, {"auto_is_bf16": fast_bf16(torch.device("cpu")), "gemm": gemm, "rows": rows})


def compared(dataset: str, arguments) -> dict:
    """CPU milliseconds of a step of ``dataset``'s own batch size, backbone and optimizer."""
    steps = {}
    for precision in PRECISIONS:
        keys = {"preset": arguments.preset, "precision": precision}
        model, train_data = untrained(dataset, arguments.data_path, arguments.seed, **keys)
        steps[precision] = Steps(model, train_data, wanted=lambda batch, settings: True)  # the same batches for both
    timings = side_by_side(steps, arguments.rounds)
    settings = steps["fp32"].model.settings
    row = {
        "dataset": dataset,
        "users": settings.llm_train_batch_size,
        "optimizer": settings.llm_optimizer,
        **{f"{name}_ms": 1000 * timing.median("cpu") for name, timing in timings.items()},
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
