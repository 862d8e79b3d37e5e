"""chiasm sweep: small models that show which settings keep training stable, before a large one."""
