#!/usr/bin/env bash
# Puts nvcc 13.0 into .cache/cuda, from NVIDIA's Python packages (about 270 MB). Does nothing where it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.cache/cuda
version=13.0
if compgen -G "$folder/lib/python3*/site-packages/nvidia/cu13/bin/nvcc" >/dev/null; then
  exit 0
fi
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check \
  "nvidia-cuda-nvcc==$version.88" "nvidia-cuda-runtime==$version.*" "nvidia-cuda-cccl==$version.*" \
  "nvidia-cuda-crt==$version.*" "nvidia-nvvm==$version.*"
"$folder"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc --version | tail -n 2
