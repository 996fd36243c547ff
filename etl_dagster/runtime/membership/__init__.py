"""Which tables a pipeline has: the publication's, with their partitions."""
