"""A tokenizer of characters and of whole markers, and one that has every token it is asked for."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast


def tokenizer_with(*markers: str, special: bool = True) -> PreTrainedTokenizerFast:
    """Each printable character is a token, and each marker; special tokens or, as some models have them, others."""
    characters = {character: number for number, character in enumerate(["<unk>", *string.printable])}
    tokenizer = Tokenizer(BPE(characters, merges=[], unk_token="<unk>", fuse_unk=False))
    tokenizer.decoder = Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_tokens([AddedToken(marker, special=special, normalized=False) for marker in markers])
    return fast


class Obliging:
    """Of any text, it says that it has a token of it: what is told of parsers then depends on them alone."""

    all_special_tokens: Sequence[str] = ()
    all_special_ids: Sequence[int] = ()

    def __init__(self) -> None:
        self.vocab = _Vocabulary()

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def encode(self, text: str, **_: Any) -> list[int]:
        return [self.vocab[text]]

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.vocab[token]


class _Vocabulary(dict[str, int]):
    def __missing__(self, token: str) -> int:
        self[token] = len(self)
        return self[token]

    def __contains__(self, token: object) -> bool:
        return True

    def get(self, token: str, default: Any = None) -> Any:
        return self[token]
