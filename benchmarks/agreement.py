"""The same weights by the reference mode and by this package: test NDCG@20, and how far the user vectors are apart.

TokenRec is trained on the data set (briefly, ``--llm_epochs``, without validation), then evaluated twice by RecBole's
own evaluation: user vectors from ``model.encode_users``, and from the reference mode (prompts as strings, 512 padded
tokens, 20 decoder tokens). Only the way of computing differs, so the metrics must not. ``--users`` compares a random
part of the users, for backbones whose reference mode takes a second a user.
"""

from __future__ import annotations

import functools

import torch
from recbole.utils import get_model, get_trainer, init_seed
from torch.nn import functional as F

from benchmarks.harness import begin, finish, parser, seconds_of
from benchmarks.reference import Reference
from benchmarks.workload import QUIET, TOKEN_PROMPT, paths
from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.pipeline import describe_data
from recbole_tokenrec.ranks import metrics_of, with_ranks


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "agreement", rounds=1)
    arguments_parser.add_argument("--dataset", default="lastfm")
    arguments_parser.add_argument("--data_path", default="../shared/data")
    arguments_parser.add_argument("--preset", default="tuned")
    arguments_parser.add_argument("--backbone", default="t5-scratch-mini")
    arguments_parser.add_argument("--llm_epochs", type=int, default=6)
    arguments_parser.add_argument("--cf_epochs", type=int, default=20)
    arguments_parser.add_argument("--users", type=int, help="compare so many users (default: all)")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    keys = {
        **QUIET,
        **TOKEN_PROMPT,
        **paths(arguments.data_path),
        "preset": arguments.preset,
        "seed": arguments.seed,
        "llm_backbone": arguments.backbone,
        "llm_epochs": arguments.llm_epochs,
        "cf_epochs": arguments.cf_epochs,
        **{"stage_cache": False, "resume": False, "checkpoint_every_seconds": None},
    }
    config = make_config("TokenRec", arguments.dataset, overrides=keys)
    init_seed(arguments.seed, True)
    dataset, (train_data, _, test_data) = load_data(config)
    model = get_model("TokenRec")(config, train_data._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
    trainer.fit(train_data, verbose=False, saved=False)
    reference = Reference(model)
    model.eval()
    users = 1 + torch.randperm(model.n_users - 1)[: arguments.users].sort().values
    model.evaluation_histories = model.histories
    ways, vectors = {}, {}
    for name, encoder in (("package", model.encode_users), ("reference", lambda part: reference.encode_users(part))):
        with torch.no_grad():
            wall, cpu = seconds_of(lambda name=name, encoder=encoder: vectors.update({name: encoder(users)}))
        whole = vectors[name].new_zeros(model.n_users, vectors[name].shape[1])
        whole[users] = vectors[name]
        model.encode_users = lambda part, whole=whole: whole[part]
        evaluate = functools.partial(trainer.evaluate, load_best_model=False)
        _, ranks = with_ranks(trainer, test_data, evaluate)
        test = metrics_of(ranks, users.numpy() - 1)
        ways[name] = {"test": test, "encode_wall_s": wall, "encode_cpu_s": cpu}
        del model.encode_users  # the class's own again
    cosine = F.cosine_similarity(vectors["package"], vectors["reference"], dim=-1)
    ratio = ways["package"]["test"]["ndcg@20"] / ways["reference"]["test"]["ndcg@20"]
    data = describe_data(config, dataset, train_data)
    same = {"compared": len(users), "ndcg20_ratio": ratio, "least_cosine": float(cosine.min())}
    finish(arguments, before, {"data": data, "ways": ways, **same})


if __name__ == "__main__":
    main()
