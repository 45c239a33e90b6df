#!/bin/bash
# Everything that uklimg and its tests need: Debian packages, and .venv with uklimg in it. Quick when it is all there.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(
    # what a build uses (buildah of Debian 13 makes no container without netavark, and only recommends it)
    buildah netavark runc mmdebstrap debian-archive-keyring gpgv apt util-linux
    # the other engines, and buildah for an ordinary user
    docker.io podman uidmap
    # what runs images
    qemu-system-x86
    # Python
    python3 python3-venv
    # the demo and the tests
    redis-tools docker-registry skopeo busybox-static gcc g++ libc6-dev make git gdb iproute2 procps xz-utils dpkg-dev openssl
    cpio gnupg rsync diffoscope-minimal e2fsprogs
    # disks and CDs that firmware starts (`uklimg export`), and the libvirt that starts a domain of its
    ovmf systemd-boot-efi mtools fdisk qemu-utils xorriso libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
    libxml2-utils
)

# virtiofsd, for volumes: in Debian 12 it comes with QEMU.
[[ $(. /etc/os-release && echo "${VERSION_ID:-0}") == 12 ]] || PACKAGES+=(virtiofsd)

fail() {
    echo "setup: $1" >&2
    exit 1
}

missing=()
for package in "${PACKAGES[@]}"; do
    # Docker's own packages and Debian's exclude one another: what is there stays.
    [[ $package == docker.io ]] && command -v dockerd >/dev/null && continue
    [[ $package == podman ]] && command -v podman >/dev/null && continue
    state=$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $state == ii* ]] || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "setup: installing ${missing[*]}"
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail "packages are missing and there is no sudo: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get update -qq || fail "apt-get update failed"
    # Nothing of it needs to run as a service (invoke-rc.d(8)): the tests start daemons of their own.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >/dev/null || fail "apt-get install failed"
fi

# An interpreter with venv and ensurepip: /usr/bin's when there are several.
python=
for candidate in /usr/bin/python3 python3; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[[ -n $python ]] || fail "Python 3.11 or newer is needed"

stamp=.venv/setup.stamp
wanted=$(cat pyproject.toml scripts/setup.sh | sha256sum)
if [[ ! -x .venv/bin/uklimg || ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    echo "setup: making .venv"
    [[ -x .venv/bin/python ]] && .venv/bin/python -c 'import pip' 2>/dev/null || "$python" -m venv --clear .venv
    # The machine's own pip configuration says where packages come from.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' || fail "pip install failed"
    echo "$wanted" >"$stamp"
fi
