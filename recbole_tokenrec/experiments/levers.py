"""What each choice of the preset is worth: one key turned at a time, everything else as the preset says.

``ablation`` takes parts of TokenRec away; here a part stays and its key has another value. ``--only`` chooses keys,
since every value is a training. A key that does nothing under the preset, or does not go with another of its keys (the
decoder reads items in order only), has no rows.
"""

from __future__ import annotations

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments.report import Report
from recbole_tokenrec.experiments.runs import Bench, Run
from recbole_tokenrec.experiments.variants import add_preset_argument, bars, compare_variants, variants_report
from recbole_tokenrec.options import check, nearest
from recbole_tokenrec.settings import OPTIONS

TITLE = "one key of the preset turned at a time"
ARGUMENTS = ("preset", "only")
REFERENCE = "the preset"
VALUES = {
    "cf_targets": ("all", "next", "random", ["next", "all"]),
    "cf_embedding_size": (64, 128, 256),
    "cf_n_layers": (1, 2, 3),
    "cf_temperature": (0.1, 0.15, 0.2),
    "cf_item_offset": (True, False),
    "mq_num_codebooks": (3, 8, 16),
    "mq_user_num_codebooks": (8, 32),
    "mq_codebook_size": (128, 256, 512),
    "mq_beta": (0.25, 1.0),
    "mq_codebook_lr_ratio": (1.0, 10.0),
    "mq_kmeans_init": (True, False),
    "mq_skip": (True, False),
    "mq_revive_dead": (False, True),
    "llm_backbone": ("t5-scratch-tiny", "t5-scratch-mini"),
    "llm_temperature": (0.07, 0.12, 0.2),
    "llm_dropout": (0.0, 0.1, 0.3),
    "llm_item_dropout": (0.0, 0.15, 0.3),
    "llm_distill": (0.0, 0.5, 0.8),
    "llm_optimizer": ("adamw", "muon"),
    "llm_ema": (0.0, 0.98),
    "llm_target_weight": (0.25, 1.0),
    "llm_horizon": (1, 4, 8),
    "prompt_decoder_items": (0, 10, 20, 50),
    "prompt_order": ("sequential", "shuffled"),
    "prompt_style": ("pooled", "compact"),
    "prompt_max_history": (10, 20, 50),
}


def add_arguments(parser) -> None:
    add_preset_argument(parser)
    parser.add_argument("--only", help=f"KEY[;KEY...] of: {', '.join(VALUES)} (default: all)")


def variants(settings, only: str | None) -> dict[str, dict]:
    """Label -> keys. ``settings``: what the preset says for this data set.

    Raises:
        ConfigError: a key of ``only`` has no values here.
    """
    keys = only.split(";") if only else list(VALUES)
    for key in keys:
        if key not in VALUES:
            raise ConfigError(f"only: '{key}' is not known{nearest(key, VALUES)}; allowed: {'; '.join(VALUES)}")
    idle = set()
    if settings["cf_loss"] != "softmax_cosine":
        idle |= {"cf_targets", "cf_temperature", "cf_item_offset"}
    if settings["llm_batching"] != "users":
        idle |= {"prompt_order", "llm_target_weight", "llm_distill", "llm_item_dropout"}
    if settings["prompt_order"] != "sequential":
        idle |= {"prompt_decoder_items"}
    idle |= {"prompt_order", "prompt_style"} if settings["prompt_decoder_items"] else {"llm_horizon"}
    if not settings["prompt_history"]:
        idle |= {"prompt_decoder_items", "prompt_order", "prompt_style", "prompt_max_history"}
    def differs(key, value) -> bool:
        return check(key, value, OPTIONS[key]) != check(key, settings[key], OPTIONS[key])

    turned = [(key, value) for key in keys if key not in idle for value in VALUES[key] if differs(key, value)]
    return {REFERENCE: {}, **{f"{key}: {value}": {key: value} for key, value in turned}}


def run(bench: Bench, arguments) -> Report:
    settings = bench.config(Run(REFERENCE, "TokenRec", preset=arguments.preset), bench.seeds[0])
    table = variants(settings, arguments.only)
    records, figures, against = compare_variants(bench, table, arguments.preset, REFERENCE)
    used = ", ".join(f"{key} {settings[key]}" for key in VALUES if any(name.startswith(f"{key}:") for name in table))
    return variants_report(
        f"levers, preset {arguments.preset}", bench, records, figures, against, {}, bars(figures),
        [f"The preset's own values: {used}."],
    )  # fmt: skip
