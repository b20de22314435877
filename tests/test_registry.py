"""RecBole finds our models, trainers and defaults everywhere it looks, and its own as before."""

import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import recbole
import recbole.model.general_recommender as general
import recbole.quick_start
import recbole.trainer
from recbole.config import Config
from recbole.data import create_dataset, data_preparation, dataset
from recbole.model.general_recommender import BPR
from recbole.quick_start import load_data_and_model, objective_function, quick_start, run_recbole
from recbole.trainer import HyperTuning, Trainer
from recbole.utils import ModelType, get_model, get_trainer

import recbole_tokenrec
from recbole_tokenrec import registry
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.registry import MODELS, ModelEntry

MODEL = "Known"  # a model of ours for these tests, announced as all are
SOURCE = """
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer

class Known(BPR):
    pass

class Other(BPR):
    pass

class KnownTrainer(Trainer):
    pass
"""
YAML = {
    "overall.yaml": "k_model: overall\nk_preset: overall\n",
    "model/Known.yaml": "embedding_size: 8\npreset: calm\nk_model: 1e-4\nk_preset: model\nk_data: model\n",
    "model/Other.yaml": "embedding_size: 8\n",
    "preset/calm.yaml": "k_preset: calm\nk_data: calm\nk_last: calm\nepochs: 3\n"
    "datasets: {toy: {k_last: calm on toy}}\n",
    "preset/wild.yaml": "k_preset: wild\nk_data: wild\n",
    "dataset/toy.yaml": "k_data: toy\nk_last: toy\n",
}


@pytest.fixture
def known(tmp_path, monkeypatch):
    """``Known`` (with presets and a trainer) and ``Other`` (with neither), registered from a temporary folder."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "known.py").write_text(SOURCE)
    (tmp_path / "modules" / "other.py").write_text("from recbole.model.general_recommender.known import Other\n")
    for name, text in YAML.items():
        (tmp_path / "properties" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "properties" / name).write_text(text)
    module = "recbole.model.general_recommender.known"
    monkeypatch.setattr(general, "__path__", [*general.__path__, str(tmp_path / "modules")])
    monkeypatch.setitem(
        MODELS, MODEL, ModelEntry(module, "model/Known.yaml", trainer=f"{module}:KnownTrainer", presets=True)
    )
    monkeypatch.setitem(MODELS, "Other", ModelEntry(module, "model/Other.yaml"))
    monkeypatch.setattr(registry, "properties_dir", lambda: tmp_path / "properties")
    importlib.invalidate_caches()
    yield
    for name in ("known", "other"):
        sys.modules.pop(f"recbole.model.general_recommender.{name}", None)
        vars(general).pop(name, None)


def _settings(toy_data, **more):
    return {"data_path": str(toy_data), "epochs": 1, "show_progress": False, "state": "ERROR", **more}


# --- models and trainers --------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_models_are_announced_and_found():
    announced = recbole_tokenrec.available_models()
    assert set(announced) <= set(MODELS)
    for name in MODELS:
        assert importlib.util.find_spec(f"recbole.model.general_recommender.{name.lower()}") is not None
    for name in announced:
        model = get_model(name)
        assert (model.__name__, model.__module__) == (name, MODELS[name].module)
        trainer = get_trainer(model.type, name)
        own = MODELS[name].trainer
        assert trainer.__name__ == own.partition(":")[2] if own else trainer.__module__ == "recbole.trainer.trainer"


@pytest.mark.unit
def test_a_model_without_its_module_is_not_announced(monkeypatch):
    monkeypatch.setitem(MODELS, "Absent", ModelEntry("recbole_tokenrec.models.absent", "model/Absent.yaml"))
    assert "Absent" not in registry.available_models() and "Absent" not in registry.known_models()


@pytest.mark.unit
def test_recbole_s_own_names_resolve_as_before():
    assert get_model("BPR") is BPR and get_model("SASRec").__module__.endswith("sequential_recommender.sasrec")
    assert get_trainer(ModelType.GENERAL, "BPR") is Trainer
    assert get_trainer(ModelType.KNOWLEDGE, "KGAT") is recbole.trainer.KGATTrainer
    assert not hasattr(recbole.trainer, "BPRTrainer") and not hasattr(recbole.trainer, "nothing")
    assert "k_model" not in Config("BPR", "ml-100k").final_config_dict


@pytest.mark.unit
def test_a_trainer_is_imported_when_asked_for(known):
    assert get_trainer(ModelType.GENERAL, MODEL).__name__ == "KnownTrainer"
    assert recbole.trainer.KnownTrainer is sys.modules[MODELS[MODEL].module].KnownTrainer
    assert get_trainer(ModelType.GENERAL, "Other") is Trainer


@pytest.mark.unit
def test_a_broken_trainer_is_not_replaced_by_the_default_one(known, monkeypatch):
    monkeypatch.setitem(MODELS, MODEL, MODELS[MODEL]._replace(trainer="recbole.model.general_recommender.known:Lost"))
    with pytest.raises(ImportError, match="known:Lost cannot be imported"):
        get_trainer(ModelType.GENERAL, MODEL)


@pytest.mark.unit
def test_registering_again_changes_nothing():
    path, load = list(general.__path__), Config._load_internal_config_dict
    registry.register()
    assert general.__path__ == path and Config._load_internal_config_dict is load


@pytest.mark.unit
@pytest.mark.parametrize("name", ["BPR", "SASRec", "NCL", "Pretrain"])
def test_a_name_that_recbole_has_too_is_an_error(monkeypatch, name):
    monkeypatch.setitem(MODELS, name, ModelEntry("recbole_tokenrec.models.gtn", "model/GTN.yaml"))
    with pytest.raises(ConfigError, match=f"RecBole 1.* has a {name} of its own, in "):
        registry._refuse_to_shadow()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "hint"),
    [("LightGNC", "LightGCN"), ("tokenrec", "TokenRec"), ("sasrec", "SASRec"), ("GTM", "GTN"), ("xyzzy", None)],
)
def test_an_unknown_model_gets_the_nearest_names(name, hint):
    with pytest.raises(ConfigError, match=f"model: '{name}' is not known") as error:
        Config(config_dict={"model": name, "dataset": "ml-100k"})
    assert f"did you mean {hint}" in str(error.value) if hint else "did you mean" not in str(error.value)


# --- defaults -------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_defaults_join_in_order(known):
    config = Config(MODEL, "toy")
    assert config["train_batch_size"] == 2048 and config["MODEL_TYPE"] == ModelType.GENERAL  # RecBole's
    assert config["embedding_size"] == 8 and config["k_model"] == 1e-4
    assert (config["k_preset"], config["k_data"], config["k_last"]) == ("calm", "toy", "calm on toy")
    assert config["epochs"] == 3 and config["datasets"] is None
    elsewhere = Config(MODEL, "ml-100k")
    assert (elsewhere["k_data"], elsewhere["k_last"], elsewhere["RATING_FIELD"]) == ("calm", "calm", "rating")


@pytest.mark.unit
def test_the_user_wins_and_chooses_the_preset(known, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("preset: wild\nk_data: file\nk_last: file\n")
    config = Config(MODEL, "toy", [str(tmp_path / "mine.yaml")], {"k_last": "dict"})
    assert [config[key] for key in ("preset", "k_preset", "k_data", "k_last")] == ["wild", "wild", "file", "dict"]
    assert config["epochs"] == 300
    monkeypatch.setattr(sys, "argv", ["program", "--preset=wild", "--k_last=line"])
    config = Config(MODEL, "toy", config_dict={"preset": "calm", "k_last": "dict"})
    assert [config[key] for key in ("preset", "k_preset", "k_data", "k_last")] == ["wild", "wild", "toy", "line"]


@pytest.mark.unit
def test_presets_that_are_not_there(known):
    with pytest.raises(ConfigError, match="preset: 'clam' is not known; allowed: calm, wild"):
        Config(MODEL, "toy", config_dict={"preset": "clam"})
    with pytest.raises(ConfigError, match="preset: 'calm' was set, but Other has no presets"):
        Config("Other", "toy", config_dict={"preset": "calm"})
    assert Config(MODEL, "toy", config_dict={"preset": None})["k_preset"] == "model"
    assert Config("Other", "toy")["k_preset"] == "overall"  # no preset in between


@pytest.mark.unit
@pytest.mark.parametrize("name", recbole_tokenrec.available_models())
def test_every_model_of_ours_has_its_yaml(name):
    assert Config(name, "ml-100k").final_config_dict.keys() > Config("Random", "ml-100k").final_config_dict.keys()
    for preset in registry.available_presets() if MODELS[name].presets else []:
        assert Config(name, "ml-100k", config_dict={"preset": preset})["preset"] == preset


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.recipe
def test_a_model_of_ours_runs_tunes_and_loads(known, toy_data):
    result = run_recbole(MODEL, "toy", config_dict=_settings(toy_data, checkpoint_dir="a"))
    (file,) = Path("a").iterdir()
    config, model, _, train, _, test = load_data_and_model(str(file))
    assert type(model).__name__ == MODEL and config["k_last"] == "calm on toy"
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_collector.data_collect(train)
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]
    tuned = objective_function({"model": MODEL, "dataset": "toy", **_settings(toy_data)}, saved=False)
    assert tuned["model"] == MODEL and tuned["test_result"] == result["test_result"]


@pytest.mark.recipe
def test_hyper_tuning(known, toy_data, tmp_path):
    pytest.importorskip("hyperopt", exc_type=ImportError)  # 0.2.5 does not import beside setuptools >= 82
    (tmp_path / "space.txt").write_text("learning_rate choice [0.001,0.01]\n")
    (tmp_path / "fixed.yaml").write_text(
        f"model: {MODEL}\ndataset: toy\ndata_path: {toy_data}\nepochs: 1\nshow_progress: False\nstate: ERROR\n"
    )
    tuning = HyperTuning(
        objective_function,
        params_file=str(tmp_path / "space.txt"),
        fixed_config_file_list=[str(tmp_path / "fixed.yaml")],
        algo="exhaustive",
    )
    tuning.run()
    assert tuning.best_params["learning_rate"] in (0.001, 0.01) and len(tuning.params2result) == 2


@pytest.mark.recipe
def test_other_processes_find_our_models(toy_data):
    """``run(nproc=2)`` sends ``run_recboles`` to spawned processes; a file is opened in a fresh one."""
    name = "GTN"
    settings = _settings(toy_data, embedding_size=8, checkpoint_dir="saved", load_col=None)
    run_recbole(name, "toy", config_dict=settings)
    (file,) = Path("saved").iterdir()
    root = str(Path(recbole_tokenrec.__file__).parent.parent)
    code = f"""
import sys; sys.path.insert(0, {root!r})
import pickle
run = pickle.loads({pickle.dumps(quick_start.run_recboles)!r})
from recbole.quick_start import load_data_and_model, run_recboles
assert run is run_recboles
config, model, *_ = load_data_and_model({str(file)!r})
assert type(model).__name__ == config["model"] == {name!r}
seen = []
from recbole.quick_start import quick_start
quick_start.run_recbole = lambda *args, **kwargs: seen.append((args, kwargs))
run(1, {name!r}, "toy", None, {{"config_dict": {{"epochs": 1}}}})
assert seen == [(({name!r}, "toy", None), {{"config_dict": {{"epochs": 1, "local_rank": 1}}}})]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- what we rely on ------------------------------------------------------------------------------------------------

CONTRACT = {
    "recbole.config:Config.__init__": "self, model, dataset, config_file_list, config_dict",
    "recbole.config:Config._load_internal_config_dict": "self, model, model_class, dataset",
    "recbole.config:Config._get_model_and_dataset": "self, model, dataset",
    "recbole.config:Config._load_variable_config_dict": "self, config_dict",
    "recbole.config:Config._load_cmd_line": "self",
    "recbole.config:Config.compatibility_settings": "self",
    "recbole.utils:get_model": "model_name",
    "recbole.utils:get_trainer": "model_type, model_name",
    "recbole.utils:get_flops": "model, dataset, device, logger, transform, verbose",
    "recbole.utils:init_seed": "seed, reproducibility",
    "recbole.utils:init_logger": "config",
    "recbole.data:create_dataset": "config",
    "recbole.data:data_preparation": "config, dataset",
    "recbole.data.dataset:Dataset._load_feat": "self, filepath, source",
    "recbole.data.dataset:Dataset._fill_nan": "self",
    "recbole.trainer:Trainer.__init__": "self, config, model",
    "recbole.trainer:Trainer.fit": "self, train_data, valid_data, verbose, saved, show_progress, callback_fn",
    "recbole.trainer:Trainer.evaluate": "self, eval_data, load_best_model, model_file, show_progress",
    "recbole.trainer:Trainer.resume_checkpoint": "self, resume_file",
    "recbole.trainer:Trainer._save_checkpoint": "self, epoch, verbose, kwargs",
    "recbole.trainer:Trainer._train_epoch": "self, train_data, epoch_idx, loss_func, show_progress",
    "recbole.trainer:Trainer._valid_epoch": "self, valid_data, show_progress",
    "recbole.trainer:Trainer._full_sort_batch_eval": "self, batched_data",
    "recbole.quick_start:run": "model, dataset, config_file_list, config_dict, saved, nproc, world_size, ip, port, "
    "group_offset",
    "recbole.quick_start:run_recbole": "model, dataset, config_file_list, config_dict, saved, queue",
    "recbole.quick_start:objective_function": "config_dict, config_file_list, saved",
    "recbole.quick_start:run_recboles": "rank, args",
    "recbole.quick_start:load_data_and_model": "model_file",
    "recbole.model.abstract_recommender:GeneralRecommender.__init__": "self, config, dataset",
    "recbole.model.abstract_recommender:AbstractRecommender.load_other_parameter": "self, para",
    "recbole.model.abstract_recommender:AbstractRecommender.other_parameter": "self",
}


@pytest.mark.unit
@pytest.mark.parametrize("place", CONTRACT)
def test_recbole_still_is_as_we_rely_on(place):
    module, _, path = place.partition(":")
    thing = importlib.import_module(module)
    for name in path.split("."):
        thing = getattr(thing, name, None)
        assert thing is not None, f"RecBole {recbole.__version__} has no {place}, on which recbole-tokenrec builds"
    found, expected = ", ".join(inspect.signature(thing).parameters), CONTRACT[place]
    assert found == expected, f"RecBole {recbole.__version__}: {place} takes ({found}), we expect ({expected})"


@pytest.mark.unit
def test_recbole_still_looks_names_up_as_we_rely_on():
    assert not hasattr(dataset, "TokenRecDataset")
    assert recbole.quick_start.run_recboles is quick_start.run_recboles is registry.run_recboles
    assert recbole.quick_start.load_data_and_model is quick_start.load_data_and_model
    for name in ("init_seed", "init_logger", "getLogger", "create_dataset", "data_preparation", "get_model"):
        assert callable(getattr(quick_start, name)), f"recbole.quick_start.quick_start has no {name} any more"
    assert "run_recboles" in inspect.getsource(quick_start.run) and "recbole.trainer" in inspect.getsource(get_trainer)
    assert create_dataset.__module__ == data_preparation.__module__ == "recbole.data.utils"
