"""Does it pay to ask a TokenRec by several templates? Accuracy by each template, and by the mean of the seen ones' z.

    python -m benchmarks.templates --checkpoint C

No weight changes; RecBole's own evaluation, full sort with the history masked. The mean costs as many passes of the
language model as there are templates.
"""

from __future__ import annotations

import functools

import torch
from recbole.utils import get_trainer
from torch.nn import functional as F

from benchmarks.harness import begin, finish, parser
from recbole_tokenrec.checkpoints import load_data_and_model
from recbole_tokenrec.llm.prompts import NUM_SEEN

METRICS = ("ndcg@20", "hit@20")


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "templates", rounds=1)
    arguments_parser.add_argument("--checkpoint", required=True)
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    config, model, _, _, *held_out = load_data_and_model(arguments.checkpoint)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    found = {}
    for name, z in user_vectors(model).items():
        model.remember_users = functools.partial(model.use_encoded_users, z)  # what the trainer asks for first
        found[name] = {
            split: {metric: float(value) for metric, value in evaluated.items() if metric in METRICS}
            for split, data in zip(("valid", "test"), held_out)
            for evaluated in [trainer.evaluate(data, load_best_model=False, show_progress=False)]
        }
        print(f"{name:>20}", *(f"{found[name][split][metric]:.4f}" for split in found[name] for metric in METRICS))
    finish(arguments, before, {"dataset": config["dataset"], "preset": config["preset"], "templates": found})


@torch.no_grad()
def user_vectors(model) -> dict[str, torch.Tensor]:
    """z of all users (n_users, d) of length 1, by each template and, not of length 1, by the seen ones' mean."""
    model.eval()
    users, found = torch.arange(model.n_users, device=model.item_vectors.device), {}
    for template in range(model.prompts.num_templates):
        name = f"template {template}" + ("" if template < NUM_SEEN else " (unseen)")
        found[name] = F.normalize(model.encode_users(users, template), dim=-1)
    found["mean of the seen"] = torch.stack(list(found.values())[:NUM_SEEN]).mean(dim=0)
    return found


if __name__ == "__main__":
    main()
