#!/bin/bash
# All tests. They build containers and boot virtual machines, the former as root.
set -euo pipefail
cd "$(dirname "$0")/.."

run=(.venv/bin/python -m pytest)
if ((EUID != 0)); then
    # The caller's store would hold files of root otherwise.
    run=(sudo --preserve-env=UKLIMG_APPS,UKLIMG_STORE,UKLIMG_CONFIG,UKLIMG_DEBIAN_MIRROR,http_proxy,https_proxy,no_proxy "${run[@]}")
fi
exec "${run[@]}" "$@"
