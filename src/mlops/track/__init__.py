"""Track: runs, registry and their links to bundles; the only importer of mlflow."""
