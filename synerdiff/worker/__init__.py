"""The skeleton that both stage workers share.

From settings to exit status: `main`, `process`, `loading`. One leader at a time: `stage_worker`, `leader`,
`run_stream`. The device's work, in order: `device_thread`, `halving`. The end of a worker that cannot go on:
`fail_stop`, `liveness`. A stage brings a `Stage`, a `StageWorker` and a `RunServicer` of its own.
"""
