"""Whether tables at the destination are those of the source."""
