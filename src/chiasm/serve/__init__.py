"""An OpenAI-compatible API and a page over models of either route."""
