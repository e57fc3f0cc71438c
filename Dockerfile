# The recipe for cards, in a container: the same requirements.txt, and what DeepSpeed needs to build its operations.
#
#   docker build -t yayi .
#   docker run --gpus all --ipc=host -v "$PWD/checkpoints:/yayi/checkpoints" yayi \
#       torchrun --nproc-per-node=gpu -m training.trainer ...
#
# docs/clusters.md says more, and why torchrun is the launcher that a container ends well with.

# As torch in requirements.txt was built; a step below compares them.
ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04
ARG CUDA

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# The runtime image has no compiler, no Python and no headers. DeepSpeed builds its Adam at the first start: with
# nvcc for a card, with g++ for an optimizer in the host's memory. The headers of torch include those of CUDA's
# libraries.
# hadolint ignore=DL3008
RUN toolkit="${CUDA%.*}" && toolkit="${toolkit/./-}" && \
    apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ git python3-dev python3-venv \
        "cuda-nvcc-$toolkit" "cuda-cudart-dev-$toolkit" "libcublas-dev-$toolkit" "libcurand-dev-$toolkit" \
        "libcusolver-dev-$toolkit" "libcusparse-dev-$toolkit" && \
    rm -rf /var/lib/apt/lists/*

WORKDIR /yayi
ENV PATH=/opt/yayi/bin:$PATH CUDA_HOME=/usr/local/cuda PYTHONUNBUFFERED=1

# Before the code, so that a change of the code installs nothing again.
COPY requirements.txt ./
RUN python3 -m venv /opt/yayi && \
    pip install --no-cache-dir -r requirements.txt
RUN built="$(python -c 'import torch; print(torch.version.cuda)')" && \
    [ "${built%%.*}" = "${CUDA%%.*}" ] || \
    { echo "error: torch was built with CUDA $built; docker build --build-arg CUDA=$built.0" >&2; exit 2; }

COPY . .
