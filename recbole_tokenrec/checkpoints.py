"""Two kinds of checkpoint files, neither of which may run code when it is opened.

*Ours* (:func:`save_checkpoint`, :func:`load_checkpoint`) hold tensors and plain Python, are read by
``torch.load(weights_only=True)``, are written atomically, and end with a digest of all their bytes, so that a file
cut short or changed by one bit is noticed. The configuration is stored as plain data (:func:`plain_config`).

*RecBole's* pickle a ``Config`` and, for some models, scipy matrices or a whole data set. They are opened with an
exact list of what such a file may name (:mod:`recbole_tokenrec.unpickling`); torch refuses them from 2.6 on.

:func:`load_for_recbole` opens either; ``compat`` puts it where RecBole calls ``torch.load``. RecBole's saved data
sets and data loaders (``save_dataset``, ``save_dataloaders``) are read by ``pickle`` in ``recbole.data.utils``,
which we leave alone: open only your own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from recbole.config import Config

from recbole_tokenrec.datacheck import read_and_split
from recbole_tokenrec.errors import CheckpointError, ConfigError
from recbole_tokenrec.files import written_whole
from recbole_tokenrec.unpickling import unpickle

FORMAT = "recbole-tokenrec"
VERSION = 1

# The file is a zip archive, as torch writes it. Its trailing comment is this mark and a SHA-256 in hex.
_MARK = b"recbole-tokenrec sha256="
_COMMENT = len(_MARK) + 64
_END_OF_ZIP = b"PK\x05\x06"
_PLAIN = (str, int, float, bool, type(None))

# Set by Config itself from the model, the machine or the process; a stored value would be wrong elsewhere.
_DERIVED_KEYS = {
    "model", "dataset", "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_metric_bigger",
    "valid_neg_sample_args", "test_neg_sample_args", "device", "single_spec", "local_rank",
    "nproc", "world_size", "offset", "ip", "port",
}  # fmt: skip


# --- our own format -------------------------------------------------------------------------------------------------


def save_checkpoint(path, payload: dict) -> None:
    """Write ``payload`` to ``path``, so that at any moment the path holds the old file, or the new one, whole.

    Args:
        payload: tensors, str, int, float, bool, None, and lists, tuples and dicts of them. numpy scalars are
            stored as Python numbers, other mappings (a ``state_dict``) as dicts.

    Raises:
        CheckpointError: the payload holds anything else (named by its place), or the file cannot be written.
    """
    payload = _plain(payload, "payload", CheckpointError, torch.Tensor)
    content = {"format": FORMAT, "version": VERSION, "payload": payload}
    with written_whole(path, "the checkpoint", CheckpointError) as file:
        torch.save(content, file)
        _seal(file)


def load_checkpoint(path, map_location="cpu") -> dict:
    """The payload that :func:`save_checkpoint` wrote to ``path``, its tensors on ``map_location``.

    Raises:
        CheckpointError: the file is missing, damaged, not of our format, or of a newer version of it.
    """
    try:
        with open(path, "rb") as file:
            if not _is_sealed(file):
                raise CheckpointError(f"{path}: not a checkpoint of recbole-tokenrec, or one that was cut short")
            if not _seal_holds(file):
                raise CheckpointError(f"{path}: the checkpoint is damaged (its digest does not match)")
            file.seek(0)
            content = torch.load(file, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many kinds; all of them mean that this file cannot be used
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error})") from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or content.get("format") != FORMAT or not isinstance(content.get("payload"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of recbole-tokenrec")
    if version > VERSION:
        raise CheckpointError(f"{path}: checkpoint version {version}; this release reads up to {VERSION}: upgrade it")
    return content["payload"]


def is_checkpoint(path) -> bool:
    """Whether ``path`` bears our mark; says nothing of its being whole."""
    try:
        with open(path, "rb") as file:
            return _is_sealed(file)
    except OSError:
        return False


def seal_of(path) -> str | None:
    """The digest that a checkpoint of ours ends with, as hex: two files with the same one are the same; else None."""
    if not is_checkpoint(path):
        return None
    with open(path, "rb") as file:
        file.seek(-64, os.SEEK_END)
        return file.read().decode("ascii", "replace")


def _seal(file) -> None:
    """Append the digest of all that is in ``file`` as the zip archive's comment."""
    file.seek(-22, os.SEEK_END)  # the end record has 22 bytes, the last two being the comment's length: 0
    if not (record := file.read()).startswith(_END_OF_ZIP) or record[-2:] != b"\0\0":
        raise CheckpointError("torch.save wrote an archive of an unknown form")
    file.seek(-2, os.SEEK_END)
    file.write(_COMMENT.to_bytes(2, "little") + _MARK)
    file.write(_digest(file, file.tell()))


def _is_sealed(file) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _COMMENT))
    return file.read(len(_MARK)) == _MARK


def _seal_holds(file) -> bool:
    size = file.seek(0, os.SEEK_END)
    digest = _digest(file, size - 64)
    return file.read() == digest


def _digest(file, size: int) -> bytes:
    """Hex SHA-256 of the first ``size`` bytes; leaves the file's position behind them."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0:
        block = file.read(min(size, 1 << 20))
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _plain(value: Any, place: str, error: type, *also: type) -> Any:
    """``value`` as plain Python (and the types in ``also``), or ``error`` naming the place of what is not."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor) and torch.Tensor in also:
        return value.detach()
    if isinstance(value, Mapping):
        return {
            _plain(key, f"a key of {place}", error): _plain(item, f"{place}[{key!r}]", error, *also)
            for key, item in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{place}[{i}]", error, *also) for i, item in enumerate(value))
    raise error(f"{place}: a {type(value).__name__} cannot be stored in a checkpoint, only plain data")


# --- configurations -------------------------------------------------------------------------------------------------


def plain_config(config) -> dict:
    """A RecBole ``Config`` as plain data, from which :func:`rebuild_config` makes an equal one.

    Returns:
        ``{"model": name, "dataset": name, "config_dict": {key: plain value}}``. Left out is what ``Config``
        works out for itself: enums, device, rank, and the place of the bundled ml-100k.

    Raises:
        ConfigError: a value is not plain data.
    """
    settings = {key: value for key, value in config.final_config_dict.items() if key not in _DERIVED_KEYS}
    dataset = config["dataset"]
    path = settings.pop("data_path")
    if dataset != "ml-100k":
        settings["data_path"] = path[: -len(dataset)]  # Config appends the data set's name
    negatives = settings.get("train_neg_sample_args")
    if isinstance(negatives, dict) and negatives.get("distribution") == "none":
        settings["train_neg_sample_args"] = None  # Config writes "none" for None, and refuses to read it
    settings = {key: _plain(value, key, ConfigError) for key, value in settings.items() if not isinstance(value, Enum)}
    return {"model": config["model"], "dataset": dataset, "config_dict": settings}


def rebuild_config(plain: dict) -> Config:
    """The ``Config`` that :func:`plain_config` described, for this machine's devices.

    The command line is not read, and no string is evaluated: RecBole's own way of reading a ``config_dict`` calls
    ``eval``, by which a file could run code. Presets are not read either: they may have changed since, and a key that
    came later is what the model's own YAML says, which leaves a model as it was.
    """
    config = _PlainConfig(plain["model"], plain["dataset"], config_dict=plain["config_dict"])
    config.__class__ = Config
    return config


class _PlainConfig(Config):
    complete = True  # for the registry, which adds presets otherwise

    def _load_variable_config_dict(self, config_dict):
        return dict(config_dict)

    def _load_cmd_line(self):
        return {}


# --- what RecBole calls ---------------------------------------------------------------------------------------------


def load_recbole_checkpoint(path, map_location=None) -> dict:
    """Open a checkpoint that RecBole's trainers wrote, refusing any that names what they never write.

    Raises:
        CheckpointError: the file is missing or damaged, is no such checkpoint, or names a global that is not
            allowed; the text names the file and the global.
    """
    try:
        with open(path, "rb") as file:
            # Asked of torch's own reader, lest a file shows it another archive than it shows us.
            records = torch._C.PyTorchFileReader(file).get_all_records()
            if "data.pkl" not in records or "constants.pkl" in records:  # with the latter it is TorchScript
                raise CheckpointError(f"{path}: not a checkpoint of RecBole")
            file.seek(0)
            checkpoint = unpickle(path, file, map_location)
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error})") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") == FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of RecBole, or a damaged one of recbole-tokenrec")
    return checkpoint


def load_for_recbole(path, map_location=None) -> dict:
    """What stands in for ``torch.load`` in RecBole: opens our checkpoints and RecBole's.

    Returns:
        RecBole's dict: "state_dict", "other_parameter", "epoch", "cur_step", "best_valid_score", "optimizer", and
        whatever else the file holds; "config" is a ``Config``.
    """
    if not is_checkpoint(path):
        return load_recbole_checkpoint(path, map_location)
    checkpoint = load_checkpoint(path, map_location)
    if "config" in checkpoint:
        checkpoint["config"] = rebuild_config(checkpoint["config"])
    return checkpoint


def save_for_recbole(state, path, **options) -> None:
    """What stands in for ``torch.save`` in RecBole's trainer: the same file, written whole or not at all.

    Raises:
        CheckpointError: the file cannot be written; the one before is still there.
    """
    with written_whole(path, "the checkpoint", CheckpointError) as file:
        torch.save(state, file, **options)


def load_data_and_model(model_file):
    """RecBole's function of this name for checkpoints of either kind, also those of a GPU on a machine without.

    Returns:
        config, model, dataset, train_data, valid_data, test_data
    """
    from recbole.quick_start import quick_start as recbole

    with_gpu = torch.cuda.is_available()
    checkpoint = load_for_recbole(model_file, map_location=None if with_gpu else "cpu")
    config = checkpoint["config"]
    if config["device"].type == "cuda" and not with_gpu:
        config["device"] = torch.device("cpu")
    recbole.init_logger(config)
    recbole.getLogger().info(config)
    return (config, *restore(checkpoint, model_file))


def ids_digest(dataset) -> str:
    """Of a data set's users and items in the order of their numbers, which RecBole takes from the rows' order."""
    digest = hashlib.sha256()
    for field in (dataset.uid_field, dataset.iid_field):
        for token in dataset.field2id_token[field]:
            digest.update(str(token).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def restore(checkpoint: dict, path) -> tuple:
    """The model of an opened checkpoint, whose data set is read and split again as its configuration says.

    Args:
        path: where the checkpoint came from, for the error.

    Raises:
        CheckpointError: the data set has changed since; of that other numbers of users and items are a sign, which
            checkpoints of other trainings than ours do not hold.
        DataError: it can no longer be read or split.

    Returns:
        model, dataset, train_data, valid_data, test_data
    """
    from recbole.quick_start import quick_start as recbole

    config = checkpoint["config"]
    config["dataset_save_path"] = config["dataloaders_save_path"] = None  # pickles; a file may not say which to open
    recbole.init_seed(config["seed"], config["reproducibility"])
    dataset, loaders = read_and_split(config)
    recbole.getLogger().info(dataset)
    # Seeded again, since building the loaders drew numbers: the model starts as in run_recbole.
    recbole.init_seed(config["seed"], config["reproducibility"])
    model = recbole.get_model(config["model"])(config, loaders[0]._dataset).to(config["device"])
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the checkpoint does not fit the data set '{config['dataset']}' as it is now, with "
            f"{dataset.user_num - 1} users and {dataset.item_num - 1} items ({str(error).splitlines()[-1].strip()})"
        ) from error
    if (known := config["ids_digest"]) is not None and known != ids_digest(dataset):
        raise CheckpointError(
            f"{path}: the data set '{config['dataset']}' is not the one that the checkpoint was trained on: rows of "
            f"{config['data_path']} came, went or changed places, by whose order RecBole numbers users and items; "
            "name the folder of the data as they were (data_path), or train anew"
        )
    other = checkpoint.get("other_parameter") or {}
    on_device = {k: v.to(config["device"]) if isinstance(v, torch.Tensor) else v for k, v in other.items()}
    model.load_other_parameter(on_device)
    return (model, dataset, *loaders)
