"""Pipeline, apply worker, table sync worker, batching, delivery, supervision."""
