"""Bytes in, values out: frames, pgoutput, columns. No sockets, no clock, no logging."""
