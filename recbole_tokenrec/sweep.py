"""A search over settings by Optuna, in several processes and on several machines at once.

Every trial is one training by :func:`recbole_tokenrec.pipeline.run_models`; its value is the validation metric, never a
test metric. What the processes share is Optuna's storage (SQLite by default; a server's address for several machines)
and the output folder. TokenRec's stage cache lies there, so that trials that differ in the tokenizer or later train
the collaborative stage once: the first one trains it, those beside it wait.

A trial holds a lock while it runs. A trial that is marked as running and whose lock is free belongs to a process that
died: it is put in line again, and goes on inside its stage where the process left it.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from recbole_tokenrec.configuration import known_keys, make_config, merged
from recbole_tokenrec.errors import CheckpointError, ConfigError, DataError, OutputError, TokenRecError, TrainingError
from recbole_tokenrec.files import exclusive
from recbole_tokenrec.options import reject_unknown
from recbole_tokenrec.pipeline import plain, run_models, write_json
from recbole_tokenrec.workers import run_workers

MOST_DEATHS = 3  # after which a trial is given up


class Sweep(NamedTuple):
    """What every process of a sweep knows; plain data, so that it can be sent.

    Attributes:
        space: key -> list of values, or {"low": …, "high": …, "log": bool, "step": …}.
        trials: how many are finished in the end.
        folder: of locks, result files and the default storage; shared by all processes.
    """

    model: str
    dataset: str
    space: dict
    trials: int
    folder: str
    storage: str
    name: str
    config_files: tuple = ()
    overrides: dict = {}
    preset: str | None = None


def check_space(space) -> dict:
    """The space with its entries checked.

    Raises:
        ConfigError: an entry is neither a list of plain values nor a range.
    """
    if not isinstance(space, dict) or not space:
        raise ConfigError("space: the file must name at least one key with its values")
    for key, entry in space.items():
        if isinstance(entry, list) and entry and all(isinstance(v, (str, int, float, bool)) for v in entry):
            continue
        numbers = isinstance(entry, dict) and set(entry) <= {"low", "high", "log", "step"}
        numbers = numbers and all(type(entry.get(end)) in (int, float) for end in ("low", "high"))
        if not numbers or entry["low"] >= entry["high"] or not _spaced(entry):
            raise ConfigError(
                f"space: {key}: {entry!r} is not allowed; allowed: a list, or {{low: a, high: b}} with a < b, "
                "and either log: true, with a > 0, or step: s, with s > 0 and whole where a and b are"
            )
    return space


def _spaced(entry: dict) -> bool:
    """Whether Optuna draws from a range with this ``log`` and ``step``."""
    log, step = entry.get("log", False), entry.get("step")
    whole = isinstance(entry["low"], int) and isinstance(entry["high"], int)
    if not isinstance(log, bool) or log and (entry["low"] <= 0 or step is not None):
        return False
    return "step" not in entry or type(step) in ((int,) if whole else (int, float)) and step > 0


def grid(space: dict) -> list[dict] | None:
    """Every combination, if the space is made of lists; else None."""
    if not all(isinstance(entry, list) for entry in space.values()):
        return None
    return [dict(zip(space, values)) for values in itertools.product(*space.values())]


def run_sweep(sweep: Sweep, workers: int) -> dict:
    """Carry the sweep out, or the rest of it; returns (and writes to ``folder/sweep.json``) its trials, best first.

    Raises:
        ConfigError: Optuna is missing, a key or value of the space is wrong, or a sweep of this name was begun with
            other settings.
        TrainingError: too many workers died, or no trial could be trained; the same command tries them again.
    """
    bigger = _check(sweep)
    study = _study(sweep, "maximize" if bigger else "minimize")
    _claim(study, sweep)
    combinations = grid(sweep.space)
    if combinations is not None and len(combinations) <= sweep.trials:
        in_vain = _in_vain(study)
        tried = [_values(t) for t in study.get_trials(deepcopy=False) if t.number not in in_vain]
        for combination in combinations:
            if combination not in tried:
                study.enqueue_trial(combination)
    while (to_do := _to_do(study, sweep)) > 0:
        run_workers(_work, sweep, min(workers, to_do), (MOST_DEATHS + 1) * sweep.trials, "sweep")
        if not _takeable(study, sweep):
            break  # all is done, or the rest runs on other machines
    _need_one_that_worked(study, sweep)
    result = _result(study, sweep, bigger)
    write_json(Path(sweep.folder) / "sweep.json", result)
    return result


# ---- one worker ----------------------------------------------------------------------------------------------------


def _work(sweep: Sweep) -> None:
    study = _study(sweep)
    while True:
        with exclusive(Path(sweep.folder) / "sweep.lock"):
            _put_dead_in_line(study, sweep)
            trial = _next_trial(study, sweep)
            if trial is None:
                return
            held = exclusive(_lock_of(sweep, trial.number))
            held.__enter__()
        try:
            _run_trial(study, sweep, trial)
        finally:
            held.__exit__(None, None, None)


def _next_trial(study, sweep: Sweep):
    """A trial with its values, or None if enough are finished or running. Call it under the sweep's lock."""
    from optuna.trial import TrialState

    if len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))) >= _to_do(study, sweep):
        return None
    trial = study.ask()
    for key, entry in sweep.space.items():
        _suggest(trial, key, entry)
    return trial


def _suggest(trial, key: str, entry):
    if isinstance(entry, list):
        return trial.suggest_categorical(key, entry)
    whole = isinstance(entry["low"], int) and isinstance(entry["high"], int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    more = {name: entry[name] for name in ("log", "step") if name in entry}
    return suggest(key, entry["low"], entry["high"], **more)


def _run_trial(study, sweep: Sweep, trial) -> None:
    from optuna.trial import TrialState

    file = Path(sweep.folder) / f"trial-{trial.number}.json"
    keys = {**sweep.overrides, **trial.params, "resume": True, "show_progress": False}
    if sweep.model != "TokenRec":  # RecBole names checkpoints by the second; TokenRec shares its stage cache
        keys["checkpoint_dir"] = str(file.with_suffix(""))
    try:
        result = run_models([sweep.model], sweep.dataset, sweep.config_files, keys, sweep.preset, result_file=file)
    except (CheckpointError, DataError, OutputError):  # e.g. a full disk, not these values' fault: they wait in line
        raise
    except TokenRecError as error:  # e.g. a loss that is not finite: these values do not work, others may
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return
    (row,) = result["models"]
    for name in ("valid", "test", "checkpoint"):
        trial.set_user_attr(name, row[name])
    stages = {stage: report["cached"] for stage, report in row.get("stages", {}).items()}
    trial.set_user_attr("cached", [stage for stage, cached in stages.items() if cached])
    study.tell(trial, row["valid"][row["config"]["valid_metric"].lower()])


def _put_dead_in_line(study, sweep: Sweep) -> None:
    """Trials of processes that died are asked for again, with the same values."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        with exclusive(_lock_of(sweep, trial.number), wait=False) as dead:
            # Who has just finished was still running when the list was made, and held his lock until he had told so.
            if not dead or study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
                continue
            deaths = trial.user_attrs.get("deaths", 0) + 1
            # What it was asked to try, if it died before it had noted all of its values. In line first, and failed
            # then: whoever is killed in between leaves a trial too many, not one too few.
            params = _values(trial)
            if deaths <= MOST_DEATHS and set(params) == set(sweep.space):
                study.enqueue_trial(params, user_attrs={"deaths": deaths})
            study.tell(trial.number, state=TrialState.FAIL)


# ---- bookkeeping ---------------------------------------------------------------------------------------------------


def _values(trial) -> dict:
    """What a trial is to try, also before it has noted all of it."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _in_vain(study) -> set[int]:
    """Numbers of trials that do not count: when they were done, none at all had worked."""
    return set(study.user_attrs.get("in_vain", []))


def _need_one_that_worked(study, sweep: Sweep) -> None:
    """If none did, the cause lies outside the space, e.g. a backbone that is not there: tell it, and count none."""
    from optuna.trial import TrialState

    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING)):
        return
    in_vain = _in_vain(study)
    failed = [t for t in study.get_trials(states=(TrialState.FAIL,)) if t.number not in in_vain]
    if not failed:
        return
    study.set_user_attr("in_vain", sorted(in_vain | {trial.number for trial in failed}))
    errors = [trial.user_attrs["error"] for trial in failed if "error" in trial.user_attrs]
    text = errors[0] if errors else "their processes died"
    raise TrainingError(f"no trial of the sweep '{sweep.name}' could be trained; the first failed: {text}")


def _to_do(study, sweep: Sweep) -> int:
    """How many trials are not finished yet; one that failed with an error counts as finished."""
    from optuna.trial import TrialState

    in_vain = _in_vain(study)
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    ended = [trial for trial in ended if trial.number not in in_vain]
    given_up = [t for t in ended if t.user_attrs.get("deaths", 0) >= MOST_DEATHS and t.state == TrialState.FAIL]
    finished = [t for t in ended if t.state == TrialState.COMPLETE or "error" in t.user_attrs]
    return sweep.trials - len(finished) - len(given_up)


def _takeable(study, sweep: Sweep) -> bool:
    """Whether a worker of this machine would find something to do."""
    from optuna.trial import TrialState

    with exclusive(Path(sweep.folder) / "sweep.lock"):
        _put_dead_in_line(study, sweep)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return len(running) < _to_do(study, sweep)


def _lock_of(sweep: Sweep, number: int) -> Path:
    return Path(sweep.folder) / f"trial-{number}.lock"


def _study(sweep: Sweep, direction: str | None = None):
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("sweep needs Optuna: pip install 'recbole-tokenrec[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if direction is None:
            return optuna.load_study(study_name=sweep.name, storage=sweep.storage)
        return optuna.create_study(
            study_name=sweep.name, storage=sweep.storage, direction=direction, load_if_exists=True
        )
    except Exception as error:  # SQLAlchemy's errors, drivers that are not installed …
        text = f"storage: {sweep.storage} cannot be used ({type(error).__name__}: {error})"
        raise ConfigError(_without_password(text)) from None  # the cause would show it


def _without_password(text: str) -> str:
    """``text`` with the passwords of addresses like ``postgresql://user:password@host`` taken out."""
    return re.sub(r"(://[^\s:/@]*):[^\s/]*@", r"\1:***@", text)


def _claim(study, sweep: Sweep) -> None:
    """Write down what the study's trials are trainings of, or see that it is the same; only their number may grow."""
    keys = {**merged(sweep.config_files), **sweep.overrides, "preset": sweep.preset}
    keys.pop("checkpoint_dir", None)
    plan = plain({"model": sweep.model, "dataset": sweep.dataset, "space": sweep.space, "keys": keys})
    earlier = study.user_attrs.get("plan")
    if earlier is None:
        study.set_user_attr("plan", plan)
    elif earlier != plan:
        other = [name for name in plan if earlier.get(name) != plan[name]]
        text = f"name: the sweep '{sweep.name}' was begun with other {', '.join(other)}"
        raise ConfigError(f"{text}; give another --name")


def _check(sweep: Sweep) -> bool:
    """Raise a ConfigError for a key or value that no trial could use; whether a bigger metric is better."""
    reject_unknown(check_space(sweep.space), known_keys(sweep.model))
    ends = {key: entry if isinstance(entry, list) else [entry["low"], entry["high"]]
            for key, entry in sweep.space.items()}  # fmt: skip
    for place in range(max(map(len, ends.values()))):
        values = {key: entry[min(place, len(entry) - 1)] for key, entry in ends.items()}
        keys = {**sweep.overrides, **values, **({"preset": sweep.preset} if sweep.preset else {})}
        config = make_config(sweep.model, sweep.dataset, sweep.config_files, keys)
    return bool(config["valid_metric_bigger"])


def _result(study, sweep: Sweep, bigger: bool) -> dict:
    from optuna.trial import TrialState

    rows, in_vain = [], _in_vain(study)
    for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL)):
        if trial.state == TrialState.FAIL and ("error" not in trial.user_attrs or trial.number in in_vain):
            continue  # its values were tried again
        rows.append({"number": trial.number, "value": trial.value, "keys": trial.params, **trial.user_attrs})
    sign = -1 if bigger else 1
    best_first = sorted(rows, key=lambda row: (row["value"] is None, sign * (row["value"] or 0)))
    return plain({"model": sweep.model, "dataset": sweep.dataset, "space": sweep.space, "trials": best_first})
