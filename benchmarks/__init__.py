"""Ours against the peer, one script a claim: `python -m benchmarks.NAME`, all: `make bench`."""
