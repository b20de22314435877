"""Caches, states and checkpoints that are damaged, foreign or hostile; see also test_checkpoints.py, which goes through
every byte and through what a pickle may name."""

import pickle
import shutil
import zipfile

import pytest
import torch
from recbole.quick_start import load_data_and_model

from recbole_tokenrec.checkpoints import load_checkpoint, load_for_recbole, save_checkpoint
from recbole_tokenrec.errors import CheckpointError
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
def test_checkpoints(fault, tmp_path):
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"state_dict": {"a": torch.ones(500)}, "epoch": 1})
    fault(path)
    with pytest.raises(CheckpointError, match=FAULTS[fault]) as caught:
        load_for_recbole(path)
    assert "x.pth" in str(caught.value)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
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
