"""The language model and its tokenizer: from the Hugging Face hub, from a local folder, or from scratch.

``llm_backbone`` names one of three things, tried in this order:

1. a folder on this machine, written by ``save_pretrained`` (weights and tokenizer);
2. a bundled from-scratch preset, ``properties/backbone/<name>.json``: random weights, no network, and a
   word-level tokenizer over the words that are asked for (the prompt templates);
3. a Hugging Face id such as ``google-t5/t5-small``, loaded (and downloaded) by transformers.

There is no silent fall-back: weights that cannot be had are an error that says what to set. ``transformers`` is
imported here only, and only when a backbone is built.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import torch

from recbole_tokenrec.errors import BackboneError
from recbole_tokenrec.paths import properties_dir

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
FAMILIES = ("t5", "mt5", "umt5")  # encoder-decoders that start from a single decoder token


class Backbone(NamedTuple):
    """A language model ready for ID tokens.

    Attributes:
        model: a transformers encoder-decoder, on CPU, in training mode.
        tokenizer: its tokenizer, the OOV tokens not yet added.
        origin: ``{"source": "scratch" | "folder" | "hub" | "checkpoint", "name": …, "parameters": n}``.
    """

    model: torch.nn.Module
    tokenizer: object
    origin: dict


def scratch_presets() -> list[str]:
    return sorted(path.stem for path in (properties_dir() / "backbone").glob("*.json"))


def load_backbone(
    name: str,
    texts: list[str],
    with_head: bool = False,
    dropout: float | None = None,
    whole: tuple[str, ...] = (),
    digits: int = 1,
) -> Backbone:
    """Build the backbone called ``name``.

    Args:
        name: see the module's docstring.
        texts: every text that will be tokenized; a from-scratch tokenizer learns its words from them.
        with_head: with the language-model head, for models that generate text.
        dropout: overrides the configuration's ``dropout_rate`` if given.
        whole, digits: how a from-scratch tokenizer cuts words, see :func:`word_level_tokenizer`.

    Raises:
        BackboneError: no such preset, folder without weights, wrong architecture, or no network.
    """
    if Path(name).is_dir():
        return _from_pretrained(name, "folder", with_head, dropout)
    if name in scratch_presets():
        settings = json.loads((properties_dir() / "backbone" / f"{name}.json").read_text())
        tokenizer = word_level_tokenizer(texts, whole, digits)
        return from_config(settings, tokenizer, {"source": "scratch", "name": name}, with_head, dropout)
    if "/" not in name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BackboneError(
            f"llm_backbone: '{name}' is neither an existing folder nor a from-scratch preset. {_what_to_set()}"
        )
    return _from_pretrained(name, "hub", with_head, dropout)


def weights_digest(name: str | None) -> list[str]:
    """[hash of all files] of a folder or a from-scratch preset, whose content may change under its name; else []."""
    if name and Path(name).is_dir():
        files = sorted(file for file in Path(name).iterdir() if file.is_file())
    elif name in scratch_presets():
        files = [properties_dir() / "backbone" / f"{name}.json"]
    else:
        return []
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    return [digest.hexdigest()[:16]]


def from_config(
    settings: dict, tokenizer, origin: dict, with_head: bool = False, dropout: float | None = None
) -> Backbone:
    """A model with random weights from a transformers configuration given as a plain dict."""
    from transformers import AutoConfig

    settings = dict(settings)
    config = _without_kernels(AutoConfig.for_model(settings.pop("model_type"), **settings))
    config.vocab_size = max(len(tokenizer), settings.get("vocab_size", 0))
    if dropout is not None:
        config.dropout_rate = dropout
    model = _model_class(config, with_head)._from_config(config)
    return Backbone(model.train(), tokenizer, {**origin, "parameters": _count(model)})


def backbone_state(backbone: Backbone) -> dict:
    """What a checkpoint needs to build this backbone again without its weights' source: plain data.

    Call it before :func:`add_id_tokens`; the weights themselves are in the model's ``state_dict``.
    """
    names = {key: getattr(backbone.tokenizer, key) for key in ("pad_token", "eos_token", "unk_token")}
    return {
        "config": json.loads(backbone.model.config.to_json_string(use_diff=False)),
        "tokenizer": backbone.tokenizer.backend_tokenizer.to_str(),
        "special_tokens": {key: str(value) for key, value in names.items() if value is not None},
        "origin": backbone.origin,
    }


def rebuild_backbone(state: dict, with_head: bool = False) -> Backbone:
    """Inverse of :func:`backbone_state`, with random weights that a ``state_dict`` then replaces."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(state["tokenizer"]), **state["special_tokens"]
    )
    return from_config(state["config"], tokenizer, state["origin"], with_head)


def word_level_tokenizer(texts: list[str], whole: tuple[str, ...] = (), digits: int = 1):
    """A Hugging Face tokenizer whose vocabulary is the words, numbers and punctuation marks of ``texts``.

    Numbers are cut from the left into pieces of ``digits`` digits: by 2, ``1042`` is two tokens, much as T5's own
    tokenizer has it. What ``whole`` lists is one token where it stands, e.g. ``user_`` in ``user_7``.

    Vocabulary order depends on the texts alone: ``<pad>`` 0, ``</s>`` 1, ``<unk>`` 2, then first appearance.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = Regex("|".join([*map(re.escape, whole), r"[^\p{L}\p{N}]", rf"\p{{N}}{{1,{digits}}}"]))
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(pieces, "isolated")]
    )
    vocabulary = {PAD: 0, EOS: 1, UNK: 2}
    for text in texts:
        for word, _ in splitter.pre_tokenize_str(text):
            vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK)


def add_id_tokens(backbone: Backbone, names: list[str]) -> torch.Tensor:
    """Add OOV tokens to tokenizer and model; returns their token ids (len(names),), consecutive or not.

    The model's embedding is resized to exactly the tokenizer's length or left alone where it is larger already
    (T5's published vocabularies are padded).

    Raises:
        BackboneError: a name is in the vocabulary already, i.e. the backbone was made for other ID tokens.
    """
    known = backbone.tokenizer.get_vocab()
    clash = next((name for name in names if name in known), None)
    if clash is not None:
        raise BackboneError(
            f"llm_backbone: the tokenizer of '{backbone.origin['name']}' has the token {clash} already; "
            "it was exported from a TokenRec model. Use the backbone it started from, or recbole_tokenrec.load()."
        )
    from tokenizers import AddedToken

    backbone.tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    rows = backbone.model.get_input_embeddings().weight.shape[0]
    if len(backbone.tokenizer) > rows:
        backbone.model.resize_token_embeddings(len(backbone.tokenizer), mean_resizing=False)
    return torch.tensor(backbone.tokenizer.convert_tokens_to_ids(names))


def _from_pretrained(name: str, source: str, with_head: bool, dropout: float | None) -> Backbone:
    from transformers import AutoTokenizer

    if source == "folder" and not any(Path(name).glob("*.safetensors")) and not any(Path(name).glob("*.bin")):
        raise BackboneError(
            f"llm_backbone: the folder '{name}' holds no weights (*.safetensors). Write one with "
            "model.save_pretrained(folder) and tokenizer.save_pretrained(folder)."
        )
    # Without these, transformers makes a tokenizer that knows next to no word, and says nothing.
    if source == "folder" and not any((Path(name) / file).is_file() for file in TOKENIZER_FILES):
        raise BackboneError(
            f"llm_backbone: the folder '{name}' holds no tokenizer ({' or '.join(TOKENIZER_FILES)}). Write one with "
            "tokenizer.save_pretrained(folder)."
        )
    try:
        config = load_config(name)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if dropout is not None:
            config.dropout_rate = dropout
        with _quiet_transformers():
            model, report = _model_class(config, with_head).from_pretrained(
                name, config=config, output_loading_info=True, trust_remote_code=False
            )
    except BackboneError:
        raise
    except Exception as error:  # transformers raises many kinds here; each means: cannot be had
        first_line = re.sub(r"\s+", " ", str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
        raise BackboneError(
            f"llm_backbone: '{name}' could not be loaded ({type(error).__name__}: {first_line[:200]}). "
            f"{_what_to_set()}"
        ) from error
    # transformers gives missing weights random values and goes on; tied embeddings are in the file once.
    lost = [key for key in report["missing_keys"] if not key.endswith(("embed_tokens.weight", "lm_head.weight"))]
    if lost:
        raise BackboneError(
            f"llm_backbone: '{name}': the weights do not fit the configuration: {len(lost)} are missing, "
            f"e.g. {sorted(lost)[0]}."
        )
    if tokenizer.pad_token_id is None:
        raise BackboneError(f"llm_backbone: '{name}': the tokenizer has no padding token; prompts need one.")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise BackboneError(
            f"llm_backbone: '{name}': the tokenizer knows {len(tokenizer)} tokens, the weights have embeddings for "
            f"{rows}; they belong to different models."
        )
    return Backbone(model.train(), tokenizer, {"source": source, "name": name, "parameters": _count(model)})


def load_config(name, **options):
    """transformers' configuration of a hub id or folder, none of whose code is run.

    Left to itself, transformers asks at a terminal whether it may run code that a configuration names.

    Raises:
        BackboneError: it asks for a kernel, which is code.
    """
    from transformers import AutoConfig

    return _without_kernels(AutoConfig.from_pretrained(name, trust_remote_code=False, **options))


def _without_kernels(config):
    attention = config._attn_implementation
    if attention is not None and "/" in str(attention):  # a repository of the hub whose code transformers would run
        raise BackboneError(f"llm_backbone: refused, since the configuration names the kernel '{attention}': code")
    return config


@contextlib.contextmanager
def _quiet_transformers():
    """Without its table of weights that do not fit: what matters of it is told as an error."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _model_class(config, with_head: bool):
    import transformers

    if config.model_type not in FAMILIES:
        raise BackboneError(
            f"llm_backbone: architecture '{config.model_type}' is not supported; allowed: {', '.join(FAMILIES)}."
        )
    family = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[config.model_type]
    return getattr(transformers, f"{family}ForConditionalGeneration" if with_head else f"{family}Model")


def _what_to_set() -> str:
    return (
        "Set llm_backbone to a folder written by save_pretrained, to a Hugging Face id such as google-t5/t5-small "
        f"(needs network), or to a from-scratch preset: {', '.join(scratch_presets())}."
    )


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
