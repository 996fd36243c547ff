"""Everything goes wrong at random, for as long as you like: ``make chaos``."""
