"""``recbole_tokenrec.load``: a checkpoint or an exported folder becomes a :class:`Recommender`.

TokenRec's checkpoints and the generative baselines' hold raw ids and histories: the file is all that is needed.
RecBole's checkpoints (and those of our models that RecBole's trainer writes) hold neither: the data set is read and
split again, from where it lay at training or from ``data_path``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from recbole.config import Config
from recbole.utils import ModelType, get_model

from recbole_tokenrec.api.export import MANIFEST, TENSORS, read_folder
from recbole_tokenrec.api.recommender import Recommender
from recbole_tokenrec.api.scorers import (
    FullSortScorer,
    GenerativeScorer,
    LightGCNSoftmaxScorer,
    Scorer,
    TokenRecScorer,
)
from recbole_tokenrec.checkpoints import (
    is_checkpoint,
    load_checkpoint,
    load_for_recbole,
    plain_config,
    rebuild_config,
    restore,
)
from recbole_tokenrec.datacheck import check_files
from recbole_tokenrec.errors import CheckpointError, TokenRecError
from recbole_tokenrec.generative.recommender import GenerativeRecommender
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.measure import forget_peak, must_fit, peak_rss_mb, rss_mb
from recbole_tokenrec.models.lightgcn_softmax import LightGCNSoftmax
from recbole_tokenrec.models.tokenrec import TokenRec
from recbole_tokenrec.retrieval import ItemIndex, build_index
from recbole_tokenrec.snapshot import DataSnapshot


def load(path, index: str = "exact", data_path=None, process_budget_gb=None, **index_options) -> Recommender:
    """Open a trained model for recommending.

    Args:
        path: a checkpoint of ours or RecBole's, a folder written by ``export``, or the ``--output_dir`` of a run of one
            model: a folder with one checkpoint in it, or whose newest result file names one.
        index: how items are found by models with user and item vectors: ``exact``, ``faiss`` or ``lancedb``.
        data_path: folder that holds the data set's folder, for checkpoints without ids, if it has moved.
        process_budget_gb: GiB that this process may hold in all, libraries and model included; what is left when the
            model is open bounds the batches of users. None: no such bound, batches are as the model's
            ``memory_budget_gb`` says.
        index_options: of :func:`recbole_tokenrec.retrieval.build_index`.

    Raises:
        CheckpointError: no such file, damaged, foreign, or of other data.
        DataError: the data set that a RecBole checkpoint needs is not there.
        ConfigError: unknown index, its package is not installed, or the model does not fit into the budget.
    """
    path = find(path)
    if process_budget_gb is None:
        return _opened(path, index, data_path, index_options, lambda config: config["memory_budget_gb"] or 2.0)
    must_fit(path, process_budget_gb, least_gb(path))
    forget_peak()

    def left(_) -> float:
        must_fit(path, process_budget_gb, peak_rss_mb() / 1024)
        return (process_budget_gb - rss_mb() / 1024) / 2  # the other half is for what a batch takes beside its scores

    recommender = _opened(path, index, data_path, index_options, left)
    must_fit(path, process_budget_gb, peak_rss_mb() / 1024)
    return recommender


def least_gb(path: Path) -> float:
    """GiB that this process would hold at the least with the model at ``path``, whose file is read whole, open."""
    file = path / TENSORS if path.is_dir() else path
    return rss_mb() / 1024 + (file.stat().st_size / 2**30 if file.is_file() else 0)


def _opened(path: Path, index: str, data_path, index_options: dict, budget_of) -> Recommender:
    """``budget_of``: from the model's configuration, once it is open, to GiB that a batch's scores may take."""
    if path.is_dir():
        payload = read_folder(path)
    else:
        payload = load_checkpoint(path) if is_checkpoint(path) else None
    if payload is not None and payload.get("data"):
        try:
            model, data = rebuilt(payload)
        except TokenRecError as error:
            raise type(error)(f"{path}: {error}") from error
        except Exception as error:  # a stranger's file may hold any value in any place
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{path}: holds no model that can be rebuilt ({reason})") from error
        plain, config, dataset = payload["config"], rebuild_config(payload["config"]), None
    else:
        model, data, dataset, config = _with_data_set(path, data_path)
        plain = plain_config(config)
    scorer = _scorer(model, data, dataset, budget_of(config), index, index_options)
    return Recommender(scorer, plain, path, config["TIME_FIELD"] or "timestamp")


def rebuilt(payload: dict):
    """The model of a checkpoint that holds its data, and that data."""
    data = DataSnapshot.from_payload(payload["data"])
    config = rebuild_config(payload["config"])
    with torch.random.fork_rng():
        model = get_model(config["model"])(config, data)
    try:
        # No second copy of the tables: the model takes the tensors that were read, in the types that it has.
        types = {name: own.dtype for name, own in model.state_dict().items()}
        state = {name: value.to(types.get(name, value.dtype)) for name, value in payload["state_dict"].items()}
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its configuration ({error})") from error
    for module in model.modules():
        if hasattr(module, "tie_weights"):  # transformers': what was one tensor under several names is one again
            module.tie_weights()
    model.load_other_parameter(payload.get("other_parameter"))
    return model.to(config["device"]), data


def find(path) -> Path:
    """What ``load`` opens for ``path``: a checkpoint's file, or an exported folder.

    Raises:
        CheckpointError: there is no such file, or a folder holds none or several.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file")
    files = sorted(path.glob("*.pth"))
    if len(files) > 1 and (newest := _of_newest_run(path)) in files:
        return newest
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{path}: holds neither {MANIFEST} nor one checkpoint (*.pth: {names}); name the file")
    return files[0]


def _of_newest_run(folder: Path) -> Path | None:
    """The checkpoint in ``folder`` that its newest result file names, if that run had a single model."""
    results = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
    try:
        (row,) = json.loads(results[-1].read_text(encoding="utf-8"))["models"]
        return folder / Path(row["checkpoint"]).name
    except (IndexError, KeyError, TypeError, ValueError, OSError):
        return None


def _with_data_set(path: Path, data_path):
    """Model, ids and histories, RecBole's data set and configuration of a checkpoint without ids."""
    checkpoint = load_for_recbole(path, map_location="cpu")
    config = checkpoint.get("config")
    settings = vars(config).get("final_config_dict") if isinstance(config, Config) else None
    known = isinstance(settings, dict)
    if not known or not all(isinstance(settings.get(key), str) for key in ("model", "dataset", "data_path")):
        raise CheckpointError(f"{path}: holds no trained model (no configuration of RecBole's)")
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        raise CheckpointError(f"{path}: holds no trained model (no state_dict)")
    if not torch.cuda.is_available():
        config["device"] = torch.device("cpu")
    if data_path is not None:
        config["data_path"] = str(Path(data_path) / config["dataset"])
    check_files(config)
    try:
        model, _, train_data, _, test_data = restore(checkpoint, path)
    except TokenRecError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: holds no model that can be rebuilt ({reason})") from error
    if model.type == ModelType.SEQUENTIAL:
        dataset = _one_sequence_a_user(test_data.dataset)
        return model, _sequences(dataset), dataset, config
    return model, DataSnapshot.from_dataset(train_data._dataset), test_data.dataset, config


def _one_sequence_a_user(dataset):
    """Of a split by ratio, where a user has several test rows, the one with the most before it."""
    lengths = dataset.inter_feat[dataset.config["ITEM_LIST_LENGTH_FIELD"]]
    order = torch.argsort(lengths, stable=True)
    users = dataset.inter_feat[dataset.uid_field][order]
    last = torch.full((dataset.user_num,), -1).scatter_reduce(0, users, torch.arange(len(users)), "amax")
    return dataset.copy(dataset.inter_feat[order[last[last >= 0]]])


def _sequences(dataset) -> DataSnapshot:
    """Of a sequential model's test split: a user's history is the sequence that the model is given."""
    lists = dataset.inter_feat[f"{dataset.iid_field}{dataset.config['LIST_SUFFIX']}"]
    lengths = dataset.inter_feat[dataset.config["ITEM_LIST_LENGTH_FIELD"]]
    users = dataset.inter_feat[dataset.uid_field]
    shown = torch.arange(lists.shape[1]) < lengths.unsqueeze(1)
    rows = users.unsqueeze(1).expand_as(lists)[shown]
    return DataSnapshot.from_dataset(dataset, Histories(rows.numpy(), lists[shown].numpy(), dataset.user_num))


def _scorer(model, data, dataset, budget: float, index: str, options: dict) -> Scorer:
    """``budget``: GiB that the scores, or the prompts, of a batch may take."""
    model.eval()

    def index_of(vectors) -> ItemIndex:
        return build_index(index, vectors, **({"memory_budget_gb": budget} if index == "exact" else {}), **options)

    if isinstance(model, TokenRec):
        model.settings.memory_budget_gb = budget  # for prompts
        return TokenRecScorer(model, data, index_of(model.retrieval_vectors.detach()), index_of)
    if isinstance(model, LightGCNSoftmax):
        return LightGCNSoftmaxScorer(model, data, index_of)
    kind = GenerativeScorer if isinstance(model, GenerativeRecommender) else FullSortScorer
    return kind(model, data, dataset, budget)
