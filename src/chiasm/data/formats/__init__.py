"""Data sets on disk, one file a format; each reads to and writes from `Sample`."""
