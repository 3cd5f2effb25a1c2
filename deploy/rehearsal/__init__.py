"""A dress rehearsal of the manifests: a small kubelet and small controllers run them as processes of this machine."""
