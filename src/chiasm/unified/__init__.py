"""Route B: pictures become discrete ids; one transformer is trained over text and picture ids."""
