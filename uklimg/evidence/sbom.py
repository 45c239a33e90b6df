"""The bill of materials, in CycloneDX 1.6, made with cyclonedx-python-lib; pure and deterministic.

It has no time, and its serial number comes from the image's digest.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uklimg.digest import Digest
from uklimg.evidence.parts import Part
from uklimg.lock import LockedFile
from uklimg.oci import RunConfig

if TYPE_CHECKING:
    # Imported where one is made: few commands do.
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import ExternalReference, HashType
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

NOASSERTION = "NOASSERTION"
"""What SPDX says of a licence that nobody looked up."""
_TITLE = "org.opencontainers.image.title"


def sbom(image: Digest, run: RunConfig, parts: Sequence[Part], uklimg: str) -> bytes:
    """The document about ``image``; ``uklimg`` is the version that writes it."""
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    name = run.labels.get(_TITLE) or run.program
    top = Component(
        name=name,
        version=str(image),
        type=ComponentType.CONTAINER,
        bom_ref="image",
        hashes=[_hash(image)],
        purl=PackageURL("oci", None, name, str(image), {"arch": "amd64"}),
        properties=[
            Property(name="uklimg:target", value=run.target),
            Property(name="uklimg:ukl", value=" ".join(run.ukl_options)),
            Property(name="uklimg:program", value=run.program),
        ],
    )
    tool = Component(name="uklimg", version=uklimg, type=ComponentType.APPLICATION, bom_ref="tool")
    made = {part.ref: _component(part) for part in parts}
    serial = uuid.uuid5(uuid.NAMESPACE_OID, f"uklimg sbom {image}")
    bom = Bom(serial_number=serial, components=made.values(), metadata=BomMetaData(component=top))
    bom.metadata.tools.components.add(tool)
    needed = {need for part in parts for need in part.needs}
    bom.register_dependency(top, [made[part.ref] for part in parts if part.ref not in needed])
    for part in parts:
        bom.register_dependency(made[part.ref], [made[need] for need in part.needs])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library always says when it ran.
    document["metadata"].pop("timestamp", None)
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _component(part: Part) -> Component:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    types = {
        "kernel": ComponentType.OPERATING_SYSTEM,
        "source": ComponentType.APPLICATION,
        "init": ComponentType.APPLICATION,
        "image": ComponentType.CONTAINER,
        "patch": ComponentType.FILE,
        "context": ComponentType.FILE,
    }
    purl = None
    if part.purl is not None:
        kind, namespace, version, qualifiers = part.purl
        purl = PackageURL(kind, namespace or None, part.name, version, dict(qualifiers))
    return Component(
        name=part.name,
        version=part.version,
        type=types.get(part.what, ComponentType.LIBRARY),
        bom_ref=part.ref,
        scope=ComponentScope(part.scope.value),
        licenses=_licences(part.licences),
        hashes=[_hash(part.files[0].digest)] if len(part.files) == 1 else [],
        external_references=[_reference(file) for file in part.files if file.origin],
        purl=purl,
        properties=[Property(name="uklimg:part", value=part.what)],
    )


def _licences(texts: Sequence[str]) -> list[License]:
    """One may be an expression; several are listed one by one, since a list takes no expressions."""
    from cyclonedx.contrib.license.factories import LicenseFactory

    factory = LicenseFactory()
    if not texts:
        return [factory.make_with_name(NOASSERTION)]
    if len(texts) == 1:
        return [factory.make_from_string(texts[0])]
    return [_listed(factory, text) for text in texts]


def _listed(factory: LicenseFactory, text: str) -> License:
    from cyclonedx.contrib.license.exceptions import InvalidSpdxLicenseException

    try:
        return factory.make_with_id(text)
    except InvalidSpdxLicenseException:
        return factory.make_with_name(text)


def _hash(digest: Digest) -> HashType:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest.hex)


def _reference(file: LockedFile) -> ExternalReference:
    """Where a file is from: ``debian:`` and a path below any mirror's root, or a URL."""
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri

    return ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(file.origin),
        comment=file.name,
        hashes=[_hash(file.digest)],
    )
