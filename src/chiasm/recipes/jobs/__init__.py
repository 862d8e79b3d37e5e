"""How each kind of model is built, fed, checked while training, and saved."""
