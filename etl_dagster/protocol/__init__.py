"""The bytes of logical replication: no sockets, no clock, no logging."""
