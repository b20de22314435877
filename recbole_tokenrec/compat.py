"""The few changes that RecBole 1.2.1 needs to run beside today's torch, numpy, scipy, pandas and ray.

Each patch is one function that changes something only where the installed versions need it and says whether it
did; :func:`apply` runs them once and keeps a record of each, which the ``doctor`` command prints. What changes is
RecBole's own modules, with two exceptions, both *missing* names that are given back and never a name that exists:
numpy's old aliases (see :func:`_numpy_aliases`) and scipy's ``dok_matrix._update``.
One patch is for no version but for speed: NeuMF's full sort.

Where RecBole's code cannot be reached by replacing a short function, the *name* it reads is replaced in that one
module instead: ``torch`` by an overlay that differs in ``load`` alone, ``pandas`` in ``read_csv``, ``os`` in
``makedirs``, and for the tuner ``numpy`` in ``RandomState``. So no long function of RecBole's is copied here to go
stale, and nobody else's ``torch.load`` or ``pandas.read_csv`` changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import pickle
import sys
import types
import warnings
from typing import Callable, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import dok_matrix

from recbole_tokenrec.errors import CheckpointError, ConfigError

_ISSUES = "https://github.com/RUCAIBox/RecBole/issues/"
_ANOMALY_MODE = torch.is_anomaly_enabled()  # before any module of RecBole's is imported
_MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "null", "NULL", "None", "<NA>", "#N/A"]  # in numbers
_PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3

# Modules of RecBole that call torch.load through a global ``torch``. quick_start.py imports torch inside
# ``load_data_and_model``, which is therefore replaced as a whole.
LOADING_MODULES = (
    "recbole.trainer.trainer",
    "recbole.model.general_recommender.convncf",
    "recbole.model.general_recommender.nais",
    "recbole.model.general_recommender.neumf",
    "recbole.model.general_recommender.ract",
    "recbole.model.context_aware_recommender.kd_dagfm",
    "recbole.model.sequential_recommender.s3rec",
)
# Modules of RecBole that write ``series.agg(len)``.
AGGREGATING_MODULES = (
    "recbole.data.dataset.dataset",
    "recbole.data.dataset.kg_dataset",
    "recbole.data.dataset.sequential_dataset",
)


class Patch(NamedTuple):
    """What one patch is for, where upstream knows of it ("" if nowhere), and whether it was needed here."""

    name: str
    why: str
    upstream: str
    applied: bool


class Overlay(types.ModuleType):
    """``module`` as another module shall see it: the given names differ, every other is the module's own."""

    def __init__(self, module: types.ModuleType, **names):
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(names)
        self.__dict__["overlaid"] = module

    def __getattr__(self, name):
        return getattr(self.overlaid, name)


def _numpy_aliases() -> bool:
    """Give numpy the aliases back that RecBole sets on it itself, where numpy has none of that name.

    RecBole reads ``np.float``, ``np.bool``, ``np.long`` and ``np.str`` in seven modules, and models written for it
    read the others too. Its own ``Config.compatibility_settings`` sets them all on numpy, but cannot on numpy 2
    (there is no ``np.float_`` to take), and it overwrites what numpy has. This is that method's list without the
    overwriting. It is set here already because a checkpoint brings its ``Config`` along without calling it.
    """
    from recbole.config import Config

    aliases = {"float": np.float64, "complex": np.complex128, "int": np.int_, "long": np.int_, "bool": np.bool_}
    aliases.update({"object": np.object_, "str": np.str_, "unicode": np.str_})
    # vars(), not hasattr(): numpy 1.x warns when it is asked for these names.
    missing = {name: alias for name, alias in aliases.items() if name not in vars(np)}

    def compatibility_settings(self):
        for name, alias in missing.items():
            setattr(np, name, alias)

    Config.compatibility_settings = functools.wraps(Config.compatibility_settings)(compatibility_settings)
    compatibility_settings(None)
    return bool(missing)


def _ray() -> bool:
    """Import ``recbole.quick_start`` where ``ray.tune``, which it wants for reporting to ray, cannot be imported.

    A stub takes ray's place during that one import only: whoever asks for ray later gets ray, or its own error.
    """
    if _imports("ray.tune"):
        importlib.import_module("recbole.quick_start.quick_start")
        return False
    ray, tune = types.ModuleType("ray"), types.ModuleType("ray.tune")
    ray.tune = tune
    tune.report = lambda *args, **kwargs: None
    found = {name: sys.modules.get(name) for name in ("ray", "ray.tune")}
    sys.modules.update({"ray": ray, "ray.tune": tune})
    try:
        importlib.import_module("recbole.quick_start.quick_start")
    finally:
        for name, module in found.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return True


def _imports(name: str) -> bool:
    """Whether a module can be imported; a broken one prints and warns nothing."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(name)
        except Exception:  # an old ray breaks on new libraries in many ways, ImportError being one
            return False
    return True


def _dok_update() -> bool:
    """Let LightGCN and six other models fill a ``dok_matrix`` from a dictionary, as scipy < 1.13 did."""
    if hasattr(dok_matrix, "_update"):
        return False
    dok_matrix._update = lambda self, entries: self._dict.update(entries)
    return True


def _checkpoint_loading() -> bool:
    """Send every load of RecBole's through :func:`recbole_tokenrec.checkpoints.load_for_recbole`, and every save
    through ``save_for_recbole``: a killed run or a full disk leaves no half-written checkpoint.

    torch >= 2.6 refuses RecBole's checkpoints; older ones open them, but run whatever code the file holds, and
    cannot read ours. So this one is needed with any torch.
    """
    from recbole_tokenrec import checkpoints

    overlay = Overlay(torch, load=checkpoints.load_for_recbole, save=checkpoints.save_for_recbole)
    for name in LOADING_MODULES:
        importlib.import_module(name).torch = overlay
    for name in ("recbole.quick_start.quick_start", "recbole.quick_start"):
        importlib.import_module(name).load_data_and_model = checkpoints.load_data_and_model
    return True


def _saved_data() -> bool:
    """Open RecBole's saved data sets and loaders only where the configuration names the file.

    They are pickles, and RecBole opens ``CHECKPOINT_DIR/<data set>-Dataset.pth`` and its like whenever they are there:
    whoever can put a file beside a checkpoint could run code.
    """

    def load(file):
        config = sys._getframe(1).f_locals["config"]  # of create_dataset or load_split_dataloaders
        for key in ("dataset_save_path", "dataloaders_save_path"):
            if config[key] and config[key] == file.name:
                return pickle.load(file)
        key = "dataloaders_save_path" if file.name.endswith("-dataloader.pth") else "dataset_save_path"
        raise CheckpointError(
            f"{file.name}: refused, since data that RecBole saved are a pickle, which may run code; "
            f"delete the file, or set {key}: {file.name} if you wrote it yourself"
        )

    importlib.import_module("recbole.data.utils").pickle = Overlay(pickle, load=load)
    return True


def _no_code_in_values() -> bool:
    """Read KD_DAGFM's ``teacher`` as the name of a network and not by ``eval``, and LDiffRec's vectors without pickle:
    a checkpoint's configuration and a data set's folder come from anywhere."""
    module = importlib.import_module("recbole.model.context_aware_recommender.kd_dagfm")
    networks = {name: thing for name, thing in vars(module).items()
                if isinstance(thing, type) and issubclass(thing, torch.nn.Module)}  # fmt: skip

    def network(name: str):
        if name in networks:
            return networks[name]
        raise ConfigError(f"teacher: {name!r} is not allowed; allowed: a network of {module.__name__}")

    module.eval = network
    importlib.import_module("recbole.model.general_recommender.ldiffrec").np = Overlay(
        np, load=lambda path, **options: np.load(path, **{**options, "allow_pickle": False})
    )
    return True


def _fill_on_read() -> bool:
    """Read ids such as NA and null as the texts they are, where pandas sees missing values, whose rows RecBole drops.

    With pandas 3 also read blanks of ``*_seq`` columns as "", which RecBole's ``fillna(inplace=True)`` no longer does.
    """

    def read_csv(*args, **kwargs):
        # Here the columns are still named as in the atomic file, "name:type".
        missing = {column: [""] if column.endswith(":token") else _MISSING for column in kwargs.get("usecols") or ()}
        if missing:
            kwargs.update(na_values=missing, keep_default_na=False)
        frame = pd.read_csv(*args, **kwargs)
        sequences = [column for column in frame.columns if str(column).endswith("_seq")]
        return frame.fillna({column: "" for column in sequences}) if _PANDAS_3 else frame

    importlib.import_module("recbole.data.dataset.dataset").pd = Overlay(pd, read_csv=read_csv)
    return True


def _fill_nan() -> bool:
    """Fill blanks of token columns with the padding id and of float columns with the mean, in pandas 3 too."""
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureType

    if not _PANDAS_3:
        return False
    original = Dataset._fill_nan

    @functools.wraps(original)
    def fill(self):
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in feat:
                if self.field2type[field] == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif self.field2type[field] == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
        original(self)  # sequences; its own fills now find nothing to do

    Dataset._fill_nan = fill
    return True


def _element_lengths() -> bool:
    """Make ``series.agg(len)`` give each element's length, as it did before pandas 3, in RecBole's data sets."""
    if not _PANDAS_3:
        return False

    def length(thing):
        return thing.map(len) if isinstance(thing, pd.Series) else len(thing)

    for name in AGGREGATING_MODULES:
        importlib.import_module(name).len = length
    return True


def _hyperopt() -> bool:
    """Give RecBole's exhaustive search a generator that hyperopt >= 0.2.6 can draw from, and older ones too."""

    class RandomState(np.random.RandomState):
        integers = np.random.RandomState.randint

    hyper_tuning = importlib.import_module("recbole.trainer.hyper_tuning")
    hyper_tuning.np = Overlay(np, random=Overlay(np.random, RandomState=RandomState))
    return True


def _anomaly_mode() -> bool:
    """Import SINE, whose module switches autograd's anomaly mode on for the whole process, and put it back.

    In that mode every gradient is searched for NaN: a training step of ours takes half as long again. RecBole imports
    SINE with any sequential model; we do, since S3Rec's loading is patched.
    """
    importlib.import_module("recbole.model.sequential_recommender.sine")
    changed = torch.is_anomaly_enabled() != _ANOMALY_MODE
    torch.autograd.set_detect_anomaly(_ANOMALY_MODE)
    return changed


def _use_gpu() -> bool:
    """Obey ``use_gpu: False``: RecBole's documentation has the key, its configuration takes any GPU that it finds."""
    from recbole.config import Config

    original = Config._init_device

    @functools.wraps(original)
    def init_device(self):
        original(self)
        if not self.final_config_dict["use_gpu"] and self.final_config_dict["single_spec"]:
            self.final_config_dict["device"] = torch.device("cpu")

    Config._init_device = init_device
    return True


def _metrics_of_the_catalogue() -> bool:
    """Let ItemCoverage, GiniIndex and their like be computed: what they need is no tensor, and RecBole moves all that
    its evaluation has collected to the processor as if it were."""
    from recbole.evaluator import Collector

    original = Collector.get_data_struct

    @functools.wraps(original)
    def get_data_struct(self):
        data = self.data_struct._data_dict
        beside = {key: data.pop(key) for key in list(data) if not isinstance(data[key], torch.Tensor)}
        struct = original(self)
        data.update(beside)
        struct._data_dict.update(beside)
        return struct

    Collector.get_data_struct = get_data_struct
    return True


def _neumf() -> bool:
    """Give NeuMF the full sort that it lacks; without it each pair is scored by itself."""
    from recbole.model.general_recommender import NeuMF

    from recbole_tokenrec.models.neumf import full_sort_predict

    if "full_sort_predict" in vars(NeuMF):
        return False
    NeuMF.full_sort_predict = full_sort_predict
    return True


def _folders() -> bool:
    """Let a folder of RecBole's that another process makes at the same moment be no error: two of torchrun's did."""
    utils = importlib.import_module("recbole.utils.utils")
    utils.os = Overlay(os, makedirs=functools.partial(os.makedirs, exist_ok=True))
    return True


def _quiet() -> bool:
    """Silence warnings that RecBole's own lines earn on every run and its users can do nothing about."""
    for message, category, module in _NOISE:
        warnings.filterwarnings("ignore", message, category, module)
    return True


# (start of the message, category, module whose line warns), each a regular expression but the category.
_NOISE = (
    # What these fills no longer do in pandas 3 is done by two patches above.
    (r"A value is being set on a copy of a DataFrame", pd.errors.ChainedAssignmentError, r"recbole\.data\.dataset"),
    (r"A value is trying to be set on a copy of a DataFrame", FutureWarning, r"recbole\.data\.dataset"),
    (r"using <built-in function len> in Series\.agg", FutureWarning, r"recbole\.data\.dataset"),
    # RecBole indexes and pads these arrays into new tensors, it does not write to them.
    (r"The given NumPy array is not writable", UserWarning, r"recbole\.data\.dataset"),
    (r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated", FutureWarning, r"recbole\.trainer\.trainer"),
    (r"torch\.sparse\.SparseTensor\(", UserWarning, r"recbole\.model"),
    (r"Using a non-tuple sequence for multidimensional indexing", UserWarning, r"recbole\.model"),
    (r"Creating a tensor from a list of numpy\.ndarrays", UserWarning, r"recbole\.model"),
)
_PATCHES: tuple[tuple[str, str, str, Callable[[], bool]], ...] = (
    # First, since later ones import the package that imports SINE.
    ("anomaly mode", "importing RecBole's SINE turns it on for every model, which slows them all", "", _anomaly_mode),
    ("numpy aliases", "np.float and others are gone; Config dies of np.float_", _ISSUES + "2215", _numpy_aliases),
    ("ray", "recbole.quick_start imports ray.tune, which does not import", _ISSUES + "2162", _ray),
    ("dok_matrix._update", "LightGCN and others call what scipy 1.13 removed", _ISSUES + "2034", _dok_update),
    ("checkpoints", "torch.load refuses, or blindly runs, RecBole's files", _ISSUES + "2212", _checkpoint_loading),
    ("saved data", "pickles are opened because they lie beside a checkpoint", "", _saved_data),
    ("values that are code", "a checkpoint's configuration is evaluated", "", _no_code_in_values),
    ("ids and blanks as read", "ids NA and null are dropped; pandas 3 fills no blanks", "", _fill_on_read),
    ("blanks in token and float columns", "pandas 3: chained fillna(inplace=True) does nothing", "", _fill_nan),
    ("lengths of sequences", "pandas 3: Series.agg(len) is the length of the series", "", _element_lengths),
    ("hyperopt", "exhaustive search asks hyperopt for what 0.2.6 removed", _ISSUES + "1868", _hyperopt),
    ("use_gpu", "use_gpu: False is ignored where there is a GPU", "", _use_gpu),
    ("folders", "of two processes that make one at the same time, one dies", "", _folders),
    ("metrics of the catalogue", "ItemCoverage, GiniIndex … die of what is no tensor", "", _metrics_of_the_catalogue),
    ("NeuMF's full sort", "it is evaluated pair by pair, seven times slower", "", _neumf),
    ("warnings", "deprecated calls in RecBole's own lines, on every run", "", _quiet),
)
_records: list[Patch] = []


def apply() -> list[Patch]:
    """Apply every patch that is needed here, once; later calls only return the records."""
    if not _records:
        _records.extend(Patch(name, why, upstream, patch()) for name, why, upstream, patch in _PATCHES)
    return list(_records)
