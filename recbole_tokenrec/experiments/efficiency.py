"""Table 5: milliseconds per user to make a top-K list, generation by beam search against retrieval.

All models have the same backbone, untrained (time does not depend on what the weights say; beams of trained models may
end earlier by a token or two), the same users, batch and K. A round times every model once, after a warm-up batch that
does not count. The fastest round is reported, as ``timeit`` does: slower ones were disturbed by other work. On a CPU
the time is the processor's, which a busy machine lengthens least; on a GPU it is the clock's.

P5, POD and CID write items and search as their authors' code does (``prompt_style: printed``, ``share_prompts:
False``), which is what the paper timed; a further P5 row is this package's default, which is several times faster.
TokenRec's default has more tokens to an ID than the paper's three: further rows have three, and list as many items as
the others' prompts.
"""

from __future__ import annotations

import time

import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_model, init_seed
from tqdm import tqdm

from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments.quoted import quoted
from recbole_tokenrec.experiments.report import Report, Table
from recbole_tokenrec.experiments.runs import Bench, Run
from recbole_tokenrec.pipeline import describe_data, need_folder, versions

TITLE = "Table 5: milliseconds per user"
ARGUMENTS = ("backbone", "users", "batch_size", "k", "rounds")
OUR_P5 = "P5 of this package"
RIVALS = ("P5", "POD", "CID", OUR_P5)
_PAPER_TOKENS = {"mq_num_codebooks": 3, "mq_user_num_codebooks": 3}
_AS_PUBLISHED = {"prompt_style": "printed", "share_prompts": False}
ROWS = [
    Run("P5", "P5", _AS_PUBLISHED),
    Run("POD", "POD", _AS_PUBLISHED),
    Run("CID", "CID", _AS_PUBLISHED),
    Run(OUR_P5, "P5"),
    Run("TokenRec", "TokenRec"),
    Run("TokenRec (user-ID-only)", "TokenRec", preset="user_id_only"),
    Run("TokenRec, K = 3, 20 items", "TokenRec", {**_PAPER_TOKENS, "prompt_max_history": 20}),
    Run("TokenRec, K = 3 (user-ID-only)", "TokenRec", _PAPER_TOKENS, preset="user_id_only"),
]


def add_arguments(parser) -> None:
    parser.add_argument(
        "--backbone", default="t5-scratch-small", help="llm_backbone of all models (default: T5-small's shape)"
    )
    for name, default, text in (
        ("users", 32, "users that are timed"),
        ("batch_size", 32, "users of a batch"),
        ("k", 20, "length of the lists, and beams"),
        ("rounds", 3, "rounds, whose fastest counts"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")


def run(bench: Bench, arguments) -> Report:
    for name in ("users", "batch_size", "k", "rounds"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name}: {getattr(arguments, name)} is not allowed; allowed: int in [1, inf)")
    models, data = {}, None
    for row in ROWS:
        metric = {"topk": [arguments.k], "valid_metric": f"NDCG@{arguments.k}"}
        keys = {**row.keys, "llm_backbone": arguments.backbone, **metric}
        if row.model != "TokenRec":
            keys.update(eval_users=arguments.batch_size, num_beams=arguments.k)
        config = bench.config(row._replace(keys=keys), bench.seeds[0])
        dataset, (train_data, _, _) = load_data(config)
        init_seed(config["seed"], config["reproducibility"])
        models[row.label] = get_model(row.model)(config, train_data._dataset).to(config["device"]).eval()
        data = describe_data(config, dataset, train_data)
    generator = torch.Generator().manual_seed(bench.seeds[0])
    users = 1 + torch.randperm(data["users"], generator=generator)[: arguments.users]
    seconds = {label: [] for label in models}
    need_folder("--output_dir", bench.folder)
    with tqdm(
        total=len(models) * (arguments.rounds + 1), ncols=110, desc="rounds", disable=not config["show_progress"]
    ) as bar:
        for number in range(arguments.rounds + 1):
            for label, model in models.items():
                timed = users if number else users[: min(len(users), 8)]
                spent = _time(model, timed, arguments.batch_size, arguments.k)
                if number:
                    seconds[label].append(spent / len(users))
                bar.update()
    return _report(bench, arguments, data, seconds, next(iter(models.values())).device)


@torch.no_grad()
def _time(model, users: torch.Tensor, batch_size: int, k: int) -> float:
    """Seconds for top-k lists of ``users``."""
    _wait(model.device)
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    start = clock()
    for part in users.split(batch_size):
        interaction = Interaction({model.USER_ID: part.to(model.device)})
        model.full_sort_predict(interaction).view(len(part), -1)[:, 1:].topk(k)
    _wait(model.device)
    return clock() - start


def _wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _report(bench: Bench, arguments, data: dict, seconds: dict, device) -> Report:
    paper = quoted("efficiency", data)
    per_user = {label: 1000 * min(rounds) for label, rounds in seconds.items()}
    ratios = {
        label: {rival: per_user[rival] / per_user[label] for rival in RIVALS}
        for label in per_user
        if label.startswith("TokenRec")
    }
    rows = []
    for label, value in per_user.items():
        times = [f"{ratios[label][rival]:.1f}" if label in ratios else "" for rival in RIVALS]
        quote = f"{paper[label]:.2f}" if label in paper else ""
        rows.append([label, f"{value:.2f}", *times, quote])
    table = Table(
        "Milliseconds per user, and how many times faster than each",
        ["model", "ms per user", *(f"x {rival}" for rival in RIVALS), "paper, ms (quoted)"],
        rows,
    )
    sentences = [
        f"{data['users']} users, {data['items']} items; {len(next(iter(seconds.values())))} rounds over "
        f"{min(arguments.users, data['users'])} users in batches of {arguments.batch_size}, lists of {arguments.k}, "
        f"backbone {arguments.backbone}, {torch.get_num_threads()} thread(s) on {device}, "
        f"{'processor time' if device.type == 'cpu' else 'wall clock'}, the fastest round; one warm-up batch each. "
        "The paper's figures come from a GPU: compare ratios only.",
        "P5, POD and CID are timed with their authors' text and transformers' plain beam search; 'P5 of this package' "
        "writes items in fewer tokens and lets the beams of a user share one reading of his prompt.",
    ]
    content = {
        "dataset": data,
        "seconds_per_user": seconds,
        "ms_per_user": per_user,
        "acceleration": ratios,
        "backbone": arguments.backbone,
        "batch_size": arguments.batch_size,
        "k": arguments.k,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "versions": versions(),
        "paper": paper,
    }
    return Report(f"{bench.dataset}: efficiency", sentences, [table], content, lambda figure: _draw(figure, per_user))


def _draw(figure, per_user: dict) -> None:
    axes = figure.subplots()
    axes.barh(list(per_user)[::-1], list(per_user.values())[::-1])
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds per user")
