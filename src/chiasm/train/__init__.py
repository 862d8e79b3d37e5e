"""One loop for all four trainable things."""
