"""Kill a training with SIGKILL at many moments, resume it, and compare with one that was left alone.

``python killing.py FOLDER NUMBER CLOCK SEED ARGUMENT…`` prints one JSON object, which lies in FOLDER/kills.json too;
given again after it was cut off, it goes on. Every training is a process of its own, forked from this one once the
libraries are imported. NUMBER kills fall on events that the training itself passes: a step, an evaluation, and inside
every write the archive half there (not sealed), the file complete but not yet in place, and just in place. CLOCK more
come from outside, at random fractions of the time that the training takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from recbole_tokenrec import checkpoints, files
from recbole_tokenrec.checkpoints import load_for_recbole
from recbole_tokenrec.cli.main import main
from recbole_tokenrec.models.tokenrec import TokenRec
from recbole_tokenrec.pipeline import write_json
from recbole_tokenrec.training.trainer import TokenRecTrainer


class Events:
    """Counts what happens, keeps its kinds, and kills this process at event number ``kill_at``."""

    def __init__(self, kill_at: int | None):
        self.kill_at, self.kinds, self.stage = kill_at, [], "before"
        self._hook(TokenRec, "calculate_loss", "step", before=self._enter)
        self._hook(TokenRecTrainer, "evaluate", "evaluation")
        self._hook(checkpoints, "_seal", "write, half there")
        replace, overlay = os.replace, type(os)("os")
        overlay.__dict__.update(vars(os))

        def replaced(*arguments):
            self("write, not in place")
            replace(*arguments)
            self("write, in place")

        overlay.replace = replaced
        files.os = overlay

    def __call__(self, kind: str) -> None:
        self.kinds.append(f"{self.stage}: {kind}")
        if len(self.kinds) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _enter(self, model, *_):
        self.stage = model.stage

    def _hook(self, owner, name, kind, before=None):
        original = getattr(owner, name)

        def hooked(*arguments, **keys):
            if before is not None:
                before(*arguments)
            self(kind)
            return original(*arguments, **keys)

        setattr(owner, name, hooked)


def train(arguments: list[str], folder: Path, kill_at=None, log: Path | None = None, seconds=None) -> int:
    """Run the command in a forked process; its exit code, negative for the signal that ended it.

    Args:
        kill_at: the event at which it kills itself.
        log: where the kinds of all events are written at the end.
        seconds: after which it is killed from outside.
    """
    pid = os.fork()
    if pid:
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)  # also one that has ended: it is still ours to wait for
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        with open("printed.txt", "a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            events = Events(kill_at)
            code = main(arguments)
        if log:
            log.write_text(json.dumps(events.kinds))
    except BaseException:
        Path("traceback.txt").write_text(traceback.format_exc())
    os._exit(code)


def outcome(folder: Path) -> tuple[dict, dict]:
    (row,) = json.loads((folder / "r.json").read_text())["models"]
    return row, load_for_recbole(row["checkpoint"], "cpu")


def differences(folder: Path, expected: tuple[dict, dict]) -> list[str]:
    """What is not bit-equal: metrics, epochs, weights, collaborative figures."""
    row, weights = outcome(folder)
    found = [key for key in ("valid", "test", "collaborative", "codes") if row[key] != expected[0][key]]
    for stage, report in expected[0]["stages"].items():
        for key in ("epochs", "best_epoch", "loss"):
            if row["stages"][stage][key] != report[key]:
                found.append(f"{stage} {key}")
    for name, value in expected[1]["state_dict"].items():
        if not torch.equal(value, weights["state_dict"][name]):
            found.append(name)
    return found


def moments(kinds: list[str], number: int, seed: int) -> list[int]:
    """Event numbers (from 1): as many different kinds as there is room for, then any."""
    rng = random.Random(seed)
    by_kind: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds, 1):
        by_kind.setdefault(kind, []).append(place)
    groups = list(by_kind.values())
    rng.shuffle(groups)
    chosen = [rng.choice(group) for group in groups[:number]]
    rest = sorted(set(range(1, len(kinds) + 1)) - set(chosen))
    return sorted(chosen + rng.sample(rest, number - len(chosen)))


def kills(folder: Path, number: int, clock: int, seed: int, arguments: list[str]) -> dict:
    command = ["run", "--result_file", "r.json", "--output_dir", "out", "--checkpoint_every_seconds=0", *arguments]
    log, file = folder / "events.json", folder / "kills.json"
    if not file.exists():
        shutil.rmtree(folder / "alone", ignore_errors=True)
        began = time.time()
        if train(command, folder / "alone", log=log):
            return {"error": (folder / "alone" / "printed.txt").read_text()}
        write_json(file, {"command": command, "seconds_alone": time.time() - began, "runs": []})
    report = json.loads(file.read_text())
    kinds, expected = json.loads(log.read_text()), outcome(folder / "alone")
    report["events"] = len(kinds)
    planned = [("event", moment) for moment in moments(kinds, number, seed)]
    fractions = random.Random(seed + 1)
    planned += [("clock", round(fractions.uniform(0.05, 0.9) * report["seconds_alone"], 2)) for _ in range(clock)]
    for how, moment in planned[len(report["runs"]) :]:
        place = folder / f"{how}-{moment}"
        shutil.rmtree(place, ignore_errors=True)
        killed = train(command, place, **({"kill_at": moment} if how == "event" else {"seconds": moment}))
        while killed == 0:  # it was faster than the one that was timed
            shutil.rmtree(place)
            killed = train(command, place, seconds=(moment := moment / 2))
        at = kinds[moment - 1] if how == "event" else f"after {moment} s: {reached(place)}"
        resumed = train([*command, "--resume"], place)
        trouble = (place / "traceback.txt").read_text() if (place / "traceback.txt").exists() else ""
        printed = (place / "printed.txt").read_text() if (place / "printed.txt").exists() else ""
        report["runs"].append({
            "moment": moment, "kind": at, "killed": killed, "resumed": resumed,
            "differences": differences(place, expected) if resumed == 0 else [trouble or printed[-2000:]],
        })  # fmt: skip
        write_json(file, report)
    return report


def reached(folder: Path) -> str:
    """What a training that was killed from outside had left behind, for people to read."""
    states = sorted((folder / "out" / "resume").glob("*.pt"), key=lambda path: path.stat().st_mtime)
    return f"last state written: {states[-1].name.rpartition('-')[0]}" if states else "no state written yet"


if __name__ == "__main__":
    import transformers  # once for all that are forked

    torch.set_num_threads(1)
    assert transformers.AutoTokenizer and transformers.T5Model
    folder, number, clock, seed, *rest = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps(kills(Path(folder).absolute(), int(number), int(clock), int(seed), rest), indent=1))
