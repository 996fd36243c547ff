"""Every table's position as Meltano state, and what users' changes to it mean."""
