"""TokenRec's configuration keys: what each means, which values it takes, and what they ask of one another.

Values come from ``properties/model/TokenRec.yaml``, a preset and whatever the user sets; this table knows no
defaults. ``read_settings`` turns a RecBole ``Config`` into a :class:`Settings` or raises a ``ConfigError`` that names
the key, the value and what is allowed. ``docs/configuration.md`` is written from the same table.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.options import Option, check
from recbole_tokenrec.registry import MODELS
from recbole_tokenrec.training.steps import CF_EPOCHS, CF_STEPS, CF_VALIDATIONS, LLM_EPOCHS, LLM_STEPS


def _int(doc, low=0, high=math.inf, **more):
    return Option(int, doc, low, high, **more)


def _float(doc, low=0.0, high=math.inf, **more):
    return Option(float, doc, low, high, **more)


def _choice(doc, *choices):
    return Option(str, doc, choices=choices)


_CLOSED_FORM = ("EASE", "ItemKNN", "AsymKNN", "ADMMSLIM", "SLIMElastic", "NCEPLRec")


def _stage(name: str, prefix: str) -> dict[str, Option]:
    """The keys that every stage has."""
    return {
        f"{prefix}_epochs": _int(f"Most epochs of the {name}.", 1),
        f"{prefix}_learning_rate": _float(f"Peak learning rate of the {name}'s optimizer.", open_low=True),
        f"{prefix}_weight_decay": _float(f"Weight decay of the {name}'s optimizer."),
    }


OPTIONS: dict[str, Option] = {
    "preset": Option(str, "YAML of properties/preset: tuned (default), paper or user_id_only."),
    # collaborative stage, Section 2.3.1
    "cf_model": Option(str, "RecBole GeneralRecommender with user and item embeddings: LightGCN, BPR, NGCF, SGL …"),
    "cf_loss": _choice(
        "softmax_cosine: cross-entropy over all items of cosine / cf_temperature (cf_model: LightGCN; 0 layers make it "
        "MF); own: cf_model's own loss, BPR for LightGCN and BPR.",
        "softmax_cosine",
        "own",
    ),
    "cf_embedding_size": _int("Dimension d of the collaborative representations.", 1),
    "cf_n_layers": _int("Propagation layers of LightGCN.", 0),
    "cf_temperature": _float("Temperature of softmax_cosine.", open_low=True),
    "cf_target_weight": _float(
        "A user with n items weighs n to this power in softmax_cosine: 1 counts pairs, 0 counts users.", 0, 1
    ),
    "cf_sampled_items": _int(
        "softmax_cosine in catalogues of more items than this: a batch's targets and about this many drawn ones.", 1
    ),
    "cf_user_table": Option(bool, "Users have an embedding of their own, not only what their items propagate."),
    "cf_item_offset": Option(bool, "Items have an offset between what they propagate and where they are retrieved."),
    "cf_targets": Option(
        list,
        "softmax_cosine: all of a user's items are targets of his vector; next: the next few after a random cut in "
        "time, his vector being made of what lies before; random: a random part, his vector being made of the rest. "
        "Of several, each trains a model, whose vectors stand side by side, weighed by validation.",
        choices=("all", "next", "random"),
    ),
    "cf_target_ratio": Option(
        list,
        "With cf_targets: next or random, least and largest share of a user's items that are targets.",
        shares=True,
    ),
    "cf_recency": _float(
        "An interaction with a newer ones after it weighs (a + 1)^-cf_recency in the graph. With cf_targets: next or "
        "random the exponent is learnt, from this value on."
    ),
    "cf_target_recency": _float("With cf_targets: all, the same exponent for its weight as a target."),
    "cf_reg_weight": _float("RecBole's reg_weight: L2 on the un-propagated embeddings, with cf_loss: own."),
    "cf_train_batch_size": _int("Users (softmax_cosine) or interactions (own) of a batch.", 1),
    "cf_eval_step": _int(f"Epochs between two validations; empty: {CF_VALIDATIONS} of them.", 1, optional=True),
    "cf_stopping_step": _int("Validations without a gain before the stage stops.", 1),
    "cf_config": Option(dict, "Further keys for cf_model, in RecBole's names.", optional=True),
    **_stage("collaborative stage", "cf"),
    "cf_epochs": _int(
        f"Most epochs of the collaborative stage, for each of its models; empty: those of {CF_STEPS} steps, "
        f"{CF_EPOCHS[0]} to {CF_EPOCHS[1]}.",
        1,
        optional=True,
    ),
    # tokenizer stage, Sections 2.3.2 to 2.3.5
    "id_tokenizer": _choice(
        "Tokenizer of users and items: mq, the Masked Vector-Quantized one; for comparison mq_frozen (its encoders "
        "stay at their random start), rq (residual quantisation), kmeans (product quantisation).",
        "mq",
        "mq_frozen",
        "rq",
        "kmeans",
    ),
    "mq_num_codebooks": _int("K, codebooks (and encoders) per tokenizer.", 1, 64),
    "mq_user_num_codebooks": _int("K of users, where it differs from that of items.", 1, 64, optional=True),
    "mq_skip": Option(bool, "Linear short cuts around each encoder and the decoder."),
    "mq_codebook_size": _int("L, codewords per codebook.", 2),
    "mq_codeword_dim": _int("d_c, dimension of a codeword.", 1),
    "mq_hidden_size": _int("Width of the hidden layers of encoders and decoder.", 1),
    "mq_masking_ratio": _float("rho of Eq. 2: probability that an element is hidden.", 0, 1),
    "mq_beta": _float("beta of Eq. 13: weight of the commitment loss."),
    "mq_train_batch_size": _int("Entities of a batch.", 1),
    "mq_min_steps": _int("Least optimiser steps: small data sets run more than mq_epochs epochs to reach them."),
    "mq_kmeans_init": Option(bool, "Start encoders on orthogonal parts of the space (mq_skip), codebooks by k-means."),
    "mq_codebook_lr_ratio": _float(
        "Codebooks learn this many times faster than encoders and decoder; slow ones are outrun.", open_low=True
    ),
    "mq_revive_dead": Option(bool, "Move codewords that no entity chose in an epoch onto encoded entities."),
    **_stage("tokenizer stage", "mq"),
    # LLM4Rec stage, Section 2.4
    "llm_backbone": Option(str, "Hugging Face id, folder written by save_pretrained, or from-scratch preset."),
    "llm_dropout": _float("Dropout of backbone and projection; empty keeps the backbone's.", 0, 0.95, optional=True),
    "llm_projection_size": _int("Width of the projection's hidden layers.", 1),
    "llm_token_init": _choice("Start of the OOV token embeddings.", "codebook", "random"),
    "llm_token_scale": _float(
        "With llm_token_init: codebook, the tokens' spread at the start as a share of the words': the smaller, the "
        "faster training changes them.",
        open_low=True,
    ),
    "llm_loss": _choice(
        "softmax: cross-entropy over all items of cosine / llm_temperature; pairwise_cosine: Eq. 20.",
        "softmax",
        "pairwise_cosine",
    ),
    "llm_temperature": _float("Temperature of the softmax loss.", open_low=True),
    "llm_sampled_items": _int(
        "Softmax loss in catalogues of more items than this: a batch's targets and about this many drawn ones.", 1
    ),
    "llm_margin": _float("gamma of Eq. 20, margin of negative pairs.", -1, 1),
    "llm_batching": _choice(
        "users: encode a user once, learn from many held-out items; interactions: one positive and RecBole's "
        "sampled negative per prompt, as in the paper.",
        "users",
        "interactions",
    ),
    "llm_train_batch_size": _int("Users or interactions of a batch.", 1),
    "llm_target_ratio": Option(
        list, "Least and largest share of a user's items held out as targets of one prompt.", shares=True
    ),
    "llm_target_weight": _float("A user with n targets weighs n to this power in the softmax loss.", 0, 1),
    "llm_horizon": _int(
        "With prompt_decoder_items: how many of the items to come are targets, alike, each time that the decoder has "
        "read one. A test item lies two steps after the training part.", 1
    ),
    "llm_user_tokens": _choice(
        "Items that a training prompt's user tokens are made of: visible (folded in, so that they do not know the "
        "targets; needs cf_loss: softmax_cosine without cf_user_table), or all.",
        "visible",
        "all",
    ),
    "llm_item_dropout": _float(
        "Probability that an epoch leaves an item out, as if its user had not taken it: histories are not alike from "
        "one epoch to the next, and not learnt by heart. Needs llm_batching: users.", 0, 0.9
    ),
    "llm_item_offset": Option(
        bool,
        "Where items are retrieved is learnt on, from their collaborative places; false (the paper) leaves them there.",
    ),
    "llm_residual": Option(bool, "z adds to the projection what the user tokens decode to."),
    "llm_distill": _float("Share of the softmax targets taken from the collaborative stage's own scores.", 0, 1),
    "llm_distill_decay": _choice(
        "constant: llm_distill in every epoch; linear: down to nothing at half of them, since the collaborative stage "
        "is soon known and then holds back.",
        "constant",
        "linear",
    ),
    "llm_optimizer": _choice(
        "adamw; muon: the matrices of linear layers by Muon, which needs fewer epochs, all else by AdamW.",
        "adamw",
        "muon",
    ),
    "llm_ema": _float("Decay of the averaged weights that are evaluated; 0 evaluates the last step's.", 0, 0.9999),
    "llm_warmup_ratio": _float("Share of the steps in which the learning rate rises linearly.", 0, 1),
    "llm_lr_decay": _choice("Learning rate after the warm-up.", "constant", "cosine", "linear"),
    "llm_clip_grad_norm": _float("Largest gradient norm; 0 clips nothing."),
    "llm_eval_step": _int("Epochs between two validations.", 1),
    "llm_stopping_step": _int("Validations without a gain before the stage stops.", 1),
    **_stage("LLM4Rec stage", "llm"),
    "llm_epochs": _int(
        f"Most epochs of the LLM4Rec stage; empty: those of {LLM_STEPS} steps, {LLM_EPOCHS[0]} to {LLM_EPOCHS[1]}.",
        1,
        optional=True,
    ),
    # prompts, Section 2.4.1
    "prompt": _choice("Templates at evaluation: the ten seen ones, or the unseen eleventh.", "seen", "unseen"),
    "prompt_history": Option(bool, "List the user's items in the prompt; false is the paper's user-ID-only form."),
    "prompt_style": _choice(
        "printed as in the paper; compact: the items' tokens alone, without words between them; pooled: each user or "
        "item takes one position, the sum of its tokens' embeddings.",
        "printed",
        "compact",
        "pooled",
    ),
    "prompt_order": _choice("Order of the items in the prompt.", "shuffled", "sequential"),
    "prompt_max_history": _int("Most items of a prompt.", 1),
    "prompt_decoder_items": _int(
        "How many of the latest items the decoder reads, one after the other, while the prompt lists those before; "
        "all of them are targets of one training pass. 0: the decoder is asked once, as in the paper."
    ),
    "prompt_max_tokens": _int("Longest prompt in tokens (T5: 512).", 16),
    # evaluation and house-keeping
    "history_at_test": _choice(
        "What is known of a user at test: the training part only (as RecBole's general models do it), or the "
        "validation item too, in prompts and, by fold-in where cf_user_table is false, in vectors and tokens.",
        "train",
        "train_valid",
    ),
    "precision": _choice(
        "Arithmetic of matrix products in training: fp32, bf16 (autocast), or auto, which is bf16 where the device is "
        "built for it. Evaluation and codes are always fp32.",
        "auto",
        "fp32",
        "bf16",
    ),
    "memory_budget_gb": _float("Memory that score matrices of evaluation and retrieval may take.", open_low=True),
    "stage_cache": Option(bool, "Keep the collaborative and tokenizer stages under checkpoint_dir/stage_cache."),
}


class Settings(SimpleNamespace):
    """TokenRec's checked options as attributes."""


def read_settings(config) -> Settings:
    """Check every TokenRec key of a RecBole ``Config`` (or any mapping with ``[]`` that gives None for a lost key).

    Raises:
        ConfigError: a key is missing, has the wrong type, lies outside its range, or contradicts another.
    """
    values = {key: check(key, config[key], option) for key, option in OPTIONS.items()}
    settings = Settings(**values)
    if settings.llm_batching == "interactions" and settings.prompt_order == "sequential":
        raise ConfigError("prompt_order: 'sequential' needs llm_batching: users; it is 'interactions'")
    if settings.llm_batching == "interactions" and (config["train_neg_sample_args"] or {}).get("dynamic"):
        raise ConfigError("train_neg_sample_args: dynamic: true is not allowed with llm_batching: interactions")
    if settings.cf_loss == "own" and settings.cf_model in (*MODELS, *_CLOSED_FORM):
        raise ConfigError(
            f"cf_model: '{settings.cf_model}' is none of RecBole's that learn user and item embeddings; allowed: e.g. "
            "LightGCN, BPR, NGCF, SGL"
        )
    if settings.llm_batching == "interactions" and settings.llm_item_dropout:
        raise ConfigError(f"llm_item_dropout: {settings.llm_item_dropout} needs llm_batching: users")
    if settings.prompt_decoder_items:
        needs = {"prompt_order": "sequential", "prompt_style": "pooled", "prompt_history": True}
        for key, value in {**needs, "llm_loss": "softmax", "llm_user_tokens": "visible"}.items():
            if values[key] != value:
                raise ConfigError(
                    f"prompt_decoder_items: {settings.prompt_decoder_items} needs {key}: {value}; it is {values[key]}; "
                    "or set prompt_decoder_items: 0"
                )
    inductive = settings.cf_loss == "softmax_cosine" and not settings.cf_user_table
    if settings.llm_user_tokens == "visible" and not inductive:
        raise ConfigError(
            "llm_user_tokens: 'visible' needs cf_loss: softmax_cosine and cf_user_table: false; or set 'all'"
        )
    if settings.llm_batching == "interactions" and settings.llm_user_tokens == "visible":
        raise ConfigError("llm_user_tokens: 'visible' needs llm_batching: users; it is 'interactions'")
    if settings.cf_loss == "softmax_cosine" and settings.cf_model != "LightGCN":
        raise ConfigError(
            f"cf_model: '{settings.cf_model}' has a loss of its own; set cf_loss: own (softmax_cosine needs LightGCN)"
        )
    splits = [kind for kind in settings.cf_targets if kind != "all"] if settings.cf_loss == "softmax_cosine" else []
    if splits and (settings.cf_user_table or settings.cf_n_layers == 0):
        raise ConfigError(f"cf_targets: '{splits[0]}' needs cf_user_table: false and cf_n_layers of at least 1")
    if settings.cf_loss == "softmax_cosine" and settings.cf_n_layers == 0 and not settings.cf_user_table:
        raise ConfigError("cf_n_layers: 0 leaves users without a representation; set cf_user_table: true")
    return settings
