"""A supervisor: ``python -m uklimg.running FOLDER``."""

import sys
from pathlib import Path

from uklimg.running.supervisor import main

main(Path(sys.argv[1]), sys.stdin.buffer)
