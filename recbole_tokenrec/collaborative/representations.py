"""User and item representations out of any RecBole GeneralRecommender that has them.

Three kinds are understood: our LightGCNs, whose ``forward`` gives both tables; graph models that keep their propagated
tables in ``restore_user_e`` / ``restore_item_e`` after a full-sort prediction (RecBole's NGCF, SGL, DGCF …); and
models with plain ``user_embedding`` / ``item_embedding`` tables (BPR …).
"""

from __future__ import annotations

import copy
from pathlib import Path

import recbole
import recbole.trainer
import torch
import yaml
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import get_model

from recbole_tokenrec.collaborative.ensemble import CollaborativeEnsemble, members_of
from recbole_tokenrec.collaborative.sparse_lightgcn import SparseLightGCN
from recbole_tokenrec.configuration import known_keys
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.models.lightgcn_softmax import LightGCNSoftmax
from recbole_tokenrec.options import nearest

_OURS = (SparseLightGCN, LightGCNSoftmax, CollaborativeEnsemble)  # ``forward`` gives both tables


def build_collaborative(settings, config, dataset):
    """The model that ``cf_model`` names, given the ``cf_*`` keys in RecBole's names; one for each of ``cf_targets``.

    Raises:
        ConfigError: no such model, or one that is no GeneralRecommender with representations.
    """
    overrides = {
        "embedding_size": settings.cf_embedding_size,
        "n_layers": settings.cf_n_layers,
        "reg_weight": settings.cf_reg_weight,
        "train_batch_size": settings.cf_train_batch_size,
        "learning_rate": settings.cf_learning_rate,
        "temperature": settings.cf_temperature,
        "target_weight": settings.cf_target_weight,
        "sampled_items": settings.cf_sampled_items,
        "user_table": settings.cf_user_table,
        "item_offset": settings.cf_item_offset,
        "target_ratio": settings.cf_target_ratio,
        "recency": settings.cf_recency,
        "target_recency": settings.cf_target_recency,
    }
    names = {"LightGCNSoftmax"} if settings.cf_loss == "softmax_cosine" else {settings.cf_model}
    known = {"targets"}.union(overrides, *(known_keys(name) for name in names))
    for key in settings.cf_config or {}:
        if key not in known:
            raise ConfigError(f"cf_config: {settings.cf_model} has no key '{key}'{nearest(key, known)}")
    overrides.update(settings.cf_config or {})
    try:
        if settings.cf_loss == "softmax_cosine":
            model_class = LightGCNSoftmax
        else:
            model_class = SparseLightGCN if settings.cf_model == "LightGCN" else get_model(settings.cf_model)
    except (ValueError, AttributeError, ImportError) as error:
        raise ConfigError(f"cf_model: RecBole has no model '{settings.cf_model}'") from error
    if not issubclass(model_class, GeneralRecommender):
        raise ConfigError(
            f"cf_model: '{settings.cf_model}' is no GeneralRecommender; allowed: e.g. LightGCN, BPR, NGCF, SGL"
        )
    if model_class not in _OURS and hasattr(recbole.trainer, f"{model_class.__name__}Trainer"):
        raise ConfigError(
            f"cf_model: '{settings.cf_model}' is trained by steps of its own, which this stage does not know; allowed: "
            "e.g. LightGCN, BPR, NGCF, SGL"
        )
    members = []
    for kind in settings.cf_targets if model_class is LightGCNSoftmax else [None]:
        sub_config = model_config(config, settings.cf_model, model_class, {"targets": kind, **overrides})
        members.append(model_class(sub_config, dataset))
        members[-1].sub_config = sub_config
    return members[0] if len(members) == 1 else CollaborativeEnsemble(members)


def model_config(config, name: str, model_class, overrides: dict):
    """A copy of ``config`` as RecBole would make it for the model ``name``: its YAML's defaults, then ``overrides``."""
    path = Path(recbole.__file__).parent / "properties" / "model" / f"{name}.yaml"
    defaults = yaml.load(path.read_text(encoding="utf-8"), Loader=config.yaml_loader) if path.is_file() else None
    sub_config = copy.copy(config)
    sub_config.final_config_dict = {**(defaults or {}), **config.final_config_dict, **overrides}
    sub_config["model"] = name
    if hasattr(model_class, "input_type"):
        sub_config["MODEL_INPUT_TYPE"] = model_class.input_type
    return sub_config


@torch.no_grad()
def representations(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Users (n_users, d) and items (n_items, d) as the model uses them for a full-sort prediction.

    Raises:
        ConfigError: the model keeps no representations that could be tokenized.
    """
    tables = getattr(model, "user_embedding", None), getattr(model, "item_embedding", None)
    if isinstance(model, _OURS):
        users, items = model.forward()
    elif hasattr(model, "restore_user_e"):
        was_training = model.training
        model.eval()
        model.restore_user_e = model.restore_item_e = None
        model.full_sort_predict(Interaction({model.USER_ID: torch.tensor([1])}).to(model.device))
        users, items = model.restore_user_e, model.restore_item_e
        model.train(was_training)
    elif all(isinstance(table, torch.nn.Embedding) for table in tables):
        users, items = (table.weight for table in tables)
    else:
        users = items = torch.empty(0)
    if users.dim() != 2 or items.dim() != 2 or users.shape[1] != items.shape[1] or not users.numel():
        raise ConfigError(
            f"cf_model: '{type(model).__name__}' keeps no user and item embeddings; allowed: e.g. LightGCN, BPR, SGL"
        )
    return users.detach().clone(), items.detach().clone()


def unfilled(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of the shapes of :func:`representations`, for a model whose weights are read next.

    Those of our LightGCNs cost neither time nor memory: nothing is propagated, and no page is touched.
    """
    if not isinstance(model, _OURS):
        return representations(model)
    tables = [member.item_embedding.weight.detach() for member in members_of(model)]
    dim = sum(table.shape[1] for table in tables)
    return tables[0].new_empty(members_of(model)[0].n_users, dim), tables[0].new_empty(len(tables[0]), dim)
