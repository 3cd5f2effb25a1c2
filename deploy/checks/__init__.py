"""What rendered manifests are held against: Kubernetes' schemas, and the code that their containers run."""
