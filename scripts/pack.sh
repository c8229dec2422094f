#!/usr/bin/env bash
# pack.sh FOLDER NAME PART_MB: what the folder holds, in parts beside it, with their hashes and install.sh.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tar -c -C "$1" . | (cd "$1/.." && split --bytes="$3MB" --numeric-suffixes=1 --suffix-length=3 - "$2.part")
cp "$scripts/install.sh" "$1/.."
cd "$1/.." && sha256sum "$2".part* >SHA256SUMS
