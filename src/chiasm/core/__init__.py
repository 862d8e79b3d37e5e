"""The words every other folder speaks: samples, batches, vocabulary, protocols, configuration."""
