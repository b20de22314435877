"""Opening RecBole's pickled checkpoints without running what a file asks for.

A pickle is a program: it names functions and classes of any module and has them called. Here a file may name only
what RecBole's trainers write, and what it gets for a name is one of three things:

- :class:`_Call`, a function that builds data (a tensor, an array, an enum's member);
- :class:`_Mention`, a class that is written down but never called (a model's class, the YAML loader). A list alone
  would not do: ``Config(config_dict={"x": "code"})`` evaluates its strings, so a file that may name ``Config`` may
  not be allowed to call it;
- a stand-in (:func:`_stand_in`) for a class whose objects are stored attribute by attribute. Creating one runs no
  constructor; it takes its real class once the whole file is read.

All three live for one load, so a file cannot change an attribute of RecBole's, numpy's or torch's own functions.
"""

from __future__ import annotations

import importlib
import logging
import pickle
import sys
import types
from collections import OrderedDict, defaultdict

import numpy as np
import scipy.sparse as sp
import torch
import yaml
from recbole.config import Config
from recbole.data import dataset as datasets
from recbole.data.interaction import Interaction
from recbole.model import layers
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.sampler import sampler as samplers
from recbole.utils import enum_type
from torch import nn

from recbole_tokenrec.errors import CheckpointError

# Modules whose recommender classes a checkpoint may name although they are not imported yet.
_MODEL_MODULES = ("recbole.model.", "recbole_tokenrec.models.")


def _named(module: str, *things) -> dict:
    return {(module, thing.__name__): thing for thing in things}


# numpy's two functions are taken from objects, since the module that holds them has moved between versions.
_NUMPY = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}

_CALLED = {
    **_named("collections", OrderedDict, defaultdict),
    **_named("logging", logging.getLogger),
    **_named("torch", torch.device),
    **_named("torch._utils", torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter),
    **_named("numpy", np.dtype),
    **{(f"numpy.{core}.multiarray", name): it for core in ("core", "_core") for name, it in _NUMPY.items()},
    **_named(
        "recbole.utils.enum_type",
        enum_type.ModelType,
        enum_type.InputType,
        enum_type.EvaluatorType,
        enum_type.FeatureType,
        enum_type.FeatureSource,
        enum_type.KGDataLoaderState,
    ),
}  # fmt: skip

_MENTIONED = {
    **_named("builtins", list),  # RippleNet's defaultdict(list)
    **_named("numpy", np.ndarray, np.matrix),
    **_named("yaml.loader", yaml.FullLoader),
}

_STORED = {
    **_named("recbole.config.configurator", Config),
    # DIN, DIEN, FDSA, GRU4RecF and SASRecF store an embedding layer, and with it their whole data set.
    **_named("recbole.data.interaction", Interaction),
    **{
        (thing.__module__, name): thing
        for holder, base in ((datasets, datasets.Dataset), (samplers, samplers.AbstractSampler))
        for name, thing in vars(holder).items()
        if isinstance(thing, type) and issubclass(thing, base)
    },
    **_named(
        "recbole.model.layers",
        layers.ContextSeqEmbLayer,
        layers.FeatureSeqEmbLayer,
        layers.FMEmbedding,
        layers.FLEmbedding,
    ),
    **_named("torch.nn.modules.container", nn.ModuleDict, nn.ModuleList),
    **_named("torch.nn.modules.sparse", nn.Embedding),
    # EASE, SLIMElastic and the neighbourhood models store scipy matrices.
    **_named("scipy.sparse._csr", sp.csr_matrix),
    **_named("scipy.sparse._csc", sp.csc_matrix),
    **_named("scipy.sparse._lil", sp.lil_matrix),
}


class _Call:
    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*(arg.target if isinstance(arg, _Mention) else arg for arg in args))


class _Mention:
    __slots__ = ("target",)

    def __init__(self, target):
        self.target = target


def _stand_in(real: type, made: list) -> type:
    """A subclass of ``real`` without a constructor; each object is added to ``made``."""

    def new(cls):
        made.append(object.__new__(cls))
        return made[-1]

    return type(real.__name__, (real,), {"__new__": new, "__init__": lambda self: None})


def unpickle(path, file, map_location) -> object:
    """Read a zip checkpoint of RecBole's from the open ``file``; ``path`` is for errors.

    Raises:
        CheckpointError: the file names what it may not, or is damaged.
    """
    made: list = []

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            key = (module, name)
            if key in _CALLED:
                return _Call(_CALLED[key])
            if key in _MENTIONED:
                return _Mention(_MENTIONED[key])
            if key in _STORED:
                return _stand_in(_STORED[key], made)
            model = _model_class(module, name)
            if model is not None:
                return _Mention(model)
            raise CheckpointError(f"{path}: refused, since the file names {module}.{name}, which no checkpoint needs")

    # torch asks its pickle_module for a name and an Unpickler; `load` is for files older than zip archives.
    allowed_only = types.SimpleNamespace(__name__=__name__, Unpickler=Unpickler)
    try:
        content = torch.load(file, map_location=map_location, pickle_module=allowed_only, weights_only=False)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({type(error).__name__}: {error})") from error
    for thing in made:
        for name, value in list(vars(thing).items()):
            if isinstance(value, _Mention):
                vars(thing)[name] = value.target
        object.__setattr__(thing, "__class__", type(thing).__mro__[1])
    return content


def _model_class(module: str, name: str):
    """The recommender class of this name, or None. A user's own model is known once its module is imported."""
    if module.startswith(_MODEL_MODULES):
        try:
            importlib.import_module(module)
        except ImportError:
            return None
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return found if isinstance(found, type) and issubclass(found, AbstractRecommender) else None
