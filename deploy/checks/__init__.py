"""Checks of rendered manifests against Kubernetes' schemas and the code that their containers run."""
