"""Sublayer importance: one-token forwards against cached keys and values, beside 2L x |alpha| whole forwards.

    scripts/env python benchmarks/importance.py

Both measure one emotion on one neutral prompt of the default model, interleaved; the results are compared too. Prints
the times, their ratio, and the rank correlation of the gradient's importance with the exact one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from emovllm_offline.data import sev
from emovllm_offline.data.prompts import Prompt, render
from emovllm_offline.data.styles import load_style
from emovllm_offline.discovery import directions
from emovllm_offline.discovery.discover import measure
from emovllm_offline.discovery.importance import (
    ALPHAS,
    gradient_importance,
    pushed,
    rank_correlation,
    residual_scale,
    sublayer_importance,
)
from emovllm_offline.discovery.parameters import Parameters
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load


@torch.no_grad()
def naive_importance(
    decoder: Decoder, prompt: Prompt, local: np.ndarray, reference: np.ndarray, sigma: np.ndarray
) -> np.ndarray:
    """Section 6 to the letter, for one emotion: a whole forward for every sublayer and alpha. Returns: [2L]."""
    ids = torch.tensor([prompt.ids])
    toward = torch.tensor(reference, dtype=torch.float32)
    plain = decoder.forward(ids)[0, -1]
    moved = np.zeros(decoder.sublayers)
    for sublayer in range(decoder.sublayers):
        side = -1.0 if local[sublayer] @ reference < 0 else 1.0
        for alpha in ALPHAS:
            step = alpha * sigma[sublayer]
            vector = torch.tensor(side * local[sublayer] * step, dtype=torch.float32)[None]
            with pushed(decoder, {sublayer: (torch.tensor([0]), vector)}):
                moved[sublayer] += float((decoder.forward(ids)[0, -1] - plain) @ toward) / step
    return moved / len(ALPHAS)


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer, name = load(args.model)
    decoder = find_decoder(model)
    style = load_style("paper")
    records = sev.load_sev()[:2]
    findings = measure(decoder, tokenizer, records, [style], Parameters(importance_prompts=1))
    sublayers = directions.interleave(findings.attn_directions, findings.mlp_directions)
    reference = directions.reference_direction(sublayers, directions.band_layers(len(decoder.layers)))
    prompt = render(tokenizer, style.neutral, sev.expand(records)[0].user)
    sigma = residual_scale(decoder, [prompt])
    print(f"{name.split('/')[-1]}: prompt of {len(prompt.ids)} tokens, {decoder.sublayers} sublayers, ", end="")
    print(f"{len(ALPHAS)} alphas, {torch.get_num_threads()} threads")
    ratios = []
    for round_ in range(args.rounds):
        naive, expected = timed(lambda: naive_importance(decoder, prompt, sublayers[0], reference[0], sigma))
        cached, got = timed(
            lambda: sublayer_importance(decoder, [prompt], sublayers[:1], reference[:1], sigma, batch_size=128)
        )
        got = got[0].mean(-1)
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1, float(np.abs(expected).max())))
        ratios.append(naive / cached)
        print(f"round {round_}: naive {naive:.2f} s, cached {cached:.2f} s, {naive / cached:.1f} times faster")
    print(f"ratio: median {np.median(ratios):.1f}, from {min(ratios):.1f} to {max(ratios):.1f}")
    took, slopes = timed(lambda: gradient_importance(decoder, prompt, sublayers, reference))
    exact = sublayer_importance(decoder, [prompt], sublayers, reference, sigma).mean(-1)
    print(f"gradient, all emotions: {took:.2f} s, rank correlation with exact {rank_correlation(slopes, exact):.3f}")


if __name__ == "__main__":
    main()
