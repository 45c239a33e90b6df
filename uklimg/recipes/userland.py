"""The recipe of USERLAND: ordinary programs for the initramfs, out of the packages that the lock has. Pure."""

from __future__ import annotations

from uklimg.graph import Container, Input, Step
from uklimg.lock import LockedPackages

RECIPE_VERSION = 1
STEP_ID = "userland"

# A busybox under all of its names. Debian puts programs below /usr and scripts look for them anywhere: one folder is
# all four. The licence asks to stay with the program.
_BUSYBOX = """\
set -e
for package in /in/packages/*.deb; do
    dpkg-deb --extract "$package" /tmp/packages
done
mkdir -p /out/bin /out/usr/share/doc/busybox
cp /tmp/packages/usr/bin/busybox /out/bin/
cp /tmp/packages/usr/share/doc/busybox-static/copyright /out/usr/share/doc/busybox/
for name in $(/out/bin/busybox --list); do
    [ "$name" = busybox ] || ln -s busybox "/out/bin/$name"
done
ln -s bin /out/sbin
ln -s ../bin /out/usr/bin
ln -s ../bin /out/usr/sbin
"""


def userland_step(base: str, locked: LockedPackages) -> Step:
    """A TREE step: what lies over the minimal root. ``base``: a step whose root file system has dpkg-deb."""
    inputs: dict[str, Input] = {
        f"/in/packages/{package.file.name}": package.file.blob() for package in sorted(locked.packages)
    }
    return Step(
        id=STEP_ID,
        title=f"USERLAND {' '.join(locked.requested)}",
        recipe="userland",
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=base, argv=("/bin/sh", "-c", _BUSYBOX)),
        inputs=inputs,
    )
