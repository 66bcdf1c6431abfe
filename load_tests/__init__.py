"""Load tests with Locust; locustfile.py is what Locust loads."""
