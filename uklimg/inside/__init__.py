"""Scripts that build steps run inside a container: python3 and its standard library, nothing of uklimg."""
