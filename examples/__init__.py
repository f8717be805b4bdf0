"""Runnable examples, and the code they share."""
