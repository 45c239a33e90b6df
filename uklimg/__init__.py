"""uklimg: build, ship and run Linux unikernels (UKL) from a Dockerfile-like Uklfile."""

__version__ = "0.1.0"
