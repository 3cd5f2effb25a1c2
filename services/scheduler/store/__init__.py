"""Jobs, results and queues in Redis."""
