"""What carries visual features into the language model's embedding space."""
