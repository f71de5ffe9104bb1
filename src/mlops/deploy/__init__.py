"""Deploy: a bundle becomes a service that answers and records."""
