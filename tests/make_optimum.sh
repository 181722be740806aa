#!/usr/bin/env bash
# An environment with `optimum`, which needs an older transformers than the rest: make_optimum.sh FOLDER
# Everything else comes from the environment of $PYTHON (default: python3). Tests find it through EDGEKD_OPTIMUM_PYTHON.
set -euo pipefail
folder=$1
python=${PYTHON:-python3}
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$python" -m venv "$folder"
own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$folder/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps \
    optimum==2.1.0 optimum-onnx==0.1.0 transformers==4.57.6 'huggingface-hub<1' 'tokenizers<0.23'
# Behind the folder's own packages on the path.
echo "$packages" > "$own/zz_behind.pth"
