"""The documentation: pages, and `python -m docs.api`, which writes one of them."""
