"""TokenRec and its baselines as RecBole models.

Importing this package makes RecBole 1.2.1 run on today's libraries (:mod:`recbole_tokenrec.compat`) and makes our
models known to it (:mod:`recbole_tokenrec.registry`), so ``run_recbole(model="TokenRec", dataset=...)`` works, as do
hyper-parameter tuning, ``load_data_and_model`` and ``run(nproc=...)``. Nothing of transformers is imported yet.
"""

import configparser
import sys
from importlib import metadata, util
from pathlib import Path

if util.find_spec("recbole") is None:
    wanted = (
        "recbole_tokenrec wants RecBole: pip install --no-deps recbole==1.2.1 (without its dependencies, since it asks "
        "for a ray that Python 3.12 and newer cannot install; the others came with this package)"
    )
    if Path(sys.argv[0]).stem in ("recbole-tokenrec", "run_recbole_tokenrec"):  # a command: no traceback
        print(f"error: {wanted}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(wanted)

from recbole_tokenrec import compat  # noqa: E402
from recbole_tokenrec.errors import (  # noqa: E402
    BackboneError,
    CheckpointError,
    ConfigError,
    DataError,
    TokenRecError,
    TrainingError,
)

compat.apply()  # before anything imports recbole.quick_start

from recbole_tokenrec import registry  # noqa: E402
from recbole_tokenrec.registry import available_models, available_presets  # noqa: E402

registry.register()

__all__ = [
    "BackboneError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "TokenRecError",
    "TrainingError",
    "__version__",
    "available_models",
    "available_presets",
    "load",
]


def load(path, index: str = "exact", data_path=None, **index_options):
    """Open a trained model for recommending: a :class:`~recbole_tokenrec.api.Recommender`.

    See :func:`recbole_tokenrec.api.load`, which is imported at the first call.
    """
    from recbole_tokenrec.api import load

    return load(path, index, data_path, **index_options)


def _version() -> str:
    try:
        return metadata.version("recbole-tokenrec")
    except metadata.PackageNotFoundError:  # a checkout that was not installed
        config = configparser.ConfigParser()
        config.read(Path(__file__).resolve().parent.parent / "setup.cfg", encoding="utf-8")
        return config["metadata"]["version"]


__version__ = _version()
