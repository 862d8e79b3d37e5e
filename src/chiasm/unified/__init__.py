"""Route B: images become discrete ids; one transformer is trained over text and image ids."""
