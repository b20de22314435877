"""Checkpoints of both kinds: what is written comes back, and no file is trusted."""

import builtins
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.model.general_recommender import BPR
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_tokenrec import checkpoints
from recbole_tokenrec.checkpoints import (
    is_checkpoint,
    load_checkpoint,
    load_for_recbole,
    load_recbole_checkpoint,
    plain_config,
    rebuild_config,
    save_checkpoint,
)
from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.errors import CheckpointError, ConfigError

PAYLOAD = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)},
    "text": "ü",
    "none": None,
    "list": [1, 2.5, True, (1, "x")],
    3: {"nested": [{}]},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_data):
    """A BPR that RecBole's trainer trained and saved: (config, trainer, test loader, test result, file)."""
    folder = tmp_path_factory.mktemp("bpr")
    before = os.getcwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["pytest"]
    config = _config(toy_data, checkpoint_dir=str(folder), epochs=2)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, BPR(config, train.dataset).to(config["device"]))
    trainer.fit(train, valid, verbose=False)
    result = trainer.evaluate(test)
    os.chdir(before[0])
    sys.argv = before[1]
    return config, trainer, test, result, trainer.saved_model_file


@pytest.fixture
def ours(trained, tmp_path):
    """The same model in our format, with a key of our own."""
    config, trainer, _, _, _ = trained
    payload = {
        "config": plain_config(config),
        "epoch": 1,
        "cur_step": 0,
        "best_valid_score": trainer.best_valid_score,
        "state_dict": trainer.model.state_dict(),
        "other_parameter": trainer.model.other_parameter(),
        "optimizer": trainer.optimizer.state_dict(),
        "stages": ["ours"],
    }
    path = tmp_path / "ours.pth"
    save_checkpoint(path, payload)
    return path


def _config(toy_data, model="BPR", **settings):
    settings = {"data_path": str(toy_data), "show_progress": False, "embedding_size": 8, **settings}
    return Config(model, "toy", config_dict=settings)


# --- our format -----------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "x.pth"
    save_checkpoint(path, PAYLOAD)
    back = load_checkpoint(path)
    assert torch.equal(back["weights"].pop("a"), PAYLOAD["weights"]["a"]) and back["weights"].pop("b").numel() == 0
    assert back == {**PAYLOAD, "weights": {}}
    assert is_checkpoint(path) and [file.name for file in tmp_path.iterdir()] == ["x.pth"]
    plain = torch.load(path, weights_only=True)  # readable without this package, too
    assert (plain["format"], plain["version"]) == ("recbole-tokenrec", 1)


@pytest.mark.unit
def test_near_plain_values_are_made_plain(tmp_path):
    payload = {"score": np.float64(0.5), "n": np.int64(3), "state": OrderedDict(w=torch.nn.Parameter(torch.ones(2)))}
    save_checkpoint(tmp_path / "x.pth", payload)
    back = load_checkpoint(tmp_path / "x.pth")
    assert type(back["score"]) is float and type(back["n"]) is int and type(back["state"]) is dict
    assert not back["state"]["w"].requires_grad


@pytest.mark.unit
@pytest.mark.parametrize("value", [np.zeros(2), {1}, b"x", torch.device("cpu"), object()])
def test_other_values_are_refused_by_place(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"payload\['a'\]\[1\]: a "):
        save_checkpoint(tmp_path / "x.pth", {"a": [0, value]})
    assert not list(tmp_path.iterdir())


@pytest.mark.unit
def test_every_changed_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "x.pth"
    save_checkpoint(path, PAYLOAD)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        for load in (load_checkpoint, load_for_recbole):
            with pytest.raises(CheckpointError, match="x.pth"):
                load(path)
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        for load in (load_checkpoint, load_for_recbole):
            with pytest.raises(CheckpointError, match="x.pth"):
                load(path)


@pytest.mark.unit
def test_foreign_newer_and_missing_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    torch.save({"format": "other"}, path)
    with pytest.raises(CheckpointError, match="x.pth: not a checkpoint of recbole-tokenrec"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="y.pth: .*No such file"):
        load_checkpoint(tmp_path / "y.pth")
    monkeypatch.setattr(checkpoints, "VERSION", 2)
    save_checkpoint(path, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="x.pth: checkpoint version 2; this release reads up to 1"):
        load_checkpoint(path)


@pytest.mark.unit
@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"version": "old"})

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(CheckpointError, match="x.pth: the checkpoint cannot be written .*no space left"):
        save_checkpoint(path, {"version": "new"})
    monkeypatch.undo()
    assert load_checkpoint(path) == {"version": "old"} and [file.name for file in tmp_path.iterdir()] == ["x.pth"]


# --- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("model", "dataset", "settings"),
    [
        ("BPR", "toy", {"metrics": "Recall", "topk": 5, "valid_metric": "Recall@5", "gpu_id": (0,)}),
        ("BPR", "ml-100k", {"eval_args": {"mode": {"valid": "uni100", "test": "full"}}}),
        ("SASRec", "toy", {"train_neg_sample_args": None}),
        ("FM", "ml-100k", {"train_neg_sample_args": {"distribution": "None"}, "clip_grad_norm": {"max_norm": 5}}),
        ("DIN", "ml-100k", {"seq_separator": "1 + 1", "learning_rate": np.float64(0.1)}),
    ],
)
def test_a_rebuilt_config_is_equal(toy_data, model, dataset, settings):
    config = Config(model, dataset, config_dict={"data_path": str(toy_data), **settings})
    config["seq_separator"] = settings.get("seq_separator", " ")
    plain = plain_config(config)
    assert "device" not in plain["config_dict"] and plain == pickle.loads(pickle.dumps(plain))
    rebuilt = rebuild_config(plain)
    assert type(rebuilt) is Config and rebuilt.model_class is config.model_class
    assert rebuilt.final_config_dict == config.final_config_dict
    assert plain_config(rebuilt) == plain


@pytest.mark.unit
def test_a_key_that_a_preset_got_later_does_not_change_what_was_trained():
    """An older checkpoint lacks it; ml-1m's part of the preset sets it today."""
    config = make_config("TokenRec", "ml-1m", overrides={"preset": "tuned"})
    plain = plain_config(config)
    assert plain["config_dict"].pop("prompt_decoder_items") > 0
    rebuilt = rebuild_config(plain)
    assert rebuilt["prompt_decoder_items"] == 0 and rebuilt["preset"] == "tuned"
    others = {key: value for key, value in config.final_config_dict.items() if key != "prompt_decoder_items"}
    assert {key: rebuilt.final_config_dict[key] for key in others} == others


@pytest.mark.unit
def test_rebuilding_neither_reads_the_command_line_nor_evaluates(toy_data, monkeypatch):
    plain = plain_config(_config(toy_data))
    plain["config_dict"]["odd"] = "__import__('pathlib').Path('hit').touch()"
    monkeypatch.setattr(sys, "argv", ["program", "--embedding_size=99"])
    rebuilt = rebuild_config(plain)
    assert rebuilt["embedding_size"] == 8 and rebuilt["odd"].startswith("__import__") and not os.path.exists("hit")


@pytest.mark.unit
def test_a_config_with_an_object_cannot_be_stored(toy_data):
    config = _config(toy_data)
    config["hook"] = {"on_end": print}
    with pytest.raises(ConfigError, match=r"hook\['on_end'\]: a builtin_function_or_method"):
        plain_config(config)


# --- RecBole's files ------------------------------------------------------------------------------------------------


@pytest.mark.recipe
def test_recbole_s_own_checkpoint_is_read_back(trained):
    config, trainer, _, result, path = trained
    checkpoint = load_recbole_checkpoint(path)
    assert type(checkpoint["config"]) is Config and checkpoint["config"].model_class is BPR
    assert checkpoint["config"].final_config_dict == config.final_config_dict
    assert checkpoint["config"].yaml_loader is config.yaml_loader
    assert isinstance(checkpoint["best_valid_score"], float)
    _, model, dataset, train, valid, test = load_data_and_model(path)
    again = Trainer(config, model)
    again.eval_collector.data_collect(train)
    assert again.evaluate(test, load_best_model=False) == result


@pytest.mark.recipe
@pytest.mark.parametrize("model", ["EASE", "ItemKNN", "SLIMElastic", "FDSA"])
def test_checkpoints_that_hold_more_than_tensors(toy_data, model):
    """scipy and numpy matrices; FDSA's holds an embedding layer with the whole data set."""
    settings = {"data_path": str(toy_data), "epochs": 1, "show_progress": False, "state": "ERROR"}
    if model == "FDSA":
        settings.update(selected_features=["item_id"], train_neg_sample_args=None, MAX_ITEM_LIST_LENGTH=4, n_layers=1)
        settings.update(load_col=None, checkpoint_dir="saved")
    expected = run_recbole(model, "toy", config_dict=settings)
    (file,) = os.listdir("saved")
    config, loaded, _, train, _, test = load_data_and_model(f"saved/{file}")
    trainer = Trainer(config, loaded)
    trainer.eval_collector.data_collect(train)
    assert trainer.evaluate(test, load_best_model=False) == expected["test_result"]
    if model == "FDSA":
        assert type(loaded.feature_embed_layer.dataset) is SequentialDataset


class _Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.unit
@pytest.mark.parametrize(
    ("evil", "named"),
    [
        (_Evil(os.system, "touch hit"), r"(posix|nt)\.system"),
        (_Evil(builtins.eval, "open('hit', 'w')"), r"builtins\.eval"),
        (_Evil(builtins.getattr, Config, "__init__"), r"builtins\.getattr"),
        (_Evil(__import__, "os"), r"builtins\.__import__"),
        (_Evil(torch.hub.load, "x", "y"), r"torch\.hub\.load"),
        # Names that a file may hold, put to a use that no checkpoint makes of them.
        (_Evil(Config, "BPR", "ml-100k", None, {"x": "open('hit', 'w')"}), "cannot be read"),
        (_Evil(BPR, {}, {}), "cannot be read"),
    ],
)
def test_a_file_that_asks_for_code_is_refused(tmp_path, evil, named):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "config": evil}, path, pickle_protocol=4)
    for load in (load_recbole_checkpoint, load_for_recbole, load_data_and_model):
        with pytest.raises(CheckpointError, match=rf"evil\.pth: .*{named}"):
            load(path)
    assert not os.path.exists("hit")


@pytest.mark.unit
def test_a_file_cannot_change_a_class(tmp_path):
    """A pickle may set attributes of what it names: it gets a copy for one load."""
    # BUILD(Config, (None, {"evil": 1})), which sets attributes; no Python object pickles so.
    state = b"\x80\x02crecbole.config.configurator\nConfig\nN}X\x04\x00\x00\x00evilK\x01s\x86b."
    pickle.loads(state)
    assert Config.evil == 1
    del Config.evil
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", state)
        archive.writestr("x/version", "3")
    with pytest.raises(CheckpointError, match="x.pth: not a checkpoint of RecBole"):
        load_recbole_checkpoint(tmp_path / "x.pth")
    assert not hasattr(Config, "evil")


@pytest.mark.unit
def test_files_that_are_no_checkpoints(tmp_path):
    texts = tmp_path / "text.pth"
    texts.write_text("hello")
    old = tmp_path / "old.pth"
    torch.save({"state_dict": {}}, old, _use_new_zipfile_serialization=False)
    script = tmp_path / "script.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(script))
    listed = tmp_path / "list.pth"
    torch.save([1], listed)
    for path in (texts, old, script, listed, tmp_path / "missing.pth", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            load_recbole_checkpoint(path)


# --- our files in RecBole's hands -----------------------------------------------------------------------------------


@pytest.mark.recipe
def test_recbole_takes_our_files(trained, toy_data, ours, monkeypatch):
    config, trainer, test, result, _ = trained
    monkeypatch.setattr(sys, "argv", ["program", "--embedding_size=99"])
    checkpoint = load_for_recbole(ours)
    assert checkpoint["config"].final_config_dict == config.final_config_dict and checkpoint["stages"] == ["ours"]
    loaded, model, dataset, train, valid, again = load_data_and_model(str(ours))
    assert loaded["embedding_size"] == 8 and dataset.item_num == 49
    monkeypatch.setattr(sys, "argv", ["pytest"])
    for weight, expected in zip(model.parameters(), trainer.model.parameters()):
        assert torch.equal(weight, expected)

    fresh = Trainer(config, BPR(config, train.dataset))
    fresh.eval_collector.data_collect(train)
    assert fresh.evaluate(test, load_best_model=True, model_file=str(ours)) == result
    fresh.resume_checkpoint(ours)
    assert fresh.start_epoch == 2 and fresh.best_valid_score == trainer.best_valid_score
    assert fresh.optimizer.state_dict()["param_groups"] == trainer.optimizer.state_dict()["param_groups"]


@pytest.mark.recipe
def test_a_checkpoint_of_a_gpu_opens_without_one(trained, tmp_path):
    config, trainer, _, _, path = trained
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    checkpoint = load_recbole_checkpoint(path)
    checkpoint["config"]["device"] = torch.device("cuda")
    torch.save(checkpoint, tmp_path / "gpu.pth", pickle_protocol=4)
    assert load_data_and_model(tmp_path / "gpu.pth")[0]["device"] == torch.device("cpu")
