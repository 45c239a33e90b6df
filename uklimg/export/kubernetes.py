"""Manifests for clusters: a virtual machine of KubeVirt, a pod whose runtime class is urunc. YAML texts.

The image itself stays in its registry, from where the cluster pulls it by digest.
"""

from __future__ import annotations

from pathlib import Path

from uklimg import oci
from uklimg.digest import JSON
from uklimg.errors import UserError
from uklimg.export.model import NONE, Job
from uklimg.ref import Reference
from uklimg.runner.machine import MIB

RUNTIME_CLASS = "urunc"
_NETWORK = "default"


def kubevirt(job: Job, out: Path) -> None:
    out.write_text(_yaml(job, virtual_machine(job)))


def urunc(job: Job, out: Path) -> None:
    out.write_text(_yaml(job, pod(job)))


def image_reference(job: Job) -> str:
    """HOST/NAME@DIGEST; UserError when no registry is named."""
    if not job.wanted.image or not Reference.parse(job.wanted.image).host:
        hint = "uklimg push it, then --image HOST/NAME"
        raise UserError("a cluster pulls the image from a registry, and none is named", hint=hint)
    return f"{Reference.parse(job.wanted.image).name}@{job.digest}"


def virtual_machine(job: Job) -> JSON:
    """VirtualMachine of kubevirt.io/v1, which boots the image's kernel and initramfs directly (kernelBoot)."""
    machine = job.machine(oci.BZIMAGE, _NETWORK)
    networked = machine.network is not None
    ports: list[JSON] = [{"port": port, "protocol": kind.upper()} for port, kind in job.ports()]
    interface: dict[str, JSON] = {"name": _NETWORK, "model": "virtio", "masquerade": {}}
    devices: dict[str, JSON] = {"autoattachGraphicsDevice": False, "autoattachSerialConsole": True, "rng": {}}
    if networked:
        devices["interfaces"] = [{**interface, "ports": ports} if ports else interface]
    else:
        devices["autoattachPodInterface"] = False
    boot: JSON = {
        "kernelArgs": job.parameters(network=networked),
        "container": {
            "image": image_reference(job),
            "imagePullPolicy": "IfNotPresent",
            "kernelPath": oci.PATHS[oci.BZIMAGE],
            "initrdPath": oci.PATHS[oci.INITRAMFS],
        },
    }
    inside: dict[str, JSON] = {
        "domain": {
            "cpu": {"cores": machine.cpus},
            "memory": {"guest": f"{machine.memory // MIB}Mi"},
            "firmware": {"kernelBoot": boot},
            "devices": devices,
        }
    }
    if networked:
        inside["networks"] = [{"name": _NETWORK, "pod": {}}]
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": job.name, "labels": _labels(job)},
        "spec": {
            "runStrategy": "RerunOnFailure",
            "template": {"metadata": {"labels": _labels(job)}, "spec": inside},
        },
    }


def pod(job: Job) -> JSON:
    """Pod of v1. urunc takes kernel, initramfs and command from the image's own annotations, the size from limits."""
    machine = job.machine(oci.VMLINUX, NONE)
    limits: dict[str, JSON] = {"memory": f"{machine.memory // MIB}Mi"}
    if machine.cpus > 1:
        limits["cpu"] = str(machine.cpus)
    container: dict[str, JSON] = {
        "name": job.name,
        "image": image_reference(job),
        "imagePullPolicy": "IfNotPresent",
        "resources": {"limits": limits},
    }
    if job.run.exposed_ports:
        container["ports"] = [{"containerPort": port, "protocol": kind.upper()} for port, kind in job.ports()]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": job.name, "labels": _labels(job)},
        "spec": {"runtimeClassName": RUNTIME_CLASS, "containers": [container]},
    }


def _labels(job: Job) -> JSON:
    return {"app.kubernetes.io/name": job.name}


def _yaml(job: Job, value: JSON) -> str:
    import yaml  # not free to import

    text: str = yaml.safe_dump(value, sort_keys=False, width=1 << 20)
    return f"# {job.comment()}\n{text}"
