"""Trainings of an experiment, each kept in a JSON file of its own, so that nothing is trained twice.

A file's name holds a hash of what its numbers depend on: the configuration, the data file, the versions and the code
(``sources.py``). Change any and the training is done anew; otherwise its numbers are read back. Beside the metrics a
file holds every user's rank of the held-out item, which the significance tests read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from recbole_tokenrec.configuration import NO_MATTER, known_keys, make_config, merged, together
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.llm.backbone import weights_digest
from recbole_tokenrec.pipeline import check_backbones, need_folder, plain, run_model, versions, write_json
from recbole_tokenrec.ranks import need_ranks, with_ranks
from recbole_tokenrec.registry import MODELS


class Run(NamedTuple):
    """One row of a table, or several from one training.

    Attributes:
        label: the row's name.
        model: ours or RecBole's.
        keys: settings that make the row what it is.
        preset: TokenRec's.
        seeded: whether it is trained with every seed; a closed-form model needs the first one only.
        unseen_prompt: add a row of the same weights with the unseen template.
        stage_rows: add TokenRec's own collaborative stage, scored by dot product and by cosine.
    """

    label: str
    model: str
    keys: dict = {}
    preset: str | None = None
    seeded: bool = True
    unseen_prompt: bool = False
    stage_rows: bool = False


class Bench(NamedTuple):
    """What all trainings of an experiment share; ``reported`` are the metrics that its report reads."""

    dataset: str
    folder: Path
    seeds: tuple[int, ...]
    config_files: tuple = ()
    overrides: dict = {}
    reported: tuple[str, ...] = ()

    def config(self, run: Run, seed: int):
        """RecBole's ``Config`` of one training: the row's keys, and the user's for all rows.

        What was killed in the middle of a training goes on there, unless the user says ``resume: false``.

        Raises:
            ConfigError: a key that no model of RecBole's or ours has, a wrong value, or a key that makes the row what
                it is.
        """
        given = together(merged(self.config_files), self.overrides)
        own = {**run.keys, **({"preset": run.preset} if run.preset else {})}
        for key, value in own.items():
            if given.get(key, value) != value:
                raise ConfigError(
                    f"{key}: {given[key]!r} was set for every row, but row '{run.label}' is what it is by "
                    f"{key}: {value!r}; leave the key out, or the row"
                )
        keys = {"resume": given.get("resume", True), **self.overrides, **own, "seed": seed}
        known = known_keys(run.model).union(*map(known_keys, MODELS))
        config = make_config(run.model, self.dataset, self.config_files, keys, known)
        need_ranks(config, self.reported)
        return config


def carry_out(runs: list[Run], bench: Bench) -> list[dict]:
    """Train what is not there yet; one record for each run and seed, in order.

    A record holds ``label``, ``seed``, ``data`` (the data set's entry), ``rows`` (each ``{"label", "valid", "test",
    "ranks"}``), ``seconds``, ``cpu_seconds``, ``curve``, ``peak_rss_mb``, ``parameters``, ``config``, ``versions``,
    ``machine``, and ``precision`` where the model has one (older records lack these two).
    """
    planned = [(run, seed) for run in runs for seed in (bench.seeds if run.seeded else bench.seeds[:1])]
    configs = [bench.config(run, seed) for run, seed in planned]  # a wrong value stops before anything is trained
    paths = [record_path(bench, run, seed, config) for (run, seed), config in zip(planned, configs)]
    check_backbones([config for config, path in zip(configs, paths) if not path.exists()][1:])
    need_folder("--output_dir", bench.folder)
    for folder in {config["checkpoint_dir"] for config in configs}:
        need_folder("checkpoint_dir", folder)
    records = []
    with tqdm(total=len(planned), ncols=110, desc="trainings", disable=not configs[0]["show_progress"]) as bar:
        for (run, seed), config, path in zip(planned, configs, paths):
            bar.set_postfix_str(f"{run.label}, seed {seed}")
            if not path.exists():
                write_json(path, _train(run, seed, config))
            records.append(json.loads(path.read_text(encoding="utf-8")))
            bar.update()
    return records


def record_path(bench: Bench, run: Run, seed: int, config) -> Path:
    """Where the record of one training lies."""
    return bench.folder / "runs" / f"{_slug(run.label)}-{seed}-{_identity(run, config)}.json"


def cost_of(record: dict) -> tuple[float, float]:
    """Seconds to build and train and peak memory in MiB of a record.

    RecBole fits its closed-form models (EASE, ItemKNN) while it builds them. A stage or a whole training that came out
    of a cache counts as when it was trained.
    """
    stages = record.get("stages", {}).values()
    seconds = max(record["seconds"]["train"], sum(stage["seconds"] for stage in stages))
    seconds += record["seconds"].get("build", 0.0)
    return seconds, max(record["peak_rss_mb"], *(stage["peak_rss_mb"] for stage in stages), 0.0)


def _train(run: Run, seed: int, config) -> dict:
    trained = run_model(config)
    trainer = trained.trainer
    splits = {"valid": trained.valid_data, "test": trained.test_data}
    rows = [{"label": run.label, **{split: trained.row[split] for split in splits}, "ranks": trained.ranks}]
    if run.unseen_prompt:
        settings = trainer.model.settings
        before, settings.prompt = settings.prompt, "unseen"
        rows.append(_row(f"{run.label} (unseen prompt)", trainer, splits, _evaluation(trainer)))
        settings.prompt = before
    if run.stage_rows:
        for score in ("dot", "cosine"):
            evaluate = functools.partial(trainer.evaluate_collaborative, score=score)
            rows.append(_row(f"{run.label}: own stage, {score}", trainer, splits, evaluate))
    kept = ("seconds", "cpu_seconds", "curve", "peak_rss_mb", "parameters", "config", "codes", "stages", "checkpoint",
            "machine", "precision")  # fmt: skip
    return {
        "label": run.label,
        "model": run.model,
        "seed": seed,
        "data": trained.data,
        "rows": rows,
        **{key: trained.row[key] for key in kept if key in trained.row},
        "versions": versions(),
    }


def _evaluation(trainer):
    return functools.partial(trainer.evaluate, load_best_model=False, show_progress=False)


def _row(label: str, trainer, splits: dict, evaluate) -> dict:
    row = {"label": label, "ranks": {}}
    for split, data in splits.items():
        metrics, row["ranks"][split] = with_ranks(trainer, data, evaluate)
        row[split] = plain(dict(metrics))
    return row


def _identity(run: Run, config) -> str:
    settings = {k: v for k, v in plain(config.final_config_dict).items() if k not in NO_MATTER}
    file = Path(config["data_path"]) / f"{config['dataset']}.inter"
    digest = hashlib.sha256(file.read_bytes() if file.is_file() else b"")
    what = [settings, run.unseen_prompt, run.stage_rows, versions(), *weights_digest(config["llm_backbone"])]
    digest.update(json.dumps(what, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-").lower()
