"""In which of several equal forms an engine adds emotions, and what their vectors are kept in.

`fused` writes the sum over emotions out, and the compiler puts it into a kernel that is there anyway. `mm` is a matrix
product. `triton` is a kernel of its own (`emovllm.engine.kernel`), in place, which plain rows cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from vllm.config import CompilationMode
from vllm.logger import init_logger

from emovllm.emotion import KEY
from emovllm.engine.arithmetic import MAX_FUSED, mixed
from emovllm.engine.settings import Carried, Kernel, Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.emovllm")

Bench = Callable[[Callable[[], Any]], float]


class Form(NamedTuple):
    """compiled: whether the graph around may be. dtype: of what is added to. kernel: at the projections."""

    compiled: bool
    dtype: torch.dtype = torch.float32
    kernel: Kernel = "auto"

    @property
    def in_place(self) -> bool:
        return self.kernel == "triton"

    @property
    def elsewhere(self) -> Form:
        """For outputs of whole blocks and layers, which may be somebody else's tensors too."""
        return self._replace(kernel="auto") if self.in_place else self

    def fuses(self, columns: int) -> bool:
        """Whether a sum over so many columns of coefficients is written out."""
        return self.compiled and (self.kernel == "fused" or (self.kernel == "auto" and columns <= MAX_FUSED))

    def vector_type(self, columns: int, device: torch.device) -> torch.dtype:
        """What vectors are kept in. On a GPU the sum costs what it reads, mostly vectors: there they have the model's
        own type, but for a matrix product's. Elsewhere, turning 16 bits into 32 costs more than reading those."""
        reads = self.in_place or self.fuses(columns)
        return self.dtype if device.type == "cuda" and reads else torch.float32


def form_of(config: VllmConfig, settings: Settings, coefficients: Tensor) -> Form:
    """As `settings` ask, or as is right for so many columns of coefficients. What was compiled for one form must not be
    loaded for another: the form becomes part of the compile cache's key."""
    compiled = config.compilation_config.mode != CompilationMode.NONE
    form = Form(compiled, config.model_config.dtype, settings.injection_kernel)
    if form.kernel == "auto" and not form.fuses(coefficients.shape[1]):
        kernel: Kernel = "mm"
        if coefficients.device.type == "cuda" and find_spec("triton"):
            sizes = (config.scheduler_config.max_num_seqs, config.scheduler_config.max_num_batched_tokens)
            kernel = faster(coefficients, config.model_config.get_hidden_size(), form.dtype, sizes)
        form = form._replace(kernel=kernel)
    config.additional_config = {**config.additional_config, KEY: Carried(settings, form.kernel)}
    return form


def _add_product(out: Tensor, rows: Tensor, vectors: Tensor) -> None:
    # In place, as cheap as the compiler makes the addition.
    out.add_(mixed(rows, vectors, fused=False))


def _graph_bench() -> Bench:
    from triton.testing import do_bench_cudagraph  # type: ignore[import-untyped]

    return do_bench_cudagraph  # type: ignore[no-any-return]


def faster(
    coefficients: Tensor, hidden: int, dtype: torch.dtype, sizes: Sequence[int], bench: Bench | None = None
) -> Kernel:
    """`mm` or `triton`, by what they take for one site: in a batch that decodes, all steered, and in a plain prefill.

    Args:
        coefficients: the engine's buffer, all zero; zero again afterwards.
        sizes: tokens of the two batches.
        bench: milliseconds that a function takes on the device; by default Triton's, which replays a graph of it.
    """
    from emovllm.engine.kernel import add_in_place

    milliseconds = bench or _graph_bench()
    columns, device = coefficients.shape[1], coefficients.device
    vectors = torch.zeros(columns, hidden, device=device)
    own = vectors.to(dtype)
    times = {"mm": 0.0, "triton": 0.0}
    for tokens, weight in zip(sizes, (1.0, 0.0), strict=True):
        out = torch.zeros(tokens, hidden, dtype=dtype, device=device)
        rows = coefficients[:tokens]
        rows[:, 0] = weight
        times["mm"] += milliseconds(partial(_add_product, out, rows, vectors))
        times["triton"] += milliseconds(partial(add_in_place, out, rows, own))
    logger.info("Milliseconds a site, by the kernel that adds emotions: %s", times)
    coefficients.zero_()
    return "triton" if times["triton"] < times["mm"] else "mm"
