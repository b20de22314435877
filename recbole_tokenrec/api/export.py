"""A trained TokenRec as a folder that other tools read: Hugging Face's layout, safetensors, JSON, a FAISS index.

    config.json, model.safetensors,       the tuned language model and its tokenizer with the ID tokens: transformers'
    tokenizer.json, …                     AutoModel / AutoTokenizer.from_pretrained(folder) read them
    tokenrec.json                         configuration, versions, what the other files are
    tokenrec.safetensors                  projection, MQ-Tokenizers, collaborative stage, codes, histories, ids
    id_tokens.json                        {"users": {raw id: [tokens]}, "items": {raw id: [tokens]}, "vocabulary": …}
    item_vectors.safetensors, items.csv   unit item vectors (n, d) and, row by row, their raw ids and titles
    items.faiss                           FAISS HNSW index of those rows, where the extra faiss is installed

``recbole_tokenrec.load(folder)`` gives the recommender back, with equal scores. The folder is written beside its place
and moved there when it is whole.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import uuid
from pathlib import Path

import torch
from torch.nn import functional as F

from recbole_tokenrec.api.scorers import TokenRecScorer
from recbole_tokenrec.checkpoints import save_checkpoint
from recbole_tokenrec.errors import CheckpointError, ConfigError
from recbole_tokenrec.llm.backbone import load_config
from recbole_tokenrec.tokenizers import entity_tokens, token_names
from recbole_tokenrec.tokenizers.id_tokens import ITEM_LETTER, USER_LETTER

MANIFEST, TENSORS = "tokenrec.json", "tokenrec.safetensors"
FORMAT, VERSION = "recbole-tokenrec export", 1
_BACKBONE = "llm.backbone."


def save(recommender, path) -> None:
    """Write the present state as a checkpoint of ours, which ``load`` takes without the data set.

    Raises:
        ConfigError: the model is not TokenRec; other models' checkpoints are written by their trainers.
        CheckpointError: the file cannot be written.
    """
    scorer = tokenrec_scorer(recommender, "save")
    model = scorer.model
    save_checkpoint(
        path,
        {
            "config": recommender.config,
            "state_dict": model.state_dict(),
            "other_parameter": model.other_parameter(),
            "data": scorer.data.payload(),
        },
    )


def export(recommender, folder, index: bool = True) -> list[str]:
    """Write the folder; returns the names of its files.

    Args:
        index: write ``items.faiss`` too, if the extra is installed.

    Raises:
        ConfigError: the model is not TokenRec.
        CheckpointError: the folder exists and is no export, or cannot be written.
    """
    scorer, folder = tokenrec_scorer(recommender, "export"), Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir() if folder.is_dir() else [1]):
        raise CheckpointError(f"{folder}: exists and is no export of TokenRec; name an empty or a new folder")
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        unfinished.mkdir(parents=True)
        _write(unfinished, recommender, scorer, index)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
            os.replace(folder, old)
            os.replace(unfinished, folder)
            shutil.rmtree(old)
        else:
            os.replace(unfinished, folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: the export cannot be written ({error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(path.name for path in folder.iterdir())


def tokenrec_scorer(recommender, what: str) -> TokenRecScorer:
    scorer = recommender._scorer
    if not isinstance(scorer, TokenRecScorer):
        raise ConfigError(f"{what}: model {recommender.name} has no ID tokens; TokenRec can be exported")
    return scorer


def _write(folder: Path, recommender, scorer: TokenRecScorer, index: bool) -> None:
    from safetensors.torch import save_file

    import recbole_tokenrec
    from recbole_tokenrec.pipeline import versions

    model, data = scorer.model, scorer.data
    with _quiet():
        model.llm.backbone.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)

    packed = data.payload()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if not k.startswith(_BACKBONE)}
    tensors.update({f"data.{k}": v for k, v in packed.items() if isinstance(v, torch.Tensor)})
    save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, folder / TENSORS)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "recbole_tokenrec": recbole_tokenrec.__version__,
        "versions": versions(),
        "config": recommender.config,
        "other_parameter": model.other_parameter(),
        "fields": packed["fields"],
        "titles": packed["titles"] is not None,
        "tensors": {key: list(value.shape) for key, value in tensors.items()},
        "users": data.user_num - 1,
        "items": data.item_num - 1,
    }
    _write_json(folder / MANIFEST, manifest)

    codes = {USER_LETTER: model.user_codes, ITEM_LETTER: model.item_codes}
    size = model.settings.mq_codebook_size
    id_tokens = {
        "users": _tokens_of(USER_LETTER, data.users, model.user_codes),
        "items": _tokens_of(ITEM_LETTER, data.items, model.item_codes),
        "vocabulary": {
            name: number
            for letter, ids in ((USER_LETTER, model.user_token_ids), (ITEM_LETTER, model.item_token_ids))
            for name, number in zip(token_names(letter, codes[letter].shape[1], size), ids.tolist())
        },
    }
    _write_json(folder / "id_tokens.json", id_tokens, indent=None)

    vectors = F.normalize(model.retrieval_vectors[1:].detach().cpu().float(), dim=-1).contiguous()
    save_file({"item_vectors": vectors}, folder / "item_vectors.safetensors")
    with open(folder / "items.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["item_id", "title"])
        rows.writerows(zip(data.items[1:], data.titles[1:] if data.titles else [""] * (data.item_num - 1)))
    if index:
        try:
            from recbole_tokenrec.retrieval.faiss_index import FaissIndex

            FaissIndex(model.retrieval_vectors.detach().cpu()).save(folder / "items.faiss")
        except ConfigError:  # the extra is not installed; the file is a convenience
            pass


def _tokens_of(letter: str, names: list[str], codes: torch.Tensor) -> dict[str, list[str]]:
    return {name: entity_tokens(letter, row) for name, row in list(zip(names, codes.tolist()))[1:]}


def _write_json(path: Path, content: dict, indent: int | None = 1) -> None:
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> dict:
    """What a checkpoint of the same model would hold: ``config``, ``state_dict``, ``other_parameter``, ``data``.

    Raises:
        CheckpointError: a file is missing, damaged, of a newer release, or lies elsewhere.
    """
    from safetensors.torch import load_file

    try:
        _stays_inside(folder)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT or manifest["version"] > VERSION:
            raise CheckpointError(f"{folder}: not an export that this release reads")
        tensors = load_file(folder / TENSORS)
        backbone = _read_backbone(folder)
        data = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith("data.")}
        state = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith("model.")}
        return {
            "config": manifest["config"],
            "other_parameter": manifest["other_parameter"],
            "state_dict": {**state, **{_BACKBONE + key: value for key, value in backbone.items()}},
            "data": {"titles": None, **data, "fields": manifest["fields"]},
        }
    except CheckpointError:
        raise
    except Exception as error:  # JSON, safetensors and transformers each raise kinds of their own
        raise CheckpointError(f"{folder}: the export cannot be read ({type(error).__name__}: {error})") from error


def _stays_inside(folder: Path) -> None:
    """Raise a CheckpointError if the folder names files outside it: by a link, or in the index of sharded weights."""
    home = folder.resolve()
    for path in folder.iterdir():
        names = [path.name]
        if path.name.endswith(".index.json"):
            names += json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        for name in names:
            if not (home / name).resolve().is_relative_to(home):
                raise CheckpointError(f"{folder}: refused, since {path.name} leads out of the folder, to {name}")


def _read_backbone(folder: Path) -> dict[str, torch.Tensor]:
    """The language model's ``state_dict``, tied weights included, by transformers' own reader."""
    from transformers import AutoModel

    with _quiet():
        config = load_config(folder, local_files_only=True)
        return AutoModel.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).state_dict()


@contextlib.contextmanager
def _quiet():
    """transformers without its progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
