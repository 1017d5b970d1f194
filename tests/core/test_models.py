"""The default model's conversion."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from emovllm import models


def test_a_gguf_file_is_parsed_once_while_it_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    before = (gguf.GGUFReader, gguf.get_tensor_name_map)
    with models._read_once():
        assert gguf.GGUFReader(path) is gguf.GGUFReader(path)
        llama = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers) for layers in (2, 2, 3)]
        assert llama[0] is llama[1] is not llama[2]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.slow
def test_the_conversion_goes_on_beside_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOVLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_beside", None)
    assert models.begin_conversion()
    monkeypatch.setattr(models, "_convert", lambda *_: pytest.fail("the other process has converted it"))
    folder = models.default_model()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not models.begin_conversion()


def test_a_conversion_that_failed_beside_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOVLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_beside", None)
    monkeypatch.setattr(models.sys, "executable", "/bin/false")
    assert models.begin_conversion()
    converted: list[Path] = []
    monkeypatch.setattr(models, "_convert", lambda gguf, folder: converted.append(folder))
    folder = models.default_model()
    assert converted == [folder]
