#!/bin/bash
# All tests. They build containers and boot virtual machines, the former as root. Arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."

# cosign, oras and a newer skopeo, which other people's clients are in the tests.
as_root=()
((EUID == 0)) || as_root=(sudo) # whose cache it is
"${as_root[@]}" scripts/trixie.sh >/dev/null || { echo "test: Debian 13's programs could not be unpacked" >&2; exit 1; }

# Files of tests side by side: much of a boot is waiting. Within a file they keep their order and share what they boot. The
# files keep theirs, too: sorted by number of tests, the longest, which have few, would be last.
workers=${UKLIMG_TEST_WORKERS:-$(($(nproc) < 8 ? 2 : 4))}

run=(.venv/bin/python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder)
if ((EUID != 0)); then
    # The caller's store would hold files of root otherwise.
    run=(sudo --preserve-env=UKLIMG_APPS,UKLIMG_STORE,UKLIMG_CONFIG,UKLIMG_DEBIAN_MIRROR,UKLIMG_TEST_BOOTS,UKLIMG_TEST_GLIBC,UKLIMG_TEST_KASAN,UKLIMG_TEST_UNPATCHED,http_proxy,https_proxy,no_proxy "${run[@]}")
fi
exec "${run[@]}" "$@"
