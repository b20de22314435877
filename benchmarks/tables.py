"""The tables of docs/results/performance.md and use.md from JSON: ``python -m benchmarks.tables`` writes them anew.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; what is written around it is left alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.catalogue import formula
from benchmarks.harness import RESULTS

PAGES = [RESULTS / "performance.md", RESULTS / "use.md"]


def throughput(content: dict, what: str) -> list[list[str]]:
    rows = [["", f"{what} per CPU second", "times the reference", "the same by wall clock"]]
    for name, case in content["cases"].items():
        rows.append([name, f"{case['per_cpu_s']:.2f}", f"{case['ratio_cpu']:.1f}", f"{case['ratio_wall']:.1f}"])
    return rows


def peak(content: dict) -> list[list[str]]:
    best = max(entry["best_per_cpu_s"] for name, entry in content["gemm"].items() if name.startswith("float32"))
    rows = [["", "CPU s", "GFLOP", "GFLOP/s", f"share of the peak ({best:.0f} GFLOP/s)"]]
    for name, case in content["cases"].items():
        numbers = [f"{case['median_cpu_s']:.2f}", f"{case['gflop']:.1f}", f"{case['gflops_per_cpu_s']:.1f}"]
        rows.append([name, *numbers, f"{case['share_of_peak']:.0%}"])
    return rows


def profile(content: dict) -> list[list[str]]:
    profiles = content["profile"]
    kinds = list(next(iter(profiles.values()))["shares"])
    rows = [["share of CPU time", *profiles]]
    return rows + [[kind, *(f"{entry['shares'][kind]:.1%}" for entry in profiles.values())] for kind in kinds]


def agreement(content: dict) -> list[list[str]]:
    users = content.get("compared", content["data"]["users"])
    rows = [["", "test NDCG@20", "test HR@20", f"CPU s to encode {users:,} users"]]
    for name, way in content["ways"].items():
        test = way["test"]
        rows.append([name, f"{test['ndcg@20']:.6f}", f"{test['hit@20']:.6f}", f"{way['encode_cpu_s']:.1f}"])
    return rows


def scaling(content: dict) -> list[list[str]]:
    columns = {
        "cf_cpu_s": "collaborative",
        "user_codebooks_cpu_s": "start of the users' codebooks",
        "user_tokenizer_cpu_s": "user tokenizer",
        "item_tokenizer_cpu_s": "item tokenizer",
        "llm_cpu_s": "LLM4Rec",
        "evaluation_cpu_s": "evaluation",
        "peak_rss_mb": "peak MiB",
    }
    rows = [["users", *columns.values()]]
    for row in content["rows"]:
        rows.append([f"{row['users']:,}", *(f"{row[key]:,.1f}" for key in columns)])
    if content["fits"]:
        rows.append(["R² of a line", *(straightness(content, key) for key in columns)])
    return rows


def straightness(content: dict, key: str) -> str:
    """R², or that there is no slope to speak of: a line through a constant explains nothing."""
    values = [row[key] for row in content["rows"]]
    return "constant" if max(values) < 1.5 * min(values) else f"{content['fits'][key]['r2']:.4f}"


def retrieval(content: dict) -> list[list[str]]:
    rows = [["items", "index", "recall@20", "CPU ms, one user", "x exact", "CPU ms a user, batch of 64", "x exact",
             "MiB", "build, CPU s"]]  # fmt: skip
    for row in content["rows"]:
        times = [
            [f"{row[f'{way}_ms_per_query']:.2f}", f"{row[f'{way}_times_faster']:.1f}"] for way in ("single", "batch")
        ]
        rows.append([f"{row['items']:,}", row["kind"], f"{row['recall_at_20']:.4f}", *times[0], *times[1],
                     f"{row['mib']:,.0f}", f"{row['build_cpu_s']:.1f}"])  # fmt: skip
    return rows


def hardness(content: dict) -> list[list[str]]:
    rows = [["catalogue", "items", "local dimension around users", "around items",
             "cosine of a user's nearest and 20th item", "of an item's"]]  # fmt: skip
    for row in content["hardness"]:
        dimensions = [f"{row[f'{name}_dimension']:.1f}" for name in ("query", "item")]
        cosines = [" and ".join(f"{cosine:.2f}" for cosine in row[f"{name}_cosines"]) for name in ("query", "item")]
        rows.append([row["which"], f"{row['items']:,}", *dimensions, *cosines])
    return rows


def tokenize(content: dict) -> list[list[str]]:
    rows = [["entities", "K", "seconds", "CPU s", "peak MiB", "of which vectors"]]
    for row in content["rows"]:
        what = "users or items" if row["of"] == "paper" else row["of"]
        seconds = [f"{row[key]:.1f}" for key in ("wall_s", "cpu_s")]
        rows.append([f"{row['entities']:,} {what}", str(row["codebooks"]), *seconds,
                     f"{row['peak_rss_mb']:,.0f}", f"{row['vectors_mb']:,.0f}"])  # fmt: skip
    return rows


def memory(content: dict) -> list[list[str]]:
    rows = [["users = items", "interactions", "measured MiB", "formula MiB", "CPU s a step"]]
    for row in content["rows"]:
        expected = formula(row["items"], row["interactions"]) / 2**20
        numbers = [f"{row['peak_mb']:,.0f}", f"{expected:,.0f}", f"{row['step_cpu_s']:.2f}"]
        rows.append([f"{row['users']:,}", f"{row['interactions']:,}", *numbers])
    return rows


def end_to_end(content: dict) -> list[list[str]]:
    rows = [["data", "preset", "collaborative", "tokenizers", "LLM4Rec", "all, evaluation included", "CPU min",
             "peak GiB", "collected"]]  # fmt: skip
    for row in content["rows"]:
        minutes = [f"{row['seconds'][part] / 60:.1f}" for part in ("cf", "tokenizer", "llm", "all")]
        cpu = "" if row["cpu_seconds"] is None else f"{row['cpu_seconds'] / 60:.1f}"
        rows.append([row["dataset"], row["preset"], *minutes, cpu, f"{row['peak_rss_mb'] / 1024:.1f}",
                     row.get("date", content["machine"]["date"])])  # fmt: skip
    return rows


def compiled(content: dict) -> list[list[str]]:
    rows = [["", "CPU ms, as it is", "CPU ms, compiled", "times faster", "s to compile", "pays after, steps"]]
    for name, case in content["cases"].items():
        gain = case["eager_ms"] - case["compiled_ms"]
        steps = f"{1000 * case['compile_s'] / gain:,.0f}" if gain > 0 else "never"
        rows.append([name, f"{case['eager_ms']:.0f}", f"{case['compiled_ms']:.0f}",
                     f"{case['eager_ms'] / case['compiled_ms']:.2f}", f"{case['compile_s']:.0f}", steps])  # fmt: skip
    return rows


def precision(content: dict) -> list[list[str]]:
    rows = [["a training step on", "users", "optimizer", "CPU ms, fp32", "CPU ms, bf16", "times faster"]]
    peaks = [content["gemm"][name]["best_per_cpu_s"] for name in ("float32", "bfloat16")]
    for row in content["rows"]:
        rows.append([row["dataset"], str(row["users"]), row["optimizer"], f"{row['fp32_ms']:.0f}",
                     f"{row['bf16_ms']:.0f}", f"{row['fp32_ms'] / row['bf16_ms']:.2f}"])  # fmt: skip
    rows.append(["square products, GFLOP/s", "", "", *(f"{rate:.0f}" for rate in peaks), f"{peaks[1] / peaks[0]:.2f}"])
    return rows


def shown(content: dict) -> list[list[str]]:
    rows = [["who", "took last", "is recommended"]]
    for entry in content["shown"]:
        who = f"user {entry['user']}" if entry["kind"] == "hot" else "the history"
        rows.append([who, "; ".join(entry["latest"]), "; ".join(entry["recommended"])])
    return rows


def same(content: dict) -> list[list[str]]:
    cpu, found = content["cpu_s"], content["same"]
    users, k = f"{found['users']:,}", found["k"]
    equal = f"of {users} users have the same top {k}"
    return [
        ["", ""],
        ["loading the checkpoint, CPU s", f"{cpu['load']:.2f}"],
        ["the recommendations above, CPU s", f"{cpu['recommend']:.2f}"],
        [f"top {k} of {users} users, CPU s", f"{cpu['recommend_compared']:.2f}"],
        ["export and load back, CPU s", f"{cpu['export_and_load']:.2f}"],
        ["`recommend` and `full_sort_predict`", f"{found['full_sort_predict']:,} {equal}"],
        ["the export, loaded back", f"{found['export']:,} {equal}, scores bit-equal"],
    ]


def served(content: dict) -> list[list[str]]:
    rows = [["round", "requests", "not 200", "p50 ms", "p95 ms", "p99 ms", "longest ms", "server's CPU ms a request",
             "malformed", "not 4xx", "load average"]]  # fmt: skip
    for number, row in enumerate(content["rounds"]):
        times = [f"{row['ms'][name]:.1f}" for name in ("p50", "p95", "p99", "max")]
        rows.append([str(number + 1), str(row["requests"]), str(row["not_200"]), *times,
                     f"{row['server_cpu_ms_per_request']:.1f}", str(row["malformed"]),
                     str(len(row["malformed_not_4xx"])), f"{row['load_average']:.1f}"])  # fmt: skip
    return rows


TABLES = {
    "training": ("performance/throughput-training", lambda content: throughput(content, "pairs")),
    "inference": ("performance/throughput-inference", lambda content: throughput(content, "users")),
    "agreement": ("performance/agreement", agreement),
    "agreement-user-id-only": ("performance/agreement-user-id-only", agreement),
    "agreement-small": ("performance/agreement-small", agreement),
    "peak-small": ("performance/peak-small", peak),
    "peak-mini": ("performance/peak-mini", peak),
    "profile-small": ("performance/peak-small", profile),
    "profile-mini": ("performance/peak-mini", profile),
    "end-to-end": ("performance/end_to_end", end_to_end),
    "compiled": ("performance/compiled", compiled),
    "precision": ("performance/precision", precision),
    "scaling": ("performance/scaling", scaling),
    "hardness": ("performance/retrieval", hardness),
    "retrieval": ("performance/retrieval", retrieval),
    "retrieval-large": ("performance/retrieval-large", retrieval),
    "tokenize": ("performance/catalogue-tokenize", tokenize),
    "memory": ("performance/catalogue-memory", memory),
    "shown": ("use/use", shown),
    "same": ("use/use", same),
    "served": ("use/serve_load", served),
}


# Arguments that a command line repeats; paths and seeds are not among them.
SAID = ("rounds", "users", "history", "compared", "pairs", "items", "kinds", "dim", "entities", "of", "sizes", "preset",
        "presets", "llm_epochs", "cf_epochs", "backbone", "rate", "seconds", "precision", "datasets")  # fmt: skip


def markdown(name: str, folder: Path = RESULTS) -> str:
    """One table, and under it the command and the machine that its numbers come from."""
    file, make = TABLES[name]
    content = json.loads((folder / f"{file}.json").read_text())
    head, *rows = make(content)
    lines = [head, ["---"] * len(head), *rows]
    machine, before, after = (content["machine"][key] for key in ("cpu", "load_average", "load_average_after"))
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    threads = content["machine"]["threads"]
    machine += f" ({content['machine']['torch_cpu_capability']})"
    return (
        f"{text}\n\n`{command(file, content)}`, {content['machine']['date']}, {machine}, {threads} thread(s) of "
        f"{content['machine']['cores']} cores, load average {before[0]:.1f} to {after[0]:.1f}, "
        f"torch {content['versions']['torch']}, transformers {content['versions']['transformers']}"
        + (f", commit {content['commit']}." if content.get("commit") else ".")
    )


def command(file: str, content: dict) -> str:
    """The command line that wrote ``file``."""
    given, file = dict(content["arguments"]), Path(file).name
    words = ["python -m benchmarks." + file.split("-")[0]] + ([given.pop("part")] if "part" in given else [])
    of_other_part = {"catalogue-tokenize": ("sizes",), "catalogue-memory": ("entities", "of")}.get(file, ())
    if "checkpoint" in given:
        words.append("--checkpoint CHECKPOINT")
    for key in SAID:
        if given.get(key) is not None and key not in of_other_part:
            value = given[key]
            words.append(f"--{key} " + (" ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return " ".join([*words, f"--threads {given['threads']}"])


def page(text: str, folder: Path = RESULTS) -> str:
    """``text`` with every table whose JSON file exists written anew."""

    def fill(match: re.Match) -> str:
        name = match.group(1)
        if not (folder / f"{TABLES[name][0]}.json").exists():
            return match.group(0)
        return f"<!-- table {name} -->\n{markdown(name, folder)}\n<!-- end -->"

    return re.sub(r"<!-- table ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    for file in PAGES:
        file.write_text(page(file.read_text(encoding="utf-8")), encoding="utf-8")
