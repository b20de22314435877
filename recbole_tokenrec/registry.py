"""Our models, trainers and YAML made known to RecBole, whose files stay as they are.

RecBole looks a model up as module ``recbole.model.general_recommender.<name>`` and its trainer as attribute
``<Name>Trainer`` of ``recbole.trainer``. Our folder ``recbole_models`` joins that package's path, and our trainers
are attributes that are imported when first asked for, so that ``import recbole_tokenrec`` stays light. RecBole's own
models are found as before, and a name that RecBole has too is an error, not a silent replacement.

Defaults of our models join RecBole's internal configuration, in this order, later ones winning::

    RecBole's overall.yaml, sample.yaml   properties/overall.yaml     properties/model/<Name>.yaml
    properties/preset/<preset>.yaml       properties/dataset/<data set>.yaml
    the model's or the preset's own entry for the data set

The user's YAML files, dictionary and command line win over all of them, and also choose the preset.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

import recbole
import recbole.model.general_recommender
import recbole.quick_start
import recbole.trainer
import yaml
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.quick_start import quick_start

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.paths import properties_dir


class ModelEntry(NamedTuple):
    """Where a model's class and trainer are (``module`` holds a class of the model's name), and its YAML.

    The class has ``check_config(config)``, which raises a ``ConfigError`` for what it would not take.

    ``trainer`` is "module:Class", or None for RecBole's ``Trainer``; ``yaml`` is relative to ``properties/``;
    ``presets`` says whether ``preset`` is one of the model's keys.
    """

    module: str
    yaml: str
    trainer: str | None = None
    presets: bool = False


_GENERATIVE_TRAINER = "recbole_tokenrec.generative.trainer:GenerativeTrainer"
_SEQUENCE_TRAINER = "recbole_tokenrec.models.sequence:SequenceTrainer"
MODELS: dict[str, ModelEntry] = {
    "TokenRec": ModelEntry(
        "recbole_tokenrec.models.tokenrec",
        "model/TokenRec.yaml",
        trainer="recbole_tokenrec.training.trainer:TokenRecTrainer",
        presets=True,
    ),
    "LightGCNSoftmax": ModelEntry(
        "recbole_tokenrec.models.lightgcn_softmax",
        "model/LightGCNSoftmax.yaml",
        trainer="recbole_tokenrec.training.user_major:LightGCNSoftmaxTrainer",
    ),
    "GTN": ModelEntry("recbole_tokenrec.models.gtn", "model/GTN.yaml"),
    "LTGNN": ModelEntry("recbole_tokenrec.models.ltgnn", "model/LTGNN.yaml"),
    "SASRecCE": ModelEntry("recbole_tokenrec.models.sasrec_ce", "model/SASRecCE.yaml", trainer=_SEQUENCE_TRAINER),
    "BERT4RecCE": ModelEntry("recbole_tokenrec.models.bert4rec_ce", "model/BERT4RecCE.yaml", trainer=_SEQUENCE_TRAINER),
    "S3RecCE": ModelEntry(
        "recbole_tokenrec.models.s3rec_ce",
        "model/S3RecCE.yaml",
        trainer="recbole_tokenrec.models.s3rec_ce:S3RecCETrainer",
    ),
    "RecencyEASE": ModelEntry("recbole_tokenrec.models.recency_ease", "model/RecencyEASE.yaml"),
    "P5": ModelEntry("recbole_tokenrec.models.p5", "model/P5.yaml", trainer=_GENERATIVE_TRAINER),
    "CID": ModelEntry("recbole_tokenrec.models.p5", "model/CID.yaml", trainer=_GENERATIVE_TRAINER),
    "POD": ModelEntry("recbole_tokenrec.models.pod", "model/POD.yaml", trainer=_GENERATIVE_TRAINER),
    "CoLLM": ModelEntry("recbole_tokenrec.models.collm", "model/CoLLM.yaml", trainer=_GENERATIVE_TRAINER),
}

_FOLDER = str(Path(__file__).parent / "recbole_models")
_RECBOLE = Path(recbole.__file__).parent
_run_recboles = quick_start.run_recboles


def available_models() -> list[str]:
    """Names of our models whose module is installed."""
    return [name for name, entry in MODELS.items() if importlib.util.find_spec(entry.module) is not None]


def available_presets() -> list[str]:
    """Names that the key ``preset`` takes: the files of ``properties/preset``."""
    return sorted(file.stem for file in (properties_dir() / "preset").glob("*.yaml"))


def preset_values(name: str, loader=yaml.SafeLoader) -> dict:
    """What the preset's file says, on top of the preset that its ``base`` names, the base's ``datasets`` included.

    For a data set its own entry in ``datasets`` wins over what it says for all, and that over the base's entry.
    """
    values = yaml.load((properties_dir() / "preset" / f"{name}.yaml").read_text(encoding="utf-8"), Loader=loader)
    base = values.pop("base", None)
    if not base:
        return values
    below, own = preset_values(base, loader), values.pop("datasets", {})
    entries = {
        dataset: {key: value for key, value in entry.items() if key not in values}
        for dataset, entry in below.get("datasets", {}).items()
    }
    entries.update({dataset: {**entries.get(dataset, {}), **entry} for dataset, entry in own.items()})
    return {**below, **values, "datasets": entries}


def check_own_keys(config) -> None:
    """Raise a ``ConfigError`` if the model of ``config`` is ours and would not take it; no data are needed to know."""
    name = config["model"]
    if name in MODELS:
        getattr(importlib.import_module(MODELS[name].module), name).check_config(config)


def known_models() -> list[str]:
    """Every name that ``run_recbole`` takes, RecBole's and ours."""
    names = {"LightGBM", "XGBoost"}  # their package imports only where both libraries are installed
    for family in ("general", "context_aware", "sequential", "knowledge_aware"):
        package = importlib.import_module(f"recbole.model.{family}_recommender")
        names.update(name for name, thing in vars(package).items() if isinstance(thing, type))
    return sorted(names | set(available_models()))


def register() -> None:
    """Make the models of :data:`MODELS` known to RecBole. Calling it again changes nothing.

    Raises:
        ConfigError: RecBole has a model or a trainer of one of our names.
    """
    path = recbole.model.general_recommender.__path__
    if _FOLDER in path:
        return
    _refuse_to_shadow()
    path.append(_FOLDER)
    recbole.trainer.__getattr__ = _trainer
    Config._load_internal_config_dict = _with_our_defaults(Config._load_internal_config_dict)
    Config._get_model_and_dataset = _with_nearest_names(Config._get_model_and_dataset)
    Dataset._data_filtering = _with_first_interactions(Dataset._data_filtering)
    for module in (recbole.quick_start, quick_start):
        module.run_recboles = run_recboles


def run_recboles(rank, *args):
    """RecBole's function of this name, which ``run(nproc=2)`` sends to spawned processes by its module and name.

    As it lives here, a child imports this package, and so knows our models, before it looks for one.
    """
    _run_recboles(rank, *args)


def _refuse_to_shadow() -> None:
    for name in MODELS:
        packages = [file.parent.name for file in (_RECBOLE / "model").glob(f"*/{name.lower()}.py")]
        if packages or f"{name}Trainer" in vars(recbole.trainer):
            raise ConfigError(
                f"RecBole {recbole.__version__} has a {name} of its own, in {(packages or ['trainer'])[0]}; "
                "this release of recbole-tokenrec cannot run beside it"
            )


def _trainer(attribute: str):
    """``recbole.trainer.<Name>Trainer`` of our models; RecBole's ``get_trainer`` asks for it by ``getattr``."""
    entry = MODELS.get(attribute[: -len("Trainer")]) if attribute.endswith("Trainer") else None
    if entry is None or entry.trainer is None:
        raise AttributeError(f"module 'recbole.trainer' has no attribute '{attribute}'")
    module, _, name = entry.trainer.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:  # get_trainer would take it for "no such trainer" and use the default one
        raise ImportError(f"{entry.trainer} cannot be imported ({error})") from error


def _with_our_defaults(original):
    @functools.wraps(original)
    def load(self, model, model_class, dataset):
        original(self, model, model_class, dataset)
        if model in MODELS:
            add = _common if getattr(self, "complete", False) else _defaults
            chosen = self.external_config_dict
            self.internal_config_dict.update(add(model, dataset, chosen, self.yaml_loader))
            if isinstance(chosen.get("eval_args"), dict):  # RecBole would fill in a random split for what it leaves out
                chosen["eval_args"] = {**self.internal_config_dict["eval_args"], **chosen["eval_args"]}

    return load


def _common(model: str, dataset: str, chosen: dict, loader) -> dict:
    """What the YAML of one of our models says whatever the preset and the data set."""
    settings = {}
    for file in ("overall.yaml", MODELS[model].yaml):
        settings.update(yaml.load((properties_dir() / file).read_text(encoding="utf-8"), Loader=loader) or {})
    return {key: value for key, value in settings.items() if key not in ("grid", "datasets")}


def _defaults(model: str, dataset: str, chosen: dict, loader) -> dict:
    """The YAML of one of our models, merged; ``chosen`` is what the user set, whose ``preset`` counts."""
    entry, folder = MODELS[model], properties_dir()

    def read(file):
        with open(folder / file, encoding="utf-8") as text:
            return yaml.load(text, Loader=loader) or {}  # RecBole's loader: it reads 1e-4 as a number

    settings = {**read("overall.yaml"), **read(entry.yaml)}
    settings.pop("grid", None)  # what `experiment tune` tries
    preset, override = chosen.get("preset", settings.get("preset")), settings.pop("datasets", None) or {}
    if preset is not None and not entry.presets:
        raise ConfigError(f"preset: {preset!r} was set, but {model} has no presets")
    if preset is not None:
        if preset not in available_presets():
            raise ConfigError(f"preset: {preset!r} is not known; allowed: {', '.join(available_presets())}")
        settings.update(preset_values(preset, loader))
        override = settings.pop("datasets", None) or {}
    if (folder / "dataset" / f"{dataset}.yaml").is_file():
        settings.update(read(f"dataset/{dataset}.yaml"))
    settings.update(override.get(dataset) or {})
    return settings


def _with_first_interactions(original):
    """Adds ``user_first_interactions: N`` to RecBole's filters: each user's N oldest rows (the paper: 100)."""

    @functools.wraps(original)
    def filtering(self):
        original(self)
        most = self.config["user_first_interactions"]
        if most is None:
            return
        if not isinstance(most, int) or isinstance(most, bool) or most < 3:
            raise ConfigError(f"user_first_interactions: {most!r} is not allowed; allowed: int in [3, inf) or empty")
        rows = self.inter_feat
        if self.time_field in rows:
            rows = rows.sort_values(self.time_field, kind="stable")
        kept = rows[rows.groupby(self.uid_field).cumcount() < most].index
        self.inter_feat = self.inter_feat.loc[sorted(kept)]
        self._reset_index()

    return filtering


def _with_nearest_names(original):
    @functools.wraps(original)
    def find(self, model, dataset):
        try:
            return original(self, model, dataset)
        # "lightgcn" is an AttributeError, as the module is there and the class not; a name that is nowhere leads
        # RecBole to import lightgbm, and fails there.
        except (ValueError, AttributeError, ImportError) as error:
            name = self.external_config_dict.get("model") if model is None else model
            if not isinstance(name, str) or name in known_models():
                raise
            raise ConfigError(f"model: {name!r} is not known{_hint(name)}") from error

    return find


def _hint(name: str) -> str:
    spelt = {known.lower(): known for known in known_models()}
    near = [spelt[match] for match in difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""
