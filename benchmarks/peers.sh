#!/bin/sh
# What benchmarks/stream.py, tokenizers.py, train.py, generate.py and evaluate.py compare with, in environments of their own,
# so that nothing of it is needed by this project:   sh benchmarks/peers.sh FOLDER [PYTHON]
# FOLDER/most and FOLDER/mosaicml (it needs an older numpy) are loaders, FOLDER/omnijet is OmniJet-alpha's public code
# and OmniJet-alpha_C's, FOLDER/gpt is GPT-2 of Hugging Face and nanoGPT, FOLDER/spade is SPADE (package humite),
# FOLDER/jets is jetnet, energyflow and fastjet.
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

# Code that no index has, at one commit:   checkout ENVIRONMENT NAME COMMIT URL
checkout() {
  wanted "$1" || return 0
  source="$folder/$1/source/$2"
  if [ -d "$source" ] || git clone --quiet "$4" "$source"; then
    git -C "$source" checkout --quiet "$3" && echo "$1: $2 $3" && return 0
  fi
  echo "$1: $2 did not come from $4"
  return 1
}

# The same, made importable as it is.
importable() {
  wanted "$1" || return 0
  checkout "$@" && "$folder/$1/bin/python" -c 'import sys, sysconfig, pathlib
pathlib.Path(sysconfig.get_path("purelib"), sys.argv[1] + ".pth").write_text(sys.argv[2])' "$2" "$folder/$1/source/$2"
}

install most torch webdataset litdata grain pyarrow datasets megatron-energon
install mosaicml torch pyarrow mosaicml-streaming
# torchpq, by which vqtorch starts a codebook in training only, is left out: it wants CuPy, and so a GPU. string-color, by
# which it prints, imports what newer setuptools lack.
install omnijet torch "setuptools<81" awkward vector lightning matplotlib string-color==1.2.3 scipy
importable omnijet omnijet_alpha 1c8d4429dcd11a9f56355d4d05c4ed2f908b00ed \
  "${OMNIJET_ALPHA:-https://github.com/uhh-pd-ml/omnijet_alpha}"
importable omnijet vqtorch 02e60a19bd742c17b0bf3e1925f23796d54cbeac "${VQTORCH:-https://github.com/minyoungg/vqtorch}"
# It has the package name of omnijet_alpha: who wants it puts it first in PYTHONPATH.
checkout omnijet omnijet_alpha_c 6c0233471f23f97b85b2a3b34a523bf3f5f0c5af \
  "${OMNIJET_ALPHA_C:-https://github.com/uhh-pd-ml/omnijet_alpha_c}"
install gpt torch transformers
importable gpt nanoGPT 3adf61e154c3fe3fca428ad6bc3818b27a3b8291 "${NANOGPT:-https://github.com/karpathy/nanoGPT}"
# jetnet wants numpy below 2, and a module of coffea that newer versions lack; that one imports pytz without asking for it.
install jets torch "numpy<2" jetnet==0.2.5 energyflow==1.4.0 "coffea<2025" "pyarrow<20" pytz fastjet
# what its models and its sampler import; hydra and comet-ml, for its command lines, are left out
install spade torch lightning omegaconf awkward vector h5py scipy rich
importable spade SPADE 0ab7adf194e61fa15ddd3b645a327e019e8e7017 "${SPADE:-https://github.com/uhh-pd-ml/SPADE}"
