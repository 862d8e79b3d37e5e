"""Measures as small free functions: of replies, of proportions, of images."""
