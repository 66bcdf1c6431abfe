"""What tools/checkpoint.py does with checkpoint folders: fetch, convert, verify, describe."""
