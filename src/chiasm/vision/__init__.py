"""Visual encoders and their contrastive training."""
