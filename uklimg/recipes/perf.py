"""The recipe of perf with the libraries that it needs, to run wherever the folder is mounted. Pure."""

from __future__ import annotations

from uklimg.graph import Container, Step

RECIPE_VERSION = 1
STEP_ID = "perf"
LOADER = "lib/ld-linux-x86-64.so.2"
LIBRARIES = "lib"
PROGRAM = "perf"

_SCRIPT = """\
mkdir -p /out/lib
cp /usr/bin/perf /out/perf
ldd /usr/bin/perf | sed -n 's/.*=> \\(\\/[^ ]*\\).*/\\1/p' | sort -u | while read -r library; do
    cp -L "$library" /out/lib/
done
cp -L /lib64/ld-linux-x86-64.so.2 /out/lib/
/out/lib/ld-linux-x86-64.so.2 --library-path /out/lib /out/perf --version
"""


def perf_step(tools: str) -> Step:
    """A TREE step: ``perf``, and in ``lib`` its loader and libraries. ``tools`` is a step whose root file system has
    Debian's linux-perf."""
    action = Container(rootfs=tools, argv=("/bin/sh", "-ec", _SCRIPT))
    return Step(id=STEP_ID, title="take perf", recipe="perf", recipe_version=RECIPE_VERSION, action=action)
