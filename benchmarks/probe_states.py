"""Which states a probe reads: one of last tokens, of means, or of where replies begin, on the states of the others.

    scripts/env python benchmarks/probe_states.py GOEMOTIONS [--texts TRAIN DEV TEST] [--model MODEL]

GOEMOTIONS: a folder of train.tsv, dev.tsv, test.tsv and labels.txt. The same comments are read as they are at their
last token, as a mean over their tokens, as a user's message where the reply begins, and as the model's own reply in a
chat at its last token, which is what a server reads. Prints macro F1 on the test comments, layer by layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.probe import Pooling
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load
from emovllm_offline.reading.corpus import SPLITS
from emovllm_offline.reading.fit import Fit, Regression, Standard, balance, cross_entropy
from emovllm_offline.reading.prompts import Read, reads_of
from emovllm_offline.reading.scores import confusion, macro_f1
from emovllm_offline.reading.settings import BATCH_TOKENS, Fitting, Reading
from emovllm_offline.reading.states import batches, states_of
from emovllm_offline.reading.train import ProbeData

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1)
WAYS: dict[str, tuple[Pooling, bool]] = {"last": ("last", False), "mean": ("mean", False), "chat": ("last", True)}
# What the model's own reply answers.
ASKED = "Say what is on your mind."
# Of the comments that are drawn from.
LIMIT = 12_000


def reply_of(tokenizer: Any, text: str) -> Read:
    """The text as the model's own reply, at its last token."""
    ids = (*render(tokenizer, Frame(), ASKED).ids, *tokenizer(text, add_special_tokens=False)["input_ids"])
    return Read(ids, (len(ids) - 1,))


def read_all(decoder: Decoder, reads: Sequence[Read]) -> np.ndarray:
    """[layers, texts, hidden]"""
    states = np.empty((len(decoder.layers), len(reads), decoder.hidden_size), np.float32)
    for batch in batches(reads, BATCH_TOKENS):
        states[:, batch] = states_of(decoder, [reads[place] for place in batch])
    return states


def best_fit(states: np.ndarray, label: np.ndarray, dev: np.ndarray, of_dev: np.ndarray) -> tuple[Standard, Fit]:
    """states, dev: [texts, hidden]; label, of_dev: their labels. The penalty as `emovllm probe train` chooses it."""
    standard = Standard.of(states)
    weights = balance(label, int(label.max()) + 1)
    best: tuple[float, Fit] | None = None
    for fit in Regression(standard.apply(states)).path(label, weights, PENALTIES):
        loss = cross_entropy(fit.logits(standard.apply(dev)), of_dev, weights)
        if best is not None and loss >= best[0]:
            break
        best = loss, fit
    assert best is not None
    return standard, best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, nargs=3, default=(2000, 700, 1300), metavar="N")
    parser.add_argument("--model", default=None)
    given = parser.parse_args()
    files = (given.folder / f"{split}.tsv" for split in SPLITS)
    corpus = ProbeData(*files, limit=LIMIT).load(Fitting())
    loaded = load(given.model)
    decoder = find_decoder(loaded.network)
    longest = Reading().max_tokens
    reads = reads_of(loaded.tokenizer, corpus.texts, "last", False)
    corpus = corpus.without([None if len(read.ids) <= longest else "too long" for read in reads])
    random = np.random.default_rng(5)
    places = [
        np.sort(random.choice(corpus.of(split), count, replace=False))
        for split, count in zip(SPLITS, given.texts, strict=True)
    ]
    texts = [corpus.texts[place] for place in np.concatenate(places)]
    train, dev, test = (corpus.label[part] for part in places)
    cut, last = len(train), len(train) + len(dev)
    states = {name: read_all(decoder, reads_of(loaded.tokenizer, texts, *way)) for name, way in WAYS.items()}
    on = {name: of[:, last:] for name, of in states.items()}
    on["reply"] = read_all(decoder, [reply_of(loaded.tokenizer, text) for text in texts[last:]])
    print("layer", "probe", *(f"on {name}" for name in on), sep="\t")
    for layer in range(2, len(decoder.layers), 3):
        for name, of in states.items():
            standard, fit = best_fit(of[layer, :cut], train, of[layer, cut:last], dev)
            told = [fit.logits(standard.apply(other[layer])).argmax(1) for other in on.values()]
            scores = [f"{float(macro_f1(confusion(test, one, len(corpus.labels)))):.3f}" for one in told]
            print(layer, name, *scores, sep="\t", flush=True)


if __name__ == "__main__":
    main()
