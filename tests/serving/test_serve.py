"""``recbole-tokenrec serve`` as a process, asked over real HTTP, and its page in a real browser."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def address(trained):
    command = [sys.executable, "-m", "recbole_tokenrec.cli.main", "serve", "--checkpoint", trained(), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    line = server.stdout.readline()
    assert line.startswith("serving TokenRec on http://127.0.0.1:"), line
    yield line.split()[3]
    server.terminate()
    server.wait(30)  # and not hang


def ask(address, path, body=None):
    """Status and JSON; ``body``: bytes, or what is sent as JSON."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, content, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_answers(address, recommender):
    assert ask(address, "/health") == (200, {
        "status": "ok", "model": "TokenRec", "dataset": "toy", "users": 48, "items": 48, "takes_histories": True,
    })  # fmt: skip
    expected = recommender.recommend("g2u5", k=4)
    status, answer = ask(address, "/recommend?user=g2u5&k=4")
    assert status == 200 and answer["kind"] == "hot"
    assert [item["item_id"] for item in answer["items"]] == expected["item_id"].tolist()
    assert [item["score"] for item in answer["items"]] == pytest.approx(expected["score"].tolist(), abs=1e-5)
    assert answer["items"][0]["title"] == recommender.title(expected["item_id"][0])

    body = {"users": ["g0u0", "nobody"], "histories": {"g0u0": ["g3i1", "g3i2", "what"]}, "k": 3}
    status, answer = ask(address, "/recommend", body)
    assert status == 200
    assert [(user["user_id"], user["kind"]) for user in answer["users"]] == [("g0u0", "warm"), ("nobody", "cold")]
    assert answer["users"][0]["unknown_items"] == ["what"]
    assert answer["users"][0]["items"][0]["item_id"].startswith("g3")

    model, data = recommender.model, recommender.data
    status, answer = ask(address, "/items/g1i7/tokens")
    codes = model.item_codes[data.item_numbers["g1i7"]].tolist()
    assert (status, answer["title"]) == (200, "Film 7 of 1")
    assert answer["tokens"] == [f"<v{k + 1}-{code}>" for k, code in enumerate(codes)]
    status, answer = ask(address, "/users/g1u3")
    assert [item["item_id"] for item in answer["history"]] == recommender.history("g1u3")


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/recommend", None, 422, "user"),
        ("/recommend?user=a&k=0", None, 422, "greater than or equal to 1"),
        ("/recommend?user=a&k=ten", None, 422, "integer"),
        ("/recommend?user=a&k=99999999999999999999", None, 422, "less than or equal to 1000"),
        ("/recommend?user=" + 600 * "a", None, 422, "at most 512"),
        ("/recommend", {}, 422, "users or histories"),
        ("/recommend", b"{", 422, "JSON"),
        ("/recommend", b"\xff\xfe", 422, ""),
        ("/recommend", [1], 422, "dictionary"),
        ("/recommend", {"users": []}, 422, "at least 1"),
        ("/recommend", {"users": [None]}, 422, "string"),
        ("/recommend", {"users": [1.5]}, 422, "string"),
        ("/recommend", {"users": ["a"] * 300}, 422, "at most 256"),
        ("/recommend", {"users": ["a"], "k": True}, 422, "integer"),
        ("/recommend", b'{"users": ["a"], "k": 1e400}', 422, "integer"),
        ("/recommend", {"users": ["a"], "kk": 3}, 422, "Extra"),
        ("/recommend", {"histories": {"a": "g0i1"}}, 422, "list"),
        ("/recommend", {"histories": {"a": ["x"] * 3000}}, 422, "3000 items are not allowed"),
        ("/recommend", {"users": ["a"], "candidates": ["what"]}, 422, "knows none of them"),
        ("/recommend", b'{"users": ["\\ud800"]}', 422, "as a unicode string"),
        ("/recommend", b'{"histories": {"\\ud800": ["i1"]}}', 422, "as a unicode string"),
        ("/recommend", b'{"histories": {"x": ["\\ud800", "i1"]}}', 422, "as a unicode string"),
        ("/recommend", b'{"users": ["a"], "candidates": ["\\ud800"]}', 422, "as a unicode string"),
        ("/recommend", {"users": [600 * "a"]}, 422, "at most 512"),
        ("/items/what/tokens", None, 404, "item 'what' is not known"),
        ("/items/%00/tokens", None, 404, "is not known"),
        ("/users/what", None, 404, "user 'what' is not known"),
        ("/nowhere", None, 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_the_askers_fault(address, path, body, status, text):
    found, answer = ask(address, path, body)
    assert found == status and text in json.dumps(answer["detail"], ensure_ascii=False), answer


def test_page_in_a_browser(address, recommender, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=9000"]
    options.append(f"--user-data-dir={tmp_path}")

    def page(query):
        command = [browser, *options, "--dump-dom", f"{address}/{query}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    dom = page("?user=g2u5")
    assert "TokenRec on toy" in dom and 'data-state="done"' in dom
    for item in recommender.recommend("g2u5")["item_id"]:
        assert f"<li>{recommender.title(item)} " in dom
    tokens = recommender.tokens().set_index(["kind", "id"])["tokens"]
    for token in tokens["user", "g2u5"].strip("<>").split("><"):
        assert f"<code>&lt;{token}&gt;</code>" in dom
    assert recommender.title(recommender.history("g2u5")[-1]) in dom

    dom = page("?history=g3i1,g3i2,what")
    assert "not known: what" in dom and "Film 3 of 3" in dom
    dom = page("?user=%3Cimg%20src%3Dx%3E")  # an id is never markup
    assert "the most popular items" in dom and "<img" not in dom


def test_a_port_in_use_is_said(address, trained):
    from recbole_tokenrec.cli.main import main

    port = address.rsplit(":", 1)[1]
    assert main(["serve", "--checkpoint", trained(), "--port", port]) == 2


def test_a_user_who_took_everything_gets_an_empty_list(recommender):
    pytest.importorskip("httpx")
    import pandas as pd
    from fastapi.testclient import TestClient

    from recbole_tokenrec.serving.app import create_app

    recommender.update(pd.DataFrame({"user_id": "g0u0", "item_id": recommender.items}))
    client = TestClient(create_app(recommender))
    answer = client.get("/recommend", params={"user": "g0u0"})
    assert (answer.status_code, answer.json()["kind"], answer.json()["items"]) == (200, "hot", [])
    users = client.post("/recommend", json={"users": ["g0u0", "g1u1"], "k": 2}).json()["users"]
    assert {user["user_id"]: len(user["items"]) for user in users} == {"g0u0": 0, "g1u1": 2}


def test_models_without_tokens_are_served_too(trained):
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    import recbole_tokenrec
    from recbole_tokenrec.serving.app import MOST_BYTES, create_app

    client = TestClient(create_app(recbole_tokenrec.load(trained("BPR"))))
    assert client.get("/recommend", params={"user": "g0u0"}).json()["kind"] == "hot"
    answer = client.get("/items/g0i0/tokens")
    assert answer.status_code == 404 and "BPR has no ID tokens" in answer.json()["detail"]
    answer = client.post("/recommend", content=b'{"users": ["' + b"a" * MOST_BYTES + b'"]}')
    assert answer.status_code == 413 and "allowed: up to 16777216 bytes" in answer.json()["detail"]
    answer = client.post("/recommend", json={"histories": {"x": ["g0i0"]}})
    assert answer.status_code == 422 and "BPR recommends for users it was trained on" in answer.json()["detail"]
