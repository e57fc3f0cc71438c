#!/usr/bin/env bash
# EleutherAI's harness on a model that learns ten questions by heart: it finds the answers, and scores the token
# ids of training. This is run by hand, because the harness brings many packages, which take minutes to install.
# They go into an environment of their own, .venv-lm-eval, which also sees the packages of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements.txt requirements-test.txt

version=0.4.13
harness=.venv-lm-eval
if [ ! -e "$harness/installed-$version" ]; then
    echo "== installing lm-eval $version in $harness"
    rm -rf "$harness"
    python -m venv "$harness"
    packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    packages .venv >"$(packages "$harness")/shared.pth"
    "$harness/bin/pip" install --quiet --disable-pip-version-check "lm-eval==$version"
    touch "$harness/installed-$version"
fi
"$harness/bin/python" -m pytest tests/inference/lm_eval_ids.py
