"""TokenRec on a data set, with the parts that a benchmark does not time standing in for trained ones.

Speed does not depend on what the codes and vectors say, only on their shapes; where accuracy is measured the model is
trained for real (``benchmarks.agreement``).
"""

from __future__ import annotations

import torch
from recbole.utils import get_model, init_seed

from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.datacheck import load_data

# A prompt of the paper's kind, each ID token a position; held fast here, so that presets may change.
TOKEN_PROMPT = {
    "mq_num_codebooks": 6,
    "mq_user_num_codebooks": 16,
    "prompt_style": "compact",
    "prompt_decoder_items": 0,
    "prompt_order": "shuffled",
    "prompt_max_history": 16,
    "llm_target_ratio": [0.05, 0.3],
}
QUIET = {"show_progress": False, "state": "ERROR", "use_gpu": False}


def untrained(dataset: str, data_path: str | None, seed: int, **keys):
    """(model, train_data): TokenRec with random vectors and codes in the LLM4Rec stage."""
    config = make_config("TokenRec", dataset, overrides={**QUIET, **paths(data_path), "seed": seed, **keys})
    init_seed(seed, True)
    train_data = load_data(config)[1][0]
    model = get_model("TokenRec")(config, train_data._dataset)
    with torch.no_grad():
        for vectors in (model.user_vectors, model.item_vectors):
            vectors.normal_()
        for codes, letter in ((model.user_codes, "user"), (model.item_codes, "item")):
            codes[1:].random_(0, model.settings.mq_codebook_size)
            getattr(model, f"{letter}_tokenizer").fit_scale(getattr(model, f"{letter}_vectors"))
    return model, train_data


def paths(data_path: str | None) -> dict:
    return {"data_path": data_path} if data_path else {}
