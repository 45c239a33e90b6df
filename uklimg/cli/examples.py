"""An example or two for each command, shown by its --help. The tests read every one with the real parser."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

# Command line and what it does. A new command has its examples here.
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "build": (
        ("uklimg build", "the Uklfile of this folder, as an image called after its title or the folder"),
        ("uklimg build -t redis:8 -f Uklfile.example .", "another file, and a name for the image"),
        ("uklimg build --locked --offline", "exactly what Uklfile.lock says, from what the store has"),
        ("uklimg build --target build --progress plain", "stop at the stage `build`, with all output"),
        (
            "uklimg build --target linux",
            "the plain-Linux twin: same program and kernel, without UKL",
        ),
        ("uklimg build -t registry.example.com/me/redis:8 --push", "build it, and send it there"),
        ("uklimg build --secret id=token,env=TOKEN", "for RUN --mount=type=secret,id=token"),
    ),
    "run": (
        ("uklimg run -p 6379:6379 redis:8", "boot it; the guest's port 6379 is this machine's"),
        ("uklimg run -m 512M --cpus 2 redis:8 redis-server --save ''", "another command, more of the machine"),
        ("uklimg run -v ./data:/data -e LOG=debug server", "a folder and a variable for the program"),
        ("uklimg run -d --name cache --restart on-failure redis:8", "leave it running: `uklimg ps`, `logs`, `stop`"),
    ),
    "ps": (
        ("uklimg ps", "the guests that `uklimg run -d` started and that run"),
        ("uklimg ps -a --format json", "all of them, for a program to read"),
    ),
    "logs": (
        ("uklimg logs -f cache", "what it printed, and what it prints until it ends"),
        ("uklimg logs --tail 20 cache", "the last lines"),
    ),
    "exec": (
        ("uklimg exec -it cache sh", "a shell in the guest, of an image with USERLAND busybox"),
        ("uklimg exec cache cat /proc/meminfo", "one command"),
    ),
    "stop": (
        ("uklimg stop cache", "its stop signal, and SIGKILL when that does not help"),
        ("uklimg stop -t 60 cache queue", "two of them, with a minute for each"),
    ),
    "wait": (("uklimg wait job", "print its exit status once it has ended"),),
    "rm": (
        ("uklimg rm cache", "forget a guest that has ended, and its log"),
        ("uklimg rm -f cache", "end it first"),
    ),
    "test": (
        ("uklimg test", "build the image of this folder's Uklfile, boot it and run its TEST commands"),
        ("uklimg test apps/memcached set-get", "one test of the Uklfile there"),
        ("uklimg test --format json --timeout 300 .", "for a program to read, on a slow machine"),
    ),
    "bench": (
        ("uklimg bench syscall", "system calls: plain Linux, the base model, and what UKL options there are"),
        ("uklimg bench redis --variant base --variant BYP --picture redis.svg", "two of them, and a picture"),
        ("uklimg bench all --format json --output bench.json", "everything, for a program to read"),
    ),
    "profile": (
        ("uklimg profile --client redis redis", "Redis under the load of `uklimg bench redis`: profile.svg"),
        (
            "uklimg profile -p 8080:80 --seconds 30 -o nginx.svg nginx",
            "30 seconds of load from outside",
        ),
    ),
    "plan": (
        ("uklimg plan", "which steps `build` would run, why, and how long that may take"),
        ("uklimg plan --target build --format json", "one stage, for a program to read"),
    ),
    "explain": (
        ("uklimg explain", "why the steps that `build` would run must run, the causes first"),
        ("uklimg explain stage:build:2", "what changed in one step since it was made last"),
    ),
    "lock": (
        ("uklimg lock", "write what Uklfile.lock lacks"),
        ("uklimg lock --update redis", "look for a newer redis, and for nothing else"),
        ("uklimg lock --check", "fail when the lock is not complete (for CI)"),
    ),
    "vendor": (
        ("uklimg vendor ./sources", "every file that Uklfile.lock names, in a folder"),
        ("uklimg vendor registry.example.com/me/sources:1", "the same in a registry"),
    ),
    "init": (
        ("uklimg init", "look at this folder and write a Uklfile for it"),
        ("uklimg init --force ../memcached", "another folder, replacing the Uklfile that is there"),
    ),
    "check": (
        ("uklimg check", "what in this folder's sources will not work as a unikernel"),
        ("uklimg check server.o libfoo.a", "what in these objects and archives cannot be linked"),
        ("uklimg check --format json src", "for an editor or CI"),
    ),
    "completion": (
        ("uklimg completion bash > /etc/bash_completion.d/uklimg", "for every user's bash"),
        ("uklimg completion fish > ~/.config/fish/completions/uklimg.fish", "for your fish"),
    ),
    "images": (
        ("uklimg images", "names, digests and sizes"),
        ("uklimg images --format json", "for a program to read"),
    ),
    "inspect": (
        ("uklimg inspect redis:8", "program, kernel, ports, memory, files"),
        ("uklimg inspect sha256:0123abcd --format json", "by the first digits of the digest"),
        ("uklimg inspect --sbom redis:8", "its bill of materials (CycloneDX)"),
    ),
    "history": (
        ("uklimg history redis:8", "the steps that made it, their keys, what they left and how long they took"),
    ),
    "diff": (
        ("uklimg diff redis:7 redis:8", "what differs: configuration, kernel, locked inputs, steps, files"),
        ("uklimg diff redis:7 redis:8 --format json", "all of it, for a program to read"),
    ),
    "save": (("uklimg save -o redis.tar redis:8", "an OCI archive, for skopeo, podman or `uklimg load`"),),
    "load": (("uklimg load -i redis.tar", "the images in it, under their names"),),
    "export": (
        ("uklimg export --format uki -o redis.efi redis:8", "for UEFI firmware: one file with everything"),
        (
            "uklimg export --format qcow2 -o redis.qcow2 registry.example.com/me/redis:8",
            "a disk; pulls what is missing",
        ),
        ("uklimg export --format libvirt -o /srv/redis -m 512M redis:8", "a folder with files and domain.xml"),
        ("uklimg export --format folder --accel tcg -o redis-vm redis:8", "kernel, initramfs and a QEMU script"),
    ),
    "verify": (
        ("uklimg verify redis:8", "build it again from nothing but sources, and compare"),
        ("uklimg verify --reuse kernel-kit --reuse 'base:*' redis:8", "the same without compiling the kernel"),
        ("uklimg verify registry.example.com/me/redis:8", "somebody else's image"),
    ),
    "tag": (("uklimg tag redis:8 registry.example.com/me/redis:8", "the name it is pushed under"),),
    "rmi": (("uklimg rmi redis:8 redis:7", "forget the names; `prune` makes room"),),
    "push": (
        ("uklimg push registry.example.com/me/redis:8", "an image that has this name here"),
        ("uklimg push redis:8 registry.example.com/me/redis:8", "under another name"),
        ("uklimg push --sign release.key registry.example.com/me/redis:8", "with a signature, for pull --verify"),
    ),
    "pull": (
        ("uklimg pull registry.example.com/me/redis:8", "into the store"),
        ("uklimg pull --verify uklimg.pub registry.example.com/me/redis:8", "only if it is signed with that key"),
    ),
    "artifacts": (
        ("uklimg artifacts redis:8", "the blueprint, bill of materials, signatures, … of an image"),
        ("uklimg artifacts registry.example.com/me/redis:8 debug -o /tmp", "its symbols, for gdb"),
    ),
    "keygen": (
        ("uklimg keygen release", "release.key, which stays at home, and release.pub, which everybody may have"),
    ),
    "sign": (
        ("uklimg sign --key release.key registry.example.com/me/redis:8", "an image that was pushed from here"),
    ),
    "login": (
        ("uklimg login registry.example.com", "asks for user and password"),
        ("uklimg login -u ada --password-stdin registry.example.com", "the password comes on standard input"),
    ),
    "logout": (("uklimg logout registry.example.com", "forget them"),),
    "du": (("uklimg du", "bytes of blobs, trees and the engine's copies"),),
    "prune": (("uklimg prune", "remove what no image and no cached step needs"),),
}


def epilog(verb: str) -> str:
    """The examples as --help shows them."""
    lines = []
    for command, text in EXAMPLES.get(verb, ()):
        lines += [f"  {command}", textwrap.indent(textwrap.fill(text, 72), "      ")]
    return "\n".join(["examples:", *lines]) if lines else ""
