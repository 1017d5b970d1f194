"""What is refused at start-up, and what the plugin leaves alone."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CUDAGraphMode

import emovllm
from emovllm import __version__
from emovllm.applied import Served
from emovllm.circuit_files import load_circuit
from emovllm.emotion import KEY
from emovllm.engine.arithmetic import MAX_FUSED
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.config import configure, graph_tag
from emovllm.engine.handshake import check_workers
from emovllm.engine.patching import patches_of
from emovllm.engine.settings import settings_of
from emovllm.engine.worker import EmotionWorkerMixin
from emovllm.errors import CircuitError, Unsupported
from emovllm.readout import Reading
from support.circuits import SIX, random_circuit
from support.engine import Ask, EngineError
from support.families import wrapper_network
from support.models import tiny_model
from support.series import Series


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def circuit(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(tiny, tmp_path_factory.mktemp("circuits") / "tiny")


@pytest.fixture(scope="module")
def make_config(tiny: str) -> Callable[..., Any]:
    """vLLM's own configuration, before ours."""
    from vllm.engine.arg_utils import EngineArgs

    def make(settings: Any, **changes: Any) -> Any:
        arguments = {"model": tiny, "skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 128, **changes}
        config = EngineArgs(**arguments).create_engine_config()
        config.additional_config = {KEY: settings}
        return config

    return make


def test_a_configured_engine_has_our_classes_and_a_tag(make_config: Callable[..., Any], circuit: Path) -> None:
    config = make_config({"circuit": str(circuit)})
    plain_hash = make_config({"circuit": str(circuit)}).compute_hash()
    configure(config)
    assert config.parallel_config.worker_cls == "emovllm.engine.cpu_worker.EmotionCPUWorker"
    assert config.scheduler_config.scheduler_cls == "emovllm.engine.scheduler.EmotionScheduler"
    settings = settings_of(config)
    assert settings is not None
    assert settings.digests == {"default": load_circuit(circuit).digest()}
    assert settings.graph == graph_tag([load_circuit(circuit)], 6, 0)
    assert config.compute_hash() != plain_hash
    again = config.additional_config
    configure(config)
    assert config.additional_config == again


def test_the_compile_cache_knows_neither_paths_nor_limits(
    make_config: Callable[..., Any], circuit: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(circuit, tmp_path / "moved")
    hashes = set()
    for settings in ({"circuit": str(circuit)}, {"circuit": str(moved), "max_strength": 1.5}):
        config = make_config(settings)
        configure(config)
        hashes.add(config.compute_hash())
        arrived = pickle.loads(pickle.dumps(config))
        assert settings_of(arrived) == settings_of(config)
        assert settings_of(arrived).sources == {"default": settings["circuit"]}  # type: ignore[union-attr]
    assert len(hashes) == 1


def test_the_compile_cache_tells_circuits_with_other_sites_apart(tiny: str, tmp_path: Path) -> None:
    circuits = [
        load_circuit(random_circuit(tiny, tmp_path / str(number), **units))
        for number, units in enumerate(
            [{}, {"neurons": 0}, {"heads": 0}, {"names": ("anger", "fear")}, {"names": tuple(SIX[:5])}]
        )
    ]
    tags = {graph_tag([circuit], len(circuit.names), adapters) for circuit in circuits for adapters in (0, 1)}
    assert len(tags) == 10
    # With room for more, every projection is ready, whatever the circuits.
    assert len({graph_tag([circuit], 7, 0) for circuit in circuits}) == 1
    assert graph_tag(circuits[:1], 7, 0) not in tags
    readings = [None, *(Reading("", layer, labels) for layer in (0, 1) for labels in (("a", "b"), ("a", "b", "c")))]
    assert len({graph_tag(circuits[:1], 7, 0, reading=reading) for reading in readings}) == 5


def test_what_vllm_compiled_ahead_of_time_is_loaded_for_no_other_graph(
    make_config: Callable[..., Any], circuit: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.compilation.caching import aot_compile_hash_factors

    def key(source: Path, **settings: Any) -> str:
        config = make_config({"circuit": str(source), **settings})
        configure(config)
        factors = aot_compile_hash_factors(config)
        assert config.compute_hash() in factors
        return str(factors)

    first = key(circuit)
    # The vectors are inputs of the graph.
    assert key(random_circuit(tiny, tmp_path / "other", seed=1)) == first
    others = {key(circuit, capacity=7), key(random_circuit(tiny, tmp_path / "neurons", heads=0))}
    monkeypatch.setattr("emovllm.engine.config.__version__", "0.0.0")
    others.add(key(circuit))
    assert len(others - {first}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "emovllm: Value error, no circuit: name a folder or a Hugging Face repository id"),
        ({"circuit": ""}, "emovllm.circuit: String should have at least 1"),
        ({"circuit": {}}, "emovllm.circuit"),
        ({"circuit": {"a/b": "x"}}, "emovllm.circuit"),
        ({"circuit": "x", "capacity": 0}, "emovllm.capacity: Input should be greater than 0"),
        ({"circuit": "x", "max_strength": -1}, "emovllm.max_strength: Input should be greater than 0"),
        ({"circuit": "x", "circiut": "y"}, "emovllm.circiut: Extra inputs"),
        ({"circuit": "x", "injection_kernel": "cuda"}, "emovllm.injection_kernel: Input should be 'auto'"),
        ("x", "emovllm: Input should be"),
    ],
)
def test_wrong_settings_are_refused(make_config: Callable[..., Any], settings: Any, message: str) -> None:
    with pytest.raises(Unsupported) as caught:
        configure(make_config(settings))
    assert message in str(caught.value)


def test_a_missing_circuit_is_refused(make_config: Callable[..., Any]) -> None:
    with pytest.raises(CircuitError, match="no such circuit folder"):
        configure(make_config({"circuit": "/no/such"}))


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 4}, {"intermediate_size": 128}, {"hidden_size": 128}, {"head_dim": 64}]
)
def test_a_model_of_other_dimensions_is_refused(
    make_config: Callable[..., Any], circuit: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    other = tiny_model(tmp_path / "other", **changes)
    with pytest.raises(Unsupported, match=f"{next(iter(changes))} {next(iter(changes.values()))} here"):
        configure(make_config({"circuit": str(circuit)}, model=other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_lora": True, "fully_sharded_loras": True}, "drop --fully-sharded-loras"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "drop --scheduler-cls"),
        ({"worker_cls": "vllm.v1.worker.xpu_worker.XPUWorker"}, "worker class vllm.v1.worker.xpu_worker.XPUWorker"),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "ExampleConnector (--kv-transfer-config): it goes by hashes of token ids",
        ),
        ({"offload_group_size": 2}, "drop --offload-group-size"),
    ],
)
def test_what_would_not_be_exact_is_refused(
    make_config: Callable[..., Any], circuit: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Unsupported) as caught:
        configure(make_config({"circuit": str(circuit)}, **changes))
    assert message in str(caught.value)


def test_what_is_offloaded_by_vllms_block_hashes_is_served(make_config: Callable[..., Any], circuit: Path) -> None:
    config = make_config({"circuit": str(circuit)}, kv_offloading_size=1.0)
    assert config.kv_transfer_config.kv_connector == "OffloadingConnector"
    assert configure(config) is not None


@pytest.mark.parametrize(
    ("variable", "message"),
    [("VLLM_USE_RUST_FRONTEND", "the Rust front end")],
)
def test_front_ends_that_we_do_not_reach_are_refused(
    make_config: Callable[..., Any], circuit: Path, monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    config = make_config({"circuit": str(circuit)})
    monkeypatch.setenv(variable, "1")
    with pytest.raises(Unsupported) as caught:
        configure(config)
    assert message in str(caught.value)


def test_a_kernel_that_cannot_run_here_is_refused(
    make_config: Callable[..., Any], circuit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"circuit": str(circuit), "injection_kernel": "triton"}
    with pytest.raises(Unsupported, match="needs a GPU, and Triton installed; leave --injection-kernel out"):
        configure(make_config(settings))
    config = make_config(settings)
    config.device_config.device_type = "cuda"
    assert configure(config) is not None
    monkeypatch.setattr("emovllm.engine.config.find_spec", lambda name: None)
    config = make_config(settings)
    config.device_config.device_type = "cuda"
    with pytest.raises(Unsupported, match="Triton installed"):
        configure(config)


def test_offloaded_weights_that_are_copied_are_refused(
    make_config: Callable[..., Any], circuit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"circuit": str(circuit)}, cpu_offload_gb=1)
    assert configure(config) is not None
    monkeypatch.setenv("VLLM_WEIGHT_OFFLOADING_DISABLE_UVA", "1")
    with pytest.raises(Unsupported, match="unset VLLM_WEIGHT_OFFLOADING_DISABLE_UVA"):
        configure(config)


def test_on_a_gpu_inductor_unrolls_the_sum_over_as_many_emotions_as_are_fused(
    make_config: Callable[..., Any], circuit: Path
) -> None:
    from torch._inductor import config as inductor

    for device, unrolled in (("cpu", None), ("cuda", MAX_FUSED + 1)):
        config = make_config({"circuit": str(circuit)})
        config.device_config.device_type = device
        configure(config)
        assert config.compilation_config.inductor_compile_config.get("unroll_reductions_threshold") == unrolled
    assert inductor.unroll_reductions_threshold <= MAX_FUSED
    config = make_config({"circuit": str(circuit)})
    config.device_config.device_type = "cuda"
    config.compilation_config.inductor_compile_config["unroll_reductions_threshold"] = 3
    configure(config)
    assert config.compilation_config.inductor_compile_config["unroll_reductions_threshold"] == 3


def test_an_untested_vllm_is_refused_unless_the_user_insists(
    make_config: Callable[..., Any], circuit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [make_config({"circuit": str(circuit), "allow_untested_vllm": insist}) for insist in (False, True)]
    monkeypatch.setattr("vllm.__version__", "0.99.1")
    with pytest.raises(Unsupported, match=r"is made for vLLM 0\.26 to 0\.33 and this is 0\.99\.1"):
        configure(configs[0])
    assert configure(configs[1]) is not None


def test_workers_must_agree_and_hold_every_site(circuit: Path) -> None:
    loaded = load_circuit(circuit)
    served = Served("default", loaded.spec, loaded.digest(), frozenset({"mlp.0", "attn.0", "mlp.1"}), 0)
    first = {"version": __version__, "digests": [served.digest, "another"], "sites": ["mlp.0", "attn.0"]}
    check_workers([first, {**first, "sites": ["mlp.1"]}], [served])
    with pytest.raises(Unsupported, match=r"1 of the circuit's 3 sites \(mlp\.1\)"):
        check_workers([first, first], [served])
    with pytest.raises(Unsupported, match="another circuit"):
        check_workers([{**first, "digests": ["another"]}], [served])
    with pytest.raises(Unsupported, match=r"emovllm 0\.0\.1"):
        check_workers([{**first, "version": "0.0.1"}], [served])


@pytest.mark.engine
def test_other_weights_of_the_same_dimensions_are_refused(series: Series, circuit: Path, tmp_path: Path) -> None:
    stranger = tiny_model(tmp_path / "stranger", seed=1)
    with pytest.raises(EngineError, match="weights served here are not that model's"):
        series.start(stranger, circuit)


@pytest.mark.engine
def test_the_engine_refuses_bad_requests_and_goes_on(series: Series, tiny: str, circuit: Path) -> None:
    engine = series.start(tiny, circuit)
    plain = engine.generate([Ask([5, 6, 7])], 8)
    for fields, message in (
        ({"emotion": "joyful"}, "this circuit has anger"),
        ({"emotion": "anger", "emotion_strength": 9.0}, "over the circuit's maximum"),
        ({"emovllm": {"weights": {}}}, "reserved"),
        ({"emotions": "anger"}, "did you mean emotion"),
        ({"emotion": "anger", "strength": 0.2}, "did you mean emotion_strength"),
        ({"extra_body": {"emotion": "anger"}}, "at the top level"),
    ):
        with pytest.raises(EngineError, match=message):
            engine.generate([Ask([5, 6, 7], fields)], 8)
    assert engine.generate([Ask([5, 6, 7])], 8) == plain
    assert engine.generate([Ask([5, 6, 7], {"emotion": "anger"})], 8) != plain


_INERT = """
import sys
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.plugins import load_general_plugins
llm = LLM(model={model!r}, skip_tokenizer_init=True, max_model_len=128, enforce_eager=True, dtype="float32")
params = SamplingParams(temperature=0, max_tokens=2, extra_args={{"emotion": "anger"}})
llm.generate([TokensPrompt(prompt_token_ids=[5, 6, 7])], params)
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine
wrapped = [f.__qualname__ for f in (InputProcessor.process_inputs, LLMEngine.get_supported_tasks,
           kv_cache_utils.generate_block_hash_extra_keys, block_pool.generate_block_hash_extra_keys)
           if hasattr(f, "_emovllm")]
modules = sorted(name for name in sys.modules if name.startswith("emovllm") and "plugin" not in name)
print("RESULT", hasattr(EngineArgs.create_engine_config, "_emovllm"), wrapped, modules)
"""


@pytest.mark.engine
def test_without_a_circuit_the_plugin_changes_nothing(tiny: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _INERT.format(model=tiny)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("RESULT"))
    # The one wrapped function is there, so the plugin was loaded; and beyond it, nothing.
    assert line == "RESULT True [] ['emovllm', 'emovllm.engine', 'emovllm.engine.patching', 'emovllm.lazy']"


_SMALL = """
from vllm import LLM, SamplingParams, TokensPrompt
llm = LLM(model={model!r}, skip_tokenizer_init=True, max_model_len=128, enforce_eager=True, dtype="bfloat16",
          additional_config={{"emovllm": {{"circuit": {circuit!r}}}}})
params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, extra_args={{"emotion": "anger"}})
print("RESULT", len(llm.generate([TokensPrompt(prompt_token_ids=[5, 6, 7])], params)[0].outputs[0].token_ids))
"""


@pytest.mark.engine
def test_small_projections_in_bfloat16_run_on_every_processor(tiny: str, circuit: Path) -> None:
    # With AMX, plain vLLM dies here of SIGILL (docs/reference/compatibility.md).
    result = subprocess.run(
        [sys.executable, "-c", _SMALL.format(model=tiny, circuit=str(circuit))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "RESULT 2" in result.stdout


_LISTED = """
from emovllm import LLM
from vllm import SamplingParams, TokensPrompt
from emovllm.readout import Readout
llm = LLM({model!r}, circuit={circuit!r}, readout=True, skip_tokenizer_init=True, max_model_len=128, enforce_eager=True,
          dtype="float32")
def reply(n=1, **fields):
    params = SamplingParams(n=n, seed=1, temperature=n - 1, max_tokens=8, ignore_eos=True, extra_args=fields or None)
    return llm.generate([TokensPrompt(prompt_token_ids=[5, 6, 7])], params)[0].outputs
plain, angry = reply()[0], reply(emotion="anger")[0]
read = [each.emotion_readout for each in reply(2, emotion="anger", emotion_readout="tokens")]
print("RESULT", plain.token_ids != angry.token_ids, hasattr(angry, "emotion_readout"), len(read),
      all(isinstance(each, Readout) and len(each.tokens()) == 8 for each in read), read[0].prompt == read[1].prompt,
      read[0].reply == read[1].reply)
"""


@pytest.mark.engine
def test_our_llm_steers_and_reads_although_other_plugins_alone_are_named(tiny: str, tmp_path: Path) -> None:
    circuit = random_circuit(tiny, tmp_path / "circuit", scale=1.0, probe=True)
    result = subprocess.run(
        [sys.executable, "-c", _LISTED.format(model=tiny, circuit=str(circuit))],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_PLUGINS": "lora_filesystem_resolver",
        },
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Two replies to one prompt, which were written after the same first state.
    assert "RESULT True False 2 True True False" in result.stdout


def test_our_llm_needs_a_circuit() -> None:
    with pytest.raises(Unsupported, match="no circuit: give circuit="):
        emovllm.LLM("any", additional_config={"emovllm": {"steering": True}})


@pytest.mark.parametrize("additional", [{}, {KEY: {"circuit": "any"}}])
def test_our_worker_does_not_start_where_the_plugin_was_not_loaded(additional: dict[str, Any]) -> None:
    worker = EmotionWorkerMixin()
    worker.vllm_config = SimpleNamespace(additional_config=additional)  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match="name emovllm in VLLM_PLUGINS"):
        worker.load_model()


def test_what_vllms_classes_of_text_and_images_need_is_told_in_a_line(
    circuit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models import registry

    from emovllm import plugin

    # vLLM looks at each class of model in a process of its own, which imports everything again.
    monkeypatch.setattr(registry, "_run_in_subprocess", lambda inspect: inspect())
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    plugin.register()
    wrapper_network("gemma3").save_pretrained(tmp_path)
    args = EngineArgs(str(tmp_path), skip_tokenizer_init=True, additional_config={KEY: {"circuit": str(circuit)}})
    with pytest.raises(Unsupported, match="Those of models of text and images need torchvision"):
        args.create_engine_config()


def test_registering_twice_is_registering_once() -> None:
    from vllm.engine.arg_utils import EngineArgs

    from emovllm import plugin

    plugin.register()
    once = EngineArgs.create_engine_config
    plugin.register()
    assert EngineArgs.create_engine_config is once
    assert patches_of(once) == (plugin.configure,)


class PretendWorker(EmotionWorkerMixin):
    """A worker whose model adds up its sites, but for those that it was compiled without."""

    def __init__(self, ignored: tuple[str, ...] = ()) -> None:
        self.emotion_sites = [
            SimpleNamespace(key=key, layer=SimpleNamespace(emotion_vectors=torch.full((1, 3), 0.5)))  # type: ignore[misc]
            for key in ("mlp.0", "attn.0", "mlp.1")
        ]
        self.expert_sites = [
            SimpleNamespace(key="experts.1", layer=SimpleNamespace(emotion_vectors=torch.full((1, 3), 0.5)))  # type: ignore[list-item]
        ]
        self.emotion_coefficients = Coefficients(1, 64, torch.device("cpu"), max_requests=4)
        self.model_runner = self
        self.steered_layers = []
        # By what is run: a batch of any requests, a decode step. Where there is one graph, all run it.
        self.ignored_by_graph: dict[str, tuple[str, ...]] = {}
        self.runs: list[str] = []
        self.vllm_config = SimpleNamespace(
            compilation_config=SimpleNamespace(static_forward_context={}, cudagraph_mode=CUDAGraphMode.NONE),
            scheduler_config=SimpleNamespace(max_num_seqs=16, max_num_batched_tokens=64),
        )
        self._ignored = ignored

    def execute_model(self) -> None:
        raise AssertionError("the dummy run needs no batch")

    def _dummy_run(self, tokens: int, force_attention: bool, uniform_decode: bool = False) -> tuple[torch.Tensor]:
        assert force_attention
        decode = uniform_decode or (hasattr(self, "model_state") and tokens <= 16)
        self.runs.append("decode" if decode else "any")
        ignored = {*self._ignored, *self.ignored_by_graph.get(self.runs[-1], ())}
        rows = self.emotion_coefficients.buffer[:tokens]
        read = [place.layer.emotion_vectors for place in self._places() if place.key not in ignored]
        return (torch.ones(tokens, 3) + sum((rows @ vectors for vectors in read), torch.zeros(tokens, 3)),)


def test_a_compiled_model_that_ignores_the_circuit_is_refused() -> None:
    alive = PretendWorker()
    alive._check_live()
    assert not alive.emotion_coefficients.buffer.any()
    assert all((place.layer.emotion_vectors == 0.5).all() for place in alive._places())
    with pytest.raises(Unsupported, match=r"at 4 of 4 sites \(mlp\.0, attn\.0, mlp\.1, experts\.1\)"):
        PretendWorker(ignored=("mlp.0", "attn.0", "mlp.1", "experts.1"))._check_live()
    with pytest.raises(Unsupported, match=r"ignores the emotion circuit at 1 of 4 sites \(experts\.1\)"):
        PretendWorker(ignored=("experts.1",))._check_live()


@pytest.mark.parametrize("written", [True, False])
def test_a_compiled_model_that_does_not_write_what_is_read_is_refused(written: bool) -> None:
    worker = PretendWorker()
    buffer = torch.zeros(64, 3)
    worker.read_out = SimpleNamespace(buffer=buffer, key="readout.1")  # type: ignore[assignment]
    run = worker._dummy_run

    def run_and_read(tokens: int, **options: Any) -> Any:
        if written:
            buffer[:tokens] = 0.0
        return run(tokens, **options)

    worker._dummy_run = run_and_read  # type: ignore[method-assign]
    if written:
        worker._check_live()
    else:
        with pytest.raises(Unsupported, match=r"does not write what a probe reads \(readout\.1\)"):
            worker._check_live()


def test_what_a_circuit_takes_is_counted_with_the_weights() -> None:
    worker = PretendWorker()
    delta = torch.zeros(2, 5)
    for site in worker.emotion_sites:
        site.delta = delta if site.key == "mlp.0" else None
    runner = SimpleNamespace(model_memory_usage=1000)
    worker._count_memory(runner)
    # The buffer, the vectors of four places, and what is folded through adapters at one.
    assert runner.model_memory_usage == 1000 + 4 * (64 + 4 * 3 + 2 * 5)


class PretendV2Worker(PretendWorker):
    """The same with the V2 runner."""

    model_state = None


@pytest.mark.parametrize("worker", [PretendWorker, PretendV2Worker])
@pytest.mark.parametrize("graph", ["any", "decode"])
def test_every_kind_of_graph_is_checked(worker: type[PretendWorker], graph: str) -> None:
    stale = worker()
    stale.vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    stale._check_live()
    assert set(stale.runs) == {"any", "decode"}
    stale.ignored_by_graph[graph] = ("mlp.1",)
    with pytest.raises(Unsupported, match=r"at 1 of 4 sites \(mlp\.1\)"):
        stale._check_live()


class Rows:
    """A block table: of each request, its blocks."""

    def __init__(self) -> None:
        self.of: dict[int, list[int]] = {}

    def add_row(self, blocks: list[int], row: int) -> None:
        self.of[row] = blocks

    def clear_row(self, row: int) -> None:
        del self.of[row]


class StatefulWorker(PretendWorker):
    """One with a layer whose state each run adds to; a request reads its block's, and block 0 was never written."""

    def __init__(self, ignored: tuple[str, ...] = ()) -> None:
        super().__init__(ignored)
        self._state = torch.full((40, 3), float("nan"))
        layer = SimpleNamespace(mamba_type="mamba2", kv_cache=(self._state,))
        self.vllm_config.compilation_config.static_forward_context["layers.0.mamba"] = layer
        self.tables = [Rows(), Rows()]
        table = SimpleNamespace(block_tables=self.tables)
        self.input_batch = SimpleNamespace(block_table=table, max_num_reqs=8)

    def blocks(self, tokens: int) -> list[list[int]]:
        """Of each kind of layer, the block of each request."""
        return [[rows.of[row][0] for row in range(tokens)] for rows in self.tables]

    def _dummy_run(self, tokens: int, force_attention: bool) -> tuple[torch.Tensor]:
        others, blocks = self.blocks(tokens)
        assert not {0, *others} & set(blocks)
        (output,) = super()._dummy_run(tokens, force_attention)
        self._state[blocks] += torch.rand(tokens, 3)
        return (output + self._state[blocks] * 0.001,)


class Tables:
    """The V2 runner's block tables, whose dummy requests have all block 0."""

    block_tables = (None, None)

    def get_dummy_block_tables(self, requests: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros(requests, 4, dtype=torch.int32) for _ in self.block_tables)


class StatefulV2Worker(StatefulWorker):
    """The same with the V2 runner."""

    model_state = None

    def __init__(self, ignored: tuple[str, ...] = ()) -> None:
        super().__init__(ignored)
        self.block_tables = Tables()

    def blocks(self, tokens: int) -> list[list[int]]:
        return [rows[:, 0].tolist() for rows in self.block_tables.get_dummy_block_tables(tokens)]


@pytest.mark.parametrize("worker", [StatefulWorker, StatefulV2Worker])
def test_layers_with_a_state_do_not_hide_which_sites_are_live(worker: type[StatefulWorker]) -> None:
    alive = worker()
    alive._check_live()
    # The tables are as they were.
    with pytest.raises(KeyError if worker is StatefulWorker else AssertionError):
        alive._dummy_run(8, force_attention=True)
    with pytest.raises(Unsupported, match=r"at 2 of 4 sites \(attn\.0, mlp\.1\)"):
        worker(ignored=("attn.0", "mlp.1"))._check_live()


def test_a_model_that_goes_past_one_projection_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"at 1 of 4 sites \(attn\.0\)"):
        PretendWorker(ignored=("attn.0",))._check_live()
