"""The initial copies, one table or a group of small ones at a time."""
