"""Table 6: TokenRec without one of its parts, the paper's three and those that this implementation adds.

``w/o K-way`` gives one codebook the codewords that the K item codebooks had together (Section 3.5). Users have more
codebooks than items in the preset ``tuned``; there they lose more. ``w/o HOCK`` is as many matrix factorisations as the
preset has collaborative models. Their users are rows of a table, whose tokens know the targets in training; the row
``user tokens know the targets`` is what it is to be compared with where the preset's do not.
"""

from __future__ import annotations

from recbole_tokenrec.experiments.quoted import quoted
from recbole_tokenrec.experiments.report import Report
from recbole_tokenrec.experiments.runs import Bench, Run
from recbole_tokenrec.experiments.variants import add_preset_argument, bars, compare_variants, variants_report

TITLE = "Table 6: TokenRec without one of its parts"
ARGUMENTS = ("preset",)
REFERENCE = "full"


def add_arguments(parser) -> None:
    add_preset_argument(parser)


def variants(settings) -> dict[str, dict]:
    """Label -> keys. ``settings``: what the preset says for this data set."""
    one_book = {
        "mq_num_codebooks": 1,
        "mq_user_num_codebooks": 1,
        "mq_codebook_size": settings["mq_num_codebooks"] * settings["mq_codebook_size"],
    }
    known = {"llm_user_tokens": "all", "prompt_decoder_items": 0}  # a decoder that reads wants users by their items
    models = len(settings["cf_targets"]) if isinstance(settings["cf_targets"], list) else 1
    mf = {"cf_n_layers": 0, "cf_user_table": True, "cf_targets": ["all"] * models, **known}
    if settings["cf_loss"] == "own":
        mf = {"cf_model": "BPR"}
    found = {
        REFERENCE: {},
        "w/o HOCK": mf,
        "w/o K-way": one_book,
        "w/o masking": {"mq_masking_ratio": 0.0},
        "tokens: residual quantisation": {"id_tokenizer": "rq"},
        "tokens: k-means": {"id_tokenizer": "kmeans"},
        "tokens: frozen random encoders": {"id_tokenizer": "mq_frozen"},
    }
    if settings["llm_token_init"] == "codebook":
        found["random token embeddings"] = {"llm_token_init": "random"}
    if settings["llm_loss"] == "softmax":
        found["loss of Eq. 20"] = {"llm_loss": "pairwise_cosine", "llm_distill": 0.0, "prompt_decoder_items": 0}
        if settings["llm_distill"]:
            found["w/o distillation"] = {"llm_distill": 0.0}
    if settings["llm_residual"]:
        found["w/o residual"] = {"llm_residual": False}
    if settings["llm_user_tokens"] == "visible":
        found["user tokens know the targets"] = known
    return found


def run(bench: Bench, arguments) -> Report:
    settings = bench.config(Run(REFERENCE, "TokenRec", preset=arguments.preset), bench.seeds[0])
    table = variants(settings)
    records, figures, against = compare_variants(bench, table, arguments.preset, REFERENCE)
    paper = quoted("ablation", records[0]["data"])
    return variants_report(
        f"ablation, preset {arguments.preset}", bench, records, figures, against, paper, bars(figures), []
    )
