#!/bin/bash
# Programs of Debian 13 for the tests, unpacked beside this machine's own: bin/NAME in a folder of the user's cache starts
# one with the libraries that it was made for. Prints that folder. Quick when all is there.
#
# Why not the machine's: Debian 12 has no cosign and no oras, its skopeo cannot verify sigstore signatures, and its
# docker-compose is the old one. umoci is the same in both.
set -euo pipefail

PROGRAMS=(cosign oras skopeo umoci docker-compose)
# What they need and the package that has it (a libc comes along, so all of it must be trixie's).
PACKAGES=("${PROGRAMS[@]}" libc6 libgpgme11t64 libassuan9 libgpg-error0 libsqlite3-0)

home=${XDG_CACHE_HOME:-$HOME/.cache}/uklimg-trixie
stamp=$home/stamp
wanted="1 ${PACKAGES[*]} ${PROGRAMS[*]}"
if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    # The mirror of this machine's own apt configuration; only the suite is another one.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -E '/debian/?$' | head -n 1)
    [[ -n $mirror ]] || { echo "trixie: apt is configured for no Debian mirror" >&2; exit 1; }
    rm -rf "$home"
    mkdir -p "$home"/{root,bin} "$home"/apt/{lists/partial,cache/archives/partial}
    printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: %s\n' \
        "$mirror" /usr/share/keyrings/debian-archive-keyring.gpg >"$home/apt/trixie.sources"
    options=(
        -qq -o "Dir::Etc::sourcelist=$home/apt/trixie.sources" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$home/apt/lists" -o "Dir::Cache=$home/apt/cache" -o "APT::Sandbox::User=$(id -un)"
    )
    apt-get "${options[@]}" update
    (cd "$home/apt" && apt-get "${options[@]}" download "${PACKAGES[@]}")
    for package in "$home"/apt/*.deb; do
        dpkg-deb --extract "$package" "$home/root"
    done
    rm -rf "$home/apt"
    libraries=$home/root/usr/lib/x86_64-linux-gnu
    for program in "${PROGRAMS[@]}"; do
        printf '#!/bin/sh\nexec %q --library-path %q --argv0 %q %q "$@"\n' "$libraries/ld-linux-x86-64.so.2" \
            "$libraries" "$program" "$home/root/usr/bin/$program" >"$home/bin/$program"
        chmod 755 "$home/bin/$program"
    done
    echo "$wanted" >"$stamp"
fi
echo "$home"
