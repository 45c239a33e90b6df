"""Benchmarks: scripts that print a table and write JSON; README.md in this folder says how to run them."""
