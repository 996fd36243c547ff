"""Everything goes wrong at random, for as long as one likes: ``make chaos``."""
