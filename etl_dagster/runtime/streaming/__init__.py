"""From the slot to the destination: stream, delivery, hand-over."""
