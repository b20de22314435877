"""Look at a data set before RecBole reads it, and at its split afterwards, so that a user's mistake is told in words.

RecBole would fail deep inside pandas or torch; and its download of a named data set ends in a distributed barrier
that a single process does not have.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset

from recbole_tokenrec.errors import ConfigError, DataError, TokenRecError

_ALLOWED_TYPES = ("token", "token_seq", "float", "float_seq")


def check_files(config) -> Path:
    """The ``.inter`` file of ``config``'s data set, once it is seen to exist and to have the columns it needs.

    Raises:
        DataError: not found, empty, compressed, or without a needed column.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    path = folder / f"{name}.inter"
    if config["benchmark_filename"]:
        path = folder / f"{name}.{config['benchmark_filename'][0]}.inter"
    if path.is_dir():
        raise DataError(f"dataset '{name}': {path} is a folder, not a file")
    if not path.is_file():
        raise DataError(
            f"dataset '{name}': {path} does not exist, and RecBole cannot download it from here.\n"
            f"Put RecBole's atomic file {name}.inter there, or name the folder above it: --data_path DIR "
            f"(reads DIR/{name}/{name}.inter)."
        )
    with open(path, "rb") as file:
        start = file.read(65536)
    if not start.strip():
        raise DataError(f"dataset '{name}': {path} is empty")
    if start[:2] == b"\x1f\x8b":
        raise DataError(f"dataset '{name}': {path} is gzip-compressed; unpack it first")
    if start[:3] == codecs.BOM_UTF8 and (config["encoding"] or "utf-8").lower() in ("utf-8", "utf8"):
        raise DataError(f"dataset '{name}': {path} begins with a byte order mark; set encoding: utf-8-sig")
    try:
        header = start.split(b"\n", 1)[0].decode(config["encoding"] or "utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"dataset '{name}': {path} is not text ({error}); set encoding if it is not utf-8") from error
    columns = header.split(config["field_separator"])
    fields = {}
    for column in columns:
        field, _, kind = column.partition(":")
        if kind not in _ALLOWED_TYPES:
            raise DataError(
                f"dataset '{name}': column '{column}' of {path} has no type RecBole knows; write it as "
                f"name:type with a type of {', '.join(_ALLOWED_TYPES)}, separated by {config['field_separator']!r}"
            )
        fields[field] = kind
    twice = [field for field in fields if [column.partition(":")[0] for column in columns].count(field) > 1]
    if twice:
        raise DataError(f"dataset '{name}': {path} has the column '{twice[0]}' more than once")
    needed = {"USER_ID_FIELD": config["USER_ID_FIELD"], "ITEM_ID_FIELD": config["ITEM_ID_FIELD"]}
    if config["eval_args"]["order"] == "TO":
        needed["TIME_FIELD"] = config["TIME_FIELD"]
    for key, field in needed.items():
        if field not in fields:
            raise DataError(
                f"dataset '{name}': {path} has no column '{field}' ({key}); it has: {', '.join(fields)}"
            )
        kind = "float" if key == "TIME_FIELD" else "token"
        if fields[field] != kind:
            raise DataError(
                f"dataset '{name}': column '{field}' ({key}) of {path} has the type {fields[field]}; it must be {kind}"
            )
    if not start.split(b"\n", 1)[-1].strip():
        raise DataError(f"dataset '{name}': {path} holds no interactions")
    return path


def load_data(config):
    """RecBole's data set and its training, validation and test loaders.

    Raises:
        DataError: see :func:`check_files`; also if nobody has the three interactions that leave-one-out takes, or if
            the filters leave nothing, or somebody took every item, so that no negative can be sampled.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    if not folder.exists() and not config["benchmark_filename"]:
        _try_download(config)
    check_times(config, check_files(config))
    dataset, loaders = read_and_split(config)
    if max(config["topk"]) >= dataset.item_num:
        raise ConfigError(
            f"topk: {max(config['topk'])} is not allowed; allowed: at most the {dataset.item_num - 1} items of "
            f"dataset '{name}'"
        )
    return dataset, loaders


def read_and_split(config):
    """RecBole's data set, from files that are there, and its three loaders; raises as :func:`load_data` does."""
    name = config["dataset"]
    with _in_words(name, "RecBole cannot read it: "):
        dataset = create_dataset(config)
    counts = dataset.inter_feat[dataset.uid_field].value_counts()
    if len(counts) < 2 or dataset.item_num < 4:
        raise DataError(
            f"dataset '{name}': {len(counts)} user(s) and {dataset.item_num - 1} item(s) are left after the filters; "
            "at least 2 users and 3 items are needed"
        )
    if "LS" in config["eval_args"]["split"] and counts.max() < 3:
        raise DataError(
            f"dataset '{name}': no user has 3 interactions, and leave-one-out takes one for validation and one for "
            "test; loosen the filters or set eval_args: {split: {RS: [0.8, 0.1, 0.1]}}"
        )
    with _in_words(name):  # a ValueError of RecBole's sampler: somebody took every item
        loaders = data_preparation(config, dataset)
    return dataset, loaders


@contextlib.contextmanager
def _in_words(name: str, before: str = ""):
    """Turn what RecBole raises over data and settings (load_col, alias_of_…, transform) into a ``DataError``."""
    try:
        yield
    except TokenRecError:
        raise
    except ValueError as error:
        raise DataError(f"dataset '{name}': {before}{error}") from error
    except (TypeError, AttributeError, NotImplementedError, LookupError) as error:
        raise DataError(
            f"dataset '{name}': RecBole cannot read it with these settings ({type(error).__name__}: {error})"
        ) from error


def check_times(config, path) -> None:
    """RecBole reads a missing time as the mean of the others, and orders by it; here it is an error.

    Raises:
        DataError: a time is missing or no finite number, where time decides the split.
    """
    if config["eval_args"]["order"] != "TO":
        return
    column = f"{config['TIME_FIELD']}:float"
    try:
        texts = pd.read_csv(
            path, sep=config["field_separator"], encoding=config["encoding"], usecols=[column], dtype=str
        )[column]
    except (ValueError, pd.errors.ParserError):  # RecBole will fail, too, and load_data then says so
        return
    times = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        text = texts.iloc[bad[0]]
        raise DataError(
            f"dataset '{config['dataset']}': {len(bad)} of {len(times)} rows of {path} have no finite "
            f"'{config['TIME_FIELD']}', by which leave-one-out orders them (first: row {bad[0] + 1}, "
            f"{'blank' if isinstance(text, float) else repr(text)}); remove those rows or set eval_args: {{order: RO}}"
        )


def _try_download(config) -> None:
    """Let RecBole fetch a data set whose address it knows; :func:`check_files` then sees whether that worked."""
    stub = Dataset.__new__(Dataset)
    stub.config, stub.dataset_name, stub.dataset_path = config, config["dataset"], config["data_path"]
    stub.logger = logging.getLogger()
    try:
        stub._download()
    except (Exception, SystemExit):  # no network, unknown name, or the barrier after a download that worked
        if not (Path(config["data_path"]) / f"{config['dataset']}.inter").is_file():
            shutil.rmtree(config["data_path"], ignore_errors=True)
