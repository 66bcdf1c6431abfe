"""What tools/bench.py measures, with whom, and how the figures are shown."""
