#!/bin/bash
# Build an image from nothing, twice, in ways that should not matter, and compare every step with the first build.
# Each time the base image and the kernel are made anew: ten minutes or more. Run as root.
#
#     scripts/reproduce.sh [REF [OPTION…]]
#
# REF is an image of the store; without it that of Uklfile.example is built first. OPTIONs are for `uklimg verify`, as in
# --reuse kernel-kit, which takes the kernel from the store after all.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$PWD/.venv/bin/python
[[ -x $python ]] || python=${PYTHON:-python3}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
image=${1-}
options=("${@:2}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ -z $image ]]; then
    image=uklimg-reproduce/example
    cp Uklfile.example scripts/example.lock "$work"
    mv "$work/example.lock" "$work/Uklfile.lock"
    "$python" -m uklimg build --progress plain -f "$work/Uklfile.example" -t "$image" "$work"
fi

# NAME UMASK PROCESSORS ZONE LOCALE: verify under another host and user name, umask, number of processors, time zone,
# locale, home and temporary folder, from another folder, with variables set that compilers and tools listen to.
again() {
    local name=$1 mask=$2 count=$3 zone=$4 locale=$5
    local home="$work/$name"
    local store
    store=$("$python" -c 'import os, pathlib; from uklimg.settings import read_settings
print(read_settings(os.environ, pathlib.Path.cwd()).store)')
    mkdir -p "$home/tmp" "$home/here"
    local processors
    processors=$("$python" -c 'import os, sys; print(",".join(map(str, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])))' "$count")
    printf '\n== %s: umask %s, %s processor(s), TZ=%s, LC_ALL=%s\n' "$name" "$mask" "$count" "$zone" "$locale"
    # shellcheck disable=SC2016
    time unshare --uts bash -ec '
        hostname "$1"; umask "$2"; cd "$3/here"
        HOME=$3 TMPDIR=$3/tmp TZ=$4 LC_ALL=$5 LANG=$5 USER=$1 LOGNAME=$1 SOURCE_DATE_EPOCH=1 CFLAGS=-O0 MAKEFLAGS=k \
            exec taskset -c "$6" "$7" -m uklimg --store "$8" verify --progress plain "${@:9}"
    ' bash "$name" "$mask" "$home" "$zone" "$locale" "$processors" "$python" "$store" "${options[@]}" "$image"
}

again first 000 9999 UTC C
again second 077 1 Pacific/Kiritimati tr_TR.UTF-8
