"""Caches, states and checkpoints that are damaged, foreign or hostile; see also test_checkpoints.py, which goes through
every byte and through what a pickle may name."""

import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from recbole.quick_start import load_data_and_model

import recbole_tokenrec
from recbole_tokenrec.checkpoints import load_checkpoint, load_for_recbole, save_checkpoint
from recbole_tokenrec.cli.main import main
from recbole_tokenrec.errors import CheckpointError, ConfigError
from recbole_tokenrec.pipeline import run_models
from recbole_tokenrec.training.cache import StageCache


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('ran').touch()",)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("epoch: 3\n")


def folder(path):
    path.unlink()
    path.mkdir()


def missing(path):
    path.unlink()


def newer(path):
    content = torch.load(path, weights_only=True)
    from recbole_tokenrec import checkpoints

    before, checkpoints.VERSION = checkpoints.VERSION, 99
    try:
        save_checkpoint(path, content["payload"])
    finally:
        checkpoints.VERSION = before


def bare_pickle(path):
    path.write_bytes(pickle.dumps(Payload()))


def torch_pickle(path):
    torch.save({"state_dict": Payload()}, path)


def old_torch_pickle(path):
    torch.save({"state_dict": Payload()}, path, _use_new_zipfile_serialization=False)


def sealed_pickle(path):
    """A hostile pickle under our own seal: whoever knows the format can compute the digest."""
    from recbole_tokenrec import checkpoints

    with open(path, "w+b") as file:
        torch.save({"format": "recbole-tokenrec", "version": 1, "payload": Payload()}, file)
        checkpoints._seal(file)


def torchscript(path):
    class Module(torch.nn.Module):
        def forward(self, x):
            return x + 1

    torch.jit.script(Module()).save(str(path))


def traversal(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../ran", "x")
        archive.writestr("archive/data.pkl", pickle.dumps({}))


FAULTS = {
    truncated: "damaged|cannot be read|not a checkpoint", half: "damaged|cannot be read|not a checkpoint",
    flipped: "the checkpoint is damaged", empty: "cannot be read|not a checkpoint", text: "cannot be read|not a ",
    folder: "Is a directory", missing: "No such file", newer: "checkpoint version 99; this release reads up to 1",
    bare_pickle: "cannot be read|not a checkpoint", torch_pickle: "refused, since the file names",
    old_torch_pickle: "cannot be read|not a checkpoint", sealed_pickle: "cannot be read",
    torchscript: "not a checkpoint|cannot be read", traversal: "cannot be read|not a checkpoint",
}  # fmt: skip


@pytest.mark.unit
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_checkpoints(fault, tmp_path, capsys):
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"state_dict": {"a": torch.ones(500)}, "epoch": 1})
    fault(path)
    with pytest.raises(CheckpointError, match=FAULTS[fault]) as caught:
        load_for_recbole(path)
    assert "x.pth" in str(caught.value)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["recommend", "--checkpoint", str(path), "--users", "a"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "x.pth" in printed and "Traceback" not in printed
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.rglob("ran")) and not (tmp_path / "ran").exists()


@pytest.mark.unit
@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {missing}, key=str), ids=lambda fault: fault.__name__)
def test_a_cache_entry_that_cannot_be_used_counts_as_none(fault, tmp_path):
    class Stage:
        name = "cf"
        restored = None

        def determinants(self):
            return {"cf_epochs": 1}

        def product(self):
            return {"a": torch.ones(500)}

        def restore(self, product):
            self.restored = product

    cache, stage = StageCache(tmp_path, {"seed": 1}), Stage()
    cache.save(stage, {"loss": 1.0})
    assert cache.load(stage) == {"loss": 1.0} and stage.restored is not None
    stage.restored = None
    fault(cache.path(stage))
    assert cache.load(stage) is None and stage.restored is None
    assert not list(tmp_path.rglob("ran"))
    if fault is not folder:
        cache.save(stage, {"loss": 2.0})  # and is replaced
        assert cache.load(stage) == {"loss": 2.0}


@pytest.mark.recipe
def test_a_checkpoint_of_other_data(toy_data, tmp_path):
    shutil.copytree(toy_data, tmp_path / "data")
    keys = {"data_path": str(tmp_path / "data"), "epochs": 1, "show_progress": False, "state": "ERROR"}
    (row,) = run_models(["BPR"], "toy", (), keys)["models"]
    load_data_and_model(row["checkpoint"])
    with open(tmp_path / "data" / "toy" / "toy.inter", "a") as file:
        file.write("new\tg0i0\t1\nnew\tg0i1\t2\nnew\tg0i2\t3\n")
    with pytest.raises(CheckpointError, match=r"does not fit the data set 'toy' as it is now, with 49 users"):
        load_data_and_model(row["checkpoint"])


# ---- files that RecBole would open or evaluate because a checkpoint, or its folder, says so ------------------------


@pytest.fixture(scope="module")
def bpr(toy_data, tmp_path_factory):
    """A checkpoint of RecBole's own trainer, and the folder it lies in."""
    folder = tmp_path_factory.mktemp("bpr")
    keys = {"data_path": str(toy_data), "epochs": 1, "show_progress": False, "state": "ERROR", "use_gpu": False,
            "checkpoint_dir": str(folder)}  # fmt: skip
    return run_models(["BPR"], "toy", (), keys)["models"][0]["checkpoint"]


def changed(path, to, **keys):
    """A copy whose configuration says something else."""
    checkpoint = load_for_recbole(path, "cpu")
    for key, value in keys.items():
        checkpoint["config"].final_config_dict[key] = value
    torch.save(checkpoint, to, pickle_protocol=4)
    return to


@pytest.mark.recipe
@pytest.mark.parametrize("name", ["toy-Dataset.pth", "toy-for-BPR-dataloader.pth"])
def test_a_pickle_beside_a_checkpoint_is_not_opened(name, bpr, toy_data, tmp_path, capsys):
    (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    hostile = changed(bpr, tmp_path / "x.pth", checkpoint_dir=str(tmp_path))
    key = "dataset_save_path" if "Dataset" in name else "dataloaders_save_path"
    for open_it in (load_data_and_model, recbole_tokenrec.load):
        with pytest.raises(CheckpointError, match=rf"{name}: refused, since data that RecBole saved.* set {key}: "):
            open_it(hostile)
    arguments = ["run", "--model", "BPR", "--dataset", "toy", "--data_path", str(toy_data), "--output_dir",
                 str(tmp_path), "--epochs=1"]  # fmt: skip
    assert main(arguments) == 2 and f"{name}: refused" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.recipe
@pytest.mark.parametrize("key", ["dataset_save_path", "dataloaders_save_path"])
def test_a_checkpoint_does_not_say_which_pickle_is_opened(key, bpr, tmp_path):
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps(Payload()))
    hostile = changed(bpr, tmp_path / "x.pth", **{key: str(tmp_path / "mine.pkl")})
    load_data_and_model(hostile)
    assert not (tmp_path / "ran").exists()


@pytest.mark.recipe
def test_a_saved_data_set_that_the_user_names_is_opened(toy_data, tmp_path):
    keys = {"data_path": str(toy_data), "epochs": 1, "show_progress": False, "state": "ERROR", "use_gpu": False,
            "checkpoint_dir": str(tmp_path)}  # fmt: skip
    (first,) = run_models(["BPR"], "toy", (), {**keys, "save_dataset": True})["models"]
    saved = tmp_path / "toy-Dataset.pth"
    (again,) = run_models(["BPR"], "toy", (), {**keys, "dataset_save_path": str(saved)})["models"]
    assert saved.is_file() and again["test"] == first["test"]


@pytest.mark.recipe
def test_no_value_of_a_checkpoint_s_configuration_is_evaluated(toy_data):
    """RecBole's KD_DAGFM calls ``eval`` on the name of its teacher."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model

    keys = {"data_path": str(toy_data), "show_progress": False, "state": "ERROR", "phase": "teacher_training",
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False,
                                      "candidate_num": 0}}  # fmt: skip
    config = Config("KD_DAGFM", "toy", config_dict=keys)
    train, _, _ = data_preparation(config, create_dataset(config))
    get_model("KD_DAGFM")(config, train.dataset)  # CrossNet, by its name
    config["teacher"] = "[__import__('pathlib').Path('ran').touch(), CrossNet][1]"
    with pytest.raises(ConfigError, match="teacher: .* is not allowed"):
        get_model("KD_DAGFM")(config, train.dataset)
    assert not Path("ran").exists()
