#!/usr/bin/env bash
# A file of requests answered without a server, and then a small evaluation; into a folder, ./example by default.
#
#   scripts/env examples/batch_evaluate.sh [OUT]
#
# Both commands start the default model's engine, a minute each on two cores once it is compiled. BATCH_ARGUMENTS and
# EVALUATE_ARGUMENTS go to them as they are, words apart by spaces: another model and circuit, or a server to evaluate.
set -euo pipefail
out=${1:-example}
mkdir -p "$out"

message='"messages": [{"role": "user", "content": "My neighbour borrowed my bike and brought it back with a flat tyre."}]'
cat >"$out/requests.jsonl" <<END
{"custom_id": "plain", "method": "POST", "url": "/v1/chat/completions", "body": {$message, "max_tokens": 40, "temperature": 0}}
{"custom_id": "anger", "method": "POST", "url": "/v1/chat/completions", "body": {$message, "max_tokens": 40, "temperature": 0, "emotion": "anger"}}
{"custom_id": "mixed", "method": "POST", "url": "/v1/chat/completions", "body": {$message, "max_tokens": 40, "temperature": 0, "emotion": {"fear": 0.6, "surprise": 0.4}}}
END

# Interrupted, the same command asks the lines that have no reply yet.
# shellcheck disable=SC2086
emovllm run-batch -i "$out/requests.jsonl" -o "$out/replies.jsonl" ${BATCH_ARGUMENTS:-}

# Three messages (one scenario), six emotions, judged by words: to see how it works, and too little to conclude from. The
# default circuit learnt from this scenario, and the lexicon chose among the replies that it learnt from.
# shellcheck disable=SC2086
emovllm evaluate --data sev-small --limit 1 --methods none,circuits --strengths 1 --max-tokens 40 --judge lexicon --paper-way 0 \
    --out "$out/evaluation" ${EVALUATE_ARGUMENTS:-}
echo "$out/replies.jsonl, $out/evaluation/summary.md, $out/evaluation/page.html"
