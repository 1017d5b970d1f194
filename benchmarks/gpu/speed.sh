#!/usr/bin/env bash
# speed.sh SHAPE OUT [options of `emovllm bench`]: plain vLLM twice and emovllm, all three on one GPU, dummy weights.
# RUNNER=1 (default) is the V2 model runner, 0 the V1 one. GRAPHS=PIECEWISE for piecewise CUDA graphs alone.
set -euo pipefail
shape=$1 out=$2
shift 2
here=$(dirname "${BASH_SOURCE[0]}")
kit=${EMOVLLM_KIT:-/tmp/emovllm-kit}
[ -d "$kit/$shape/circuit" ] || python3 "$here/shapes.py" "$shape" "$kit/$shape" --device "${DEVICE:-cuda}"
# Room for 256 requests of 768 tokens each in every engine's cache.
case $shape in
    3b) cache=22 ;;
    8b) cache=25 ;;
    *) cache=1 ;;
esac
engine='{"load_format": "dummy", "skip_tokenizer_init": true, "generation_config": "vllm", "gpu_memory_utilization": 0.3,
  "kv_cache_memory_bytes": '$((cache * 2 ** 30))', "compilation_config": {"cudagraph_mode": "'${GRAPHS:-FULL_AND_PIECEWISE}'"},
  "additional_config": {"emovllm": {"allow_untested_vllm": true}}}'
exec python3 -m emovllm.cli bench "$kit/$shape/llama-$shape-shape" --circuit "$kit/$shape/circuit" --without-hf --dtype bfloat16 \
    --prompt-tokens 512 --output-tokens 256 --env VLLM_USE_V2_MODEL_RUNNER="${RUNNER:-1}" \
    --engine-args "${ENGINE_ARGS:-$engine}" --out "$out" "$@"
