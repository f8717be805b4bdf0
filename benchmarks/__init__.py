"""Timings. Ratios within one run count; absolute times depend on the machine and its neighbours."""
