"""Route B: pictures become discrete ids, and one transformer is trained over text and picture ids."""
