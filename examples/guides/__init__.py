"""Short programs, one for each thing that people reach for: see README.md."""
