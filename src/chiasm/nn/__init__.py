"""Small free functions and modules that every model here is made of."""
