#!/bin/sh
# What benchmarks/stream.py and benchmarks/tokenizers.py compare with, in environments of their own, so that nothing of
# it is needed by this project:   sh benchmarks/peers.sh FOLDER [PYTHON]
# FOLDER/most and FOLDER/mosaicml (it needs an older numpy) are loaders, FOLDER/omnijet is OmniJet-alpha's public code.
# ONLY=omnijet makes this one alone. torch stays at the version that PYTHON has; when that is a CPU build from another
# index, name the index:  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -u
folder=${1:?give a folder for the environments}
python=${2:-python3}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
"$python" -c 'import torch; print("torch==" + torch.__version__)' > "$folder/constraints.txt" || exit 1

wanted() {
  [ -z "${ONLY:-}" ] || [ "$ONLY" = "$1" ]
}

# One pip for each package: one that does not install costs its own row of the table only.
install() {
  environment=$1
  shift
  wanted "$environment" || return 0
  "$python" -m venv "$folder/$environment" || exit 1
  for package in "$@"; do
    "$folder/$environment/bin/pip" install --quiet --constraint "$folder/constraints.txt" "$package" \
      > "$folder/$environment-$package.log" 2>&1 \
      && echo "$environment: $package" || echo "$environment: $package did not install, see $folder/$environment-$package.log"
  done
}

# Code that no index has, at one commit, made importable as it is:   checkout ENVIRONMENT NAME COMMIT URL
checkout() {
  wanted "$1" || return 0
  source="$folder/$1/source/$2"
  if [ -d "$source" ] || git clone --quiet "$4" "$source"; then
    git -C "$source" checkout --quiet "$3" \
      && "$folder/$1/bin/python" -c 'import sys, sysconfig, pathlib
pathlib.Path(sysconfig.get_path("purelib"), sys.argv[1] + ".pth").write_text(sys.argv[2])' "$2" "$source" \
      && echo "$1: $2 $3" && return 0
  fi
  echo "$1: $2 did not come from $4"
}

install most torch webdataset litdata grain pyarrow datasets megatron-energon
install mosaicml torch pyarrow mosaicml-streaming
# torchpq, by which vqtorch starts a codebook in training only, is left out: it wants CuPy, and so a GPU. string-color, by
# which it prints, imports what newer setuptools lack.
install omnijet torch "setuptools<81" awkward vector lightning matplotlib string-color==1.2.3
checkout omnijet omnijet_alpha 1c8d4429dcd11a9f56355d4d05c4ed2f908b00ed \
  "${OMNIJET_ALPHA:-https://github.com/uhh-pd-ml/omnijet_alpha}"
checkout omnijet vqtorch 02e60a19bd742c17b0bf3e1925f23796d54cbeac "${VQTORCH:-https://github.com/minyoungg/vqtorch}"
