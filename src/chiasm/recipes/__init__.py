"""Recipes: functions that return what to train on what, and the code that carries them out."""
