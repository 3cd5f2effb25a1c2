"""From proto to domain and back. The only place where both are named."""
