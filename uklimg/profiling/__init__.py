"""`uklimg profile`: what perf saw in a guest, as a flame graph.

``stacks`` reads what `perf script` writes, ``flame`` draws it: both pure. ``boot`` boots an image with perf
beside it.
"""
