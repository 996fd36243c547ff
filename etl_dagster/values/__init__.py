"""What a value is, from the text that Postgres prints to Arrow, Python and JSON."""
