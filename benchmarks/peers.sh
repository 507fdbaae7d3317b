#!/bin/sh
# The loaders that benchmarks/stream.py compares with, in environments of their own, so that nothing of theirs is
# needed by this project:   sh benchmarks/peers.sh FOLDER [PYTHON]
# FOLDER/most and FOLDER/mosaicml (it needs an older numpy). torch stays at the version that PYTHON has; when that is
# a CPU build from another index, name the index:  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -u
folder=${1:?give a folder for the environments}
python=${2:-python3}
mkdir -p "$folder"
"$python" -c 'import torch; print("torch==" + torch.__version__)' > "$folder/constraints.txt" || exit 1

# One pip for each package: one that does not install costs its own row of the table only.
install() {
  environment=$1
  shift
  "$python" -m venv "$folder/$environment" || exit 1
  for package in "$@"; do
    "$folder/$environment/bin/pip" install --quiet --constraint "$folder/constraints.txt" "$package" \
      > "$folder/$environment-$package.log" 2>&1 \
      && echo "$environment: $package" || echo "$environment: $package did not install, see $folder/$environment-$package.log"
  done
}

install most torch webdataset litdata grain pyarrow datasets megatron-energon
install mosaicml torch pyarrow mosaicml-streaming
