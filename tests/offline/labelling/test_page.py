"""The page by its own requests, and the command as a user ends it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from emovllm.errors import OptionError
from emovllm_offline.data.labelled import load_labelled
from emovllm_offline.labelling.page import serve
from emovllm_offline.labelling.texts import Labelling

TEXTS = {"Hooray!": "letters", "Oh <b>no</b>.": "letters"}


@pytest.fixture
def client(tmp_path):
    server = serve(Labelling(TEXTS, ("joy", "fear"), tmp_path / "out.jsonl"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.server_address[1]}", trust_env=False) as client:
        yield client
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_page_has_a_key_for_each_label_and_none_of_the_texts(client):
    page = client.get("/").text
    assert re.findall(r'data-label="(\w+)".*?<kbd>(\d)</kbd>', page) == [("joy", "1"), ("fear", "2")]
    assert "Hooray" not in page
    assert "http" not in page.split("<script>")[1]
    assert client.get("/other").status_code == 404


def test_texts_are_labelled_and_taken_back(client, tmp_path):
    state = client.get("/text").json()
    assert (state["done"], state["total"], state["error"]) == (0, 2, None)
    second = client.post("/label", json={"text": state["text"], "label": "joy"}).json()
    assert (second["done"], {state["text"], second["text"]}) == (1, {*TEXTS})
    assert client.post("/undo", json={}).json() == state
    client.post("/label", json={"text": state["text"], "label": "fear"})
    last = client.post("/label", json={"text": second["text"], "label": "joy"}).json()
    assert (last["text"], last["done"]) == (None, 2)
    assert [row.label for row in load_labelled(tmp_path / "out.jsonl")] == [("fear",), ("happiness",)]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/label", {"text": "Another.", "label": "joy"}),
        ("/label", {"text": "Hooray!"}),
        ("/label", []),
        ("/other", {}),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(client, path, said, tmp_path):
    before = client.get("/text").json()
    answer = client.post(path, json=said)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert client.get("/text").json() == before
    assert not (tmp_path / "out.jsonl").exists()


def test_pages_of_other_sites_cannot_label(client):
    text = client.get("/text").json()["text"]
    answer = client.post(
        "/label", content=json.dumps({"text": text, "label": "joy"}), headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 415
    assert "connection" not in answer.headers
    assert client.get("/text").json()["done"] == 0


def test_what_is_longer_than_any_text_is_not_read(client):
    connection = HTTPConnection("127.0.0.1", client.base_url.port)
    # The length alone: who sends a body after it may find the connection closed before the answer.
    connection.request("POST", "/label", headers={"Content-Type": "application/json", "Content-Length": str(2**20 + 1)})
    with contextlib.closing(connection.getresponse()) as answer:
        assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert client.get("/text").json()["done"] == 0


def test_a_port_that_is_taken_is_told(client, tmp_path):
    with pytest.raises(OptionError, match="give another"):
        serve(Labelling(TEXTS, ("joy",), tmp_path / "other.jsonl"), client.base_url.port)


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_command_is_ended_by_a_key_and_tells_how_far_it_is(tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "before.jsonl").write_text(
        '{"text": "Hooray!", "label": "anger"}\n{"text": "Oh <b>no</b>.", "label": "fear"}\n'
    )
    command = [str(Path(sys.executable).with_name("emovllm")), "label", str(tmp_path / "texts.jsonl"), "--no-browser"]
    command += ["--out", str(tmp_path / "out.jsonl"), "--beside", str(tmp_path / "before.jsonl")]
    # Whoever started the tests may have SIGINT ignored, as shells do with what runs in the background.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        address = re.search(r"http://\S+/", process.stdout.readline())[0]
        with httpx.Client(base_url=address, trust_env=False) as client:
            for _ in range(2):
                client.post("/label", json={"text": client.get("/text").json()["text"], "label": "anger"})
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 0
    assert "2 of 2 texts are labelled" in said
    assert "50% of 2 texts, kappa 0.00" in said
