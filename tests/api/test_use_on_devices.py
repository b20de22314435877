"""Trained models in use on a device that is not the CPU: the same answers, and nothing left behind.

``second_device.py`` stands in for the GPU that no test machine of ours has.
"""

import contextlib

import pandas as pd
import pytest
from recbole.config import Config
from second_device import DEVICE, second_device

import recbole_tokenrec
from recbole_tokenrec.api import loading


@pytest.fixture
def elsewhere(monkeypatch):
    """``with elsewhere() as device:`` there is such a device, and RecBole's configurations choose it."""

    @contextlib.contextmanager
    def there():
        init_device, restore = Config._init_device, loading.restore

        def init_there(self):
            init_device(self)
            self.final_config_dict["device"] = DEVICE

        def restore_there(checkpoint, path):
            checkpoint["config"]["device"] = DEVICE
            return restore(checkpoint, path)

        with monkeypatch.context() as changed, second_device() as device:
            changed.setattr(Config, "_init_device", init_there)
            changed.setattr(loading, "restore", restore_there)
            yield device

    return there


@pytest.mark.recipe
@pytest.mark.parametrize("name", ["TokenRec", "LightGCNSoftmax", "SASRecCE", "BPR"])
def test_the_same_items_for_hot_and_warm_users(name, trained, elsewhere):
    path, strangers = trained(name), {"x": ["g0i1", "g0i2"], "y": ["g3i1"]}

    def ask():
        model = recbole_tokenrec.load(path)
        found = [model.recommend(["g2u5", "g0u0"], k=5)]
        if model.takes_histories:
            found.append(model.recommend(histories=strangers, k=5))
        return found, model

    here, _ = ask()
    with elsewhere() as device:
        there, model = ask()
        assert {parameter.device for parameter in model.model.parameters()} == {device}
    for left, right in zip(here, there):
        pd.testing.assert_frame_equal(left, right, atol=1e-5)


@pytest.mark.recipe
def test_updates_exports_and_token_tables(trained, elsewhere, tmp_path):
    path = trained()
    new = pd.DataFrame({"user_id": ["new"] * 3 + ["g0u1"], "item_id": ["g0i1", "g0i2", "g0x", "g0x"]})
    with elsewhere():
        model = recbole_tokenrec.load(path)
        assert model.update(new)["new_items"] == 1
        model.export(tmp_path / "export")
        model.save(tmp_path / "grown.pth")
        assert len(model.tokens()) == 48 + 48 + 2
        expected = model.recommend(k=5)
        assert model.update(new.assign(item_id="g0i3"), fine_tune=True, epochs=1)["interactions"]
    for place in ("export", "grown.pth"):  # read on the CPU
        pd.testing.assert_frame_equal(recbole_tokenrec.load(tmp_path / place).recommend(k=5), expected, atol=1e-5)
