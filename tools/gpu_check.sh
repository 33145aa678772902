#!/usr/bin/env bash
# Measures training steps and inference on one CUDA card, and checks that every form computes the same: at most 8 minutes.
# Where there is no card it says so and measures nothing. It runs in the environment in which cnv2_plugin is installed;
# ONNX Runtime's figures take onnxruntime-gpu.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" tools/research/gpu_check.py "$@"
