"""The default model's conversion."""

from __future__ import annotations

from pathlib import Path

import gguf

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
