"""What an image is made of and how, as documents that other tools read: a bill of materials (CycloneDX) and a build's
provenance (SLSA). Both come from the image's blueprint and its lock, and are the same for the same image.

``copyrights``, ``parts``, ``sbom`` and ``provenance`` are pure; ``gather`` reads the store.
"""
