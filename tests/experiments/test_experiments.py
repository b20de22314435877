"""The commands on the toy data: four files, resumable, ranks that give the metrics, mistakes in one line."""

import json

import numpy as np
import pytest

from recbole_tokenrec.cli.main import main
from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments import levers
from recbole_tokenrec.experiments.efficiency import RIVALS
from recbole_tokenrec.experiments.generalize import _paired
from recbole_tokenrec.experiments.quoted import quoted
from recbole_tokenrec.experiments.runs import Bench, Run, record_path
from recbole_tokenrec.experiments.statistics import ndcg_per_user
from recbole_tokenrec.options import check
from recbole_tokenrec.settings import OPTIONS, read_settings
from tests.experiments.fast import FAST

pytest.importorskip("matplotlib")


@pytest.mark.recipe
def test_overall_writes_all_files_and_goes_on_where_it_stopped(experiment, monkeypatch, capsys):
    code, result, folder = experiment("overall", "--rows", "Pop;BPR;TokenRec", *FAST, seeds=2)
    assert code == 0
    page = (folder / "index.html").read_text()
    assert "<svg" in page and "http://" not in page.split("</svg>")[1] and "TokenRec" in page
    assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
    labels = ["Pop", "BPR", "TokenRec", "TokenRec (unseen prompt)"]
    labels += [f"TokenRec: own stage, {score}" for score in ("dot", "cosine")]
    assert list(result["rows"]) == labels
    assert result["rows"]["Pop"]["seeds"] == [2020] and result["rows"]["BPR"]["seeds"] == [2020, 2021]
    roles = {(c["row"], c["role"]) for c in result["comparisons"]}
    assert {("TokenRec", "best baseline"), ("TokenRec", "its own stage")} <= roles
    assert ("TokenRec (unseen prompt)", "seen prompt") in roles
    text = (folder / "result.md").read_text()
    assert "recbole-tokenrec experiment overall --dataset toy --seeds 2" in text and "±" in text

    # ranks are those of the metrics
    records = [json.loads(file.read_text()) for file in (folder / "runs").glob("*.json")]
    assert len(records) == 5
    for record in records:
        for row in record["rows"]:
            for split in ("valid", "test"):
                assert len(row["ranks"][split]) == 48
                mean = ndcg_per_user([row["ranks"][split]]).mean()
                assert mean == pytest.approx(row[split]["ndcg@20"], abs=1e-5)

    # nothing is trained again; a changed setting is
    monkeypatch.setattr("recbole_tokenrec.experiments.runs.run_model", None)
    assert experiment("overall", "--rows", "Pop;BPR;TokenRec", *FAST, seeds=2)[1] == result
    with pytest.raises(TypeError):
        experiment("overall", "--rows", "Pop;BPR;TokenRec", *FAST, "--mq_beta=0.5", seeds=2)
    capsys.readouterr()


@pytest.mark.recipe
def test_history_asks_the_trainings_of_overall_again_with_the_validation_item_known(
    experiment, monkeypatch, capsys
):
    rows = "EASE, recency;LightGCN-softmax;TokenRec"
    trained = experiment("overall", "--rows", rows, *FAST)[1]["rows"]
    monkeypatch.setattr("recbole_tokenrec.experiments.runs.run_model", None)
    code, result, folder = experiment("history", "--rows", rows, *FAST)
    assert code == 0
    for label, row in result["rows"].items():
        assert row["train"]["ndcg@20"]["mean"] == pytest.approx(trained[label]["test"]["ndcg@20"]["mean"], abs=1e-5)
        assert row["train_valid"] != row["train"]
    assert set(result["rows"]) == {*rows.split(";"), "TokenRec: own stage, cosine"}
    text = (folder / "result.md").read_text()
    assert "recbole-tokenrec experiment history --dataset toy --rows 'EASE, recency;" in text
    assert "| TokenRec " in text and "TokenRec: own stage, cosine |" in text

    record = next((folder.parent.parent / "overall" / "toy" / "runs").glob("ease*"))
    content = json.loads(record.read_text())
    content["rows"][0]["ranks"]["test"][0] += 1
    record.write_text(json.dumps(content))
    assert experiment("history", "--rows", rows, *FAST)[0] == 2
    assert "other ranks than its record holds; delete the row's file" in capsys.readouterr().err
    content["checkpoint"] = "gone.pth"
    record.write_text(json.dumps(content))
    assert experiment("history", "--rows", rows, *FAST)[0] == 2
    assert "gone.pth: the checkpoint of row 'EASE, recency', seed 2020, is gone" in capsys.readouterr().err


@pytest.mark.recipe
def test_overall_trains_the_rows_of_once_with_the_first_seed_only(experiment):
    arguments = ["--rows", "Pop;BPR;GTN", *FAST]
    code, result, folder = experiment("overall", *arguments, "--once", "GTN;BERT4Rec", seeds=2)
    assert code == 0
    seeds = {label: row["seeds"] for label, row in result["rows"].items()}
    assert seeds == {"Pop": [2020], "BPR": [2020, 2021], "GTN": [2020]}
    assert sorted(file.name[:8] for file in (folder / "runs").iterdir()) == [
        "bpr-2020", "bpr-2021", "gtn-2020", "pop-2020",
    ]  # fmt: skip
    text = (folder / "result.md").read_text()
    assert "--once 'GTN;BERT4Rec'" in text and "without a deviation: GTN." in text

    # all seeds later: what is trained is read back, and the page says otherwise
    again = experiment("overall", *arguments, seeds=2)[1]
    assert again["rows"]["GTN"]["seeds"] == [2020, 2021] and len(list((folder / "runs").iterdir())) == 5
    assert "of one seed" not in (folder / "result.md").read_text()


@pytest.mark.recipe
def test_ablation_compares_every_part_with_the_full_model(experiment, monkeypatch):
    from recbole_tokenrec.experiments import ablation

    original, full = ablation.variants, []

    def some(settings):
        found = original(settings)
        full.extend(found)
        return {label: found[label] for label in ("full", "w/o HOCK", "tokens: residual quantisation")}

    monkeypatch.setattr(ablation, "variants", some)
    code, result, _ = experiment("ablation", "--preset", "user_id_only", *FAST)
    assert code == 0
    expected = {"full", "w/o HOCK", "w/o K-way", "w/o masking", "tokens: residual quantisation", "tokens: k-means"}
    assert expected <= set(full)
    assert set(result["against_reference"]) == set(result["variants"]) - {"full"}


@pytest.mark.unit
@pytest.mark.parametrize("preset", ["tuned", "user_id_only", "paper"])
def test_levers_turn_one_key_of_the_preset_to_an_allowed_value(preset, toy_data):
    def config(**keys):
        return make_config("TokenRec", "toy", (), {"preset": preset, "data_path": str(toy_data), **keys})

    settings = config()
    table = levers.variants(settings, None)
    assert table.pop(levers.REFERENCE) == {} and len(table) > 15
    for label, keys in table.items():
        ((key, value),) = keys.items()
        assert label == f"{key}: {value}" and settings[key] != value
        assert getattr(read_settings(config(**keys)), key) == check(key, value, OPTIONS[key])
    listed = {key for keys in table.values() for key in keys}
    assert ("prompt_max_history" in listed) == settings["prompt_history"]
    assert ("llm_horizon" in listed) == (settings["prompt_decoder_items"] > 0)
    assert set(levers.variants(settings, "mq_beta")) == {levers.REFERENCE, *(n for n in table if "mq_beta" in n)}


def test_seen_users_count_as_often_as_the_unseen_have_as_many_items():
    from recbole_tokenrec.experiments.generalize import as_many_items

    #         unseen ------  seen: 3 items -  4 items -  9 items
    ranks = [1, 0, 0, 0, 0, 1, 0, 30, 0, 2, 0, 1]
    items = np.array([3, 3, 3, 4, 7, 3, 3, 3, 3, 4, 4, 9])
    unseen = np.arange(12) < 5
    found = as_many_items(ranks, unseen, items)
    assert found["hit@20"] == pytest.approx((3 * 1 / 4 + 1 * 1 / 2) / 4)  # nobody seen has 7, nobody unseen 9
    assert found["ndcg@20"] == pytest.approx((3 * 1 / 4 + 1 * (1 / np.log2(3)) / 2) / 4)
    assert np.isnan(as_many_items(ranks, unseen, np.where(unseen, 1, items))["hit@20"])


@pytest.mark.recipe
def test_ranks_belong_to_their_users_though_some_have_no_validation_item(toy_data, tmp_path, monkeypatch):
    """Users of one and of two interactions come first: the ranks of the others then lie elsewhere than they number."""
    few = "".join(f"s{user}\tg0i{user}\t1\n" + f"s{user}\tg0i{user + 1}\t2\n" * (user % 2) for user in range(8))
    header, rows = (toy_data / "toy" / "toy.inter").read_text().split("\n", 1)
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "few.inter").write_text(f"{header}\n{few}{rows}")
    where = ["--dataset", "few", "--data_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main(["experiment", "generalize", *where, "--share", "0.2", "--group", "random", *FAST]) == 0
    folder = tmp_path / "out" / "experiments" / "generalize" / "few"
    (record,) = (json.loads(file.read_text()) for file in (folder / "runs").glob("unseen*.json"))
    assert len(record["ranks"]["valid"]) == 48 and len(record["ranks"]["test"]) == 52
    result = json.loads((folder / "tuned-random" / "result.json").read_text())
    for split in ("valid", "test"):
        unseen = np.isin(record["evaluated"][split], record["users"])
        assert unseen.sum() == len(record["users"]) == 10
        mean = ndcg_per_user([np.array(record["ranks"][split])[unseen]]).mean()
        assert result["figures"]["unseen users"][split]["ndcg@20"]["mean"] == pytest.approx(mean)


@pytest.mark.recipe
def test_efficiency_times_the_same_users_with_every_model(experiment):
    code, result, _ = experiment(
        "efficiency", "--backbone", "t5-scratch-mini", "--users", "4", "--rounds", "1", "--k", "5",
        *(key for key in FAST if not key.startswith("--llm_backbone")),  # it has a key of its own
    )
    assert code == 0
    ours = {"TokenRec", "TokenRec (user-ID-only)", "TokenRec, K = 3, 20 items", "TokenRec, K = 3 (user-ID-only)"}
    assert set(result["acceleration"]) == ours and set(result["ms_per_user"]) == {*RIVALS, *ours}
    assert all(value > 0 for value in result["ms_per_user"].values())
    assert result["acceleration"]["TokenRec"]["P5"] == pytest.approx(
        result["ms_per_user"]["P5"] / result["ms_per_user"]["TokenRec"]
    )


@pytest.mark.recipe
def test_curves_read_the_trainings_of_overall(experiment, monkeypatch):
    keys = ["--epochs=2", "--eval_step=1", "--show_progress=false"]
    code, result, folder = experiment("curves", "--rows", "BPR;GTN", "--resume=false", *keys)
    assert code == 0 and list(result["rows"]) == ["BPR", "GTN"]
    command = (folder / "result.md").read_text()
    assert "--epochs=2" in command and "show_progress" not in command and "resume" not in command
    for label in result["rows"]:
        row, curve = result["rows"][label], result["curves"][label]
        assert len(curve["loss"]) == row["epochs"] == 2 and [point["epoch"] for point in curve["valid"]] == [1, 2]
        assert curve["valid"][0]["cpu_seconds"] < curve["valid"][1]["cpu_seconds"] <= 60 * row["minutes"]
        best = curve["valid"][row["best_epoch"] - 1]["score"]
        assert best == max(point["score"] for point in curve["valid"]) == pytest.approx(row["valid"], abs=1e-5)
        assert row["x popularity"]["test"] == pytest.approx(row["test"] / result["popularity"]["test"])
    assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr("recbole_tokenrec.experiments.runs.run_model", None)  # overall has nothing left to train
    assert experiment("overall", "--rows", "Pop;BPR;GTN", *keys)[1]["rows"]["BPR"]["valid"]


@pytest.mark.recipe
def test_tune_orders_the_grid_by_validation(experiment):
    code, result, _ = experiment("tune", "--model", "EASE", "--show_progress=false", folder="EASE")
    assert code == 0
    scores = {point["reg_weight"]: point["valid_ndcg@20"] for point in result["points"]}
    assert len(scores) == 8 and result["best"]["reg_weight"] == max(scores, key=scores.get)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["overall", "--rows", "EASI"], "rows: 'EASI' is not known; did you mean 'EASE'?"),
        (["overall", "--rows", "EASE", "--without", "EASE"], "rows: none is left"),
        (["overall", "--once", "CIDD"], "rows: 'CIDD' is not known; did you mean 'CID'?"),
        (["overall", "--seeds", "0"], "--seeds: 0 is not allowed"),
        (["overall", "--mq_num_codeboks=3"], "unknown configuration key 'mq_num_codeboks'; did you mean"),
        (["ablation", "--preset", "tunned"], "preset: 'tunned' is not known"),
        (["generalize", "--share", "1.5"], "--share: 1.5 is not allowed"),
        (["efficiency", "--users", "0"], "--users: 0 is not allowed"),
        (["overall", "--eval_args={split: {RS: [0.8, 0.1, 0.1]}}"], "eval_args: {'split': {'RS': [0.8, 0.1, 0.1]}, "),
        (["overall", "--eval_args={mode: uni100}"], "experiments compare users by the rank of the one item held out"),
        (["overall", "--metrics=[GAUC]", "--valid_metric=GAUC"], "metrics: ['GAUC'] is not allowed"),
        (["overall", "--topk=[10, 20]"], "topk: [10, 20] is not allowed; allowed: a list with 10, 20, 30, which this "),
        (["overall", "--metrics=[NDCG]"], "metrics: ['NDCG'] is not allowed; allowed: a list with Hit, NDCG: this"),
        (["ablation", "--topk=[10]", "--valid_metric=NDCG@10"], "topk: [10] is not allowed; allowed: a list with 20"),
        (["curves", "--metrics=[Hit]", "--valid_metric=Hit@20"], "metrics: ['Hit'] is not allowed; allowed: a list"),
        (["generalize", "--topk=5", "--valid_metric=NDCG@5"], "topk: [5] is not allowed; allowed: a list with 20"),
        (["tune", "--model", "BPR", "--topk=[5]", "--valid_metric=NDCG@5"], "topk: [5] is not allowed"),
        (["curves", "--rows", "TokenRec"], "rows: 'TokenRec' is not known"),
        (["tune", "--model", "Pop"], "'Pop' has no grid"),
        (["ablation", "--mq_beta=-1"], "mq_beta: -1"),
        (["overall", "--preset=paper"], "preset: 'paper' was set for every row, but row"),
        (["generalize", "--preset", "paper", "--cf_model=BPR"], "cf_model: 'BPR' is not allowed; allowed: LightGCN"),
        (["masking", "--mq_masking_ratio=0.3"], "0.3 was set for every row, but row 'rho = 0.0' is what it is"),
        (["levers", "--only", "cf_temprature"], "only: 'cf_temprature' is not known; did you mean 'cf_temperature'?"),
    ],
)
def test_mistakes_are_one_line(arguments, text, toy_data, tmp_path, capsys):
    where = ["--dataset", "toy", "--data_path", str(toy_data), "--output_dir", str(tmp_path / "out")]
    assert main(["experiment", arguments[0], *where, *arguments[1:], "--show_progress=false"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and text in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.unit
def test_a_file_where_results_are_to_go_is_told_before_the_trainings(toy_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recbole_tokenrec.experiments.runs.run_model", lambda config: pytest.fail("trained"))
    (tmp_path / "out").write_text("mine")
    where = ["--dataset", "toy", "--data_path", str(toy_data), "--output_dir", "out"]
    assert main(["experiment", "overall", "--rows", "BPR", *where, "--show_progress=false"]) == 2
    assert "--output_dir: the folder out/experiments/overall/toy cannot be made" in capsys.readouterr().err


@pytest.mark.unit
def test_a_training_that_fails_closes_its_bar(tmp_path, monkeypatch, capsys):
    import tqdm

    from recbole_tokenrec.experiments import runs

    monkeypatch.setattr(runs, "_train", lambda *_: 1 / 0)
    bench = Bench("ml-100k", tmp_path, (2020,), (), {"state": "ERROR", "checkpoint_dir": str(tmp_path)})
    before = set(tqdm.tqdm._instances)
    with pytest.raises(ZeroDivisionError):
        runs.carry_out([Run("Pop", "Pop")], bench)
    assert set(tqdm.tqdm._instances) <= before


@pytest.mark.unit
def test_keys_of_a_file_count_as_those_of_the_command_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mq_masking_ratio: 0.55\npreset: paper\n")
    bench = Bench("ml-100k", tmp_path, (2020,), (str(file),), {"state": "ERROR", "llm_backbone": "t5-scratch-mini"})
    with pytest.raises(ConfigError, match="mq_masking_ratio: 0.55 was set for every row, but row 'rho = 0.2'"):
        bench.config(Run("rho = 0.2", "TokenRec", {"mq_masking_ratio": 0.2}, preset="paper"), 2020)
    with pytest.raises(ConfigError, match="preset: 'paper' was set for every row, but row 'TokenRec' is what it is by"):
        bench.config(Run("TokenRec", "TokenRec", preset="tuned"), 2020)
    config = bench.config(Run("TokenRec", "TokenRec", preset="paper"), 2021)
    assert config["mq_masking_ratio"] == 0.55 and config["cf_loss"] == "own" and config["seed"] == 2021


@pytest.mark.unit
def test_a_training_that_was_killed_goes_on_unless_the_user_does_not_want_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("resume: false\n")
    run, quiet = Run("BPR", "BPR"), {"state": "ERROR"}
    assert Bench("ml-100k", tmp_path, (2020,), (), quiet).config(run, 2020)["resume"] is True
    assert Bench("ml-100k", tmp_path, (2020,), (str(file),), quiet).config(run, 2020)["resume"] is False
    assert Bench("ml-100k", tmp_path, (2020,), (), {**quiet, "resume": False}).config(run, 2020)["resume"] is False


@pytest.mark.recipe
def test_seed_and_preset_of_a_file_count_and_the_page_prints_a_command_that_makes_it(experiment, tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 77\nepochs: 1\n")
    code, result, folder = experiment("overall", "--config_files", str(file), "--rows", "BPR", "--show_progress=false")
    assert code == 0 and result["rows"]["BPR"]["seeds"] == [77]
    assert f"--seed 77 --config_files {file}" in (folder / "result.md").read_text()
    seen = []
    masking = "recbole_tokenrec.experiments.masking.run"
    monkeypatch.setattr(masking, lambda bench, arguments: seen.append(arguments) or 1 / 0)
    for content, arguments, preset in (
        ("preset: paper\n", [], "paper"), ("preset: paper\n", ["--preset", "user_id_only"], "user_id_only"),
        ("seed: 1\n", [], "tuned"),
    ):  # fmt: skip
        file.write_text(content)
        with pytest.raises(ZeroDivisionError):
            main(["experiment", "masking", "--config_files", str(file), "--output_dir", str(tmp_path), *arguments])
        assert seen.pop().preset == preset


@pytest.mark.unit
def test_somebody_whom_several_seeds_leave_out_counts_once():
    def both(ranks):
        return {"valid": list(ranks), "test": list(ranks)}

    # of four users the first two seeds leave out 1 and 2, the third 1 and 3; 1 is always found at once, unseen only
    records = [
        {"users": [1, 2], "evaluated": both([1, 2, 3, 4]), "ranks": both([1, 0, 5, 5])},
        {"users": [1, 2], "evaluated": both([1, 2, 3, 4]), "ranks": both([1, 3, 5, 5])},
        {"users": [1, 3], "evaluated": both([1, 2, 3, 4]), "ranks": both([1, 5, 0, 5])},
    ]
    trained = [{"rows": [{"ranks": both([0, 3, 3, 3])}]}] * 3
    found = _paired(trained, records)
    assert found["users"] == 3
    assert found["difference"] == pytest.approx(np.mean([1.0, (0.5 + 0.0) / 2 - 0.5, 0.0 - 0.5]))


@pytest.mark.unit
def test_records_of_other_code_or_keys_have_other_names(tmp_path, monkeypatch):
    bench = Bench("ml-100k", tmp_path, (2020,), (), {"state": "ERROR"})
    run = Run("Pop", "Pop")

    def path(**keys):
        asked = bench._replace(overrides={**bench.overrides, **keys})
        return record_path(asked, run, 2020, asked.config(run, 2020))

    before = path()
    assert path() == before and path(show_progress=False) == before
    assert path(topk=[10, 20]) != before
    monkeypatch.setattr("recbole_tokenrec.pipeline.code_digest", lambda: "another")
    assert path() != before and path().name.startswith("pop-2020-")


def test_a_part_of_the_papers_data_is_not_compared_with_its_numbers():
    assert quoted("overall", {"name": "beauty", "users": 22363})["TokenRec"][4] == 0.0276
    for name in ("beauty", "toy"):
        assert quoted("overall", {"name": name, "users": 2680}) == {}
