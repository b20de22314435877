"""Resuming in one process: an exception in the middle of an epoch stands for the kill; test_kill.py kills for real."""

import json

import pytest
import torch

from recbole_tokenrec import pipeline
from recbole_tokenrec.checkpoints import load_checkpoint, load_for_recbole
from recbole_tokenrec.errors import CheckpointError, ConfigError, TrainingError
from recbole_tokenrec.pipeline import run_models

pytestmark = pytest.mark.recipe

TOKENREC = {
    "cf_embedding_size": 16, "cf_epochs": 6, "cf_eval_step": 2, "cf_train_batch_size": 16, "mq_num_codebooks": 2,
    "mq_user_num_codebooks": 2, "mq_codebook_size": 8, "mq_codeword_dim": 8, "mq_hidden_size": 16, "mq_epochs": 2,
    "mq_min_steps": 12, "mq_train_batch_size": 16, "llm_epochs": 4, "llm_eval_step": 1, "llm_train_batch_size": 16,
}  # fmt: skip
SETTINGS = {
    "TokenRec": TOKENREC,
    "LightGCN": {"embedding_size": 8, "train_batch_size": 64, "stopping_step": 2},
    "BPR": {"embedding_size": 8, "train_batch_size": 64},
    "NeuMF": {"train_batch_size": 64, "dropout_prob": 0.3},
    "LightGCNSoftmax": {"embedding_size": 8, "train_batch_size": 16},
    "GTN": {"embedding_size": 8, "train_batch_size": 64},
    "LTGNN": {"embedding_size": 8, "train_batch_size": 64},
    "SASRecCE": {"hidden_size": 16, "train_batch_size": 16},
    "BERT4RecCE": {"hidden_size": 16, "train_batch_size": 16},
    "S3RecCE": {"hidden_size": 16, "train_batch_size": 16, "pretrain_epochs": 1},
}


class Killed(BaseException):
    pass


def run(toy_data, name, file, kill_at=None, **keys):
    """One training; with ``kill_at`` it dies at that call of the model's loss."""
    settings = {
        "data_path": str(toy_data), "checkpoint_dir": str(file.parent), "show_progress": False, "state": "ERROR",
        "use_gpu": False, "checkpoint_every_seconds": 0, "seed": 11, **SETTINGS[name], **keys,
    }  # fmt: skip
    if name != "TokenRec":
        settings = {"epochs": 6, "eval_step": 1, **settings}
    calls = 0
    original = pipeline.get_trainer

    def counting_trainer(*arguments):
        trainer_class = original(*arguments)

        def build(config, model):
            nonlocal calls
            loss = model.calculate_loss

            def calculate_loss(interaction):
                nonlocal calls
                calls += 1
                if calls == kill_at:
                    raise Killed
                return loss(interaction)

            trainer = trainer_class(config, model)
            model.calculate_loss = calculate_loss
            return trainer

        return build

    pipeline.get_trainer = counting_trainer
    try:
        result = run_models([name], "toy", (), settings, result_file=file)
    finally:
        pipeline.get_trainer = original
    return result["models"][0], calls


def same(row, other):
    for key in ("valid", "test", "identity"):
        assert row[key] == other[key]
    weights, others = (load_for_recbole(r["checkpoint"], "cpu") for r in (row, other))
    assert weights["epoch"] == others["epoch"]
    for name, value in weights["state_dict"].items():
        assert torch.equal(value, others["state_dict"][name]), name
    for name, value in (weights["other_parameter"] or {}).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, others["other_parameter"][name]), name


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"TokenRec"}))
def test_a_training_that_dies_twice_ends_as_an_uninterrupted_one(name, toy_data, tmp_path):
    expected, calls = run(toy_data, name, tmp_path / "a" / "r.json")
    died = 0
    for at in (calls // 2 + 1, calls // 3 + 1):
        try:
            run(toy_data, name, tmp_path / "b" / "r.json", kill_at=at, resume=died > 0)
        except Killed:
            died += 1
    assert died == 2  # the second is counted from where the first left off, and so is later in the training
    again, rest = run(toy_data, name, tmp_path / "b" / "r.json", resume=True)
    assert rest < calls / 2
    same(again, expected)
    curve, spent = again["curve"], [entry["cpu_seconds"] for entry in again["curve"]["valid"]]
    assert curve["loss"] == expected["curve"]["loss"] and spent == sorted(spent)
    for known, other in zip(curve["valid"], expected["curve"]["valid"], strict=True):
        assert (known["epoch"], known["score"]) == (other["epoch"], other["score"])
    assert spent[-1] <= again["cpu_seconds"]["train"]  # what the killed processes spent counts


PAPER = {  # RecBole's negatives, its loader, one prompt an interaction
    "preset": "paper", "cf_train_batch_size": 128, "llm_train_batch_size": 128, "cf_epochs": 3, "llm_epochs": 2,
}  # fmt: skip


@pytest.mark.parametrize("keys", [{"stage_cache": False}, {"llm_ema": 0.9}, PAPER], ids=["no cache", "ema", "paper"])
def test_tokenrec_resumes_in_every_stage(keys, toy_data, tmp_path, tiny_t5):
    keys = {**keys, "llm_backbone": str(tiny_t5)}
    expected, calls = run(toy_data, "TokenRec", tmp_path / "a" / "r.json", **keys)
    for part in (1, 3, 5):
        folder = tmp_path / f"b{part}"
        with pytest.raises(Killed):
            run(toy_data, "TokenRec", folder / "r.json", kill_at=max(1, calls * part // 6), **keys)
        again, rest = run(toy_data, "TokenRec", folder / "r.json", resume=True, **keys)
        assert rest <= calls - calls * part // 6 + calls // 4
        same(again, expected)
        left = [path.name.split("-")[0] for path in (folder / "resume").iterdir()]
        assert left == ["finished"]


def test_a_finished_run_is_not_trained_again_and_rows_are_kept(toy_data, tmp_path, tiny_t5):
    file, keys = tmp_path / "r.json", {"llm_backbone": str(tiny_t5)}
    expected, _ = run(toy_data, "TokenRec", file, **keys)
    again, calls = run(toy_data, "TokenRec", file, resume=True, **keys)
    assert calls == 0 and again == expected
    file.unlink()  # killed before the result file: the checkpoint is there
    again, calls = run(toy_data, "TokenRec", file, resume=True, **keys)
    assert calls == 0
    same(again, expected)
    changed, calls = run(toy_data, "TokenRec", file, resume=True, llm_learning_rate=3e-3, **keys)
    assert calls > 0 and changed["identity"] != expected["identity"]


def test_other_weights_under_the_same_name_are_another_training(toy_data, tmp_path, tiny_t5):
    from safetensors.torch import load_file, save_file

    file, keys = tmp_path / "r.json", {"llm_backbone": str(tiny_t5)}
    expected, all_calls = run(toy_data, "TokenRec", file, **keys)
    weights = load_file(tiny_t5 / "model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, tiny_t5 / "model.safetensors", {"format": "pt"})
    changed, calls = run(toy_data, "TokenRec", file, resume=True, **keys)
    assert changed["identity"] != expected["identity"] and changed["checkpoint"] != expected["checkpoint"]
    assert 0 < calls < all_calls  # the stages before the language model are those of before


def test_rows_of_other_data_are_not_kept(toy_data, tmp_path):
    file = tmp_path / "r.json"
    run(toy_data, "BPR", file)
    content = json.loads(file.read_text())
    content["dataset"]["fingerprint"] = "0" * 16
    file.write_text(json.dumps(content))
    _, calls = run(toy_data, "BPR", file, resume=True)
    assert calls > 0


def test_without_the_flag_nothing_of_before_is_read(toy_data, tmp_path):
    _, calls = run(toy_data, "BPR", tmp_path / "fresh" / "r.json")
    with pytest.raises(Killed):
        run(toy_data, "BPR", tmp_path / "r.json", kill_at=calls - 1)
    assert list((tmp_path / "resume").iterdir())
    assert run(toy_data, "BPR", tmp_path / "r.json")[1] == calls


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(toy_data, tmp_path, tiny_t5, monkeypatch):
    from recbole_tokenrec.collaborative.sparse_lightgcn import SparseLightGCN
    from recbole_tokenrec.models.tokenrec import TokenRec

    def broken_after(owner, good_steps, stage):
        original, steps = owner.calculate_loss, 0

        def calculate_loss(self, interaction):
            nonlocal steps
            loss = original(self, interaction)
            if getattr(self, "stage", stage) != stage:
                return loss
            steps += 1
            return loss if steps <= good_steps else loss * float("inf")

        monkeypatch.setattr(owner, "calculate_loss", calculate_loss)

    keys = {"llm_backbone": str(tiny_t5), "llm_learning_rate": 0.001}
    with monkeypatch.context(), pytest.raises(TrainingError) as caught:
        broken_after(TokenRec, 4, "llm")
        run(toy_data, "TokenRec", tmp_path / "t" / "r.json", **keys)
    text = str(caught.value)
    assert text.startswith("LLM4Rec stage: the loss is inf in epoch 1, step 1; the last good state, of epoch 0, is")
    assert text.endswith("lower llm_learning_rate (0.001)"), text
    (file,) = (tmp_path / "t").glob("*.pth")
    checkpoint = load_checkpoint(file)
    assert checkpoint["other_parameter"]["stage"] == "llm"
    assert all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values() if v.is_floating_point())
    broken_after(SparseLightGCN, 4, "")
    with pytest.raises(TrainingError, match=r"LightGCN: the loss is inf in epoch 0; lower learning_rate \(0.005\)"):
        run(toy_data, "LightGCN", tmp_path / "b" / "r.json")


def test_a_damaged_state_is_an_error_and_is_left_alone(toy_data, tmp_path, tiny_t5):
    file, keys = tmp_path / "r.json", {"llm_backbone": str(tiny_t5)}
    with pytest.raises(Killed):
        run(toy_data, "TokenRec", file, kill_at=12, **keys)
    (state,) = (tmp_path / "resume").iterdir()
    assert "inside" in load_checkpoint(state)
    damaged = bytearray(state.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    state.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"{state.name}: the checkpoint is damaged"):
        run(toy_data, "TokenRec", file, resume=True, **keys)
    assert state.read_bytes() == damaged


def test_the_best_checkpoint_of_a_resumed_baseline_must_be_there(toy_data, tmp_path):
    file = tmp_path / "r.json"
    with pytest.raises(Killed):
        run(toy_data, "BPR", file, kill_at=20)
    for checkpoint in tmp_path.glob("*.pth"):
        checkpoint.unlink()
    with pytest.raises(CheckpointError, match="the checkpoint of the best epoch, .* is gone"):
        run(toy_data, "BPR", file, resume=True)


@pytest.mark.parametrize(("key", "value"), [("resume", "perhaps"), ("checkpoint_every_seconds", -1)])
def test_keys_are_checked(key, value, toy_data, tmp_path):
    with pytest.raises(ConfigError, match=f"{key}: .* is not allowed; allowed: "):
        run(toy_data, "BPR", tmp_path / "r.json", **{key: value})
