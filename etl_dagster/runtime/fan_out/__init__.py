"""One slot, several destinations: read once, given to each, and one that falls behind set aside."""
