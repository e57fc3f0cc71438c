#!/usr/bin/env bash
# Saved models in transformers 4.57, which other tools still pin: the same ids, texts, logits and greedy tokens
# as here. It gets an environment of its own, .venv-transformers4, which takes torch from .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements.txt

older=.venv-transformers4
version=4.57.6
if [ ! -e "$older/installed-$version" ]; then
    echo "== making $older"
    rm -rf $older
    "$python" -m venv $older
    $older/bin/pip install --quiet --disable-pip-version-check "transformers==$version"
    # Read after its own packages, so that it adds torch and replaces nothing.
    python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$($older/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
    touch "$older/installed-$version"
fi

saved=$(mktemp -d)
trap 'rm -rf "$saved"' EXIT
python -m tests.transformers4 write "$saved"
$older/bin/python -m tests.transformers4 read "$saved"
