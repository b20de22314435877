"""Each patch of ``compat`` is needed (RecBole fails without it) and works; nothing else changes."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset
from recbole.data.dataset import dataset as dataset_module
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import BPR, LightGCN
from recbole.trainer import Trainer, hyper_tuning
from recbole.trainer import trainer as trainer_module
from scipy.sparse import dok_matrix

from recbole_tokenrec import compat

pytestmark = pytest.mark.unit
PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3
NUMPY_2 = int(np.__version__.split(".")[0]) >= 2
BLANKS = {
    "inter": "user_id:token\titem_id:token\trating:float\twords:token_seq\n"
    "u1\ti1\t1\ta b\nu1\ti2\t\t\nu2\ti1\t3\tb\nu2\ti3\t2\tc a b\n",
    "item": "item_id:token\tbrand:token\tprice:float\ttags:token_seq\tshape:float_seq\n"
    "i1\tacme\t1.0\tx y\t1.0 2.0\ni2\t\t3.0\t\t0.5\ni3\tbrio\t\tz\t\n",
}


@pytest.fixture
def blanks(tmp_path):
    """A function that reads a data set with a blank in a column of every type and gives it before splitting."""
    for suffix, text in BLANKS.items():
        file = tmp_path / "blanks" / f"blanks.{suffix}"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    heads = {suffix: text.splitlines()[0].split("\t") for suffix, text in BLANKS.items()}
    columns = {suffix: [column.split(":")[0] for column in head] for suffix, head in heads.items()}

    def read(**settings):
        settings = {"data_path": str(tmp_path), "load_col": columns, **settings}
        return create_dataset(Config("BPR", "blanks", config_dict=settings))

    return read


def _config(toy_data, **settings):
    settings = {"data_path": str(toy_data), "epochs": 1, "show_progress": False, **settings}
    return Config("BPR", "toy", config_dict=settings)


def _python(code, *paths):
    """Run ``code`` in a fresh interpreter that sees the repository and ``paths``; gives its standard error."""
    root = str(Path(compat.__file__).parent.parent)
    code = f"import sys; sys.path[:0] = {[str(path) for path in paths] + [root]!r}\n" + code
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_apply_keeps_a_record_of_each_patch_and_runs_it_once():
    records = compat.apply()
    assert [record.name for record in records] == [name for name, *_ in compat._PATCHES]
    assert all(record.why and isinstance(record.applied, bool) for record in records)
    read, fill = dataset_module.pd, Dataset._fill_nan
    assert compat.apply() == records and dataset_module.pd is read and Dataset._fill_nan is fill


# --- numpy ----------------------------------------------------------------------------------------------------------


def test_numpy_aliases(monkeypatch):
    monkeypatch.delattr(np, "float")
    with pytest.raises(AttributeError):
        Interaction({"x": [1.0]})
    if NUMPY_2:
        with pytest.raises(AttributeError, match="float_"):
            Config.compatibility_settings.__wrapped__(None)
    compat._numpy_aliases()
    assert Interaction({"x": [1.0]})["x"].tolist() == [1.0]
    assert np.float is np.float64 and np.bool is np.bool_ and np.dtype(np.long).kind == "i"


def test_numpy_names_that_exist_stay(monkeypatch):
    mine = object()
    monkeypatch.setattr(np, "long", mine)
    compat._numpy_aliases()
    Config.compatibility_settings(None)
    assert np.long is mine


# --- ray ------------------------------------------------------------------------------------------------------------


def test_a_broken_ray_is_stubbed_quietly_and_not_hidden(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text(
        "import sys\nprint('Traceback: old ray', file=sys.stderr)\nraise AttributeError('np.bool8')\n"
    )
    error = _python(
        """
try:
    import recbole.quick_start
except AttributeError:
    pass
else:
    raise SystemExit("RecBole does not need the stub any more")
print("---", file=sys.stderr)
import recbole_tokenrec
from recbole.quick_start import quick_start
assert quick_start.tune.report(recall=1.0) is None
assert "ray" not in sys.modules and "ray.tune" not in sys.modules
try:
    import ray
except AttributeError as error:
    assert "bool8" in str(error)
else:
    raise SystemExit("the stub outlived the import it was made for")
""",
        tmp_path,
    )
    assert error.split("---")[1].count("Traceback") == 1  # the last import's, not ours


def test_a_working_ray_is_used(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("")
    (tmp_path / "ray" / "tune.py").write_text("def report(**metrics):\n    return metrics\n")
    _python(
        """
import recbole_tokenrec, ray.tune
from recbole.quick_start import quick_start
assert quick_start.tune is ray.tune and quick_start.tune.report(recall=1.0) == {"recall": 1.0}
assert [patch.applied for patch in recbole_tokenrec.compat.apply() if patch.name == "ray"] == [False]
assert "transformers" not in sys.modules  # as long as no model of ours is asked for
""",
        tmp_path,
    )


# --- scipy and torch ------------------------------------------------------------------------------------------------


def test_dok_update(toy_data, monkeypatch):
    config = _config(toy_data, embedding_size=8, n_layers=1, reg_weight=0.0)
    data, _, _ = data_preparation(config, create_dataset(config))
    adjacency = LightGCN(config, data.dataset).norm_adj_matrix
    assert adjacency._nnz() == 2 * data.dataset.inter_num
    if any(patch.applied for patch in compat.apply() if patch.name == "dok_matrix._update"):
        monkeypatch.delattr(dok_matrix, "_update")
        with pytest.raises(AttributeError, match="_update"):
            LightGCN(config, data.dataset)


def test_recbole_loads_its_checkpoints_and_torch_is_unchanged(toy_data, monkeypatch):
    config = _config(toy_data)
    train, valid, _ = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, BPR(config, train.dataset).to(config["device"]))
    trainer.fit(train, valid, verbose=False)
    assert trainer.evaluate(valid, load_best_model=True)["ndcg@10"] > 0
    assert torch.load.__module__ == "torch.serialization"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6):
        monkeypatch.setattr(trainer_module, "torch", torch)
        with pytest.raises(Exception, match="[Ww]eights"):
            trainer.evaluate(valid, load_best_model=True)


def test_sine_does_not_switch_anomaly_mode_on(monkeypatch):
    assert not torch.is_anomaly_enabled()  # although it is imported
    sine = "recbole.model.sequential_recommender.sine"
    try:
        monkeypatch.delitem(sys.modules, sine)
        importlib.import_module(sine)
        assert torch.is_anomaly_enabled()
        torch.autograd.set_detect_anomaly(False)
        monkeypatch.delitem(sys.modules, sine)
        assert compat._anomaly_mode() and not torch.is_anomaly_enabled()
    finally:
        torch.autograd.set_detect_anomaly(False)


def test_an_overlay_is_the_module_but_for_its_names():
    overlay = compat.Overlay(torch, load=len)
    assert overlay.load is len and overlay.Tensor is torch.Tensor and overlay.__name__ == "torch"
    with pytest.raises(AttributeError):
        overlay.no_such_name  # noqa: B018


def test_every_load_and_every_agg_of_recbole_is_known():
    """RecBole's sources say which modules need the patches; a new one must not slip by."""
    root = Path(recbole.__file__).parent
    sources = {
        "recbole." + ".".join(file.relative_to(root).with_suffix("").parts): file.read_text(encoding="utf-8")
        for file in root.rglob("*.py")
    }
    loading = {name for name, text in sources.items() if "torch.load(" in text}
    assert loading == {*compat.LOADING_MODULES, "recbole.quick_start.quick_start"}
    assert {name for name, text in sources.items() if ".agg(len)" in text} == set(compat.AGGREGATING_MODULES)


# --- pandas ---------------------------------------------------------------------------------------------------------


def test_blanks_are_filled(blanks):
    items = blanks().item_feat  # rows are [PAD], i1, i2, i3
    assert items["brand"].tolist() == [0, 1, 0, 2]
    assert items["price"].tolist() == [2, 1, 3, 2]  # blanks hold the mean
    assert [list(row) for row in items["tags"]] == [[], [1, 2], [], [3]]
    assert [list(row) for row in items["shape"]] == [[], [1.0, 2.0], [0.5], []]
    assert blanks().inter_feat["rating"].tolist() == [1, 2, 3, 2]


def test_sequences_keep_their_lengths(blanks):
    """``_remap``, ``_normalize`` and ``_discretization`` all cut a flat array by ``agg(len)``."""
    assert [list(row) for row in blanks().inter_feat["words"]] == [[1, 2], [], [2], [3, 1, 2]]
    shape = blanks(normalize_all=True).item_feat["shape"]
    np.testing.assert_allclose(np.concatenate(list(shape)), [1 / 3, 1, 0])
    discrete = {"price": {"method": "LD"}, "shape": {"method": "ED", "bucket": 2}}
    shape = blanks(numerical_features=["price", "shape"], discretization=discrete).item_feat["shape"]
    assert [len(bucket) for _, bucket in shape] == [0, 2, 1, 0]


def test_a_set_with_blanks_is_split_and_loaded(blanks):
    dataset = blanks(eval_args={"split": {"LS": "valid_only"}, "order": "RO", "group_by": "user", "mode": "full"})
    train, _, _ = data_preparation(dataset.config, dataset)
    assert train.dataset.item_feat["tags"].tolist() == [[0, 0], [1, 2], [0, 0], [3, 0]]
    assert not any(torch.isnan(column.float()).any() for column in train.dataset.item_feat.interaction.values())


@pytest.mark.skipif(not PANDAS_3, reason="older pandas does what RecBole expects")
def test_recbole_fails_without_the_pandas_patches(blanks, monkeypatch):
    with monkeypatch.context() as undone:
        undone.setattr(dataset_module, "pd", pd)
        with pytest.raises(AttributeError, match="split"):
            blanks()
    with monkeypatch.context() as undone:
        undone.setattr(Dataset, "_fill_nan", Dataset._fill_nan.__wrapped__)
        assert blanks().item_feat["price"].isna().any()
    with monkeypatch.context() as undone:
        undone.delattr(dataset_module, "len")
        with pytest.raises(ValueError, match="[Ll]ength"):
            blanks()


# --- hyperopt -------------------------------------------------------------------------------------------------------


def test_the_tuner_s_generator_serves_old_and_new_hyperopt():
    assert not hasattr(np.random.RandomState(), "integers")
    old, new = (hyper_tuning.np.random.RandomState(1) for _ in range(2))
    assert [old.randint(0, 9, ()) for _ in range(5)] == [new.integers(0, 9, ()) for _ in range(5)]
    assert hyper_tuning.np.prod is np.prod and np.random.RandomState.__module__ == "numpy.random.mtrand"


# --- folders ------------------------------------------------------------------------------------------------------


def test_use_gpu_false_is_obeyed(monkeypatch, toy_data):
    from recbole.config import Config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for use_gpu, device in ((True, "cuda"), (False, "cpu")):
        config = Config("BPR", "toy", config_dict={"data_path": str(toy_data), "use_gpu": use_gpu})
        assert config["device"] == torch.device(device)


def test_a_folder_that_another_process_has_just_made_is_no_error(tmp_path, monkeypatch):
    from recbole.utils import ensure_dir

    monkeypatch.setattr("os.path.exists", lambda path: False)  # asked just before the other made it
    ensure_dir(str(tmp_path))
    ensure_dir(str(tmp_path / "more" / "deeper"))
    assert (tmp_path / "more" / "deeper").is_dir()


# --- warnings -------------------------------------------------------------------------------------------------------


def test_recbole_s_own_noise_is_silent_and_no_other(toy_data, blanks):
    def run():
        blanks()
        config = _config(toy_data)
        train, _, _ = data_preparation(config, create_dataset(config))
        Trainer(config, BPR(config, train.dataset).to(config["device"])).fit(train, saved=False, verbose=False)
        warnings.warn("torch.sparse.SparseTensor(...) is deprecated", UserWarning, stacklevel=1)  # from here
        hidden_anyway = (DeprecationWarning, ResourceWarning)
        return [str(entry.message) for entry in seen if not issubclass(entry.category, hidden_anyway)]

    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        compat._quiet()
        assert run() == ["torch.sparse.SparseTensor(...) is deprecated"]


# --- metrics of the catalogue -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric", ["ItemCoverage", "AveragePopularity", "ShannonEntropy", "GiniIndex", "TailPercentage"]
)
def test_metrics_that_look_at_the_whole_catalogue(metric, toy_data, tmp_path):
    from recbole_tokenrec.pipeline import run_models

    keys = {"data_path": str(toy_data), "checkpoint_dir": str(tmp_path), "show_progress": False, "state": "ERROR",
            "metrics": ["Hit", metric], "topk": [5], "valid_metric": "Hit@5"}  # fmt: skip
    row = run_models(["Pop"], "toy", (), keys)["models"][0]
    assert row["test"][f"{metric.lower()}@5"] > 0 and 0 < row["test"]["hit@5"] < 1
