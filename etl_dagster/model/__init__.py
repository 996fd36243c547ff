"""What everything is about: schemas, events, table states, and the contracts between the parts."""
