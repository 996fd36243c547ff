"""The demo's Meltano project: a tap and a target of a page each, run by `meltano run`."""
