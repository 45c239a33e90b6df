"""``python -m uklimg`` is the command ``uklimg``."""

from uklimg.cli.main import entry

if __name__ == "__main__":
    entry()
