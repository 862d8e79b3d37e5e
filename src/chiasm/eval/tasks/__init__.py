"""Published benchmarks: one file each that reads the published files; registry.py finds them."""
