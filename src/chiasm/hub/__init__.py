"""Saving and loading trained models; the only registry of what can be loaded."""
