"""What happens in a training step, in the order in which data flows."""
