"""Training pairs and inference users per second against the reference mode, the same T5 on both sides.

A training pair is one (user, item) that the loss teaches; a step includes the optimiser, the preset's own. With
``--precision bf16`` both sides train under autocast; inference is fp32 always. Inference is encoding users
and finding their 20 nearest items. The reference mode is ``benchmarks/reference.py``; "one pair a prompt" is this
package with the reference's loss and batching, and so says what prompts and decoder alone bring. "full prompt" has the
history in it and every ID token at a position of its own, as the paper's; "preset tuned" is whatever that preset does.
"""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction

from benchmarks.harness import begin, finish, parser, side_by_side
from benchmarks.reference import Reference, top_items
from benchmarks.workload import TOKEN_PROMPT, untrained
from recbole_tokenrec.training.stages import LLMStage

ONE_PAIR = {"llm_batching": "interactions", "llm_loss": "pairwise_cosine", "llm_user_tokens": "all"}


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "throughput", rounds=3)
    arguments_parser.add_argument("part", choices=("training", "inference"))
    arguments_parser.add_argument("--dataset", default="lastfm")
    arguments_parser.add_argument("--data_path", default="../shared/data")
    arguments_parser.add_argument("--backbone", default="t5-scratch-small", help="default: T5-small's shape")
    arguments_parser.add_argument("--users", type=int, default=16, help="users of a batch (default: 16)")
    arguments_parser.add_argument("--pairs", type=int, default=2, help="pairs of a reference batch (default: 2)")
    arguments_parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    same = {"llm_backbone": arguments.backbone, "precision": arguments.precision}

    def build(**keys):
        return untrained(arguments.dataset, arguments.data_path, arguments.seed, **same, **keys)

    full, train_data = build(preset="tuned", llm_train_batch_size=arguments.users, **TOKEN_PROMPT)
    pooled, _ = build(preset="tuned", llm_train_batch_size=arguments.users)
    short, _ = build(preset="user_id_only", llm_train_batch_size=arguments.users)
    reference = Reference(full)
    if arguments.part == "training":
        single, single_data = build(
            preset="tuned", llm_train_batch_size=arguments.pairs, **{**TOKEN_PROMPT, **ONE_PAIR}
        )
        cases = {
            "reference": PairSteps(reference, arguments.pairs),
            "one pair a prompt": Steps(single, single_data),
            "full prompt": Steps(full, train_data),
            "preset tuned": Steps(pooled, train_data),
            "user-ID-only": Steps(short, train_data),
        }
    else:
        cases = {
            "reference": Inference(reference, full, arguments.pairs),
            "full prompt": Inference(full, full, arguments.users),
            "preset tuned": Inference(pooled, pooled, arguments.users),
            "user-ID-only": Inference(short, short, 4 * arguments.users),
        }
    data = {"users": full.n_users - 1, "items": full.n_items - 1, "pairs": len(full.histories.items)}
    finish(arguments, before, {"data": data, "cases": rates(cases, arguments.rounds)})


class Steps:
    """Training steps of the package; ``done`` counts the pairs of the steps so far.

    Args:
        wanted: says of a batch and the settings whether to train on it; the default: :func:`full_batch`.
    """

    def __init__(self, model, train_data, wanted=None):
        self.wanted = wanted or full_batch
        self.model, self.stage, self.done, self.epoch = model, LLMStage(model, train_data), [], 0
        self.stage.start()
        self.optimizer = self.stage.optimizer()
        self.batches = iter(())
        model.stage = "llm"

    def __call__(self) -> None:
        batch = next(self.batches, None)
        while batch is None or not self.wanted(batch, self.model.settings):
            if batch is None:
                self.batches = iter(self.stage.batches(self.epoch))
                self.epoch += 1
            batch = next(self.batches, None)
        self.model.train()
        loss = self.model.calculate_loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.stage.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.stage.part.parameters(), self.stage.clip_grad_norm)
        self.optimizer.step()
        self.stage.after_step()
        self.done.append(len(batch["target_rows"]) if "target_rows" in batch else len(batch))


def full_batch(batch: Interaction, settings) -> bool:
    """Whether a batch is neither an epoch's last nor one of users with next to no history, so that rounds compare."""
    whole = len(batch["user_id"]) == settings.llm_train_batch_size
    if "history_length" not in batch or not settings.prompt_history:
        return whole
    return whole and int(batch["history_length"].min()) == settings.prompt_max_history


class PairSteps:
    """Training steps of the reference mode."""

    def __init__(self, reference: Reference, pairs: int):
        self.reference, self.pairs, self.done = reference, pairs, []

    def __call__(self) -> None:
        histories = self.reference.model.histories
        places = torch.randint(len(histories.items), (self.pairs,))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.reference.model.low_precision):
            self.reference.train_step(histories.rows()[places], histories.items[places])
        self.done.append(self.pairs)


class Inference:
    """Top-20 lists for randomly drawn users."""

    def __init__(self, encoder, model, users: int):
        self.encoder, self.model, self.users, self.done = encoder, model, users, []

    @torch.no_grad()
    def __call__(self) -> None:
        self.model.eval()
        users = 1 + torch.randperm(self.model.n_users - 1)[: self.users]
        top_items(self.encoder.encode_users(users), self.model.retrieval_vectors)
        self.done.append(len(users))


def rates(cases: dict, rounds: int) -> dict:
    """Per case: what it did a second (of wall and of CPU time), and how many times the reference's rate that is."""
    timings = side_by_side(cases, rounds)
    result = {}
    for name, case in cases.items():
        done = case.done[-rounds:]
        result[name] = {
            **timings[name].report(),
            "done": done,
            "per_wall_s": sorted(n / s for n, s in zip(done, timings[name].wall))[rounds // 2],
            "per_cpu_s": sorted(n / s for n, s in zip(done, timings[name].cpu))[rounds // 2],
        }
    for entry in result.values():
        for kind in ("wall", "cpu"):
            entry[f"ratio_{kind}"] = entry[f"per_{kind}_s"] / result["reference"][f"per_{kind}_s"]
    return result


if __name__ == "__main__":
    main()
