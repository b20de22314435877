"""Models on the toy data as RecBole builds them, for tests of what happens before or in training.

A plugin of ``conftest.py``.
"""

import pytest

COMMON = {
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
}


@pytest.fixture
def build(toy_data):
    """``build(name, device=None, **keys)``: the model by its RecBole name on the toy data, untrained.

    Returns (config, model, train, valid, test); the last three are RecBole's data loaders.
    """
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed

    def make(name, device=None, **keys):
        keys = {"data_path": str(toy_data), **COMMON, **keys}
        config = Config(model=name, dataset="toy", config_dict=keys)
        config["device"] = device or config["device"]
        init_seed(config["seed"], config["reproducibility"])
        loaders = data_preparation(config, create_dataset(config))
        init_seed(config["seed"], config["reproducibility"])
        return (config, get_model(name)(config, loaders[0]._dataset), *loaders)

    return make
