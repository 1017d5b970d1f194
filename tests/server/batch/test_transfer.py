"""Batch files behind a URL: fetched, sent when all of them is written, and kept where that fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from emovllm.errors import BatchFileError, TransferError
from emovllm_server.batch import transfer
from emovllm_server.batch.transfer import Output, read

KEY = "?X-Amz-Signature=a%2Fb&X-Amz-Date=1"


class Storage:
    """A storage service's: holds files by path, answers each PUT with the next of `statuses`, or 200."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.statuses: list[int] = []
        self.puts: list[str] = []
        storage = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = storage.files.get(self.path)
                self.send_response(404 if data is None else 200)
                self.end_headers()
                self.wfile.write(data or b"")

            def do_PUT(self) -> None:
                # Storage services take no chunks.
                data = self.rfile.read(int(self.headers["content-length"]))
                storage.puts.append(self.path)
                status = storage.statuses.pop(0) if storage.statuses else 200
                if status == 200:
                    storage.files[self.path] = data
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.setattr(transfer, "_PAUSE_S", 0.0)
    storage = Storage()
    yield storage
    storage.server.shutdown()
    storage.server.server_close()


def test_a_file_is_read_with_its_byte_order_mark_and_line_ends_from_either_place(
    storage: Storage, tmp_path: Path
) -> None:
    data = b"\xef\xbb\xbf{}\r\n{}\r\n"
    (tmp_path / "in.jsonl").write_bytes(data)
    storage.files[f"/in.jsonl{KEY}"] = data
    assert read(str(tmp_path / "in.jsonl")) == read(f"{storage.url}/in.jsonl{KEY}") == "{}\n{}\n"


def test_what_cannot_be_fetched_is_named_without_its_key(storage: Storage) -> None:
    for url, why in ((storage.url, "HTTP 404"), ("http://127.0.0.1:9", "refused"), ("http://no host", "")):
        with pytest.raises(TransferError, match="could not be fetched") as caught:
            read(f"{url}/in.jsonl{KEY}")
        assert str(caught.value).startswith(f"{url}/in.jsonl: ")
        assert why in str(caught.value)
        assert "Signature" not in str(caught.value)
    storage.files["/in.jsonl"] = b"\xff"
    with pytest.raises(BatchFileError, match="not UTF-8 text"):
        read(f"{storage.url}/in.jsonl")


@pytest.mark.parametrize("folder", [True, False])
def test_replies_are_sent_when_the_batch_is_done(storage: Storage, tmp_path: Path, folder: bool) -> None:
    output = Output(f"{storage.url}/out.jsonl{KEY}", str(tmp_path) if folder else None)
    assert (output.path.parent == tmp_path) == folder
    output.path.write_text("replies\n")
    storage.statuses = [503, 429]
    output.deliver()
    assert storage.files == {f"/out.jsonl{KEY}": b"replies\n"}
    assert len(storage.puts) == 3
    assert not output.path.exists()


def test_replies_that_cannot_be_sent_are_kept_where_the_same_command_finds_them(
    storage: Storage, tmp_path: Path
) -> None:
    output = Output(f"{storage.url}/out.jsonl{KEY}", str(tmp_path))
    output.path.write_text("replies\n")
    for statuses, attempts in (([403], 1), ([500] * 5, 5)):
        storage.statuses, storage.puts = statuses, []
        with pytest.raises(TransferError) as caught:
            output.deliver()
        assert str(output.path) in str(caught.value)
        assert "Signature" not in str(caught.value)
        assert len(storage.puts) == attempts
    assert output.path.read_text() == "replies\n"
    # A URL that is signed anew is the same place.
    assert Output(f"{storage.url}/out.jsonl?other=key", str(tmp_path)).path == output.path
    assert Output(f"{storage.url}/other.jsonl{KEY}", str(tmp_path)).path != output.path


def test_a_local_file_is_written_in_its_place(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out.jsonl"), None)
    assert output.path == tmp_path / "out.jsonl"
    output.path.write_text("replies\n")
    output.deliver()
    assert output.path.read_text() == "replies\n"


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(BatchFileError, match=r"--output-tmp-dir .*no such folder"):
        Output("http://127.0.0.1:9/out.jsonl", str(tmp_path / "no"))
