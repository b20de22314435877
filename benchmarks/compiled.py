"""Whether ``torch.compile`` pays: the backbone as it is and compiled, training steps and inference side by side.

The language model alone is compiled (inductor, shapes dynamic, since every batch is as long as its longest prompt);
what is around it is index arithmetic. Compiling happens at the first steps and is timed apart. The models on both
sides have the same weights, and the vectors must agree.
"""

from __future__ import annotations

import copy
import time

import torch
from torch.nn import functional as F

from benchmarks.harness import begin, finish, parser, side_by_side
from benchmarks.throughput import Inference, Steps
from benchmarks.workload import untrained

PRESETS = ("user_id_only", "tuned")


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "compiled", rounds=5)
    arguments_parser.add_argument("--dataset", default="lastfm")
    arguments_parser.add_argument("--data_path", default="../shared/data")
    arguments_parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    arguments_parser.add_argument("--backbone", default="t5-scratch-mini")
    arguments_parser.add_argument("--users", type=int, default=32, help="users of a batch (default: 32)")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    cases = {}
    for preset in arguments.presets:
        keys = {"preset": preset, "llm_backbone": arguments.backbone, "llm_train_batch_size": arguments.users}
        model, train_data = untrained(arguments.dataset, arguments.data_path, arguments.seed, **keys)
        other = copy.deepcopy(model)
        other.llm.backbone.compile(dynamic=True)
        for kind in ("inference", "training"):
            works = [
                Inference(each, each, arguments.users) if kind == "inference" else Steps(each, train_data)
                for each in (model, other)
            ]
            cases[f"{kind}, {preset}"] = case = compared(*works, arguments.rounds)
            if kind == "inference":
                case["least_cosine"] = least_cosine(model, other)
            print(f"{kind}, {preset}", case, flush=True)
            finish(arguments, before, {"cases": cases})  # the next one compiles for minutes


def compared(eager, compiled, rounds: int) -> dict:
    """Milliseconds (CPU) of a call, and the seconds that compiling took."""
    eager()
    start = time.perf_counter()
    compiled()
    compiled()  # the second length of a batch makes shapes dynamic
    compile_s = time.perf_counter() - start
    timings = side_by_side({"eager": eager, "compiled": compiled}, rounds)
    medians = {f"{name}_ms": 1000 * timing.median("cpu") for name, timing in timings.items()}
    return {**medians, "compile_s": compile_s - 2 * timings["compiled"].median()}


@torch.no_grad()
def least_cosine(model, other) -> float:
    users = torch.arange(1, 65)
    return float(F.cosine_similarity(*(each.eval().encode_users(users) for each in (model, other)), dim=-1).min())


if __name__ == "__main__":
    main()
