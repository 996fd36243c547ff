"""Every table's position as Meltano state, and what people's changes to it mean."""
