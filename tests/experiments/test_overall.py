"""The page of rows with unequal numbers of seeds, from records made by hand."""

import numpy as np
import pytest

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments.overall import ROWS, chosen, report
from recbole_tokenrec.experiments.report import markdown
from recbole_tokenrec.experiments.statistics import ndcg_per_user

pytestmark = pytest.mark.unit
USERS = 200
METRICS = [f"{name}@{k}" for name in ("hit", "ndcg") for k in (10, 20, 30)]


def record(label, seed, best, *more):
    """Of a training whose held-out items are ranked 1 to ``best``; ``more`` are labels of its further rows."""
    rng = np.random.default_rng(seed + len(label))
    rows = []
    for name in (label, *more):
        ranks = {split: rng.integers(1, best, USERS).tolist() for split in ("valid", "test")}
        values = {split: dict.fromkeys(METRICS, ndcg_per_user([ranks[split]]).mean()) for split in ranks}
        rows.append({"label": name, "ranks": ranks, **values})
    data = {"name": "toy", "users": USERS, "items": 50, "interactions": 2000}
    return {"label": label, "seed": seed, "rows": rows, "data": data, "seconds": {"train": 7.0}, "peak_rss_mb": 90.0,
            "parameters": 1234, "config": {}, "versions": {}}  # fmt: skip


@pytest.fixture
def records():
    return [
        record("Pop", 1, 400), record("BPR", 1, 60), record("BPR", 2, 60), record("BPR", 3, 60), record("CID", 1, 20),
        *(record("TokenRec", seed, 10, "TokenRec (unseen prompt)") for seed in (1, 2, 3)),
    ]  # fmt: skip


def table(page, title):
    """Label -> line of the table of this title."""
    lines = page.split(f"## {title}\n")[1].split("##")[0].splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}


def test_the_page_says_which_rows_have_one_seed(records):
    page = markdown(report(records, False), "command")
    assert (
        "Mean ± standard deviation over 3 seeds (1, 2, 3); of one seed (1) alone, without a deviation: CID. "
        "No seed changes Pop.\n" in page
    )
    for title in ("Validation", "Test"):
        lines = table(page, title)
        assert {label: line.count("±") for label, line in lines.items() if label != "model"} == {
            "Pop": 0, "BPR": 6, "CID": 0, "TokenRec": 6, "TokenRec (unseen prompt)": 6,
        }  # fmt: skip
    assert list(table(page, "Cost"))[1:] == ["Pop", "BPR", "CID", "TokenRec"]
    everywhere = [r for r in records if r["label"] != "CID"]
    assert "over 3 seeds (1, 2, 3). No seed changes Pop.\n" in markdown(report(everywhere, False), "command")
    assert "NDCG@20. One seed (1)." in markdown(report([r for r in records if r["seed"] == 1], False), "command")


def test_what_came_out_of_a_cache_costs_what_its_own_training_took(records):
    taken = next(r for r in records if r["label"] == "TokenRec")  # the first seed's, which the table is of
    taken["stages"] = {"cf": {"seconds": 100.0, "peak_rss_mb": 80.0}, "llm": {"seconds": 600.4, "peak_rss_mb": 812.0}}
    lines = table(markdown(report(records, False), "command"), "Cost")
    assert [cell.strip() for cell in lines["TokenRec"].split("|")[2:5]] == ["700", "812", "1,234"]
    assert [cell.strip() for cell in lines["BPR"].split("|")[2:5]] == ["7", "90", "1,234"]


def test_a_model_that_is_fitted_while_it_is_built_costs_that_time(records):
    records[0]["seconds"] = {"build": 165.4, "train": 7.0}
    assert "| 172 " in table(markdown(report(records, False), "command"), "Cost")["Pop"]


def test_the_page_says_which_machine_trained_which_rows(records):
    assert "Trained on" not in markdown(report(records, False), "command")  # records of before have no machine
    milan = {"cpu": "EPYC", "torch_cpu_capability": "AVX2", "threads": 1, "device": "cpu"}
    for number, entry in enumerate(records):
        entry["machine"] = milan if number < 5 else {**milan, "torch_cpu_capability": "AVX512"}
        entry.update({"precision": "bf16"} if number >= 5 else {})
    page = markdown(report(records, False), "command")
    assert (
        "Trained on EPYC (AVX2), 1 thread(s): Pop, BPR, CID; "
        "EPYC (AVX512), 1 thread(s), matrix products in bfloat16: TokenRec." in page
    )


def test_a_rival_of_one_seed_is_compared_user_by_user_with_the_mean_over_the_others_seeds(records):
    found = report(records, False).content["comparisons"]
    against = next(c for c in found if c["row"] == "TokenRec" and c["role"] == "best baseline")
    assert against["rival"] == "CID"  # the best on both splits, whatever its number of seeds
    mean = {}
    for label in ("CID", "TokenRec"):
        rows = [r["rows"][0]["ranks"] for r in records if r["label"] == label]
        mean[label] = np.mean([ndcg_per_user([ranks[split]]).mean() for ranks in rows for split in ranks])
    assert against["difference"] == pytest.approx(mean["TokenRec"] - mean["CID"])
    assert against["ratio"] == pytest.approx(mean["TokenRec"] / mean["CID"])
    assert against["low"] < against["difference"] < against["high"] and against["p"] < 0.01


def test_each_baseline_is_compared_by_both_metrics(records):
    made = report(records, False)
    title = "How many times each baseline TokenRec is (p), validation and test together, and test alone"
    lines = table(markdown(made, "command"), title)
    assert list(lines) == ["baseline", "Pop", "BPR", "CID"]
    ndcg, hit = (
        next(c for c in made.content["every_baseline"] if (c["rival"], c["metric"]) == ("BPR", metric))
        for metric in ("ndcg@20", "hit@20")
    )
    assert ndcg["ratio"] == pytest.approx(made.content["comparisons"][0]["ratio"] * _over("CID", "BPR", records))
    found = [
        np.mean(
            [
                np.asarray(ranks) <= 20
                for r in records
                if r["label"] == label
                for ranks in r["rows"][0]["ranks"].values()
            ]
        )
        for label in ("TokenRec", "BPR")
    ]
    assert hit["ratio"] == pytest.approx(found[0] / found[1])
    assert f"| {ndcg['ratio']:.3f} ({ndcg['p']:.2g}) " in lines["BPR"] and f"{hit['ratio']:.3f} (" in lines["BPR"]


def test_the_test_items_alone_stand_beside_both_splits(records):
    rival = next(r for r in records if r["label"] == "CID")["rows"][0]["ranks"]
    for entry in (r for r in records if r["label"] == "TokenRec"):  # all of the lead is on validation
        entry["rows"][0]["ranks"] = {"valid": [1] * USERS, "test": rival["test"]}
    made = report(records, False)
    against = next(c for c in made.content["comparisons"] if (c["row"], c["rival"]) == ("TokenRec", "CID"))
    assert against["ratio"] > 1.2 and against["p"] < 1e-6 and against["test"]["ratio"] == 1.0
    lines = [line for line in markdown(made, "command").splitlines() if "| CID (best baseline)" in line]
    assert "| 1.000 (" in next(line for line in lines if line.startswith("| TokenRec  "))


@pytest.mark.parametrize(
    "rows, told",
    [
        ([], "items here."),
        (["SASRec"], "items here, as it is used by SASRec."),
        (["TokenRec (order-blind)"], ", and the order-blind row is compared"),
    ],
)
def test_the_page_speaks_of_those_rows_only_that_it_has(records, rows, told):
    page = markdown(report([*records, *(record(label, 1, 50) for label in rows)], True), "command")
    assert told in page and ("order-blind row" in page) == ("TokenRec (order-blind)" in rows)


def test_a_page_without_tokenrec_compares_nothing(records):
    page = markdown(report([r for r in records if not r["label"].startswith("TokenRec")], True), "command")
    assert "## Test" in page and "## Cost" in page and "rivals" not in page and "How many times" not in page


def _over(label, other, records):
    """Ratio of two rows' mean NDCG@20 over seeds and splits."""
    means = [
        np.mean(
            [
                ndcg_per_user([ranks]).mean()
                for r in records
                if r["label"] == name
                for ranks in r["rows"][0]["ranks"].values()
            ]
        )
        for name in (label, other)
    ]
    return means[0] / means[1]


def test_the_best_baseline_is_best_on_both_splits_and_the_cosine_stage_does_not_hide_the_others(records):
    lucky = record("BERT4Rec", 1, 400)  # by validation alone it would be the rival
    lucky["rows"][0]["ranks"]["valid"] = [1] * USERS
    lucky["rows"][0]["valid"]["ndcg@20"], lucky["rows"][0]["test"]["ndcg@20"] = 0.6, 0.0
    found = report([*records, lucky], False).content["comparisons"]
    cid = np.mean([record("CID", 1, 20)["rows"][0][split]["ndcg@20"] for split in ("valid", "test")])
    assert cid > 0.3  # the mean of 0.6 and 0
    assert [c["rival"] for c in found if c["row"] == "TokenRec"] == ["CID"]
    found = report([*records, record("LightGCN-softmax", 1, 12)], False).content["comparisons"]
    assert [(c["rival"], c["role"]) for c in found if c["row"] == "TokenRec"] == [
        ("LightGCN-softmax", "best baseline"), ("CID", "best but LightGCN-softmax"),
    ]  # fmt: skip


def test_once_changes_the_seeds_of_its_rows_and_nothing_else():
    labels = [row.label for row in ROWS]
    rows = chosen(ROWS, None, "P5-RID", "CID;POD;P5-RID")
    assert [row.label for row in rows] == [label for label in labels if label != "P5-RID"]
    changed = [(old.label, new) for old, new in zip((r for r in ROWS if r.label != "P5-RID"), rows) if old != new]
    assert [label for label, _ in changed] == ["CID", "POD"] and not any(new.seeded for _, new in changed)
    with pytest.raises(ConfigError, match="rows: 'CIDD' is not known; did you mean 'CID'"):
        chosen(ROWS, "CID", None, "CIDD")
