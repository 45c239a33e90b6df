"""The compiler wrapper: what runs as ``ukl-gcc`` and as ``ld`` *inside* a build container.

These modules are installed below /usr/lib/ukl (see ``uklimg.recipes.toolchain``) and run under the container's own
python3-minimal, so they import the standard library only and nothing else of uklimg. Two programs do the work:

- ``driver`` (ukl-gcc, ukl-g++, …) corrects the flags that choose the kind of code and of executable, and executes the
  real gcc with a folder of ours first in COMPILER_PATH;
- ``linker`` is the ``ld`` in that folder. gcc hands it the complete link (start files, temporary objects, libraries,
  plug-in options), so nothing of gcc's driver has to be imitated. It links the ordinary static executable and keeps,
  keyed by its build ID, the relocatable object of the same inputs without libc (``store``).

``find`` (ukl-find) goes from a program, moved or stripped, back to its object.
"""
