"""Tokens made visible: the table agrees with the model, the figures with the table."""

import pytest

from recbole_tokenrec.api.tokens import draw_png, picture, token_report

pytestmark = pytest.mark.recipe


def test_table_and_report_agree(recommender):
    table = recommender.tokens()
    assert list(table.columns) == ["kind", "id", "title", "tokens", "shared_with"]
    assert table["kind"].value_counts().to_dict() == {"user": 48, "item": 48}
    model, data = recommender.model, recommender.data
    row = table[(table["kind"] == "item") & (table["id"] == "g2i5")].iloc[0]
    codes = model.item_codes[data.item_numbers["g2i5"]].tolist()
    assert row["tokens"] == "".join(f"<v{k + 1}-{code}>" for k, code in enumerate(codes))
    assert row["title"] == "Film 5 of 2"

    report = token_report(recommender, neighbours=3)
    for kind in ("user", "item"):
        own, figures = table[table["kind"] == kind], report[kind]
        sizes = own["tokens"].value_counts()
        assert figures["unique_share"] == pytest.approx((sizes == 1).sum() / 48)
        assert sum(map(len, figures["collisions"])) == sizes[sizes > 1].iloc[:20].sum()
        for group in figures["collisions"]:
            assert own[own["id"].isin(group)]["tokens"].nunique() == 1
        assert (own["shared_with"] + 1).tolist() == own["tokens"].map(sizes).tolist()
        # what is near shares tokens: that is what the tokenizer is for
        assert figures["tokens_shared_with_nearest"] > 1.5 * figures["tokens_shared_with_random"]
        assert len(figures["codebook_use"]) == figures["codebooks"] == 3 and figures["codebook_size"] == 16
    first = report["item"]["neighbours"][0]
    assert len(first["nearest"]) == 3 and all(near["id"] != first["id"] for near in first["nearest"])
    assert all(token in first["tokens"] for near in first["nearest"] for token in near["shared"])


def test_pictures(recommender, tmp_path):
    figure = picture(recommender)
    assert len(figure.data) == 4 and figure.data[0].customdata.sum() == 48 * 3
    pytest.importorskip("matplotlib")
    draw_png(recommender, tmp_path / "codebooks.png")
    assert (tmp_path / "codebooks.png").read_bytes()[:4] == b"\x89PNG"
